"""Metrics for model selection and comparison: built-in ones by name, and classes of torchmetrics or of the user."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchmetrics import MeanAbsoluteError, Metric, R2Score
from torchmetrics import classification as of_classes

from lightning_meta.errors import UserError, reason_of
from lightning_meta.modes import Mode

SMALL_IS_GOOD = ("log_loss", "rmse", "mae")
OF_EXAMPLES = ("accuracy", "log_loss", "mae", "r2")
"""Metrics that are means over examples, and are therefore computed for batches as well as for splits."""

NAMED = ("accuracy", "balanced_accuracy", "auroc", "average_precision", "f1", "log_loss", "r2", "rmse", "mae")
RESERVED = ("score", "joint_score", "loss", "weight", "tasks")
"""Names of logged values besides metrics, which no metric can use."""

GROUPS, FEWEST = 200, 10
"""Number of jackknife groups for the interval of a metric class: in all, and at least for each class."""

# The built-in ones return the same values, but NaN where the metric is not defined: with a single class, or with too
# few rows for R². They also have bounds, so that one task cannot decide a mean alone.
_NAMED = {
    MeanAbsoluteError: "mae",
    R2Score: "r2",
    of_classes.BinaryAUROC: "auroc",
    of_classes.MulticlassAUROC: "auroc",
    of_classes.MultilabelAUROC: "auroc",
    of_classes.BinaryAveragePrecision: "average_precision",
    of_classes.MulticlassAveragePrecision: "average_precision",
    of_classes.MultilabelAveragePrecision: "average_precision",
}


@dataclass(frozen=True)
class Choice:
    """A chosen metric.

    Attributes:
        name: Logged name, such as `auroc`.
        mode: "max" if larger values are better, "min" if smaller ones are.
        kind: Class that computes the metric; None for a built-in one.
    """

    name: str
    mode: Mode
    kind: type[Metric] | None = None


def is_reserved(name: str) -> bool:
    """Whether something else is logged by the name of a metric."""
    return name in RESERVED or name.endswith("_tasks")


def choose(metric: str | type[Metric], names: Sequence[str], outputs: int, whose: str) -> Choice:
    """Return the metric of a name or of a class.

    Args:
        metric: One of `names`, or a class derived from `torchmetrics.Metric`, which is called without arguments except
            for `num_classes`, `num_labels` and `num_outputs`.
        names: Names of the built-in metrics of the kind of task.
        outputs: Number of outputs of the task.
        whose: Kind of task, for the error message.

    Raises:
        UserError: There is no such metric, it cannot be made, or its `higher_is_better` is None.
    """
    if isinstance(metric, type) and issubclass(metric, Metric):
        if _NAMED.get(metric) in names:
            return choose(_NAMED[metric], names, outputs, whose)
        better = made(metric, outputs).higher_is_better
        if better is None:
            raise UserError(
                f"metric: {metric.__name__} does not say whether larger or smaller values are better; set "
                "higher_is_better to True or False in a class derived from it"
            )
        name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", metric.__name__).lower()
        if name in NAMED or is_reserved(name):
            raise UserError(
                f"metric: the class {metric.__name__} would be logged as {name!r}, which is already in use; rename it"
            )
        return Choice(name, "max" if better else "min", metric)
    if isinstance(metric, str) and metric in names:
        return Choice(metric, "min" if metric in SMALL_IS_GOOD else "max")
    close = difflib.get_close_matches(str(metric), names, n=1)
    choices = f"{', '.join(names)}, or a class derived from torchmetrics.Metric"
    kind = " (give the class, not an object of it)" if isinstance(metric, Metric) else ""
    shown = type(metric).__name__ if isinstance(metric, Metric) else repr(metric)
    meant = f"; did you mean {close[0]}?" if close else ""
    raise UserError(f"metric: {whose} has {choices}, got {shown}{kind}{meant}")


def made(kind: type[Metric], outputs: int) -> Metric:
    """Make a metric of a class.

    Raises:
        UserError: Its constructor needs other arguments.
    """
    parameters = inspect.signature(kind).parameters
    sizes = {name: outputs for name in ("num_classes", "num_labels", "num_outputs") if name in parameters}
    try:
        return kind(**sizes)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"metric: {kind.__name__} cannot be made: {reason_of(error, 200)}; give a derived class "
            "whose constructor needs no other arguments"
        ) from error


def value_of_class(kind: type[Metric], outputs: int, predicted: Tensor, targets: Tensor) -> Tensor:
    """Compute the metric of a class over M examples.

    Args:
        kind: The class.
        outputs: Number of outputs of the task.
        predicted: `(M, ...)` predictions as reported to the user, such as probabilities.
        targets: `(M, ...)` targets.

    Returns:
        Scalar of the dtype of `predicted`.

    Raises:
        UserError: The metric fails, or does not return a single number.
    """
    if predicted.dim() > 1 and predicted.shape[1] == 1:
        predicted, targets = predicted[:, 0], targets.flatten()
    metric = made(kind, outputs).set_dtype(predicted.dtype).to(predicted.device)
    try:
        value = metric(predicted, targets.to(predicted.dtype) if targets.is_floating_point() else targets)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a custom class may raise anything
        message = reason_of(error, 200)
        raise UserError(
            f"metric: {kind.__name__} fails on {len(predicted)} examples: {type(error).__name__}: {message}"
        ) from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise UserError(f"metric: {kind.__name__} gives {type(value).__name__}, a single number is needed")
    return value.reshape(()).to(predicted.dtype)


def values_of_class(kind: type[Metric], outputs: int, predicted: Tensor, targets: Tensor) -> Tensor:
    r"""Compute one value per example whose mean is the metric of a class and whose spread gives its interval.

    $v_j = \theta + L_j$ with $L_j = \frac{M - m}{m} (\theta - \theta_{(j)})$ and $\theta_{(j)}$ the metric without
    the m examples of j's group: the jackknife (Efron and Stein, Annals of Statistics 9, 1981), for metrics that change
    little with one example. Up to `GROUPS` examples, each example is a group. With more, each group has examples of one
    class, and the deviation of $L_j$ from the mean of the class is multiplied by $\sqrt m$, so that the variance of the
    mean of v is the same as with groups of one example.

    Returns:
        `(M,)` values; all are equal to the metric if it has no interval, because it is undefined without some group.
    """
    full, n = value_of_class(kind, outputs, predicted, targets), len(predicted)
    classes = classes_of(targets.cpu().double().reshape(n, -1).numpy(), outputs)
    members = _groups(n, np.zeros(n) if classes is None else classes)
    if n <= 2:
        return full.expand(n).clone()
    values, class_means = full.new_zeros(n), []
    for groups in members:
        influences, rows = [], [torch.as_tensor(group, device=predicted.device) for group in groups]
        for group in rows:
            rest = torch.ones(n, dtype=torch.bool, device=predicted.device).index_fill(0, group, False)
            left_out = value_of_class(kind, outputs, predicted[rest], targets[rest])
            influences.append((full - left_out) * (n - len(group)) / len(group))
        sizes = full.new_tensor([len(group) for group in rows])
        mean = (sizes * torch.stack(influences)).sum() / sizes.sum()
        for group, value in zip(rows, influences, strict=True):
            values[group] = mean + len(group) ** 0.5 * (value - mean)
        class_means.append((torch.cat(rows), mean))
    for class_rows, mean in class_means:  # restore the mean: groups of one class may differ in size by one
        values[class_rows] += mean - values[class_rows].mean()
    if not torch.isfinite(values).all():
        return full.expand(n).clone()
    return full + values - values.mean()


def classes_of(targets: np.ndarray, outputs: int) -> np.ndarray | None:
    """Return the class of each test example; None if the targets are not labels.

    With several binary labels, the class is 1 + the index of the label whose rarer value the example has, the rarest if
    there are several, or 0 if there is none.

    Args:
        targets: `(M, d)` targets; columns that do not belong to the task are NaN.
        outputs: Number of outputs of the network per example.

    Returns:
        `(M,)` classes.
    """
    labels = targets[:, ~np.isnan(targets).all(0)]
    if not labels.size or not (labels == np.floor(labels)).all() or labels.min() < 0:
        return None
    if labels.shape[1] == 1:
        single: np.ndarray = labels[:, 0]
        return single if labels.max() < max(2, outputs) else None
    if labels.max() > 1:
        return None
    rarer = np.where(labels.mean(0) <= 0.5, labels, 1 - labels)
    rarest = (rarer / np.maximum(rarer.sum(0), 1)).argmax(1)
    return np.where(rarer.any(1), rarest + 1, 0)


def _groups(n: int, classes: np.ndarray) -> list[list[np.ndarray]]:
    """Divide the examples of each class into jackknife groups; returns row numbers by class and group."""
    by_class = [np.flatnonzero(classes == c) for c in np.unique(classes)]
    most = n if n <= GROUPS else max(FEWEST, GROUPS // len(by_class))
    return [[rows[g :: min(most, len(rows))] for g in range(min(most, len(rows)))] for rows in by_class]
