"""Gradient descent on a support set, differentiable in where it starts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from torch import Tensor
from torch.func import grad
from torch.utils._pytree import tree_map

from lightning_meta.functional.inference import check_gradients
from lightning_meta.functional.recomputation import recomputed

Tensors = dict[str, Tensor]
Loss = Callable[[Tensors, Tensors, Any], tuple[Tensor, Tensors]]
Tree = TypeVar("Tree")


def inner_loop(
    loss: Loss,
    parameters: Tensors,
    buffers: Tensors,
    data: Any,
    steps: int,
    learning_rate: float,
    first_order: bool = False,
    recompute: bool = False,
    direction: Callable[[Tensors], Tensors] = lambda gradients: gradients,
) -> list[tuple[Tensors, Tensors]]:
    r"""Follow the gradient of the support loss for a few steps.

    $$\varphi_0 = \theta, \qquad \varphi_{j+1} = \varphi_j - \alpha\, u(\nabla_\varphi L(\varphi_j))$$

    The result is differentiable in θ, through the gradients as well unless `first_order` is set; then the gradients
    are constants, no graph is built through them, and dφ/dθ is the identity.

    Args:
        loss: Parameters, buffers and data to the support loss (a scalar), and the buffers after the forward pass.
        parameters: θ by name: what is adapted.
        buffers: The buffers of the first forward pass by name; each pass gets those that the last one left.
        data: What the loss needs besides: a pytree of tensors, the support set.
        steps: How many, at least 0.
        learning_rate: α.
        first_order: Leave the second derivatives out (Finn et al. 2017, section 5.2).
        recompute: Keep φ_j alone of each step, and compute the step anew where the outer gradient passes it: the
            memory of one step in place of all, for about one more forward pass and inner gradient a step.
        direction: u, what is made of the gradients before they are followed, called once a step and in order; with
            `recompute` it has no parameters and keeps nothing.

    Returns:
        For j = 0, ..., steps - 1: φ_j and the buffers after the forward pass at φ_j; last φ_steps with the buffers
        that were left, since no forward pass was made there.
    """
    check_gradients()
    step = partial(_step, loss, learning_rate, first_order, direction)
    trajectory = []
    for _ in range(steps):
        inputs = (parameters, buffers, data)
        following, buffers = recomputed(partial(_on_copies, step), *inputs) if recompute else step(*inputs)
        trajectory.append((parameters, buffers))
        parameters = following
    return [*trajectory, (parameters, buffers)]


def _step(
    loss: Loss,
    rate: float,
    first_order: bool,
    direction: Callable[[Tensors], Tensors],
    parameters: Tensors,
    buffers: Tensors,
    data: Any,
) -> tuple[Tensors, Tensors]:
    at = parameters
    if first_order:  # the data may have a graph too: a head's are features
        at, buffers, data = _constant(at), _constant(buffers), _constant(data)
    gradients, after = grad(loss, has_aux=True)(at, buffers, data)
    updates = direction(gradients)
    return {name: p - rate * updates[name] for name, p in parameters.items()}, after


def _on_copies(
    step: Callable[..., tuple[Tensors, Tensors]], parameters: Tensors, buffers: Tensors, data: Any
) -> tuple[Tensors, Tensors]:
    """A forward pass may change buffers in place; the second run of a step starts from those of the first."""
    return step(parameters, {name: buffer.clone() for name, buffer in buffers.items()}, data)


def _constant(tree: Tree) -> Tree:
    constant: Tree = tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, tree)
    return constant
