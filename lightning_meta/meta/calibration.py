"""Calibration of a meta-learner on tasks that it was not trained on: temperature, prediction sets, abstention."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_meta.errors import UserError
from lightning_meta.functional.conformal import (
    fit_temperature,
    hierarchical_quantile,
    open_set_auroc,
    prediction_sets,
)
from lightning_meta.meta.learner import Learner
from lightning_meta.meta.scores import mean_and_interval


class TaskLogits(NamedTuple):
    """The predictions of a meta-learner for the queries of n tasks.

    Attributes:
        logits: Logits of the queries, `(n, M, N)`.
        labels: Labels of the queries, `(n, M)` in [0, N).
        other_classes: Logits `(m, N)` of examples of other classes than those of the task, at most one per task.
    """

    logits: Tensor
    labels: Tensor
    other_classes: Tensor


class Calibration(NamedTuple):
    r"""Temperature, prediction sets and abstention threshold for tasks of N ways and K shots.

    With probabilities $p = \mathrm{softmax}(z / T)$ of logits z:

    - the prediction set of an example contains the labels with $1 - p_y \le q$; for at least the share `coverage` of
      examples of new tasks it contains the true label;
    - the model abstains if $\max_y p_y$ is below the threshold, for at most the share 1 − `coverage` of examples of the
      classes of new tasks.

    Both hold on average over tasks that are exchangeable with the calibration tasks: tasks of the same classes, or of
    classes drawn from the same distribution. For other classes they may not hold; `measure` reports the actual values.

    Attributes:
        ways: Number of classes N.
        shots: Number K of support examples per class.
        tasks: Number n of tasks that q and the threshold were computed from; T was fitted on others.
        coverage: Target coverage 1 − α, in (0, 1).
        temperature: Temperature T > 0 (`lightning_meta.functional.conformal.fit_temperature`).
        quantile: Quantile q in [0, 1] (`lightning_meta.functional.conformal.hierarchical_quantile`).
        threshold: Threshold of abstention, in [0, 1].
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
        """Calibrate on tasks.

        Args:
            shots: Number K of support examples per class in these tasks.
            coverage: Target coverage 1 − α, in (0, 1).
            first: Tasks that the temperature is fitted on.
            then: Other tasks, for the quantile and the threshold.
        """
        temperature = float(fit_temperature(first.logits.flatten(0, 1), first.labels.flatten()))
        p = (then.logits.double() / temperature).softmax(-1)
        p_label = p.gather(-1, then.labels.unsqueeze(-1)).squeeze(-1)
        quantile, unsure = (float(hierarchical_quantile(1 - s, 1 - coverage)) for s in (p_label, p.amax(-1)))
        # With too few tasks the quantiles are infinite: sets contain all labels, and the model never abstains.
        tasks, _, ways = p.shape
        return cls(ways, shots, tasks, coverage, temperature, min(quantile, 1.0), 1 - min(unsure, 1.0))

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities `(..., N)`, float64."""
        return (logits.double() / self.temperature).softmax(-1)

    def sets(self, probabilities: Tensor) -> Tensor:
        """Which labels are in the prediction sets, bool of the shape of the probabilities; a set may be empty."""
        return prediction_sets(probabilities, torch.tensor(self.quantile, dtype=probabilities.dtype))

    def abstained(self, probabilities: Tensor) -> Tensor:
        """Whether the model abstains, `(...)` bool."""
        quantile = torch.tensor(1 - self.threshold, dtype=probabilities.dtype)
        return ~prediction_sets(probabilities.amax(-1), quantile)

    def measure(self, predicted: TaskLogits) -> dict[str, float | None]:
        """Evaluate prediction sets and abstention on tasks.

        Returns:
            `tasks`, their number n. Means over the queries of all tasks: `coverage`, the share whose set contains the
            true label; `set_size`, labels per set; `accuracy`; `abstained`, the share of abstentions;
            `accuracy_of_rest`, accuracy on the others. `coverage_ci95` is the half-width of the 95 % confidence
            interval of the coverage over new tasks (`mean_and_interval`), None for a single task; it does not apply to
            the tasks of the calibration, to which the sets were fitted. For examples of other classes:
            `abstained_other_classes`, and `open_set_auroc`, the AUROC of the largest probability in separating them
            from queries. None if there is no such example.
        """
        p = self.probabilities(predicted.logits)
        sets, abstained, right = self.sets(p), self.abstained(p), p.argmax(-1) == predicted.labels
        p_other = self.probabilities(predicted.other_classes)
        some = len(p_other) > 0
        covered = sets.gather(-1, predicted.labels.unsqueeze(-1)).squeeze(-1).double()
        _, interval = mean_and_interval(covered.mean(1), 1 / covered.shape[1])
        means: dict[str, Tensor | None] = {
            "coverage": covered.mean(),
            "coverage_ci95": torch.tensor(interval) if len(covered) > 1 else None,
            "set_size": sets.sum(-1).double().mean(),
            "accuracy": right.double().mean(),
            "abstained": abstained.double().mean(),
            "accuracy_of_rest": None if abstained.all() else right[~abstained].double().mean(),
            "abstained_other_classes": self.abstained(p_other).double().mean() if some else None,
            "open_set_auroc": open_set_auroc(p.flatten(0, 1), p_other) if some else None,
        }
        rounded = {name: None if mean is None else round(float(mean), 6) for name, mean in means.items()}
        return {"tasks": float(len(covered)), **rounded}


def predicts_together(module: Learner, argument: str) -> UserError:
    """The error for a calibration of predictions that depend on the other queries of their call.

    Examples of the calibration and new ones are then not exchangeable, so coverage is not guaranteed.

    Args:
        module: The meta-learner.
        argument: Name of the option, for the message.
    """
    by_norms = hasattr(module, "batch_norm") and not module.uses_query_set
    hint = "give batch_norm inductive" if by_norms else "choose an inductive method"
    return UserError(
        f"{argument}: {type(module).__name__} predicts the queries of a task together, so the probabilities of a query "
        f"depend on the others; {hint}"
    )
