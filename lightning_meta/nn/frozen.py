"""Frozen networks: weights and statistics do not change, so the features of an input can be computed once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self

from torch import Tensor, nn

from lightning_meta.checks import instance
from lightning_meta.describing import Described
from lightning_meta.errors import UserError
from lightning_meta.nn.normalization import per_task, task_norms
from lightning_meta.nn.stages import stages_of


class FeatureExtractor(Described, nn.Module, ABC):
    """A network that computes features and may be frozen.

    If frozen, its parameters require no gradient, and it stays in evaluation mode after `train`: batch normalisation
    uses the stored statistics, and dropout is off. The features of an input are then constant, so an
    `EpisodicDataModule` computes those of stored images once and yields them instead of the images.

    Args:
        network: Network from `(M, ...)` to features `(M, F)`; it is frozen in place.
        frozen: Whether to freeze it.

    Attributes:
        passes: Number of features F, set by learners of images: inputs `(M, F)` are then taken as features and
            returned unchanged.
        drawn: Whether its weights are random, so that another instance has different ones.
    """

    passes: int | None = None
    drawn: bool = False

    def __init__(self, network: nn.Module, frozen: bool) -> None:
        super().__init__()
        instance("network", network, nn.Module)
        self.network, self.frozen = network, frozen
        if frozen:
            per_task(network).requires_grad_(False)
            self.train()

    @abstractmethod
    def features(self, x: Tensor) -> Tensor:
        """Inputs `(M, *input_shape)` to features `(M, F)`."""

    def forward(self, x: Tensor) -> Tensor:
        """Inputs `(M, *input_shape)`, or features `(M, F)` of images, to features `(M, F)`.

        Raises:
            UserError: It was unfrozen after data began to serve its features.
        """
        if self.passes is not None and tuple(x.shape[1:]) == (self.passes,):
            if any(p.requires_grad for p in self.parameters()):
                raise UserError(
                    "backbone: it was unfrozen, but the data contains its precomputed features instead of images, so "
                    "it would not be trained; unfreeze it before training begins, or set needs_images = True of the "
                    "module"
                )
            return x
        return self.features(x)

    def train(self, mode: bool = True) -> Self:
        """Set the mode; a frozen network stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.network.eval()
            for norm in task_norms(self.network).values():
                norm.frozen = True  # even within `statistics_from`
        return self


class Frozen(FeatureExtractor):
    """Your own network, frozen; for published networks see `Pretrained`.

    It keeps the weights that it has when it is made, for example loaded ones; `backbone_weights` of a module takes them
    from a run. In a `torch.nn.Sequential` it can be followed by trained layers::

        backbone = torch.nn.Sequential(lm.nn.Frozen(network), torch.nn.Linear(512, 64))

    Args:
        network: Network from `(M, *input_shape)` to features `(M, F)`; it is frozen in place.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network, frozen=True)

    def features(self, x: Tensor) -> Tensor:
        """Inputs `(M, *input_shape)` to features `(M, F)`."""
        features: Tensor = self.network(x)
        return features


def layers_of(network: nn.Module) -> list[nn.Module]:
    """The layers whose composition is the network, as far as its stages, and those of its parts, are known.

    Args:
        network: Network of any kind; if it has no stages, it is the only layer.
    """
    if isinstance(network, Frozen):
        return layers_of(network.network)
    if not isinstance(network, nn.Sequential) and not callable(getattr(network, "stages", None)):
        return [network]
    return [layer for stage in stages_of(network) for layer in layers_of(stage)]


def frozen_part(backbone: nn.Module) -> FeatureExtractor | None:
    """The frozen network that a backbone is or begins with; None if there is none or it was unfrozen."""
    part = backbone[0] if isinstance(backbone, nn.Sequential) and len(backbone) else backbone
    if not isinstance(part, FeatureExtractor) or not part.frozen or any(p.requires_grad for p in part.parameters()):
        return None
    return part
