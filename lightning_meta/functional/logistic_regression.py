"""Logistic regression on few examples, solved to the optimum in the span of the examples."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_meta.functional.precision import in_float32
from lightning_meta.functional.prototypes import one_hot

NEWTON_STEPS, GRADIENT_STEPS = 10, 10
"""Steps of Newton's method, and of conjugate gradients in each; 8 and 8 suffice for well separated classes."""


@in_float32
def logistic_regression(features: Tensor, labels: Tensor, ways: int) -> tuple[Tensor, Tensor]:
    r"""Fit multinomial logistic regression with an L2 penalty, as scikit-learn's `LogisticRegression(C=1)` does.

    $$\min_{W, b} \sum_{(x, y)} -\log \mathrm{softmax}_y(W x + b) + \frac{1}{2} \lVert W \rVert^2$$

    This holds for 3 or more classes. For 2 classes scikit-learn has a single weight vector, the difference of the two
    rows of W, whose penalty is half as large: the result is that of `LogisticRegression(C=2)`.

    The optimal W is a weighted sum of examples, $W = A X$, so there are N (M + 1) unknowns for any F. Newton's method
    starts at 0 and takes a fixed number of steps. Its linear systems are solved by conjugate gradients, which need only
    products with the Gram matrix. There are no random draws and no host synchronisation, and the function can be mapped
    over tasks by `torch.func.vmap`.

    The numbers of steps are chosen for few-shot support sets with features of length 1. With up to 25 examples per
    class, the error of the coefficients is at most 1e-6. With 500 per class, the error of the probabilities is at most
    1e-4; with 1 example of one class and 500 of each other, 3e-2. Longer features need more steps.

    >>> features = torch.tensor([[-1.0], [-0.8], [0.9], [1.0]])
    >>> weights, biases = logistic_regression(features, torch.tensor([0, 0, 1, 1]), ways=2)
    >>> (features @ weights.T + biases).argmax(-1).tolist()
    [0, 0, 1, 1]

    Args:
        features: Features X, `(M, F)`, of length at most 1.
        labels: Labels `(M,)` in [0, N), in any order; each class must occur.
        ways: Number of classes N, >= 2.

    Returns:
        Weights W `(N, F)` and biases b `(N,)`.
    """
    mean = features.mean(0)
    centred = features - mean  # makes A and b nearly independent, which speeds up convergence
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

    The inner product of unknowns is that of their W and b: with the Gram matrix K of the features,
    $\langle A, A' \rangle = tr(A K A'^\top)$. The product of an unknown with K is called its dual.

    Args:
        features: Features `(M, F)`.
        targets: One-hot labels `(N, M)`.
    """

    def __init__(self, features: Tensor, targets: Tensor) -> None:
        ways, examples = targets.shape
        self.features = features
        # With more examples than features, two products with the features cost less than one with K.
        self.gram = features @ features.T if examples <= features.shape[1] else None
        self.targets, self.start = targets, targets.new_zeros(ways, examples + 1)
        self.unit = 2 / examples**0.5  # gives b a curvature of the same order as that of W
        self.penalised = F.pad(features.new_ones(examples), (0, 1))
        numbers = torch.finfo(features.dtype)
        self.tiny = numbers.tiny
        whole = self._unknowns(targets)
        self.floor = numbers.eps**2 * (self._dual(whole) * whole).sum()  # rounding error of squared residuals

    def newton_step(self, unknowns: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the step to the optimum of the quadratic approximation, and its change of the logits `(N, M)`."""
        p = logits.softmax(0)
        residual = self._unknowns(self.targets - p) - self.penalised * unknowns
        dual = self._dual(residual)
        square = (dual * residual).sum()
        step, dual_step, direction, dual_direction = self.start, self.start, residual, dual
        for _ in range(GRADIENT_STEPS):
            weighted = p * self._logits(dual_direction)
            curved = self._unknowns(weighted - p * weighted.sum(0)) + self.penalised * direction
            curvature = (dual_direction * curved).sum()
            # A residual at the level of rounding errors is not used, since its products may have any sign.
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
        """Return the logits `(N, M)` of an unknown from its dual."""
        logits: Tensor = dual[:, :-1] + self.unit * dual[:, -1:]
        return logits

    def _unknowns(self, of_logits: Tensor) -> Tensor:
        """Turn a gradient with respect to logits `(N, M)` into one for the unknowns, by the transpose of `_logits`."""
        return torch.cat([of_logits, self.unit * of_logits.sum(-1, keepdim=True)], dim=-1)
