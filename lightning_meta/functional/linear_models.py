"""Linear models of one or more tasks, fitted to the optimum for a path of penalties."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from lightning_meta.functional.ridge import ridge
from lightning_meta.tasks import Regression, Task

INTERCEPT = 1e-6
"""Penalty λ of intercepts: negligible, but it keeps the intercept finite if all labels are the same."""
TOLERANCE, STEPS = 1e-6, 1000  # largest gradient of the mean loss at the optimum, and step limit


class Labelled(NamedTuple):
    """The rows of a task.

    Attributes:
        task: The task, `fitted` to its training rows.
        x: Features `(n, F)`, float64, n at least 1.
        y: Targets `(n, ...)`.
        weights: Weights of the losses of the rows, `(n,)` float64; None for 1.
    """

    task: Task
    x: Tensor
    y: Tensor
    weights: Tensor | None = None

    def losses(self, outputs: Tensor) -> Tensor:
        """The losses `(n,)` of predictions `(n, outputs)`, times the weights."""
        losses = self.task.losses(outputs, self.y)
        return losses if self.weights is None else losses * self.weights

    def mean(self, values: Tensor) -> Tensor:
        """The weighted mean over rows of values `(n, ...)`."""
        return values.mean(0) if self.weights is None else self.weights @ values / self.weights.sum()


def linear_models(tasks: Sequence[Labelled], strengths: Sequence[float]) -> Iterator[tuple[Tensor, Tensor]]:
    r"""Fit $W^\top x + b_i$, with weights that tasks share and an intercept for each, for several penalties.

    $$\min_{W, b} \sum_i \sum_{(x, y) \in D_i} L_i(W^\top x + b_i, y) + \frac{1}{2} n \lambda v \lVert W \rVert^2$$

    with n rows in all, and v the mean variance of the features within tasks, so that λ depends neither on n nor on the
    unit of x. Rows may have weights, which multiply their losses and count in the means and the variance. Squared
    errors are solved in closed form, as in scikit-learn's `Ridge(alpha=n * λ * v)` for one task (the factor ½ is then
    left out); other losses by L-BFGS in float64, as in its `LogisticRegression(C=1 / (n * λ * v))` for a binary task,
    or 3 or more classes. For 2 classes, which have a column of W each, C is twice that.

    Args:
        tasks: Tasks that share W, at least one.
        strengths: Penalties λ, each > 0, in descending order, since each optimum is the start for the next.

    Yields:
        W `(F, outputs)` and b `(T, outputs)` for each λ.
    """
    means = torch.stack([rows.mean(rows.x) for rows in tasks])
    # Each intercept absorbs its task's means, after which W and b hardly depend on each other.
    centred = torch.cat([rows.x - mean for rows, mean in zip(tasks, means, strict=True)])
    roots = _roots(tasks).to(centred)
    unit = float((roots * centred).square().sum().div(roots.square().sum() * centred.shape[1]).sqrt()) or 1.0
    fit = _squared if all(type(rows.task).losses is Regression.losses for rows in tasks) else _by_descent
    for weight, intercepts in fit(tasks, centred / unit, strengths):
        yield weight / unit, intercepts - means @ (weight / unit)


def _squared(tasks: Sequence[Labelled], x: Tensor, strengths: Sequence[float]) -> Iterator[tuple[Tensor, Tensor]]:
    targets = [rows.task.standardised(rows.y, x.dtype) for rows in tasks if isinstance(rows.task, Regression)]
    intercepts = torch.stack([rows.mean(y) for rows, y in zip(tasks, targets, strict=True)])
    centred = torch.cat([y - mean for y, mean in zip(targets, intercepts, strict=True)])
    roots = _roots(tasks).to(x)
    for strength in strengths:
        yield ridge(roots * x, roots * centred, x.new_tensor(len(x) * strength)), intercepts


def _roots(tasks: Sequence[Labelled]) -> Tensor:
    """The square roots of the weights of all rows, `(n, 1)`."""
    roots = [torch.ones(len(rows.y)) if rows.weights is None else rows.weights.sqrt() for rows in tasks]
    return torch.cat([of_task.to(rows.x) for of_task, rows in zip(roots, tasks, strict=True)])[:, None]


def _by_descent(tasks: Sequence[Labelled], x: Tensor, strengths: Sequence[float]) -> Iterator[tuple[Tensor, Tensor]]:
    features, outputs, sizes = x.shape[1], tasks[0].task.outputs, [len(rows.y) for rows in tasks]
    unknowns = np.zeros((features + len(tasks)) * outputs)

    def objective(values: np.ndarray, strength: float) -> tuple[float, np.ndarray]:
        unknowns = torch.from_numpy(values).unflatten(0, (-1, outputs)).requires_grad_()
        weight, intercepts = unknowns[:features], unknowns[features:]
        parts = zip(tasks, (x @ weight).split(sizes), intercepts, strict=True)
        losses = [rows.losses(predicted + b).sum() for rows, predicted, b in parts]
        penalty = strength * weight.square().sum() + INTERCEPT * intercepts.square().sum()
        value = torch.stack(losses).sum() / len(x) + penalty / 2
        (gradient,) = torch.autograd.grad(value, unknowns)
        return value.item(), gradient.flatten().numpy()

    options = {"gtol": TOLERANCE, "ftol": 0.0, "maxiter": STEPS, "maxfun": 2 * STEPS}
    for strength in strengths:
        with torch.enable_grad():
            found = minimize(objective, unknowns, (strength,), "L-BFGS-B", jac=True, options=options)
        unknowns = found.x
        weight, intercepts = torch.from_numpy(unknowns.copy()).unflatten(0, (-1, outputs)).split([features, len(tasks)])
        yield weight, intercepts
