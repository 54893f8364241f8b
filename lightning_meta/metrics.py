"""The metrics that a task can be selected and compared by: named ones, and torchmetrics' or a user's own classes."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics import classification as of_classes

from lightning_meta.errors import UserError
from lightning_meta.modes import Mode

SMALL_IS_GOOD = ("log_loss", "rmse", "mae")
OF_EXAMPLES = ("accuracy", "log_loss", "mae", "r2")
"""Means over examples: a batch has them as well as a split."""

NAMED = ("accuracy", "balanced_accuracy", "auroc", "average_precision", "f1", "log_loss", "r2", "rmse", "mae")
TAKEN = (*NAMED, "score", "joint_score", "loss", "weight", "tasks")
"""What is logged besides a user's own metrics, which need names of their own."""

GROUPS, FEWEST = 200, 10
"""Groups of examples that a class's metric is computed without, one after the other; and of each class at least."""

# torchmetrics calls these 0 where there is one class; the named ones are the same numbers, and NaN there.
_NAMED = {
    of_classes.BinaryAUROC: "auroc",
    of_classes.MulticlassAUROC: "auroc",
    of_classes.MultilabelAUROC: "auroc",
    of_classes.BinaryAveragePrecision: "average_precision",
    of_classes.MulticlassAveragePrecision: "average_precision",
    of_classes.MultilabelAveragePrecision: "average_precision",
}


@dataclass(frozen=True)
class Choice:
    """A metric that was chosen.

    Attributes:
        name: As logged, such as `auroc`.
        mode: Whether a good value is large ("max") or small ("min").
        kind: The class that computes it; None for a named one.
    """

    name: str
    mode: Mode
    kind: type[Metric] | None = None


def choose(metric: str | type[Metric], names: Sequence[str], outputs: int, whose: str) -> Choice:
    """The metric of a name or of a class.

    Args:
        metric: One of `names`, or a class of torchmetrics or derived from `torchmetrics.Metric`, which is made without
            arguments, but for `num_classes`, `num_labels` and `num_outputs`.
        names: Those that the kind of task has.
        outputs: Of the task.
        whose: The kind of task.

    Raises:
        UserError: There is no such metric, it cannot be made, or does not say which way it points.
    """
    if isinstance(metric, type) and issubclass(metric, Metric):
        if metric in _NAMED:
            return choose(_NAMED[metric], names, outputs, whose)
        better = made(metric, outputs).higher_is_better
        if better is None:
            raise UserError(
                f"metric: {metric.__name__} does not say whether a large or a small value is good; set its attribute "
                "higher_is_better to True or False, in a class derived from it"
            )
        name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", metric.__name__).lower()
        if name in TAKEN or name.endswith("_tasks"):
            raise UserError(
                f"metric: the class {metric.__name__} would be logged as {name!r}, which is something else; give it "
                "another name"
            )
        return Choice(name, "max" if better else "min", metric)
    if isinstance(metric, str) and metric in names:
        return Choice(metric, "min" if metric in SMALL_IS_GOOD else "max")
    close = difflib.get_close_matches(str(metric), names, n=1)
    known = f"{', '.join(names)}, or a class derived from torchmetrics.Metric"
    kind = " (give the class, not an object of it)" if isinstance(metric, Metric) else ""
    shown = type(metric).__name__ if isinstance(metric, Metric) else repr(metric)
    meant = f"; did you mean {close[0]}?" if close else ""
    raise UserError(f"metric: {whose} has {known}, got {shown}{kind}{meant}")


def made(kind: type[Metric], outputs: int) -> Metric:
    """A new metric of a class.

    Raises:
        UserError: Its constructor wants more.
    """
    taken = inspect.signature(kind).parameters
    filled = {name: outputs for name in ("num_classes", "num_labels", "num_outputs") if name in taken}
    try:
        return kind(**filled)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"metric: {kind.__name__} cannot be made: {' '.join(str(error).split())[:200]}; give a class derived from "
            "it whose constructor fills its arguments in"
        ) from error


