"""Calibration of a table model by target, from rows that it was not trained on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_meta.errors import UserError
from lightning_meta.functional.conformal import fit_temperature, hierarchical_quantile, prediction_sets
from lightning_meta.multitask.records import TaskRecord
from lightning_meta.tasks import Binary, Classification, Regression, Task

Measured = dict[str, float | None]


class LabelCalibration(NamedTuple):
    r"""Temperature, prediction sets and abstention threshold for a target with classes.

    With logits z and probabilities $p = \mathrm{softmax}(z)$:

    - the set of a row contains the labels with $1 - p_y \le q$;
    - the model abstains if $\max_y p_y$ is below the threshold;
    - the reported probabilities are $\mathrm{softmax}(z / T)$. Sets and abstention do not use T, so that all n labels
      can be used for both: if T depended on the rows that determine q, coverage would not be guaranteed.

    Attributes:
        labels: Number n of labelled rows that the calibration used.
        temperature: Temperature T > 0 (`lightning_meta.functional.conformal.fit_temperature`). It is very large, and
            the probabilities are uniform, if the logits carry no information about the label.
        quantile: Quantile q in [0, 1] (`lightning_meta.functional.conformal.hierarchical_quantile` with one example per
            task).
        threshold: Threshold in [0, 1]; at most a fraction 1 − coverage of new rows has a smaller largest probability.
    """

    labels: int
    temperature: float
    quantile: float
    threshold: float

    @classmethod
    def of(cls, coverage: float, logits: Tensor, labels: Tensor) -> LabelCalibration:
        """Calibrate on n rows, at least `fewest_labels(coverage)`.

        Args:
            coverage: Coverage 1 − α, in (0, 1).
            logits: Logits `(n, N)`.
            labels: Labels `(n,)`, in [0, N).
        """
        p = logits.double().softmax(-1)
        of_label = p.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
        quantile, unsure = (_quantile(1 - s, coverage) for s in (of_label, p.amax(-1)))
        return cls(len(labels), float(fit_temperature(logits, labels)), min(quantile, 1.0), 1 - min(unsure, 1.0))

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities with the temperature, `(M, N)` float64."""
        return (logits.double() / self.temperature).softmax(-1)

    def sets(self, logits: Tensor) -> Tensor:
        """Prediction sets `(M, N)` as bool; a set may be empty."""
        p = logits.double().softmax(-1)
        return prediction_sets(p, p.new_tensor(self.quantile))

    def abstained(self, logits: Tensor) -> Tensor:
        """Whether the model abstains from each row, `(M,)` bool."""
        largest = logits.double().softmax(-1).amax(-1)
        return ~prediction_sets(largest, largest.new_tensor(1 - self.threshold))

    def measure(self, logits: Tensor, labels: Tensor) -> Measured:
        """Measure sets and abstention on M labelled rows.

        Returns:
            `coverage_of` of the sets, which contain the label or do not; `set_size`, the mean number of labels in a
            set; `accuracy`; `abstained`, the fraction of rows that the model abstains from; `accuracy_of_rest`, the
            accuracy on the other rows. None if there is no such row.
        """
        sets, abstained, right = self.sets(logits), self.abstained(logits), logits.argmax(-1) == labels
        return {
            **coverage_of(sets.gather(-1, labels.unsqueeze(-1))),
            "set_size": _mean(sets.sum(-1)),
            "accuracy": _mean(right),
            "abstained": _mean(abstained),
            "accuracy_of_rest": _mean(right[~abstained]),
        }


class NumberCalibration(NamedTuple):
    r"""Prediction intervals for a numeric target, $[\hat y - r, \hat y + r]$.

    r is the k-th smallest of n absolute residuals $|y - \hat y|$, $k = \lceil (n + 1)(1 - \alpha) \rceil$ (split
    conformal prediction: Lei, G'Sell, Rinaldo, Tibshirani and Wasserman, Distribution-Free Predictive Inference for
    Regression, JASA 113 (2018), https://arxiv.org/abs/1604.04173, algorithm 2). All intervals have the same width.

    Attributes:
        labels: Number n of labelled rows that the calibration used.
        radius: Half-width r >= 0 of the intervals, in the unit of the target.
    """

    labels: int
    radius: float

    @classmethod
    def of(cls, coverage: float, residuals: Tensor) -> NumberCalibration:
        """Calibrate on n rows, at least `fewest_labels(coverage)`.

        Args:
            coverage: Coverage 1 − α, in (0, 1).
            residuals: Absolute residuals `(n,)` in the unit of the target.
        """
        return cls(len(residuals), _quantile(residuals.double(), coverage))

    def measure(self, residuals: Tensor) -> Measured:
        """Measure intervals on M rows: `coverage_of` them, and `width` of an interval."""
        return {**coverage_of(residuals <= self.radius), "width": 2 * self.radius}


