"""The inner loop: gradient descent on one task's support set, differentiable in where it starts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor
from torch.func import grad

from lightning_meta.functional.inference import check_gradients
from lightning_meta.functional.recomputation import recomputed

Tensors = dict[str, Tensor]
Loss = Callable[[Tensors, Any], tuple[Tensor, Tensors]]


def inner_loop(
    loss: Loss,
    parameters: Tensors,
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
        loss: Parameters and data to the support loss (a scalar), and what else the forward pass computed at them.
        parameters: θ by name.
        data: What the loss needs besides: a pytree of tensors, the support set.
        steps: How many, at least 0.
        learning_rate: α.
        first_order: Leave the second derivatives out (Finn et al. 2017, section 5.2).
        recompute: Keep φ_j alone of each step, and compute the step anew where the outer gradient passes it: the
            memory of one step in place of all, for about one more forward pass and inner gradient a step.
        direction: u, what is made of the gradients before they are followed, called once a step and in order; with
            `recompute` it has no parameters and keeps nothing.

    Returns:
        For j = 0, ..., steps - 1: φ_j and what else was computed at it; last φ_steps with an empty dict, since
        no forward pass was made there.
    """
    check_gradients()
    step = partial(_step, loss, learning_rate, first_order, direction)
    trajectory = []
    for _ in range(steps):
        following, other = recomputed(step, parameters, data) if recompute else step(parameters, data)
        trajectory.append((parameters, other))
        parameters = following
    return [*trajectory, (parameters, {})]


def _step(
    loss: Loss,
    rate: float,
    first_order: bool,
    direction: Callable[[Tensors], Tensors],
    parameters: Tensors,
    data: Any,
) -> tuple[Tensors, Tensors]:
    at = {name: p.detach() for name, p in parameters.items()} if first_order else parameters
    gradients, other = grad(loss, has_aux=True)(at, data)
    updates = direction(gradients)
    return {name: p - rate * updates[name] for name, p in parameters.items()}, other
