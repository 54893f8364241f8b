"""Functional calls of modules: run a module with given parameters and buffers, without changing it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor

from lightning_meta.functional.exact import ExactDerivatives
from lightning_meta.functional.generators import generators_restored
from lightning_meta.nn.normalization import Statistics, TaskBatchNorm

Tensors = dict[str, Tensor]
_STATISTICS = ("running_mean", "running_var")
_MISSING = object()
_SMALL = 256  # lists and dictionaries with at most so many entries are copied before each call
_NEEDS_EXACT = "_needs_exact_derivatives"
_KEPT = "_plan_of_tensors"  # an attribute of the module: a global cache would keep modules alive


def tensors_of(module: nn.Module) -> tuple[Tensors, Tensors]:
    """The parameters and the buffers of a module, by name."""
    return dict(module.named_parameters()), dict(module.named_buffers())


def own_buffers(module: nn.Module) -> Tensors:
    """Copies of the buffers other than batch statistics (masks, counters, position ids ...), by name.

    They are copied since a forward pass may change buffers in place.
    """
    plan = _plan_of(module)
    return {name: plan.value(name).clone() for name in plan.own_buffers}


def stateless_call(
    module: nn.Module, tensors: Mapping[str, Tensor], x: Tensor, statistics: Statistics
) -> tuple[Tensor, Tensors]:
    """Run a module with given parameters and buffers; it uses its own for those that are not given.

    Args:
        module: The module; it is not changed.
        tensors: Parameters and buffers by name, including statistics for layers without running statistics. Buffers
            that are left out are the module's own and may change.
        x: Inputs `(M, *input_shape)`.
        statistics: Statistics of batch normalisation: of `x`, or as stored in `tensors`.

    Returns:
        The outputs; and a copy of `tensors` with the buffers after the pass: the statistics of `x` if they were used,
        and other buffers that changed. A buffer that the module changes in place also changes in `tensors`.
    """
    with swapped(module, tensors, statistics) as after, exact_derivatives(module):
        outputs = module(x)
    return outputs, after


@contextmanager
def exact_derivatives(module: nn.Module) -> Iterator[None]:
    """A context in which derivatives through a module's layers are exact; see `functional.exact`.

    The first run records whether the module calls a function that needs the correction; if not, later runs skip it.
    """
    needs: dict[bool, bool] = module.__dict__.setdefault(_NEEDS_EXACT, {})
    if ExactDerivatives.active() or needs.get(module.training) is False:
        yield
        return
    with ExactDerivatives() as mode:
        yield
    needs[module.training] = mode.found


@contextmanager
def swapped(
    module: nn.Module, tensors: Mapping[str, Tensor], statistics: Statistics | None = None
) -> Iterator[Tensors]:
    """A context in which a module has other parameters and buffers.

    A tensor with several names (a layer under two names, tied weights) is replaced under all of them.

    Args:
        module: The module; it is restored at the end, also after an error.
        tensors: Tensors by their first name, as in `named_parameters` and `named_buffers`.
        statistics: Statistics that batch normalisation uses, see `stateless_call`; None does not change its mode.

    Yields:
        A dictionary that is filled with the tensors at the end of the context.

    Raises:
        KeyError: The module has no tensor of such a name.
    """
    plan = _plan_of(module)
    if unknown := tensors.keys() - plan.places.keys():
        raise KeyError(f"{type(module).__name__} has no parameters or buffers {sorted(unknown)}")
    norms = [norm for _, norm in plan.norms]
    # Save all places before replacing any, since one module may have two names.
    replaced = [(own, key, own[key]) for name in tensors for own, key in plan.places[name]]
    modes = [norm.statistics for norm in norms]
    recorded = [[norm._buffers[name] for name in _STATISTICS] for norm in norms]
    private = [(part, _private(part)) for part in plan.keepers]
    after: Tensors = {}
    try:
        for name, tensor in tensors.items():
            for own, key in plan.places[name]:
                own[key] = tensor
        if statistics is not None:
            for norm in norms:
                norm.statistics, norm.calls = statistics, 0
        yield after
        after.update({name: plan.value(name) for name in tensors})
        if statistics is not None:
            for prefix, norm in plan.norms:
                used = {prefix + name: norm._buffers[name] for name in _STATISTICS}
                after.update({name: tensor for name, tensor in used.items() if tensor is not None})
    finally:
        for own, key, old in reversed(replaced):
            own[key] = old
        for norm, mode, buffers in zip(norms, modes, recorded, strict=True):
            norm.statistics = mode
            if statistics is not None:
                norm._buffers.update(zip(_STATISTICS, buffers, strict=True))
        for part, kept in private:
            _restore_private(part, kept)


class _Plan:
    """Where a module holds its tensors; rebuilt when a submodule or a tensor was replaced.

    Attributes:
        places: All places of each tensor, by its first name: the dictionary of a submodule and the key in it.
        own_buffers: Names of the buffers other than batch statistics.
        norms: Batch normalisation layers, each with the prefix of its buffers' names.
        keepers: Submodules that may keep tensors outside of their parameters and buffers.
    """

    def __init__(self, module: nn.Module) -> None:
        parts = dict(module.named_modules())
        self.places: dict[str, list[tuple[dict[str, Any], str]]] = {}
        self.norms = [(f"{n}." if n else "", part) for n, part in parts.items() if isinstance(part, TaskBatchNorm)]
        self.keepers = [part for part in parts.values() if _may_keep(part)]
        self.own_buffers: list[str] = []
        names: dict[int, str] = {}
        dictionaries: list[dict[str, Any]] = []
        for prefix, part in parts.items():
            dictionaries += [part._modules, part._parameters, part._buffers]
            for own in dictionaries[-2:]:
                for key, tensor in own.items():
                    name = f"{prefix}.{key}" if prefix else key
                    if tensor is not None:
                        name = names.setdefault(id(tensor), name)
                    elif not isinstance(part, TaskBatchNorm):
                        continue  # an empty slot; only statistics may be given for one
                    self.places.setdefault(name, []).append((own, key))
                    if own is part._buffers and not isinstance(part, TaskBatchNorm):
                        self.own_buffers.append(name)
        self._seen = [(own, list(own.items())) for own in dictionaries]

    def fits(self) -> bool:
        """Whether no submodule or tensor was replaced since."""
        for own, items in self._seen:
            if len(own) != len(items):
                return False
            for key, value in items:
                if own.get(key, _MISSING) is not value:
                    return False
        return True

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """Not copied: a copy of the module builds its own plan."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()

    def value(self, name: str) -> Tensor:
        """The tensor that currently has a name."""
        own, key = self.places[name][0]
        tensor: Tensor = own[key]
        return tensor