class TableCalibration(NamedTuple):
    """Calibration of all targets of a table.

    If a new row is exchangeable with the labelled calibration rows, its set or interval contains its label with
    probability at least `coverage`. This holds for each task separately, on average over the draw of these rows.

    Attributes:
        coverage: Coverage 1 − α, in (0, 1).
        tasks: The calibration of each task, by name; None for a task with fewer than `fewest_labels(coverage)` labels.
    """

    coverage: float
    tasks: Mapping[str, LabelCalibration | NumberCalibration | None]

    @classmethod
    def of(cls, coverage: float, tasks: Mapping[str, Task], records: Mapping[str, TaskRecord]) -> TableCalibration:
        """Calibrate each task that has enough labels on its labelled rows.

        Args:
            coverage: Coverage 1 − α, in (0, 1).
            tasks: The tasks by name.
            records: Predictions by task name, for rows that the model was not trained on.

        Raises:
            UserError: All tasks have too few labels, or predictions are not finite.
        """
        name = max(tasks, key=lambda name: len(records[name].ids))
        least, count = fewest_labels(coverage), len(records[name].ids)
        if count < least:
            lower = f"give at most {math.floor(1000 * count / (count + 1)) / 1000:g}, or " if count else "give "
            raise UserError(
                f"coverage: {coverage:g} needs {least} labels of a task in the validation split, and task {name!r} "
                f"has most with {count}; {lower}more labelled rows"
            )
        found: dict[str, LabelCalibration | NumberCalibration | None] = {}
        for name, task in tasks.items():
            record = records[name]
            if len(record.ids) < least:
                found[name] = None
                continue
            if bad := int((~record.outputs.isfinite()).any(1).sum()):
                raise UserError(
                    f"task {name!r}: predictions for {bad} of {len(record.ids)} validation rows are NaN or infinite, "
                    "so they cannot be calibrated; train again with a smaller learning rate"
                )
            if isinstance(task, Regression):
                found[name] = NumberCalibration.of(coverage, residuals(task, record))
            elif isinstance(task, Binary | Classification):
                found[name] = LabelCalibration.of(coverage, class_logits(task, record.outputs), classes(record))
            else:
                raise UserError(f"task {name!r}: {type(task).__name__} has no classes or numbers to calibrate")
        return cls(coverage, found)

    @property
    def left_out(self) -> list[str]:
        """Names of the tasks with too few labels, whose predictions have no set or interval."""
        return [name for name, calibration in self.tasks.items() if calibration is None]

    def measure(self, tasks: Mapping[str, Task], records: Mapping[str, TaskRecord]) -> dict[str, Measured]:
        """Measure sets, intervals and abstention of each calibrated task, by name, on other labelled rows."""
        measured = {}
        for name, task in tasks.items():
            calibration, record = self.tasks[name], records[name]
            if isinstance(calibration, LabelCalibration):
                measured[name] = calibration.measure(class_logits(task, record.outputs), classes(record))
            elif calibration is not None:
                assert isinstance(task, Regression)
                measured[name] = calibration.measure(residuals(task, record))
        return measured


def fewest_labels(coverage: float) -> int:
    r"""The smallest number of labels with a finite quantile, $\lceil (1 - \alpha) / \alpha \rceil$: 9 for 0.9.

    Args:
        coverage: Coverage 1 − α, in (0, 1).
    """
    return max(1, math.ceil(coverage / (1 - coverage) * (1 - 1e-9)))  # 0.9 / 0.1 is 9, but may be rounded up


def coverage_of(covered: Tensor) -> Measured:
    r"""Compute the fraction of M rows whose set or interval contains the label, with Wilson's 95 % interval.

    $$\frac{c + z^2 / 2M \pm z \sqrt{c (1 - c) / M + z^2 / 4M^2}}{1 + z^2 / M}$$

    c is the fraction and z the 97.5 % quantile of the normal distribution (Wilson, Probable Inference, the Law of
    Succession, and Statistical Inference, JASA 22 (1927)). Rows are assumed independent; for rows in groups the
    interval is too narrow.

    Args:
        covered: Whether the set or interval of each row contains its label, M values.

    Returns:
        `labels`, M; `coverage`, `coverage_low` and `coverage_high` in [0, 1], None if there is no row.
    """
    count, share, z = covered.numel(), _mean(covered), 1.959964
    if share is None:
        return {"labels": 0, "coverage": None, "coverage_low": None, "coverage_high": None}
    c = float(covered.double().mean())
    middle = c + z**2 / (2 * count)
    half = z * math.sqrt(c * (1 - c) / count + z**2 / (4 * count**2))
    low, high = ((middle + sign * half) / (1 + z**2 / count) for sign in (-1, 1))
    return {"labels": count, "coverage": share, "coverage_low": round(low, 6), "coverage_high": round(high, 6)}


def class_logits(task: Task, outputs: Tensor) -> Tensor:
    """Logits of the classes `(M, N)` float64; for a binary task, the logit of the negative class is 0."""
    z = outputs.double()
    return torch.cat([torch.zeros_like(z), z], 1) if isinstance(task, Binary) else z


def classes(record: TaskRecord) -> Tensor:
    """The classes of labelled rows, `(n,)` int64."""
    return record.targets.flatten().long()


def residuals(task: Regression, record: TaskRecord) -> Tensor:
    """|y − ŷ| of labelled rows, `(n,)` float64 in the unit of the target."""
    # In float64: the difference of large targets would lose digits.
    wanted = task.standardised(record.targets, torch.float64)
    errors = (record.outputs.double() - wanted).abs()[:, 0]
    return errors * task.scale[0] if task.scale else errors


def _quantile(scores: Tensor, coverage: float) -> float:
    return float(hierarchical_quantile(scores.unsqueeze(1), 1 - coverage))


def _mean(values: Tensor) -> float | None:
    return round(float(values.double().mean()), 6) if values.numel() else None
