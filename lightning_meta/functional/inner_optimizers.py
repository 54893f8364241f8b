"""Inner optimizers: pure functions of gradients and a state, differentiable with respect to both."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_meta.checks import below_one, positive

Tensors = dict[str, Tensor]
State = dict[str, Tensors]


class InnerOptimizer(ABC):
    r"""The update rule of an inner loop: $\varphi_{j+1} = \varphi_j - \alpha_j\, d_j$, with d_j from `update`.

    Subclasses are frozen dataclasses of numbers, not tensors, so that a checkpoint can store them.
    """

    @abstractmethod
    def init(self, parameters: Tensors) -> State:
        """The state before the first step.

        Args:
            parameters: Initial parameters θ by name.

        Returns:
            Tensors by two levels of names, such as the kind of moment and the parameter; empty without state.
        """

    @abstractmethod
    def update(self, gradients: Tensors, state: State, parameters: Tensors) -> tuple[Tensors, State]:
        """One step.

        Args:
            gradients: Gradients g_j by name.
            state: State before the step; it must not be changed in place.
            parameters: Parameters φ_j by name.

        Returns:
            The updates d_j by name, which the loop multiplies by the rate and subtracts; and the state after the step.
        """


@dataclass(frozen=True)
class InnerSGD(InnerOptimizer):
    r"""Gradient descent with optional momentum: $m_{j+1} = \mu m_j + g_j$, $d_j = m_{j+1}$ (as `torch.optim.SGD`).

    Args:
        momentum: Momentum μ in [0, 1).
    """

    momentum: float = 0.0

    def __post_init__(self) -> None:
        below_one(momentum=self.momentum)

    def init(self, parameters: Tensors) -> State:
        """Momenta of zero; nothing without momentum."""
        return {"momentum": _zeros(parameters)} if self.momentum else {}

    def update(self, gradients: Tensors, state: State, parameters: Tensors) -> tuple[Tensors, State]:
        """The momenta after the step; without momentum the gradients."""
        if not self.momentum:
            return gradients, state
        momenta = {name: self.momentum * state["momentum"][name] + g for name, g in gradients.items()}
        return momenta, {"momentum": momenta}


@dataclass(frozen=True)
class InnerAdam(InnerOptimizer):
    r"""Adam (Kingma and Ba, ICLR 2015, algorithm 1; https://arxiv.org/abs/1412.6980), as `torch.optim.Adam`.

    $$m = \beta_1 m + (1 - \beta_1) g, \quad v = \beta_2 v + (1 - \beta_2) g^2, \quad
      d = \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}$$

    The first step is nearly sign(g), whose derivative is very large for g close to 0. Second-order meta-gradients are
    exact but can be very large, so `first_order` is recommended. Each task starts with m = v = 0.

    Args:
        beta1: Decay β₁ of the first moment, in [0, 1); 0 as in Reptile (Nichol et al. 2018) is without momentum.
        beta2: Decay β₂ of the second moment, in [0, 1).
        eps: ε > 0 in the denominator.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        below_one(beta1=self.beta1, beta2=self.beta2)
        positive(eps=self.eps)

    def init(self, parameters: Tensors) -> State:
        """Zero moments and a step count; without a first moment for beta1 = 0, where it equals the gradient."""
        like = next(iter(parameters.values()))
        count = {"count": torch.zeros((), dtype=torch.int64, device=like.device)}
        first = {"first": _zeros(parameters)} if self.beta1 else {}
        return {"steps": count, "second": _zeros(parameters), **first}

    def update(self, gradients: Tensors, state: State, parameters: Tensors) -> tuple[Tensors, State]:
        """The first moment over the root of the second, both with bias correction."""
        count = state["steps"]["count"] + 1
        first = gradients
        if self.beta1:
            first = {n: self.beta1 * state["first"][n] + (1 - self.beta1) * g for n, g in gradients.items()}
        second = {n: self.beta2 * state["second"][n] + (1 - self.beta2) * g.square() for n, g in gradients.items()}
        directions = {}
        for name, v in second.items():
            root = _root(v / _one_minus_power(self.beta2, count, v.dtype))
            directions[name] = first[name] / _one_minus_power(self.beta1, count, v.dtype) / (root + self.eps)
        after = {"steps": {"count": count}, "second": second}
        return directions, {**after, "first": first} if self.beta1 else after


def _zeros(parameters: Tensors) -> Tensors:
    return {name: torch.zeros_like(p) for name, p in parameters.items()}


def _one_minus_power(beta: float, count: Tensor, dtype: torch.dtype) -> Tensor:
    """1 - β^t without cancellation, which would cost four digits of 1 - 0.999 in float32."""
    log = math.log(beta) if beta else -math.inf
    return -torch.expm1(log * count.to(torch.promote_types(dtype, torch.float32)))


def _root(v: Tensor) -> Tensor:
    """√v with derivative 0 at 0, where torch's is infinite: gradients may be exactly 0."""
    zero = v == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, v).sqrt())
