"""iMAML: the meta-gradient at the solution of a regularised inner problem."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad, grad_and_value, vjp

from lightning_meta.batches import Examples
from lightning_meta.checks import positive, whole
from lightning_meta.errors import UserError
from lightning_meta.functional.inner_optimizers import InnerOptimizer, State
from lightning_meta.meta.base import Outcome
from lightning_meta.meta.gradient_based import GradientBasedLearner
from lightning_meta.nn.normalization import task_norms
from lightning_meta.nn.stateless import Tensors, own_buffers, stateless_call


@dataclass(frozen=True)
class _Proximal(InnerOptimizer):
    """Gradient descent on the loss plus λ/2 |φ − θ|²."""

    regularisation: float

    def init(self, parameters: Tensors) -> State:
        return {"start": parameters}

    def update(self, gradients: Tensors, state: State, parameters: Tensors) -> tuple[Tensors, State]:
        pulls = {name: self.regularisation * (p - state["start"][name]) for name, p in parameters.items()}
        return {name: g + pulls[name] for name, g in gradients.items()}, state


class IMAML(GradientBasedLearner):
    r"""MAML with a proximal term, and an implicit meta-gradient at the solution instead of one through the steps.

    Rajeswaran, Finn, Kakade and Levine, Meta-Learning with Implicit Gradients (NeurIPS 2019,
    https://arxiv.org/abs/1909.04630): inner steps of gradient descent towards

    $$\varphi = \arg\min_{\varphi'} L(\varphi'; \mathrm{support})
      + \tfrac{\lambda}{2} \lVert \varphi' - \theta \rVert^2$$

    (equation 3). At the solution, dφ/dθ does not depend on the optimisation path, so that

    $$\nabla_\theta L(\varphi; \mathrm{query}) = \left(I + \tfrac{1}{\lambda} \nabla^2 L(\varphi; \mathrm{support})
      \right)^{-1} \nabla_\varphi L(\varphi; \mathrm{query})$$

    (lemma 1). The system is solved by conjugate gradients with Hessian-vector products (algorithm 2). The memory of a
    training step does not grow with the number of inner steps. In classification, new tasks must have as many ways as
    in training.

    At a glance:
        - Shared: an initialisation θ.
        - Own: weights φ near θ.
        - New task: adapt by gradient steps, with a penalty on the distance from θ.

    Run it:
        `python scripts/fit.py --config configs/imaml_glyphs.yaml` without a download. For the paper's data, use
        `configs/imaml_omniglot.yaml` (results not reproduced here).

    Logged:
        - `test/accuracy_step_<j>` (`test/mse_step_<j>` in regression), and likewise for `val`: the mean over tasks
          after j = 0, ..., `test_inner_steps` inner steps, with its `_ci95`.
        - `train/loss`, `train/accuracy`: on the query sets of one meta-batch, after `inner_steps` inner steps.

        `MetaModule` explains the other metrics and what the intervals cover.

    Deviations:
        - λ is fixed; the paper can also learn it. The Hessian-free inner solver is not implemented.
        - Conjugate gradients stop if the curvature is not positive, which can happen with a small λ. In the first step,
          the result is the first-order gradient.

    Args:
        backbone: The network below the head.
        regularisation: Weight λ > 0 of the proximal term. The inner loop is stable for α (λ + c) < 2, with c the
            largest curvature of the loss.
        solver_steps: Number of conjugate gradient steps, at least 0. With 0 the outer gradient is 0; with 1 it has
            the direction of the first-order gradient.
        inner_steps: Number of inner steps in training, at least 0.
        **options: Options of `GradientBasedLearner`, except `first_order`, `inner_optimizer`, `inner_parameters` and
            `recompute`.
    """

    fixed_options = ("first_order", "inner_optimizer", "inner_parameters", "recompute")
    second_derivatives = True

    def __init__(
        self,
        backbone: nn.Module,
        regularisation: float = 2.0,
        solver_steps: int = 5,
        inner_steps: int = 16,
        **options: Any,
    ) -> None:
        positive(regularisation=regularisation)
        super().__init__(
            backbone,
            first_order=True,
            inner_optimizer=_Proximal(regularisation),
            inner_parameters=None,
            recompute=False,
            inner_steps=inner_steps,
            **options,
        )
        whole(0, solver_steps=solver_steps)
        self.regularisation, self.solver_steps = regularisation, solver_steps

    def on_fit_start(self) -> None:
        """Refuse a backbone that draws random numbers: each Hessian-vector product would belong to another loss.

        Raises:
            UserError: The backbone has dropout, for example.
        """
        super().on_fit_start()
        self._check_randomness()
        if self._draws():
            raise UserError(
                "backbone: it draws random numbers in training, as dropout does, so the linear system of IMAML would "
                "change in every step of its solver; use a network without dropout"
            )

    def task_loss(self, support: Examples, query: Examples, ways: int) -> Outcome:
        """The value of the query loss, with the implicit gradient with respect to θ."""
        with torch.no_grad():
            state = self.adapt(support, ways)
            phi = {name: state[name] for name in self.adapted()}

            def support_pass(phi: Tensors) -> tuple[Tensor, Tensors]:
                tensors = {**state, **phi, **own_buffers(self.network)}
                return stateless_call(self.network, tensors, support.x, "batch")

            def support_loss(phi: Tensors) -> Tensor:
                return self.support_loss(support_pass(phi)[0], support.y)

            def query_loss(phi: Tensors) -> tuple[Tensor, Outcome]:
                current = state
                if self.batch_norm == "inductive" and task_norms(self.network):
                    current = support_pass(phi)[1]  # the support set's statistics depend on φ as well
                outcome = self.outcome({**current, **phi}, query)
                return outcome.loss, outcome

            slope, (_, outcome) = grad_and_value(query_loss, has_aux=True)(phi)

            hessian = vjp(grad(support_loss), phi)[1]  # one forward pass for all products with it

            def system(v: Tensors) -> Tensors:
                """(I + ∇²L/λ) v."""
                (hessian_v,) = hessian(v)
                return {name: v[name] + hessian_v[name] / self.regularisation for name in v}

            gradient = conjugate_gradients(system, slope, self.solver_steps)
        theta = dict(self.network.named_parameters())
        # A term of value 0 whose derivative in θ is the implicit gradient.
        pull = _dot({name: theta[name] - theta[name].detach() for name in gradient}, gradient)
        meta_loss: Outcome = outcome._replace(loss=outcome.loss + pull)
        return meta_loss


def conjugate_gradients(system: Callable[[Tensors], Tensors], right: Tensors, steps: int) -> Tensors:
    """Solve a symmetric positive definite system A x = b from x = 0 (Hestenes and Stiefel 1952).

    Args:
        system: Function from v to A v, both tensors by name.
        right: Right-hand side b by name.
        steps: Maximum number of steps. The solver stops when the residual is 0 or the curvature vᵀ A v is not positive;
            if that happens in the first step, the result is b (as in Steihaug 1983).

    Returns:
        Solution x by name.
    """
    solution = {name: torch.zeros_like(b) for name, b in right.items()}
    residual = direction = right
    norm = _dot(residual, residual)
    going = norm > 0
    for number in range(steps):
        image = system(direction)
        curvature = _dot(direction, image)
        # A flag in place of `break`: reading it would make the CPU wait for the GPU.
        going = going & (curvature > 0) & (norm > 0)
        if number == 0:
            solution = {name: torch.where(going, 0.0, b) for name, b in right.items()}
        rate = torch.where(going, norm / torch.where(going, curvature, 1.0), 0.0)
        solution = {name: x + rate * direction[name] for name, x in solution.items()}
        residual = {name: r - rate * image[name] for name, r in residual.items()}
        new_norm = _dot(residual, residual)
        share = torch.where(going, new_norm / torch.where(going, norm, 1.0), 0.0)
        direction = {name: r + share * direction[name] for name, r in residual.items()}
        norm = new_norm
    return solution


def _dot(a: Tensors, b: Tensors) -> Tensor:
    return torch.stack([(x * b[name]).sum() for name, x in a.items()]).sum()