def _plan_of(module: nn.Module) -> _Plan:
    plan: _Plan | None = module.__dict__.get(_KEPT)
    if plan is None or not plan.fits():
        module.__dict__.pop(_NEEDS_EXACT, None)
        plan = module.__dict__[_KEPT] = _Plan(module)
    return plan


def _may_keep(part: nn.Module) -> bool:
    """torch's own layers keep no other tensors, except recurrent layers and those with hooks."""
    plain = type(part).__module__.startswith(("torch.nn.modules.", "lightning_meta.nn."))
    return not plain or isinstance(part, nn.RNNBase) or bool(part._forward_pre_hooks)


_OF_EVERY_MODULE = frozenset(nn.Module().__dict__)


def _private(part: nn.Module) -> dict[str, Any]:
    """The attributes of a module, besides parameters and buffers, that a forward pass may change.

    These are weights that hooks compute from parameters, the weight lists of recurrent layers, and attributes in which
    a network stores results: tensors, and shallow copies of lists and dictionaries.
    """
    if isinstance(part, nn.RNNBase):
        return {name: part.__dict__.get(name, _MISSING) for name in ("_flat_weights", "_flat_weight_refs")}
    return {
        name: value if isinstance(value, Tensor) else value.copy() if len(value) <= _SMALL else len(value)
        for name, value in part.__dict__.items()
        if isinstance(value, Tensor | list | dict) and name not in _OF_EVERY_MODULE
    }


