"""The metrics that a task can be selected and compared by: named ones, and torchmetrics' or a user's own classes."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics import classification as of_classes

from lightning_meta.errors import UserError
from lightning_meta.modes import Mode

SMALL_IS_GOOD = ("log_loss", "rmse", "mae")
OF_EXAMPLES = ("accuracy", "log_loss", "mae", "r2")
"""Means over examples: a batch has them as well as a split."""

MOST = 5000
"""Test examples that a class is computed anew without, one by one, for its interval; of more it has none."""

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
    value = metric(predicted, targets.to(predicted.dtype) if targets.is_floating_point() else targets)
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise UserError(f"metric: {kind.__name__} gives {type(value).__name__}, a single number is needed")
    return value.reshape(()).to(predicted.dtype)


def values_of_class(kind: type[Metric], outputs: int, predicted: Tensor, targets: Tensor) -> Tensor:
    r"""What each of M examples adds to a class's metric, whose mean they have.

    $v_j = \theta + (M - 1)(\bar\theta_{(\cdot)} - \theta_{(j)})$, with $\theta_{(j)}$ that of all examples but j: the
    jackknife (Efron and Stein, Annals of Statistics 9, 1981), which suits metrics that are smooth in the examples. Of
    more than `MOST` examples all are the metric, and it has no interval.

    Returns:
        `(M,)`.
    """
    whole, n = value_of_class(kind, outputs, predicted, targets), len(predicted)
    if not 2 < n <= MOST:
        return whole.expand(n).clone()
    rows = torch.arange(n, device=predicted.device)
    left_out = torch.stack([value_of_class(kind, outputs, predicted[rows != j], targets[rows != j]) for j in range(n)])
    return whole + (n - 1) * (left_out.mean() - left_out)
