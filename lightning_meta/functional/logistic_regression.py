"""Logistic regression on few examples, to the optimum, in as many dimensions as there are examples."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_meta.functional.precision import in_float32
from lightning_meta.functional.prototypes import one_hot

NEWTON_STEPS, GRADIENT_STEPS = 10, 10
"""Of Newton's method, and of conjugate gradients within each: 8 and 8 are enough where classes lie far apart."""


@in_float32
def logistic_regression(features: Tensor, labels: Tensor, ways: int) -> tuple[Tensor, Tensor]:
    r"""Fit multinomial logistic regression with an L2 penalty, as scikit-learn's `LogisticRegression(C=1)` does.

    $$\min_{W, b} \sum_{(x, y)} -\log \mathrm{softmax}_y(W x + b) + \frac{1}{2} \lVert W \rVert^2$$

    The optimal W is a weighted sum of examples, $W = A X$, so there are N (M + 1) unknowns, whatever F is. Newton's
    method finds them from 0 in a fixed number of steps; its linear systems are solved by conjugate gradients, which
    need products with the Gram matrix alone. Nothing is drawn, nothing is read on the host, and it maps over tasks by
    `torch.func.vmap`.

    The numbers of steps are for few-shot support sets with features of length 1: up to 25 examples of each class,
    coefficients are right to 1e-6. With 500 of each, probabilities are right to 1e-4; with 1 of one class and 500 of
    the others, to 3e-2. Longer features take more steps.

    Args:
        features: `(M, F)`, of length 1 at most.
        labels: `(M,)` in [0, N), in any order, each class at least once.
        ways: N, at least 2.

    Returns:
        W `(N, F)` and b `(N,)`.
    """
    mean = features.mean(0)
    centred = features - mean  # then A and b hardly depend on each other
    problem = _Problem(centred, one_hot(labels, ways).T.to(features.dtype))
    unknowns, logits = problem.start, torch.zeros_like(problem.targets)
    for _ in range(NEWTON_STEPS):
        step, change = problem.newton_step(unknowns, logits)
        # Softmax is self-concordant, with the range of the logits' change as the measure: this rate never overshoots,
        # and becomes 1 near the optimum (Sun and Tran-Dinh 2019, https://arxiv.org/abs/1703.04599, nu = 2).
        size = (change.amax(0) - change.amin(0)).amax().clamp_min(problem.tiny)
        rate = size.log1p() / size
        unknowns, logits = unknowns + rate * step, logits + rate * change
    weight = unknowns[:, :-1] @ centred
    return weight, problem.unit * unknowns[:, -1] - weight @ mean


class _Problem:
    r"""The loss as a function of its unknowns `(N, M + 1)`: A, and b in units of its own scale.

    Inner products of unknowns are those of W and b: with the Gram matrix K, $\langle A, A' \rangle = tr(A K A'^\top)$.
    What an unknown is multiplied with to that end is called its dual.

    Args:
        features: `(M, F)`, of which K holds the inner products.
        targets: One-hot, `(N, M)`.
    """

    def __init__(self, features: Tensor, targets: Tensor) -> None:
        ways, examples = targets.shape
        self.features = features
        # With more examples than features, two products with them take less than one with K.
        self.gram = features @ features.T if examples <= features.shape[1] else None
        self.targets, self.start = targets, targets.new_zeros(ways, examples + 1)
        self.unit = 2 / examples**0.5  # then the curvature in b is of the order of that in W
        self.penalised = F.pad(features.new_ones(examples), (0, 1))
        numbers = torch.finfo(features.dtype)
        self.tiny = numbers.tiny
        whole = self._unknowns(targets)
        self.floor = numbers.eps**2 * (self._dual(whole) * whole).sum()  # of squared residuals

    def newton_step(self, unknowns: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The step to the optimum of the quadratic approximation, and how it changes the logits `(N, M)`."""
        p = logits.softmax(0)
        residual = self._unknowns(self.targets - p) - self.penalised * unknowns
        dual = self._dual(residual)
        square = (dual * residual).sum()
        step, dual_step, direction, dual_direction = self.start, self.start, residual, dual
        for _ in range(GRADIENT_STEPS):
            weighted = p * self._logits(dual_direction)
            curved = self._unknowns(weighted - p * weighted.sum(0)) + self.penalised * direction
            curvature = (dual_direction * curved).sum()
            # A residual that is nothing but rounding is left alone: its products may have any sign.
            sound = square > self.floor
            length = torch.where(sound, square / curvature.clamp_min(self.tiny), 0)
            step, dual_step = step + length * direction, dual_step + length * dual_direction
            residual = residual - length * curved
            dual = self._dual(residual)
            before, square = square, (dual * residual).sum()
            share = torch.where(sound, square / before.clamp_min(self.floor), 0)
            direction, dual_direction = residual + share * direction, dual + share * dual_direction
        return step, self._logits(dual_step)

    def _dual(self, unknowns: Tensor) -> Tensor:
        coefficients, b = unknowns[:, :-1], unknowns[:, -1:]
        if self.gram is None:
            return torch.cat([(coefficients @ self.features) @ self.features.T, b], dim=-1)
        return torch.cat([coefficients @ self.gram, b], dim=-1)

    def _logits(self, dual: Tensor) -> Tensor:
        """The logits `(N, M)` of an unknown whose dual is given."""
        logits: Tensor = dual[:, :-1] + self.unit * dual[:, -1:]
        return logits

    def _unknowns(self, of_logits: Tensor) -> Tensor:
        """A gradient in the logits `(N, M)` as one in the unknowns: the transpose of `_logits`."""
        return torch.cat([of_logits, self.unit * of_logits.sum(-1, keepdim=True)], dim=-1)
