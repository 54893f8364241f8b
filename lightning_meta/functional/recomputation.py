"""Recomputation in the backward pass, which saves memory, for functions that compute gradients."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.func import vjp
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from lightning_meta.errors import UserError
from lightning_meta.functional.generators import generator_states, generators_restored, same_states

Result = TypeVar("Result")

_REMEDY = "draw with torch's global generator (torch.rand, torch.nn.Dropout), which is replayed, or leave recompute out"


def recomputed(function: Callable[..., Result], *inputs: Any) -> Result:
    """Run a function without keeping its graph; the backward pass runs it again.

    `torch.utils.checkpoint` (Chen et al. 2016) does not pass through `torch.func.grad`; this does, under `vmap` too.
    What the function draws with torch's global generators is drawn again; `check_replays` refuses other randomness.

    Args:
        function: Function from pytrees of tensors to a pytree of tensors. It must not change its inputs in place, and
            every tensor with respect to which it is differentiated must be an input.
        *inputs: Inputs of the function.

    Returns:
        The result of the function.

    Raises:
        UserError: In the backward pass, if the second run returned other values than the first. Only checked on a CPU
            and without `vmap`, where reading values costs nothing.
    """
    leaves, structure = tree_flatten(inputs)
    returned: list[TreeSpec] = []
    device = leaves[0].device
    mixed, precision = torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)

    def flat(*leaves: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast(device.type, precision, enabled=mixed):  # the backward pass runs outside of it
            outputs, spec = tree_flatten(function(*tree_unflatten(leaves, structure)))
        returned[:] = [spec]
        passed = {id(leaf) for leaf in leaves}
        return tuple(o.clone() if id(o) in passed else o for o in outputs)  # an input cannot be saved as an output too

    outputs = _Recomputed.apply(_Replayed(flat, device), *leaves)  # type: ignore[no-untyped-call]
    result: Result = tree_unflatten(outputs, returned[0])
    return result


class _Replayed:
    """A function together with the random states that its first run started from, if it drew anything."""

    def __init__(self, function: Callable[..., tuple[Tensor, ...]], device: torch.device) -> None:
        self.function, self.device = function, device
        self.start: list[Tensor] | None = None

    def first(self, *leaves: Tensor) -> tuple[Tensor, ...]:
        before = generator_states(self.device)
        outputs = self.function(*leaves)
        if not same_states(before, generator_states(self.device)):
            self.start = before
        return outputs

    def again(self, *leaves: Tensor) -> tuple[Tensor, ...]:
        if self.start is None:
            return self.function(*leaves)
        with generators_restored(self.device, self.start):
            return self.function(*leaves)


class _Recomputed(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(replayed: _Replayed, *leaves: Tensor) -> tuple[Tensor, ...]:
        return replayed.first(*leaves)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.replayed, *leaves = inputs
        ctx.save_for_backward(*leaves, *output)  # the output of a step is the input of the next: no further memory
        ctx.inputs = len(leaves)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        leaves, outputs = ctx.saved_tensors[: ctx.inputs], ctx.saved_tensors[ctx.inputs :]
        real = [i for i, leaf in enumerate(leaves) if _is_real(leaf)]

        def of_real(*chosen: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
            every = list(leaves)
            for i, leaf in zip(real, chosen, strict=True):
                every[i] = leaf
            again = ctx.replayed.again(*every)
            return tuple(filter(_is_real, again)), again

        _, pull_back, again = vjp(of_real, *(leaves[i] for i in real), has_aux=True)  # type: ignore[misc]
        readable = all(t.device.type == "cpu" and not is_functorch_wrapped_tensor(t) for t in again)
        if readable and _differ(outputs, again):
            raise UserError(f"recompute: an inner step that was computed again gave other values; {_REMEDY}")
        incoming = tuple(g for g, output in zip(gradients, outputs, strict=True) if _is_real(output))
        found = dict(zip(real, pull_back(incoming), strict=True))
        return None, *(found.get(i) for i in range(len(leaves)))


def _is_real(tensor: Tensor) -> bool:
    """Whether a tensor can have a gradient; counters and masks have none."""
    return tensor.is_floating_point() or tensor.is_complex()


def check_replays(function: Callable[..., Any], *inputs: Any, module: nn.Module | None = None) -> None:
    """Refuse a function whose randomness `recomputed` cannot replay; torch's global generators are left as they were.

    It costs two runs, so it belongs before training, on the first batch.

    Args:
        function: Function that `recomputed` will run, here without `vmap`.
        *inputs: Inputs of the function, pytrees of tensors.
        module: Network that the function runs; generators among its attributes are checked.

    Raises:
        UserError: The function draws from a generator of Python's, NumPy's or its own, or two runs from the same random
            state return different values.
    """
    device = next(leaf.device for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor))
    before = _foreign_states(module)
    runs = []
    for _ in range(2):
        with generators_restored(device):
            runs.append([leaf.detach() for leaf in tree_leaves(function(*inputs)) if isinstance(leaf, Tensor)])
    drawn = [name for name, state in _foreign_states(module).items() if state != before[name]]
    if drawn:
        raise UserError(f"recompute: the network draws from {' and '.join(drawn)}, which cannot be replayed; {_REMEDY}")
    if _differ(*runs):
        raise UserError(
            "recompute: two runs of an inner step from the same random state gave different values, so the network "
            f"draws from a source or keeps a state that cannot be replayed; {_REMEDY}"
        )


def draws(function: Callable[[], Any], device: torch.device, module: nn.Module | None = None) -> bool:
    """Whether a function draws random numbers; torch's global generators are left as they were.

    Args:
        function: Function without arguments; it is run once.
        device: Device on which it computes.
        module: Network that the function runs, as for `check_replays`.
    """
    with generators_restored(device):
        before = generator_states(device), _foreign_states(module)
        function()
        return not same_states(before[0], generator_states(device)) or before[1] != _foreign_states(module)


def _foreign_states(module: nn.Module | None) -> dict[str, str]:
    return {name: repr(state()) for name, state in _foreign(module).items()}


def _foreign(module: nn.Module | None) -> dict[str, Callable[[], Any]]:
    """Random generators other than torch's global ones: their states by what they are called in an error."""
    found: dict[str, Callable[[], Any]] = {
        "Python's random": random.getstate,
        "numpy.random": lambda: _numpy_state(np.random.get_state(legacy=False)),  # noqa: NPY002 (users draw from it)
    }
    for path, part in module.named_modules() if module is not None else ():
        for name, value in vars(part).items():
            state = _state_of(value)
            if state is not None:
                found[f"the generator {path + '.' if path else ''}{name}"] = state
    return found


def _state_of(value: Any) -> Callable[[], Any] | None:
    if isinstance(value, torch.Generator):
        return lambda: value.get_state().tolist()
    if isinstance(value, random.Random):
        return value.getstate
    if isinstance(value, np.random.Generator):
        return lambda: value.bit_generator.state
    if isinstance(value, np.random.RandomState):
        return lambda: _numpy_state(value.get_state(legacy=False))
    return None


def _numpy_state(state: Any) -> Any:
    """The state as lists, since arrays are printed in part."""
    inner = state["state"]
    return [inner["key"].tolist(), inner["pos"], state["has_gauss"]] if "key" in inner else inner


def _differ(first: Any, second: Any) -> bool:
    """Whether tensors differ by more than rounding; NaN equals NaN."""
    for a, b in zip(first, second, strict=True):
        if a.is_floating_point() or a.is_complex():
            a, b = a.nan_to_num(), b.nan_to_num()
            if (a - b).norm() > 100 * torch.finfo(a.dtype).eps * a.norm():
                return True
        elif not torch.equal(a, b):
            return True
    return False
