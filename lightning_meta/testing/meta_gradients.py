"""Meta-gradients of a network, and their comparison with finite differences."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_meta.functional.inner_loop import inner_loop
from lightning_meta.functional.inner_optimizers import InnerOptimizer, InnerSGD
from lightning_meta.functional.task_map import TaskMap, task_map
from lightning_meta.nn.stateless import Tensors

_DESCENT = InnerSGD()


class MetaGradients:
    """The mean query loss of T tasks after two inner steps, and its gradient with respect to the initial parameters.

    Args:
        forward: Function from parameters by name and inputs `(M, ...)` to outputs `(M, ...)`.
        parameters: Initial parameters of the inner loop, by name.
        support: Inputs of the support sets, `(T, M, ...)`.
        query: Inputs of the query sets, `(T, M, ...)`.
        first_order: Whether to omit second derivatives.
        learning_rate: Learning rate of the inner steps.
        optimizer: Optimizer of the inner steps.
    """

    def __init__(
        self,
        forward: Callable[[Tensors, Tensor], Tensor],
        parameters: Tensors,
        support: Tensor,
        query: Tensor,
        first_order: bool = False,
        learning_rate: float = 0.1,
        optimizer: InnerOptimizer = _DESCENT,
    ) -> None:
        self.forward, self.parameters, self.support, self.query = forward, parameters, support, query
        self.first_order, self.learning_rate, self.optimizer = first_order, learning_rate, optimizer

    def loss(self, parameters: Tensors, buffers: Tensors, x: Tensor) -> tuple[Tensor, Tensors]:
        """A smooth function of all outputs."""
        outputs = self.forward(parameters, x)
        weights = torch.linspace(-1, 1, outputs.numel(), dtype=outputs.dtype).view_as(outputs)
        mixed = outputs * weights
        return mixed.sum().square() / mixed.numel() + outputs.square().mean() + mixed.tanh().sum(), {}

    def value(self, how: TaskMap, start: Tensors, steps_of: Tensors | None = None) -> Tensor:
        """The mean query loss. The inner steps from `steps_of`, if given, are added to the start as constants."""

        def reached(support: Tensor, begin: Tensors) -> Tensors:
            return inner_loop(
                self.loss, begin, {}, support, 2, self.learning_rate, self.first_order, optimizer=self.optimizer
            )[-1][0]

        def one_task(support: Tensor, query: Tensor) -> Tensor:
            if steps_of is None:
                return self.loss(reached(support, start), {}, query)[0]
            end = reached(support, steps_of)
            return self.loss({n: p + (end[n] - steps_of[n]).detach() for n, p in start.items()}, {}, query)[0]

        with torch.random.fork_rng():
            torch.manual_seed(1)
            return task_map(one_task, how, self.support, self.query).mean()

    def gradient(self, how: TaskMap) -> Tensor:
        """The gradient with respect to all parameters, as one vector."""
        value, start = self.value(how, self.parameters), list(self.parameters.values())
        found = torch.autograd.grad(value, start, allow_unused=True, materialize_grads=True)
        return torch.cat([g.flatten() for g in found])

    def error(self, how: TaskMap, gradient: Tensor, noise: Tensor, h: float = 1e-6) -> float:
        """Compare a gradient with a central difference along the sum of its direction and a random direction.

        Args:
            how: Strategy by which tasks are computed.
            gradient: Result of `gradient`.
            noise: Random vector of the same size, 0 where the gradient is 0 by definition.
            h: Half the distance between the two points.

        Returns:
            The error relative to the norm of the gradient.
        """
        start = {name: p.detach() for name, p in self.parameters.items()}
        direction = gradient / gradient.norm() + noise / noise.norm()
        parts = direction.split([p.numel() for p in start.values()])
        ends = []
        for side in (h, -h):
            moved = {n: p + side * d.view_as(p) for (n, p), d in zip(start.items(), parts, strict=True)}
            ends.append(self.value(how, moved, start if self.first_order else None).detach())
        return float(abs((ends[0] - ends[1]) / (2 * h) - gradient @ direction) / gradient.norm())

    def draws(self) -> bool:
        """Whether the forward pass draws random numbers."""
        with torch.random.fork_rng(), torch.no_grad():
            before = torch.get_rng_state()
            self.forward(self.parameters, self.support[0])
            return not torch.equal(before, torch.get_rng_state())