def value_of_class(kind: type[Metric], outputs: int, predicted: Tensor, targets: Tensor) -> Tensor:
    """The value of a class's metric over M examples, a scalar of the predictions' dtype.

    Args:
        kind: The class.
        outputs: Of the task.
        predicted: `(M, ...)`, as people read them.
        targets: `(M, ...)`.
    """
    if predicted.dim() > 1 and predicted.shape[1] == 1:
        predicted, targets = predicted[:, 0], targets.flatten()
    metric = made(kind, outputs).set_dtype(predicted.dtype).to(predicted.device)
    try:
        value = metric(predicted, targets.to(predicted.dtype) if targets.is_floating_point() else targets)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # anything that the class may raise
        said = " ".join(str(error).split())[:200]
        raise UserError(
            f"metric: {kind.__name__} fails on {len(predicted)} examples: {type(error).__name__}: {said}"
        ) from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise UserError(f"metric: {kind.__name__} gives {type(value).__name__}, a single number is needed")
    return value.reshape(()).to(predicted.dtype)


def values_of_class(kind: type[Metric], outputs: int, predicted: Tensor, targets: Tensor) -> Tensor:
    r"""What each of M examples adds to a class's metric, whose mean they have.

    $v_j = \theta + L_j$ with $L_j = \frac{M - m}{m} (\theta - \theta_{(j)})$ and $\theta_{(j)}$ the metric without
    the m examples of j's group: the jackknife (Efron and Stein, Annals of Statistics 9, 1981), for metrics that change
    little with one example. Up to `GROUPS` examples, each is a group. Of more, a group is of one class, and its
    examples have $\sqrt m$ times the deviation of $L_j$ from the mean of the class, so that the variance of the mean of
    v is what single examples would give.

    Returns:
        `(M,)`; all are the metric where it has no interval, as it is not defined without some group.
    """
    whole, n = value_of_class(kind, outputs, predicted, targets), len(predicted)
    classes = classes_of(targets.cpu().double().reshape(n, -1).numpy(), outputs)
    members = _groups(n, np.zeros(n) if classes is None else classes)
    if n <= 2:
        return whole.expand(n).clone()
    values, of_class = whole.new_zeros(n), []
    for groups in members:
        added, rows = [], [torch.as_tensor(group, device=predicted.device) for group in groups]
        for group in rows:
            rest = torch.ones(n, dtype=torch.bool, device=predicted.device).index_fill(0, group, False)
            left_out = value_of_class(kind, outputs, predicted[rest], targets[rest])
            added.append((whole - left_out) * (n - len(group)) / len(group))
        sizes = whole.new_tensor([len(group) for group in rows])
        mean = (sizes * torch.stack(added)).sum() / sizes.sum()
        for group, value in zip(rows, added, strict=True):
            values[group] = mean + len(group) ** 0.5 * (value - mean)
        of_class.append((torch.cat(rows), mean))
    for rows_of_class, mean in of_class:  # groups of one class may differ in size by one
        values[rows_of_class] += mean - values[rows_of_class].mean()
    if not torch.isfinite(values).all():
        return whole.expand(n).clone()
    return whole + values - values.mean()


def classes_of(targets: np.ndarray, outputs: int) -> np.ndarray | None:
    """The class of each test example; None where targets are no labels.

    Of several yes-or-no labels an example is of that whose rarer value it has, the rarest of them; of 0 where it has
    none.

    Args:
        targets: `(M, d)`; columns that a task has not are NaN.
        outputs: How many numbers a network predicts for one example.

    Returns:
        `(M,)`.
    """
    labels = targets[:, ~np.isnan(targets).all(0)]
    if not labels.size or not (labels == np.floor(labels)).all() or labels.min() < 0:
        return None
    if labels.shape[1] == 1:
        of_one: np.ndarray = labels[:, 0]
        return of_one if labels.max() < max(2, outputs) else None
    if labels.max() > 1:
        return None
    rarer = np.where(labels.mean(0) <= 0.5, labels, 1 - labels)
    first = (rarer / np.maximum(rarer.sum(0), 1)).argmax(1)
    return np.where(rarer.any(1), first + 1, 0)


def _groups(n: int, classes: np.ndarray) -> list[list[np.ndarray]]:
    """Numbers of examples, by class and group."""
    of_class = [np.flatnonzero(classes == c) for c in np.unique(classes)]
    most = n if n <= GROUPS else max(FEWEST, GROUPS // len(of_class))
    return [[rows[g :: min(most, len(rows))] for g in range(min(most, len(rows)))] for rows in of_class]
