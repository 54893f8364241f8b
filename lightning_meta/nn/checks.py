"""Checks for layers that cannot be trained correctly, so that they are refused before training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import grad
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from lightning_meta.errors import UserError, raised_in, raised_in_package
from lightning_meta.functional.exact import ExactDerivatives

CANNOT_BE_MAPPED = (RuntimeError,)
"""Errors of `torch.func.vmap` if a network cannot be vectorised; includes `NotImplementedError`."""

SLOWLY_MAPPED = "There is a performance drop because we have not yet implemented the batching rule"
"""Beginning of torch's warning about a layer that `vmap` runs in a loop: correct, but slower."""

_Refusal = tuple[Callable[[nn.Module], object], str]


def _is_lazy(module: nn.Module) -> bool:
    return any(t is not None and is_lazy(t) for t in [*module._parameters.values(), *module._buffers.values()])


_ALWAYS: tuple[_Refusal, ...] = (
    (
        _is_lazy,
        "its sizes are not known yet; set them, or run the network once on an example first",
    ),
    (
        lambda m: getattr(m, "max_norm", None) is not None and isinstance(m, nn.Embedding | nn.EmbeddingBag),
        "max_norm rescales its weights in every forward pass, also in evaluation; leave max_norm out, and normalise "
        "the looked-up vectors instead",
    ),
)

_BY_INNER_GRADIENTS: tuple[_Refusal, ...] = (
    (
        lambda m: isinstance(m, nn.CrossMapLRN2d),
        "torch.func cannot differentiate it; nn.LocalResponseNorm computes the same",
    ),
    (
        lambda m: getattr(m, "scale_grad_by_freq", False),
        "scale_grad_by_freq returns something other than the derivative, so second-order gradients through it are "
        "undefined; leave it out",
    ),
    (
        lambda m: getattr(m, "sparse", False) and isinstance(m, nn.Embedding | nn.EmbeddingBag),
        "gradients through an inner step are dense; leave sparse=True out",
    ),
    (
        lambda m: m._backward_hooks or m._backward_pre_hooks,
        "torch.func does not support backward hooks of modules; remove them, or register hooks on tensors in forward",
    ),
    (
        lambda m: isinstance(m, torch.jit.ScriptModule),
        "the derivatives of TorchScript code cannot be checked or corrected; use the Python module that it was made of",
    ),
    (
        lambda m: hasattr(m, "_orig_mod") and hasattr(m, "dynamo_ctx"),
        "torch.compile does not support gradients within its code; use the module that was compiled, and compile=True "
        "compiles the whole training step",
    ),
)


def check_layers(network: nn.Module, inner_gradients: bool = True) -> None:
    """Refuse layers that would fail or silently compute wrong results.

    Args:
        network: The backbone.
        inner_gradients: Whether the method differentiates the network within its inner loop.

    Raises:
        UserError: The name of the layer, the reason, and the fix.
    """
    for path, module in network.named_modules():
        for applies, reason in (*_ALWAYS, *(_BY_INNER_GRADIENTS if inner_gradients else ())):
            if applies(module):
                raise UserError(f"backbone: {_label(path, module)} cannot be used: {reason}")
    registered = {id(p) for p in network.parameters()}
    for path, module in network.named_modules():
        for name, value in vars(module).items():
            if not name.startswith("_"):
                _check_container(path, module, name, value, registered)


def check_sizes(module: nn.Module) -> None:
    """Refuse lazy layers anywhere in a module, such as those that a method makes itself.

    Raises:
        UserError: The name of the layer and the fix.
    """
    for path, part in module.named_modules():
        if _is_lazy(part):
            raise UserError(
                f"{type(module).__name__}: {_label(path, part)} cannot be used: its sizes are not known yet; make it "
                "with its sizes, in `build` if they depend on the data, or run it once in `setup`"
            )


def _check_container(path: str, module: nn.Module, name: str, value: Any, registered: set[int]) -> None:
    """Refuse modules and parameters in plain lists: torch would neither train nor store them."""
    for item in _items(value):
        if isinstance(item, nn.Parameter):
            raise UserError(
                f"backbone: the list {name!r} of {_label(path, module)} holds parameters, which adaptation does not "
                "reach there; use nn.ParameterList, or read them from their layer in forward"
            )
        if isinstance(item, nn.Module) and any(id(p) not in registered for p in item.parameters()):
            raise UserError(
                f"backbone: the list {name!r} of {_label(path, module)} holds a {type(item).__name__}, which torch "
                "neither trains nor stores there; use nn.ModuleList or nn.ModuleDict"
            )


