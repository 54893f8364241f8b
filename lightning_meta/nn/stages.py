"""Backbones as a sequence of stages, which can be shared, copied or conditioned up to some depth."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from lightning_meta.errors import UserError


class MeanOverPositions(nn.Module):
    """Maps `(M, C, H, W)` to features `(M, C)`, averaged over positions."""

    def forward(self, x: Tensor) -> Tensor:
        """Average over the last two dimensions."""
        return x.mean((-2, -1))


def stages_of(backbone: nn.Module) -> list[nn.Module]:
    """The stages of a backbone, whose composition is the backbone.

    Args:
        backbone: A `torch.nn.Sequential`, or a module whose method `stages` returns them, as those of this package do.

    Raises:
        UserError: It is neither of them.
    """
    if callable(stages := getattr(backbone, "stages", None)):
        return list(stages())
    if isinstance(backbone, nn.Sequential):
        return list(backbone)
    raise UserError(
        f"backbone: {type(backbone).__name__} cannot be split into stages; make it a torch.nn.Sequential, "
        "or give it a method stages() that returns its parts in order"
    )


def check_depth(option: str, depth: int, backbone: nn.Module, stages: Sequence[nn.Module]) -> None:
    """Refuse a depth that the backbone does not have.

    Raises:
        UserError: The depth exceeds the number of stages, or is negative.
    """
    if not 0 <= depth <= len(stages):
        name, most = type(backbone).__name__, len(stages)
        raise UserError(f"{option}: {name} has {most} stages, so a number from 0 to {most}; got {depth}")