def _restore_private(part: nn.Module, before: Mapping[str, Any]) -> None:
    """Undo the changes of `_private`. Results that a network stores stay, unless they belong to an ended transform."""
    own = part.__dict__
    if isinstance(part, nn.RNNBase):
        own.update({name: value for name, value in before.items() if value is not _MISSING})
        return
    made_by_hooks = bool(part._forward_pre_hooks)
    for name, value in list(own.items()):
        if name in _OF_EVERY_MODULE:
            continue
        if isinstance(value, Tensor):
            if is_functorch_wrapped_tensor(value) and name not in before:
                del own[name]  # a tensor of a transform that ends with the call
            elif name in before and (made_by_hooks or is_functorch_wrapped_tensor(value)):
                own[name] = before[name]
        elif isinstance(value, list | dict):
            _restore_container(value, before.get(name, []))


def _restore_container(value: list[Any] | dict[Any, Any], before: Any) -> None:
    if isinstance(before, int):  # a large one was not copied: only check what was added
        keys = list(range(len(value)) if isinstance(value, list) else value) if len(value) > before else []
        for key in reversed(keys[before:]):
            if _unusable(value[key]):
                del value[key]
    elif any(map(_unusable, value.values() if isinstance(value, dict) else value)):
        value.clear()
        if isinstance(value, dict):
            value.update(before)
        else:
            value.extend(before)


def _unusable(value: object) -> bool:
    return isinstance(value, Tensor) and is_functorch_wrapped_tensor(value)


@torch.no_grad()
def put_buffers(module: nn.Module, buffers: Mapping[str, Tensor]) -> None:
    """Set buffers of a module, possibly to values of another shape.

    Args:
        module: The module; it is changed in place.
        buffers: Values by name, as in `named_buffers`.
    """
    plan = _plan_of(module)
    for name, value in buffers.items():
        for own, key in plan.places[name]:
            old = own[key]
            if value is not old and old.shape == value.shape and old.dtype == value.dtype:
                old.copy_(value)
            elif value is not old:
                own[key] = value.detach().clone()


@contextmanager
def in_evaluation_mode(module: nn.Module) -> Iterator[None]:
    """A context in evaluation mode; it restores the mode of each submodule, since users may keep some in evaluation."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def untouched(module: nn.Module, parts: Sequence[nn.Module] | None = None) -> Iterator[None]:
    """A context that restores the buffers of a module and torch's random state.

    Args:
        module: The module that runs.
        parts: Submodules that have buffers, from `parts_of`; None to find them here.
    """
    parts = parts_of(module) if parts is None else parts
    # In training mode torch's batch normalisation changes running statistics without increasing their version.
    counted = not any(part.training for part in parts)
    places = [(part._buffers, dict(part._buffers)) for part in parts if part._buffers]
    buffers = list({id(b): b for _, old in places for b in old.values() if b is not None}.values())
    before = [(buffer.clone(), _version(buffer) if counted else None) for buffer in buffers]
    first = next(module.parameters(), next(iter(buffers), torch.empty(0)))
    try:
        with generators_restored(first.device):
            yield
    finally:
        for own, old in places:
            own.update(old)
        with torch.no_grad():
            for buffer, (old_value, version) in zip(buffers, before, strict=True):
                if version is None or _version(buffer) != version:
                    buffer.copy_(old_value)


def parts_of(module: nn.Module) -> list[nn.Module]:
    """The modules of `module.modules()`, in any order, ten times as fast: it matters for batches of many tasks."""
    by_id: dict[int, nn.Module] = {}
    stack = [module]
    while stack:
        part = stack.pop()
        if id(part) not in by_id:
            by_id[id(part)] = part
            if part._modules:
                stack += [child for child in part._modules.values() if child is not None]
    return list(by_id.values())


def _version(tensor: Tensor) -> int | None:
    """The number of in-place changes of a tensor; comparing values would synchronise with the device."""
    return None if tensor.is_inference() else tensor._version
