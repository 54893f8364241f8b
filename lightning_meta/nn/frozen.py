"""Networks that may be frozen: their weights and statistics stay as they are, and an input's features are fixed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self

from torch import Tensor, nn

from lightning_meta.checks import instance
from lightning_meta.configuration import Described
from lightning_meta.errors import UserError
from lightning_meta.nn.normalization import per_task, task_norms


class FeatureExtractor(Described, nn.Module, ABC):
    """A network that makes features, and that may be frozen.

    Frozen, its parameters need no gradient, and it stays in evaluation mode whatever `train` says: batch normalisation
    uses what is stored, dropout is off. The features of an input are then always the same, so that an
    `EpisodicDataModule` computes those of stored images once, and serves them in place of the images.

    Args:
        network: `(M, ...)` to features `(M, F)`; frozen in place.
        frozen: Whether it is frozen.

    Attributes:
        passes: F, where a learner of images has found it out: then inputs `(M, F)` are features already, and are
            returned as they are.
        drawn: Whether its weights are random, so that another network of its kind would have others.
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
                    "backbone: it was unfrozen while its features, computed before, are served in place of images, so "
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
                norm.frozen = True  # also where a task's own statistics are asked for
        return self


class Frozen(FeatureExtractor):
    """Your own network, frozen: see `Pretrained` for published ones.

    Its weights are what they are when it is made, such as those that you have loaded; `backbone_weights` of a module
    takes those of a run. As the first part of a `torch.nn.Sequential` it is followed by layers that train::

        backbone = torch.nn.Sequential(lm.nn.Frozen(network), torch.nn.Linear(512, 64))

    Args:
        network: `(M, *input_shape)` to features `(M, F)`; frozen in place.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network, frozen=True)

    def features(self, x: Tensor) -> Tensor:
        """Inputs `(M, *input_shape)` to features `(M, F)`."""
        features: Tensor = self.network(x)
        return features


def frozen_part(backbone: nn.Module) -> FeatureExtractor | None:
    """The frozen network that a backbone is or begins with; None where there is none, or it was unfrozen."""
    part = backbone[0] if isinstance(backbone, nn.Sequential) and len(backbone) else backbone
    if not isinstance(part, FeatureExtractor) or not part.frozen or any(p.requires_grad for p in part.parameters()):
        return None
    return part
