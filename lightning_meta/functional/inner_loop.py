"""Gradient descent on a support set, differentiable with respect to its starting point."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from numbers import Real
from typing import Any, TypeVar

from torch import Tensor
from torch.func import grad
from torch.utils._pytree import tree_map

from lightning_meta.errors import UserError
from lightning_meta.functional.inference import check_gradients
from lightning_meta.functional.inner_optimizers import InnerOptimizer, InnerSGD, State
from lightning_meta.functional.recomputation import recomputed

Tensors = dict[str, Tensor]
Loss = Callable[[Tensors, Tensors, Any], tuple[Tensor, Tensors]]
Tree = TypeVar("Tree")
_DESCENT = InnerSGD()


def inner_loop(
    loss: Loss,
    parameters: Tensors,
    buffers: Tensors,
    data: Any,
    steps: int,
    learning_rate: float | Callable[[int], float | Tensor | Tensors],
    first_order: bool = False,
    recompute: bool = False,
    direction: Callable[[Tensors], Tensors] = lambda gradients: gradients,
    optimizer: InnerOptimizer = _DESCENT,
) -> list[tuple[Tensors, Tensors]]:
    r"""Take a few gradient steps on the support loss.

    $$\varphi_0 = \theta, \qquad \varphi_{j+1} = \varphi_j - \alpha_j\, d(u(\nabla_\varphi L(\varphi_j)))$$

    The result is differentiable with respect to θ, the data and the rates, including through the gradients. With
    `first_order` the gradients are constants without a graph, so that dφ/dθ is the identity.

    >>> import torch
    >>> def loss(parameters, buffers, target):
    ...     return (parameters["w"] - target).square().sum(), buffers
    >>> trajectory = inner_loop(loss, {"w": torch.zeros(1)}, {}, torch.ones(1), steps=2, learning_rate=0.25)
    >>> [parameters["w"].item() for parameters, _ in trajectory]
    [0.0, 0.5, 0.75]

    Args:
        loss: Function from parameters, buffers and data to the support loss (a scalar) and the buffers after the
            forward pass. With `first_order` or `recompute`, all tensors that the meta-gradient reaches must be
            arguments of it: captured tensors are neither held constant nor differentiated.
        parameters: Initial values θ of the adapted parameters by name.
        buffers: Buffers of the first forward pass by name; each pass receives those of the previous one.
        data: Further arguments of the loss, a pytree of tensors such as the support set; or a function of the step j
            that returns them, such as a mini-batch.
        steps: Number of steps, at least 0.
        learning_rate: α, or a function of the step j that returns α_j: a number, a scalar tensor, or a tensor for each
            parameter by name, which broadcasts to it.
        first_order: Omit second derivatives (Finn et al. 2017, section 5.2).
        recompute: Only keep φ_j and the optimizer's state of each step, and recompute the step in the outer backward
            pass. This needs the memory of one step instead of all, and about one more forward pass and inner gradient
            per step.
        direction: Transformation u of the gradients, called once per step, in order; with `recompute` it must have
            neither parameters nor state.
        optimizer: Update d of the inner optimizer; gradient descent by default.

    Returns:
        For j = 0, ..., steps - 1, φ_j and the buffers after the forward pass at φ_j; last, φ_steps with the buffers of
        the previous pass, since there is no forward pass at φ_steps.

    Raises:
        UserError: The rates, or the results of `direction` or `optimizer`, have a wrong type or shape, or lack a
            parameter.
    """
    check_gradients()
    # The state may hold the initial parameters, which `first_order` treats as constants as well.
    state = optimizer.init(_constant(parameters) if first_order else parameters)
    trajectory = []
    for j in range(steps):
        by_name, number = _rates(learning_rate(j) if callable(learning_rate) else learning_rate, parameters)
        step = partial(_step, loss, number, first_order, direction, optimizer)
        inputs = (parameters, buffers, data(j) if callable(data) else data, state, by_name)
        following, after, state = recomputed(partial(_on_copies, step), *inputs) if recompute else step(*inputs)
        trajectory.append((parameters, after))
        parameters, buffers = following, after
    return [*trajectory, (parameters, buffers)]


def _rates(rates: object, parameters: Tensors) -> tuple[Tensors, float]:
    """Rates by name, and the number that applies if there are none.

    Tensors must be inputs of a step, so that the outer gradient also reaches them if the step is recomputed.
    """
    if isinstance(rates, Real):
        return {}, float(rates)
    by_name = dict.fromkeys(parameters, rates) if isinstance(rates, Tensor) else rates
    if not isinstance(by_name, dict):
        raise UserError(f"rates: a number or tensors by name of the parameter are needed, got {type(rates).__name__}")
    for name, p in parameters.items():
        if name not in by_name:
            raise UserError(f"rates: every adapted parameter needs one; there is none for {name!r}")
        if not isinstance(rate := by_name[name], Tensor):
            raise UserError(f"rates: by name of the parameter they are tensors; that of {name!r} is {rate!r}")
        fits = all(r in (1, s) for r, s in zip(reversed(rate.shape), reversed(p.shape), strict=False))
        if rate.dim() > p.dim() or not fits:
            raise UserError(f"rates: {tuple(rate.shape)} of {name!r} does not broadcast to {tuple(p.shape)}")
    return by_name, 0.0


def _step(
    loss: Loss,
    rate: float,
    first_order: bool,
    direction: Callable[[Tensors], Tensors],
    optimizer: InnerOptimizer,
    parameters: Tensors,
    buffers: Tensors,
    data: Any,
    state: State,
    rates: Tensors,
) -> tuple[Tensors, Tensors, State]:
    point = parameters
    if first_order:  # the data may also have a graph, such as the features below a head
        point, buffers, data = _constant(point), _constant(buffers), _constant(data)
    gradients, after = grad(loss, has_aux=True)(point, buffers, data)
    updates, state = optimizer.update(_of_all("direction", direction(gradients), parameters), state, point)
    _of_all("inner_optimizer", updates, parameters)
    return {name: p - rates.get(name, rate) * updates[name] for name, p in parameters.items()}, after, state


def _of_all(method: str, tensors: Any, parameters: Tensors) -> Tensors:
    """Refuse what is not a tensor for each parameter, of its shape: others would be broadcast."""
    if not isinstance(tensors, Mapping):
        raise UserError(f"{method}: tensors by name of the parameter are needed, got {type(tensors).__name__}")
    for name, p in parameters.items():
        if name not in tensors:
            raise UserError(f"{method}: every adapted parameter needs a tensor; there is none for {name!r}")
        if (shape := getattr(tensors[name], "shape", None)) != p.shape:
            found = type(tensors[name]).__name__ if shape is None else tuple(shape)
            raise UserError(f"{method}: {found} for {name!r}, whose shape is {tuple(p.shape)}")
    return dict(tensors)


def _on_copies(
    step: Callable[..., tuple[Tensors, Tensors, State]], parameters: Tensors, buffers: Tensors, *others: Any
) -> tuple[Tensors, Tensors, State]:
    """Run a step on copies of the buffers: its forward pass may change them, and it is run twice."""
    return step(parameters, {name: buffer.clone() for name, buffer in buffers.items()}, *others)


def _constant(tree: Tree) -> Tree:
    constant: Tree = tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, tree)
    return constant
