"""A backbone with normalisation of the channels of its images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_meta.checks import instance, numbers
from lightning_meta.describing import Described
from lightning_meta.errors import UserError
from lightning_meta.nn.stages import stages_of


class ChannelNormalized(Described, nn.Module):
    r"""A backbone that receives $(x - \mu_c) / \sigma_c$ for images x in [0, 1], for each channel c.

    The constants are not trained; checkpoints store them as arguments, not in the state dict.

    Args:
        backbone: Network that takes the normalised images.
        mean: Mean μ of each channel; (0.5071, 0.4867, 0.4408) for CIFAR-100 in the code of Tian et al. (2020).
        std: Standard deviation σ > 0 of each channel; (0.2675, 0.2565, 0.2761) for CIFAR-100 there.
    """

    def __init__(self, backbone: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        instance("backbone", backbone, nn.Module)
        numbers(mean=mean, std=std)
        if len(mean) != len(std):
            raise UserError(f"std: one number for each of the {len(mean)} in mean is needed, got {list(std)}")
        if min(std) <= 0:
            raise UserError(f"std: numbers above 0 are needed, got {list(std)}")
        self.normalize = _Channels(mean, std)
        self.backbone = backbone

    def stages(self) -> list[nn.Module]:
        """The stages of the backbone; the first includes the normalisation."""
        first, *others = stages_of(self.backbone)
        return [nn.Sequential(self.normalize, first), *others]

    def forward(self, x: Tensor) -> Tensor:
        """Map images `(M, C, H, W)` in [0, 1] to the outputs of the backbone.

        Raises:
            UserError: The images have another number of channels.
        """
        if x.dim() != 4 or x.shape[1] != self.normalize.channels:
            raise UserError(
                f"mean, std: there is a number for each of {self.normalize.channels} channels of images, got inputs of "
                f"shape {tuple(x.shape[1:])}; give one for each channel of yours"
            )
        features: Tensor = self.backbone(self.normalize(x))
        return features


class _Channels(nn.Module):
    """Normalises the first channels; channels that a method has appended are not changed."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.channels = len(mean)
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(list(values)).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        normalized = (x[:, : self.channels] - self.mean) / self.std
        further = x[:, self.channels :]
        return torch.cat([normalized, further], dim=1) if further.shape[1] else normalized
