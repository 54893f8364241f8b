"""Logistic regression on few examples, to the optimum, in as many dimensions as there are examples."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_meta.functional.precision import in_float32

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

    The numbers of steps are for features of length 1, of which coefficients are right to 1e-6. Longer ones take more.

    Args:
        features: `(M, F)`, of length 1 at most.
        labels: `(M,)` in [0, N), in any order, each class at least once.
        ways: N, at least 2.

    Returns:
        W `(N, F)` and b `(N,)`.
    """
    mean = features.mean(0)
    centred = features - mean  # then A and b hardly depend on each other
    problem = _Problem(centred @ centred.T, F.one_hot(labels, ways).T.to(features.dtype))
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
    """The loss as a function of its unknowns `(N, M + 1)`: A, and b in units of its own scale.

    Inner products of unknowns are those of W and b: with K the Gram matrix, $\\langle A, A' \\rangle = tr(A K A'^T)$.

    Args:
        gram: K, `(M, M)`.
        targets: One-hot, `(N, M)`.
    """

    def __init__(self, gram: Tensor, targets: Tensor) -> None:
        ways, examples = targets.shape
        self.targets, self.start = targets, targets.new_zeros(ways, examples + 1)
        self.unit = 2 / examples**0.5  # then the curvature in b is of the order of that in W
        self.to_logits = torch.cat([gram, gram.new_full((1, examples), self.unit)])
        numbers = torch.finfo(gram.dtype)
        self.tiny = numbers.tiny
        whole = self._gradient(targets, self.start)
        self.floor = numbers.eps**2 * self._product(whole, whole @ self.to_logits, whole)  # of squared residuals

    def newton_step(self, unknowns: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The step to the optimum of the quadratic approximation, and how it changes the logits `(N, M)`."""
        p = logits.softmax(0)
        residual = self._gradient(self.targets - p, -unknowns)
        step, change = self.start, torch.zeros_like(logits)
        direction = residual
        of_direction = of_residual = residual @ self.to_logits
        square = self._product(residual, of_residual, residual)
        for _ in range(GRADIENT_STEPS):
            weighted = p * of_direction
            curved = self._gradient(weighted - p * weighted.sum(0), direction)
            curvature = self._product(direction, of_direction, curved)
            # A residual that is nothing but rounding is left alone: its products may have any sign.
            sound = square > self.floor
            length = torch.where(sound, square / curvature.clamp_min(self.tiny), 0)
            step, change = step + length * direction, change + length * of_direction
            residual = residual - length * curved
            of_residual = residual @ self.to_logits
            before, square = square, self._product(residual, of_residual, residual)
            share = torch.where(sound, square / before.clamp_min(self.floor), 0)
            direction, of_direction = residual + share * direction, of_residual + share * of_direction
        return step, change

    def _gradient(self, of_logits: Tensor, of_penalty: Tensor) -> Tensor:
        """A gradient in the unknowns from one in the logits `(N, M)` and that of the penalty `(N, M + 1)`."""
        return torch.cat(
            [of_logits + of_penalty[:, :-1], self.unit * of_logits.sum(-1, keepdim=True)],
            dim=-1,
        )

    def _product(self, one: Tensor, logits_of_one: Tensor, other: Tensor) -> Tensor:
        """The inner product of two unknowns; the logits of one are known."""
        of_weights = (logits_of_one - self.unit * one[:, -1:]) * other[:, :-1]
        product: Tensor = of_weights.sum() + (one[:, -1] * other[:, -1]).sum()
        return product
