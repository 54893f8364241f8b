"""iMAML: the meta-gradient at the solution of a regularised inner problem."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad, grad_and_value

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
    r"""MAML that pulls adapted weights to the initialisation, and differentiates the solution in place of the steps.

    Rajeswaran, Finn, Kakade and Levine, Meta-Learning with Implicit Gradients (NeurIPS 2019,
    https://arxiv.org/abs/1909.04630): inner steps of gradient descent towards

    $$\varphi = \arg\min_{\varphi'} L(\varphi'; \mathrm{support})
      + \tfrac{\lambda}{2} \lVert \varphi' - \theta \rVert^2$$

    (equation 3), where the derivative of φ in θ does not depend on the way there, so that

    $$\nabla_\theta L(\varphi; \mathrm{query}) = \left(I + \tfrac{1}{\lambda} \nabla^2 L(\varphi; \mathrm{support})
      \right)^{-1} \nabla_\varphi L(\varphi; \mathrm{query})$$

    (lemma 1). The system is solved by conjugate gradients, from products with the Hessian (algorithm 2). The memory of
    a training step does not grow with the inner steps. In classification, new tasks must have as many ways as in
    training.

    At a glance:
        - Shared: an initialisation θ.
        - Own: weights φ near θ.
        - New task: adapt by gradient steps, pulled to θ.

    Run it:
        `python scripts/fit.py --config configs/imaml_glyphs.yaml` without a download. For the paper's data, use
        `configs/imaml_omniglot.yaml`(results not reproduced here).

    Logged:
        - `test/accuracy_step_<j>` (`test/mse_step_<j>` in regression), and likewise for `val`: the mean over tasks
          after j = 0, ..., `test_inner_steps` inner steps, with its `_ci95`.
        - `train/loss`, `train/accuracy`: on the query sets of one meta-batch, after `inner_steps` inner steps.

        `MetaModule` explains the other metrics and what the intervals cover.

    Deviations:
        - λ is fixed; the paper can learn it, too. The Hessian-free inner solver is not there.
        - Conjugate gradients stop where the curvature is not positive, which can be where λ is small; if that is in the
          first step, the gradient is the first-order one.

    Args:
        backbone: The network below the head.
        regularisation: λ > 0. Inner steps of a rate α need α (λ + c) < 2 with c the largest curvature of the loss.
        solver_steps: Steps of conjugate gradients, at least 0; with 0 the outer gradient is 0, with 1 it has the
            direction of the first-order one.
        inner_steps: Inner steps in training.
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
        """Refuse a backbone that draws random numbers: every product with the Hessian would be of another loss.

        Raises:
            UserError: It has dropout, for one.
        """
        super().on_fit_start()
        self._check_randomness()
        if self._draws():
            raise UserError(
                "backbone: it draws random numbers in training, as dropout does, and the system that IMAML solves must "
                "not change on the way; give a network without"
            )

    def task_loss(self, support: Examples, query: Examples, ways: int) -> Outcome:
        """The query loss as a number, with the implicit gradient as its gradient in θ."""
        with torch.no_grad():
            state = self.adapt(support, ways)
            phi = {name: state[name] for name in self.adapted()}

            def support_pass(phi: Tensors) -> tuple[Tensor, Tensors]:
                tensors = {**state, **phi, **own_buffers(self.network)}
                return stateless_call(self.network, tensors, support.x, "batch")

            def support_loss(phi: Tensors) -> Tensor:
                return self.task.loss(support_pass(phi)[0], support.y)

            def query_loss(phi: Tensors) -> tuple[Tensor, Outcome]:
                given = state
                if self.batch_norm == "inductive" and task_norms(self.backbone):
                    given = support_pass(phi)[1]  # whose statistics depend on φ as well
                outcome = self.outcome({**given, **phi}, query)
                return outcome.loss, outcome

            slope, (_, outcome) = grad_and_value(query_loss, has_aux=True)(phi)

            def system(v: Tensors) -> Tensors:
                """(I + ∇²L/λ) v."""
                curved = grad(lambda phi: _dot(grad(support_loss)(phi), v))(phi)
                return {name: v[name] + curved[name] / self.regularisation for name in v}

            gradient = conjugate_gradients(system, slope, self.solver_steps)
        theta = dict(self.network.named_parameters())
        # Its derivative is the gradient; its value is 0.
        pull = _dot({name: theta[name] - theta[name].detach() for name in gradient}, gradient)
        meta_loss: Outcome = outcome._replace(loss=outcome.loss + pull)
        return meta_loss


def conjugate_gradients(system: Callable[[Tensors], Tensors], right: Tensors, steps: int) -> Tensors:
    """Solve a symmetric positive definite system A x = b from x = 0 (Hestenes and Stiefel 1952).

    Args:
        system: v to A v, tensors by name.
        right: b by name.
        steps: How many; fewer count where b is reached, or the curvature vᵀ A v is not positive. Where it is not in the
            first, the answer is b (as Steihaug 1983 has it).

    Returns:
        x by name.
    """
    solution = {name: torch.zeros_like(b) for name, b in right.items()}
    residual = along = right
    left = _dot(residual, residual)
    going = left > 0
    for number in range(steps):
        image = system(along)
        curvature = _dot(along, image)
        going = going & (curvature > 0) & (left > 0)
        if number == 0:
            solution = {name: torch.where(going, 0.0, b) for name, b in right.items()}
        rate = torch.where(going, left / torch.where(going, curvature, 1.0), 0.0)
        solution = {name: x + rate * along[name] for name, x in solution.items()}
        residual = {name: r - rate * image[name] for name, r in residual.items()}
        after = _dot(residual, residual)
        share = torch.where(going, after / torch.where(going, left, 1.0), 0.0)
        along, left = {name: r + share * along[name] for name, r in residual.items()}, after
    return solution


def _dot(a: Tensors, b: Tensors) -> Tensor:
    return torch.stack([(x * b[name]).sum() for name, x in a.items()]).sum()
