"""Learning rate of the backbone as a fixed multiple of the optimiser's, also under a schedule."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR, OneCycleLR
from torch.optim.swa_utils import SWALR

from lightning_meta.errors import UserError

KEY = "lr_factor"  # key of the factor in a parameter group, which optimiser checkpoints include
SET_RATES = (OneCycleLR, CyclicLR, SWALR)


def groups_of(
    parameters: Iterable[nn.Parameter], backbone: Iterable[nn.Module], factor: float
) -> list[nn.Parameter] | list[dict[str, Any]]:
    """Return the trainable parameters; if `factor` is not 1, as groups with those of the backbone separate.

    Args:
        parameters: Parameters of a module.
        backbone: The modules of the backbone.
        factor: Factor of the learning rate of the backbone.

    Raises:
        UserError: There is a factor, but the backbone has no trainable parameters.
    """
    trained = [p for p in parameters if p.requires_grad]
    if factor == 1:
        return trained
    of_backbone = {id(p) for part in backbone for p in part.parameters() if p.requires_grad}
    if not of_backbone:
        raise UserError(
            f"backbone_lr_factor: {factor:g} was given, but all weights of the backbone are frozen; leave it out, or "
            "give a backbone that is not frozen"
        )
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if id(p) not in of_backbone]},
        {"params": [p for p in trained if id(p) in of_backbone], KEY: factor},
    ]
    return [group for group in groups if group["params"]]


def as_groups(parameters: list[nn.Parameter] | list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Convert the result of `groups_of` to a list of groups."""
    return [{"params": parameters}] if not parameters or isinstance(parameters[0], nn.Parameter) else parameters


def scale_rates(optimizer: Optimizer) -> None:
    """Multiply the initial learning rate of each group by its factor."""
    for group in optimizer.param_groups:
        if KEY in group:
            group["lr"] = group["lr"] * group[KEY]  # not in place: groups may share a tensor


def check_schedule(optimizer: Optimizer, schedule: Any) -> None:
    """Refuse a schedule that overwrites the learning rates of the groups and would lose the factor.

    Raises:
        UserError: The schedule, or a part of it, is of such a class.
    """
    if not any(KEY in group for group in optimizer.param_groups):
        return
    if found := next((part for part in _parts(schedule) if isinstance(part, SET_RATES)), None):
        raise UserError(
            f"backbone_lr_factor: {type(found).__name__} sets the rates of all parameters by itself, without this "
            "factor; leave it out, or take another lr_scheduler"
        )


def _parts(schedule: Any) -> Iterator[Any]:
    """Iterate over a schedule and its parts, as in `SequentialLR` and `ChainedScheduler`."""
    yield schedule
    for part in getattr(schedule, "_schedulers", ()):
        yield from _parts(part)


def keep_in_search(schedule: Any) -> None:
    """Apply the factor in `Tuner.lr_find`, which sets one learning rate for all parameters.

    Args:
        schedule: Schedule in use; only that of the search is changed.
    """
    if type(schedule).__module__ != "lightning.pytorch.tuner.lr_finder":
        return
    scale_rates(schedule.optimizer)
    factors = [group.get(KEY, 1.0) for group in schedule.optimizer.param_groups]
    schedule.get_lr = partial(_scaled, schedule.get_lr, factors)


def _scaled(rates: Callable[[], list[float]], factors: list[float]) -> list[float]:
    return [rate * factor for rate, factor in zip(rates(), factors, strict=True)]
