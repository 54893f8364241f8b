"""How sure a meta-learner is of new tasks: what is learned from tasks that it was not trained on."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_meta.functional.conformal import (
    fit_temperature,
    hierarchical_quantile,
    open_set_auroc,
    prediction_sets,
)


class TaskLogits(NamedTuple):
    """What a meta-learner said of the queries of n tasks.

    Attributes:
        logits: `(n, M, N)`.
        labels: `(n, M)` in [0, N).
        strangers: `(m, N)` logits of examples of other classes than those of the task, at most one of each task.
    """

    logits: Tensor
    labels: Tensor
    strangers: Tensor


class Calibration(NamedTuple):
    r"""A temperature, prediction sets and a threshold of abstention for tasks of N ways and K shots.

    With probabilities $p = \mathrm{softmax}(z / T)$ of logits z:

    - the set of an example holds the labels with $1 - p_y \le q$, at least the share `coverage` of examples of new
      tasks has its label in its set;
    - the model abstains where $\max_y p_y$ is below the threshold, at most for the share 1 − `coverage` of examples of
      the classes of new tasks.

    Both hold on average over tasks that are exchangeable with those of the calibration: of the same classes, or of
    classes drawn as these were. Of other classes they may not hold; `measure` says what they came to.

    Attributes:
        ways: N.
        shots: K, support examples of each class.
        tasks: n, tasks that q and the threshold were learned from; others gave T.
        coverage: 1 − α, in (0, 1).
        temperature: T > 0 (`lightning_meta.functional.conformal.fit_temperature`).
        quantile: q in [0, 1] (`lightning_meta.functional.conformal.hierarchical_quantile`).
        threshold: In [0, 1].
    """

    ways: int
    shots: int
    tasks: int
    coverage: float
    temperature: float
    quantile: float
    threshold: float

    @classmethod
    def of(cls, shots: int, coverage: float, first: TaskLogits, then: TaskLogits) -> Calibration:
        """Learn from tasks.

        Args:
            shots: K of these tasks.
            coverage: 1 − α, in (0, 1).
            first: The tasks that the temperature is learned from.
            then: n other tasks, for the quantile and the threshold.
        """
        temperature = float(fit_temperature(first.logits.flatten(0, 1), first.labels.flatten()))
        p = (then.logits.double() / temperature).softmax(-1)
        of_label = p.gather(-1, then.labels.unsqueeze(-1)).squeeze(-1)
        quantile, unsure = (float(hierarchical_quantile(1 - s, 1 - coverage)) for s in (of_label, p.amax(-1)))
        # Of too few tasks the quantiles are infinite: sets hold all labels, and nothing is abstained from.
        tasks, _, ways = p.shape
        return cls(ways, shots, tasks, coverage, temperature, min(quantile, 1.0), 1 - min(unsure, 1.0))

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities `(..., N)`, float64."""
        return (logits.double() / self.temperature).softmax(-1)

    def sets(self, probabilities: Tensor) -> Tensor:
        """The labels that an example may have, bool of the shape of the probabilities; a set may be empty."""
        return prediction_sets(probabilities, torch.tensor(self.quantile, dtype=probabilities.dtype))

    def abstained(self, probabilities: Tensor) -> Tensor:
        """Whether no label is probable enough, `(...)` bool."""
        quantile = torch.tensor(1 - self.threshold, dtype=probabilities.dtype)
        return ~prediction_sets(probabilities.amax(-1), quantile)

    def measure(self, found: TaskLogits) -> dict[str, float | None]:
        """What sets and abstention come to on tasks.

        Returns:
            Means over the queries of all tasks: `coverage`, the share whose set holds the label; `set_size`, labels in
            a set; `accuracy`; `abstained`, the share that is abstained from; `accuracy_of_rest`, of those that are
            not. Of examples of other classes: `abstained_strangers`, and `open_set_auroc`, how well the largest
            probability tells them from queries. None where there is no such example.
        """
        p = self.probabilities(found.logits)
        sets, abstained, right = self.sets(p), self.abstained(p), p.argmax(-1) == found.labels
        strange = self.probabilities(found.strangers)
        some = len(strange) > 0
        means: dict[str, Tensor | None] = {
            "coverage": sets.gather(-1, found.labels.unsqueeze(-1)).double().mean(),
            "set_size": sets.sum(-1).double().mean(),
            "accuracy": right.double().mean(),
            "abstained": abstained.double().mean(),
            "accuracy_of_rest": None if abstained.all() else right[~abstained].double().mean(),
            "abstained_strangers": self.abstained(strange).double().mean() if some else None,
            "open_set_auroc": open_set_auroc(p.flatten(0, 1), strange) if some else None,
        }
        return {name: None if mean is None else round(float(mean), 6) for name, mean in means.items()}
