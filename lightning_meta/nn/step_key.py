"""A key of everything that a step reads besides the values of its inputs, and that a CUDA graph freezes."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

_PLAIN = (bool, int, float, complex, str, type(None), torch.dtype, torch.device)
_OF_EVERY_MODULE = frozenset(nn.Module().__dict__) - {"training"}
_LARGE = 64  # entries of a list or dictionary that are compared one by one

Key = tuple[Hashable, ...]


def step_key(parts: Iterable[nn.Module], inputs: Any, ignored: frozenset[str]) -> Key:
    """The key of a step: steps with equal keys run the same operations on the same memory.

    Args:
        parts: The modules that the step runs, each once.
        inputs: Pytree of its inputs; leaves other than tensors are constants of the graph.
        ignored: Names of attributes that change between steps without changing what is computed.

    Returns:
        Shapes, strides and dtypes of the inputs; modes and plain attributes of the modules, such as a rate or a number
        of steps; addresses of parameters and buffers and whether they are trained; and torch's global settings.
    """
    leaves, structure = tree_flatten(inputs)
    return (
        str(structure),
        *(_kind(leaf) if isinstance(leaf, Tensor) else _plain(leaf) for leaf in leaves),
        *(_state(part, ignored) for part in parts),
        *_switches(next((leaf.device.type for leaf in leaves if isinstance(leaf, Tensor)), "cpu")),
    )


def _kind(x: Tensor) -> Key:
    return tuple(x.shape), x.stride(), x.dtype, x.device, x.requires_grad


def _place(x: Tensor | None) -> Key:
    return () if x is None else (x.data_ptr(), tuple(x.shape), x.dtype, x.requires_grad)


def _state(part: nn.Module, ignored: frozenset[str]) -> Key:
    own = part.__dict__
    tensors = [*own["_parameters"].values(), *own["_buffers"].values()]
    plain = [(n, _plain(v)) for n, v in own.items() if n not in _OF_EVERY_MODULE and n not in ignored]
    return (*(_place(tensor) for tensor in tensors), *plain)


def _plain(value: Any, depth: int = 2, nested: int = 4) -> Hashable:
    """A hashable value that changes when an attribute does; for an object, its identity and its plain attributes.

    Args:
        value: Value of the attribute.
        depth: Depth up to which attributes of objects are included.
        nested: Depth up to which containers are included; bounded, since a container may hold itself.
    """
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, np.generic):
        item: Hashable = value.item()
        return item
    if isinstance(value, Tensor):
        return _place(value)
    small = isinstance(value, list | tuple | set | frozenset | Mapping) and nested > 0 and len(value) <= _LARGE
    if small and isinstance(value, Mapping):
        return tuple((str(k), _plain(v, depth, nested - 1)) for k, v in value.items())
    if small:
        entries = (_plain(v, depth, nested - 1) for v in value)
        return frozenset(entries) if isinstance(value, set | frozenset) else tuple(entries)
    whole = depth == 0 or isinstance(value, nn.Module | type) or _is_frozen(value)
    inner = {} if whole else getattr(value, "__dict__", {})
    return _Same(value), tuple((n, _plain(v, depth - 1)) for n, v in inner.items() if len(inner) <= _LARGE)


def _is_frozen(value: Any) -> bool:
    """Whether an object is a frozen dataclass, such as the specification of the data, which may be large."""
    parameters = getattr(value, "__dataclass_params__", None)
    return parameters is not None and bool(parameters.frozen)


class _Same:
    """An object compared by identity; it is kept alive, so that its address cannot be reused."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def _switches(device: str) -> Key:
    autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
    deterministic = torch.are_deterministic_algorithms_enabled()
    return autocast, torch.is_grad_enabled(), torch.is_inference_mode_enabled(), deterministic
