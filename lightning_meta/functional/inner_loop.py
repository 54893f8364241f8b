"""The inner loop: gradient descent on one task's support set, differentiable in where it starts."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.func import grad

from lightning_meta.functional.inference import check_gradients

Tensors = dict[str, Tensor]


def inner_loop(
    loss: Callable[[Tensors], tuple[Tensor, Tensors]],
    parameters: Tensors,
    steps: int,
    learning_rate: float,
    first_order: bool = False,
) -> list[tuple[Tensors, Tensors]]:
    r"""Follow the gradient of the support loss for a few steps.

    $$\varphi_0 = \theta, \qquad \varphi_{j+1} = \varphi_j - \alpha \nabla_\varphi L(\varphi_j)$$

    The result is differentiable in θ, through the gradients as well unless `first_order` is set; then the gradients
    are constants, no graph is built through them, and dφ/dθ is the identity.

    Args:
        loss: Parameters to the support loss (a scalar), and what else the forward pass computed at them.
        parameters: θ by name.
        steps: How many, at least 0.
        learning_rate: α.
        first_order: Leave the second derivatives out (Finn et al. 2017, section 5.2).

    Returns:
        For j = 0, ..., steps - 1: φ_j and what else was computed at it; last φ_steps with an empty dict, since
        no forward pass was made there.
    """
    check_gradients()
    trajectory = []
    for _ in range(steps):
        at = {name: p.detach() for name, p in parameters.items()} if first_order else parameters
        gradients, other = grad(loss, has_aux=True)(at)
        trajectory.append((parameters, other))
        parameters = {name: p - learning_rate * gradients[name] for name, p in parameters.items()}
    return [*trajectory, (parameters, {})]