def _items(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, list | tuple | set):
        yield from value


def _label(path: str, module: nn.Module) -> str:
    return f"{path or 'the network'} ({type(module).__name__})"


_IN_PLACE = {"__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ipow__", "__imatmul__"}
_READ_MEMORY = (Tensor.numpy, Tensor.__array__, Tensor.__deepcopy__, Tensor.data_ptr, Tensor.untyped_storage)


class _Calls(TorchFunctionMode):
    """Notes which function of torch failed."""

    failed: Any = None

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            return function(*args, **(kwargs or {}))
        except RuntimeError:
            self.failed = function
            raise

    @property
    def changed_in_place(self) -> bool:
        """Whether the function that failed changes its first argument."""
        name = getattr(self.failed, "__name__", "")
        return name in _IN_PLACE or (name.endswith("_") and not name.startswith("__"))


def _remedy(error: RuntimeError, calls: _Calls, in_second_derivative: bool) -> str | None:
    """The fix for an error of torch within an inner loop, by where it was raised; None if the error is the user's."""
    if raised_in(error, saved_tensors_hooks.__enter__):
        return "torch.utils.checkpoint does not work in an inner loop; leave it out and set recompute=True"
    if raised_in(error, torch.autograd.Function.apply):
        return (
            "it calls a torch.autograd.Function without setup_context (reentrant torch.utils.checkpoint and "
            "torch.distributions.Beta are such); write it with setup_context, or from torch's operations"
        )
    if calls.failed in _READ_MEMORY:
        return "its forward reads tensors as NumPy arrays or copies them; use torch's operations"
    if calls.failed is Tensor.requires_grad_:
        return (
            "its forward calls Tensor.requires_grad_, or torch.autograd.functional does; compute derivatives by "
            "torch.func.grad or torch.func.vjp, and leave torch.utils.checkpoint out"
        )
    if calls.changed_in_place:
        return "its forward changes a parameter or another tensor in place; compute a new tensor instead"
    if in_second_derivative and raised_in_package(error, "torch.autograd"):
        return "torch has no second derivative of one of its functions; replace that, or set first_order=True"
    return None


def check_derivatives(
    network: Callable[[dict[str, Tensor]], Tensor], parameters: dict[str, Tensor], first_order: bool = False
) -> None:
    """Compute the gradient of one inner step, to fail before training with a clear message.

    Args:
        network: Function from parameters by name to outputs of any shape, without side effects.
        parameters: Parameters that the inner loop adapts.
        first_order: Whether second derivatives are omitted.

    Raises:
        UserError: torch cannot differentiate the network, or the forward pass changes parameters.
    """
    start = {name: p.detach().requires_grad_() for name, p in parameters.items()}
    before = {name: p.detach().clone() for name, p in start.items()}

    def energy(p: dict[str, Tensor]) -> Tensor:
        return forward(p).abs().square().sum()

    calls = _Calls()
    in_second_derivative = False

    def forward(parameters: dict[str, Tensor]) -> Tensor:
        with calls:
            return network(parameters)

    try:
        with ExactDerivatives(), torch.enable_grad():
            gradients = grad(energy)(start)
            in_second_derivative = True
            if not first_order and any(g.requires_grad for g in gradients.values()):
                squares = torch.stack([g.abs().square().sum() for g in gradients.values()]).sum()
                torch.autograd.grad(squares, list(start.values()), allow_unused=True)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        remedy = _remedy(error, calls, in_second_derivative)
        if remedy is None:
            raise
        raise UserError(f"backbone: it cannot be differentiated in an inner loop: {remedy} (torch: {error})") from error
    changed = [name for name, p in start.items() if not torch.equal(p, before[name])]
    if changed:
        with torch.no_grad():
            for name in changed:
                start[name].copy_(before[name])
        raise UserError(f"backbone: its forward changes {changed[0]} in place; compute a new tensor instead")
