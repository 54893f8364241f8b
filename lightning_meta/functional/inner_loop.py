"""Gradient descent on a support set, differentiable in where it starts."""

from __future__ import annotations

from collections.abc import Callable
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
    r"""Follow the gradient of the support loss for a few steps.

    $$\varphi_0 = \theta, \qquad \varphi_{j+1} = \varphi_j - \alpha_j\, d(u(\nabla_\varphi L(\varphi_j)))$$

    The result is differentiable in θ, in the data and in the rates, through the gradients as well unless `first_order`
    is set; then the gradients are constants, no graph is built through them, and dφ/dθ is the identity.

    Args:
        loss: Parameters, buffers and data to the support loss (a scalar), and the buffers after the forward pass. With
            `first_order` or `recompute`, every tensor that the meta-gradient reaches through an inner step is an
            argument of it: what it reads from elsewhere is neither held constant nor differentiated.
        parameters: θ by name: what is adapted.
        buffers: The buffers of the first forward pass by name; each pass gets those that the last one left.
        data: What the loss needs besides, a pytree of tensors: the support set. Or a function of the step j that
            returns it, such as a mini-batch of the support set.
        steps: How many, at least 0.
        learning_rate: α, or a function of the step j that returns α_j: a number, a scalar tensor, or a tensor for each
            parameter by name, which broadcasts to it.
        first_order: Leave the second derivatives out (Finn et al. 2017, section 5.2).
        recompute: Keep φ_j and the state alone of each step, and compute the step anew where the outer gradient passes
            it: the memory of one step in place of all, for about one more forward pass and inner gradient a step.
        direction: u, what is made of the gradients before they are followed, called once a step and in order; with
            `recompute` it has no parameters and keeps nothing.
        optimizer: d, what follows the gradients; gradient descent by default.

    Returns:
        For j = 0, ..., steps - 1: φ_j and the buffers after the forward pass at φ_j; last φ_steps with the buffers
        that were left, since no forward pass was made there.

    Raises:
        UserError: The rates are of another kind or shape, or lack a parameter.
    """
    check_gradients()
    state = optimizer.init(parameters)
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
    """Rates by name, and the number that counts where there are none.

    Tensors are inputs of a step, so that the outer gradient reaches them where it is recomputed; a number cannot be.
    """
    if isinstance(rates, Real):
        return {}, float(rates)
    by_name = dict.fromkeys(parameters, rates) if isinstance(rates, Tensor) else rates
    if not isinstance(by_name, dict):
        raise UserError(f"rates: a number or tensors by name of the parameter are needed, got {type(rates).__name__}")
    for name, p in parameters.items():
        if not isinstance(rate := by_name.get(name), Tensor):
            raise UserError(f"rates: every adapted parameter needs one; there is none for {name!r}")
        fits = all(r in (1, s) for r, s in zip(reversed(rate.shape), reversed(p.shape), strict=False))
        if rate.dim() > p.dim() or not fits:
            raise UserError(f"rates: that of {name!r} is {tuple(rate.shape)}, which is no rate for {tuple(p.shape)}")
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
    at = parameters
    if first_order:  # the data may have a graph too: a head's are features
        at, buffers, data = _constant(at), _constant(buffers), _constant(data)
    gradients, after = grad(loss, has_aux=True)(at, buffers, data)
    updates, state = optimizer.update(direction(gradients), state, at)
    return {name: p - rates.get(name, rate) * updates[name] for name, p in parameters.items()}, after, state


def _on_copies(
    step: Callable[..., tuple[Tensors, Tensors, State]], parameters: Tensors, buffers: Tensors, *others: Any
) -> tuple[Tensors, Tensors, State]:
    """A forward pass may change buffers in place; the second run of a step starts from those of the first."""
    return step(parameters, {name: buffer.clone() for name, buffer in buffers.items()}, *others)


def _constant(tree: Tree) -> Tree:
    constant: Tree = tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, tree)
    return constant
