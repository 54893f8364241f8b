"""A learning rate of the backbone's own: a multiple of the optimiser's, whatever a schedule makes of that."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR, OneCycleLR
from torch.optim.swa_utils import SWALR

from lightning_meta.errors import UserError

KEY = "lr_factor"  # of a group of parameters; the optimiser keeps it, in its checkpoints, too
SET_RATES = (OneCycleLR, CyclicLR, SWALR)


def groups_of(
    parameters: Iterable[nn.Parameter], backbone: nn.Module, factor: float
) -> list[nn.Parameter] | list[dict[str, Any]]:
    """The parameters that are trained; in groups, those of the backbone apart, where their rate is another.

    Args:
        parameters: Those of a module.
        backbone: Its backbone.
        factor: Of the rate of the backbone's parameters.

    Raises:
        UserError: They have another rate, and are frozen.
    """
    trained = [p for p in parameters if p.requires_grad]
    if factor == 1:
        return trained
    of_backbone = {id(p) for p in backbone.parameters() if p.requires_grad}
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


def as_groups(given: list[nn.Parameter] | list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What `groups_of` returned, as groups in either case."""
    return [{"params": given}] if not given or isinstance(given[0], nn.Parameter) else given


def scale_rates(optimizer: Optimizer) -> None:
    """Multiply the first rate of each group that has a factor."""
    for group in optimizer.param_groups:
        if KEY in group:
            group["lr"] = group["lr"] * group[KEY]  # anew: groups may share a tensor


def check_schedule(optimizer: Optimizer, schedule: Any) -> None:
    """Refuse a schedule that sets rates whatever they were, and so would lose the factor.

    Raises:
        UserError: Its class.
    """
    if not any(KEY in group for group in optimizer.param_groups):
        return
    if found := next((part for part in _parts(schedule) if isinstance(part, SET_RATES)), None):
        raise UserError(
            f"backbone_lr_factor: {type(found).__name__} sets the rates of all parameters by itself, without this "
            "factor; leave it out, or take another lr_scheduler"
        )


def _parts(schedule: Any) -> Iterator[Any]:
    """A schedule and those that it is made of, as `SequentialLR` and `ChainedScheduler` are."""
    yield schedule
    for part in getattr(schedule, "_schedulers", ()):
        yield from _parts(part)


def keep_in_search(schedule: Any) -> None:
    """Let `Tuner.lr_find`, which sets one rate for all parameters, try that of the backbone in proportion.

    Args:
        schedule: The schedule in use; another than that of the search is left alone.
    """
    if type(schedule).__module__ != "lightning.pytorch.tuner.lr_finder":
        return
    scale_rates(schedule.optimizer)
    factors = [group.get(KEY, 1.0) for group in schedule.optimizer.param_groups]
    schedule.get_lr = partial(_scaled, schedule.get_lr, factors)


def _scaled(rates: Callable[[], list[float]], factors: list[float]) -> list[float]:
    return [rate * factor for rate, factor in zip(rates(), factors, strict=True)]
