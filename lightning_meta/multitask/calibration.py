"""How sure a model of a table is of each target: what is learned from rows that it was not trained on."""

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
    r"""A temperature, prediction sets and a threshold of abstention for a target with classes.

    With logits z and probabilities $p = \mathrm{softmax}(z)$:

    - the set of a row holds the labels with $1 - p_y \le q$;
    - the model abstains where $\max_y p_y$ is below the threshold;
    - $\mathrm{softmax}(z / T)$ are the probabilities to read. Sets and abstention do not use T, so that all labels
      serve for both: if T depended on the rows that q comes from, coverage would not be guaranteed.

    Attributes:
        labels: n, rows with a label that all this was learned from.
        temperature: T > 0 (`lightning_meta.functional.conformal.fit_temperature`); 1 if the most probable label is
            right for all n rows, whose likelihood has its maximum at T = 0. It is very large, and the probabilities are
            uniform, if the logits say nothing about the label.
        quantile: q in [0, 1] (`lightning_meta.functional.conformal.conformal_quantile`).
        threshold: In [0, 1]; at most the share 1 − coverage of new rows has a largest probability below it.
    """

    labels: int
    temperature: float
    quantile: float
    threshold: float

    @classmethod
    def of(cls, coverage: float, logits: Tensor, labels: Tensor) -> LabelCalibration:
        """Learn from n rows with enough labels (`fewest_labels`).

        Args:
            coverage: 1 − α, in (0, 1).
            logits: `(n, N)`.
            labels: `(n,)` in [0, N).
        """
        p = logits.double().softmax(-1)
        of_label = p.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
        quantile, unsure = (_quantile(1 - s, coverage) for s in (of_label, p.amax(-1)))
        right = bool((logits.argmax(-1) == labels).all())
        temperature = 1.0 if right else float(fit_temperature(logits, labels))
        return cls(len(labels), temperature, min(quantile, 1.0), 1 - min(unsure, 1.0))

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities with the temperature, `(M, N)` float64."""
        return (logits.double() / self.temperature).softmax(-1)

    def sets(self, logits: Tensor) -> Tensor:
        """The labels that a row may have, `(M, N)` bool; a set may be empty."""
        p = logits.double().softmax(-1)
        return prediction_sets(p, p.new_tensor(self.quantile))

    def abstained(self, logits: Tensor) -> Tensor:
        """Whether no label is probable enough, `(M,)` bool."""
        largest = logits.double().softmax(-1).amax(-1)
        return ~prediction_sets(largest, largest.new_tensor(1 - self.threshold))

    def measure(self, logits: Tensor, labels: Tensor) -> Measured:
        """What sets and abstention come to on M rows.

        Returns:
            Means over rows: `coverage`, the share whose set holds the label; `set_size`, labels in a set; `accuracy`;
            `abstained`, the share that is abstained from; `accuracy_of_rest`, of those that are not. None where there
            is no such row. The other values are those of `coverage_of`.
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
    r"""Intervals for a target of numbers, $[\hat y - r, \hat y + r]$.

    r is the k-th smallest of n absolute residuals $|y - \hat y|$, $k = \lceil (n + 1)(1 - \alpha) \rceil$ (split
    conformal prediction: Lei, G'Sell, Rinaldo, Tibshirani and Wasserman, Distribution-Free Predictive Inference for
    Regression, JASA 113 (2018), https://arxiv.org/abs/1604.04173, algorithm 2). All rows have the same width.

    Attributes:
        labels: n.
        radius: r, at least 0, in the unit of the target.
    """

    labels: int
    radius: float

    @classmethod
    def of(cls, coverage: float, residuals: Tensor) -> NumberCalibration:
        """Learn from n rows with enough labels (`fewest_labels`).

        Args:
            coverage: 1 − α, in (0, 1).
            residuals: `(n,)`, absolute, in the unit of the target.
        """
        return cls(len(residuals), _quantile(residuals.double(), coverage))

    def measure(self, residuals: Tensor) -> Measured:
        """What intervals come to on M rows: the values of `coverage_of`, and `width`, of each interval."""
        return {**coverage_of(residuals <= self.radius), "width": 2 * self.radius}


