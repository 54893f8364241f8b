"""A backbone that starts from the weights of a run."""

from __future__ import annotations

from os import PathLike

from torch import Tensor, nn

from lightning_meta.errors import UserError
from lightning_meta.finite import check_numbers
from lightning_meta.loading import check_tensors, find_checkpoint
from lightning_meta.migration import LAYOUT, layout_of
from lightning_meta.nn.frozen import Frozen
from lightning_meta.run.checkpoint_io import read_checkpoint

OPTION, PREFIX, WITHIN = "backbone_weights", "backbone.", "network."


def take_backbone(backbone: nn.Module, run: str | PathLike[str]) -> None:
    """Give a backbone the weights and statistics that the backbone of a run has; nothing else of the run is used.

    No class that the checkpoint names is imported or built. A `Frozen` network takes those of the same network.

    Args:
        backbone: Changed in place.
        run: A run directory (its best checkpoint, or its last where there is no best), or a checkpoint.

    Raises:
        UserError: There is no checkpoint, or its backbone has other names or shapes.
    """
    try:
        file = find_checkpoint(run)
        checkpoint = read_checkpoint(file)
        if layout_of(checkpoint) < LAYOUT:
            raise UserError(f"{file} was written by version 0.1, which named weights otherwise; take a newer run")
        weights = _backbone_of(checkpoint.get("state_dict"))
        if not weights:
            raise UserError(f"{file} holds no backbone; name a run of a meta-learner or a multi-task module")
        target, weights = _matched(backbone, weights)
        check_tensors(target, weights, f"the backbone of {file}")
        check_numbers(target, weights, file)
    except UserError as error:
        raise UserError(f"{OPTION}: {error}") from error
    target.load_state_dict(weights)


def _backbone_of(weights: object) -> dict[str, Tensor]:
    named = weights if isinstance(weights, dict) else {}
    return {str(name).removeprefix(PREFIX): tensor for name, tensor in named.items() if str(name).startswith(PREFIX)}


def _matched(backbone: nn.Module, weights: dict[str, Tensor]) -> tuple[nn.Module, dict[str, Tensor]]:
    """The network that the weights are for, whether or not it, or that of the run, is wrapped as `Frozen`."""
    wrapped = all(name.startswith(WITHIN) for name in weights)
    if isinstance(backbone, Frozen) and not wrapped:
        return backbone.network, weights
    if wrapped and not all(name.startswith(WITHIN) for name in backbone.state_dict()):
        return backbone, {name.removeprefix(WITHIN): tensor for name, tensor in weights.items()}
    return backbone, weights