class TableCalibration(NamedTuple):
    """How sure a model is of each target of a table.

    The set or the interval of a new row holds its label with a probability of at least `coverage`, if the row is
    exchangeable with the labelled rows of the calibration. That holds for each task by itself, on average over the draw
    of these rows.

    Attributes:
        coverage: 1 − α, in (0, 1).
        tasks: By name of the task.
    """

    coverage: float
    tasks: Mapping[str, LabelCalibration | NumberCalibration]

    @classmethod
    def of(cls, coverage: float, tasks: Mapping[str, Task], records: Mapping[str, TaskRecord]) -> TableCalibration:
        """Learn from the labelled rows of each task.

        Args:
            coverage: 1 − α, in (0, 1).
            tasks: By name.
            records: By name, predictions for rows that were not learned from.

        Raises:
            UserError: A task has too few labels, or predictions are not finite.
        """
        name = min(tasks, key=lambda name: len(records[name].ids))
        least, count = fewest_labels(coverage), len(records[name].ids)
        if count < least:
            lower = f"give at most {math.floor(1000 * count / (count + 1)) / 1000:g}, or " if count else "give "
            raise UserError(
                f"coverage: {coverage:g} needs {least} labels of each task in the validation split, and task {name!r} "
                f"has {count}; {lower}more labelled rows"
            )
        found: dict[str, LabelCalibration | NumberCalibration] = {}
        for name, task in tasks.items():
            record = records[name]
            if bad := int((~record.outputs.isfinite()).any(1).sum()):
                raise UserError(
                    f"task {name!r}: predictions for {bad} of {len(record.ids)} validation rows are NaN or infinite, "
                    "so nothing can be said of how sure they are; train anew, with a smaller learning rate"
                )
            if isinstance(task, Regression):
                found[name] = NumberCalibration.of(coverage, residuals(task, record))
            elif isinstance(task, Binary | Classification):
                found[name] = LabelCalibration.of(coverage, class_logits(task, record.outputs), classes(record))
            else:
                raise UserError(f"task {name!r}: {type(task).__name__} has neither classes nor numbers to be sure of")
        return cls(coverage, found)

    def measure(self, tasks: Mapping[str, Task], records: Mapping[str, TaskRecord]) -> dict[str, Measured]:
        """What sets, intervals and abstention come to on other labelled rows, by name of the task."""
        measured = {}
        for name, task in tasks.items():
            calibration, record = self.tasks[name], records[name]
            if isinstance(calibration, LabelCalibration):
                measured[name] = calibration.measure(class_logits(task, record.outputs), classes(record))
            else:
                assert isinstance(task, Regression)
                measured[name] = calibration.measure(residuals(task, record))
        return measured


def fewest_labels(coverage: float) -> int:
    r"""How many labels a finite quantile needs: $\lceil (1 - \alpha) / \alpha \rceil$, 9 for 0.9.

    Args:
        coverage: 1 − α, in (0, 1).
    """
    return max(1, math.ceil(coverage / (1 - coverage) * (1 - 1e-9)))  # 0.9 / 0.1 is 9, whatever its rounding


def coverage_of(covered: Tensor) -> Measured:
    r"""The share of M rows whose set or interval holds the label, with its 95 % confidence interval by Wilson.

    $$\frac{c + z^2 / 2M \pm z \sqrt{c (1 - c) / M + z^2 / 4M^2}}{1 + z^2 / M}$$

    c is the share and z the 97.5 % quantile of the normal distribution (Wilson, Probable Inference, the Law of
    Succession, and Statistical Inference, JASA 22 (1927)). It supposes that rows are independent: for rows in groups
    it is too narrow.

    Args:
        covered: Whether the label of each row is in its set or interval, M values.

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
    """Logits of the classes `(M, N)` float64; those of no are 0 for a binary task."""
    z = outputs.double()
    return torch.cat([torch.zeros_like(z), z], 1) if isinstance(task, Binary) else z


def classes(record: TaskRecord) -> Tensor:
    """The classes of labelled rows, `(n,)` int64."""
    return record.targets.flatten().long()


def residuals(task: Regression, record: TaskRecord) -> Tensor:
    """|y − ŷ| of labelled rows, `(n,)` float64 in the unit of the target."""
    wanted = task.standardised(record.targets, torch.float64)  # large targets cancel before they are rounded
    errors = (record.outputs.double() - wanted).abs()[:, 0]
    return errors * task.scale[0] if task.scale else errors


def _quantile(scores: Tensor, coverage: float) -> float:
    return float(hierarchical_quantile(scores.unsqueeze(1), 1 - coverage))


def _mean(values: Tensor) -> float | None:
    return round(float(values.double().mean()), 6) if values.numel() else None
