"""The target columns of a table: their kinds of task, and their values as tensors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lightning_meta.errors import UserError, one_of
from lightning_meta.import_paths import import_object
from lightning_meta.sources.columns import Column
from lightning_meta.tasks import Binary, Classification, Regression, Task

Kind = Literal["regression", "binary", "multiclass"]
USUAL = [
    ["no", "yes"],
    ["false", "true"],
    ["n", "y"],
    ["f", "t"],
    ["negative", "positive"],
    ["neg", "pos"],
    ["-1", "1"],
]
YAML = ("no", "yes", "off", "on", "false", "true")  # what YAML reads as booleans unless it is quoted
FEW = 10  # numbers of a target which may be labels
MOST = 2.0**62  # differences of whole numbers below this magnitude fit into int64


@dataclass(frozen=True)
class Target:
    """Description of a target column, if its kind alone is not enough.

    Attributes:
        kind: Kind of the task: `regression` of a number, `binary` (two values) or `multiclass`; null to infer it from
            the column.
        classes: Labels in the order of the classes, for binary no and yes; by default all labels of the column, sorted.
            Any other label is an error. NA and the like, which mean missing in a CSV file, are labels if stated here.
        metric: Metric for selecting and comparing models: for labels `accuracy`, `balanced_accuracy`, `auroc`,
            `average_precision`, `f1` or `log_loss`, for numbers `r2`, `rmse` or `mae`, or the import path of a class
            derived from `torchmetrics.Metric`, such as `torchmetrics.classification.BinaryCohenKappa`.
        unit: Unit of the numbers of a regression, such as `kEUR`; predictions for new rows state it.
        class_weight: Weights of the loss, one per class in the order of `classes`, or `balanced`; see
            `lightning_meta.tasks.Classification`.
    """

    kind: Kind | None = None
    classes: Sequence[str | int] | None = None
    metric: str | None = None
    unit: str | None = None
    class_weight: Sequence[float] | Literal["balanced"] | None = None

    def check(self, name: str) -> None:
        """Check the description of the column `name`.

        Raises:
            UserError: A value is invalid, or two values contradict each other.
        """
        if self.kind is not None:
            if not isinstance(self.kind, str):
                raise UserError(
                    f"Table targets: {name}: expected a kind, such as 'regression', or a "
                    f"lightning_meta.sources.Target, such as Target('regression', unit='kEUR'); got "
                    f"{type(self.kind).__name__}"
                )
            one_of(f"Table targets: {name}", self.kind, Kind)
        if self.unit is not None and (self.classes is not None or self.kind in ("binary", "multiclass")):
            raise UserError(f"Table targets: {name} has the unit {self.unit!r}, but labels have none; leave it out")
        if self.classes is None:
            return
        shown = f"Table targets: {name} has classes {list(self.classes)}"
        if self.kind == "regression":
            raise UserError(f"{shown}; a regression has no classes")
        if len(set(self.classes)) < max(2, len(self.classes)):
            raise UserError(f"{shown}; expected at least two, without duplicates")
        if any(not str(label).strip() for label in self.classes):
            raise UserError(f"{shown}; an empty cell means a missing label: write a text for the class into the file")
        if self.kind == "binary" and len(self.classes) != 2:
            raise UserError(f"{shown}; expected two for binary, no and yes")


def kind_of(column: Column, target: Target) -> tuple[Kind, list[str]]:
    """Return the kind of a target and its classes, an empty list for a regression.

    Raises:
        UserError: The column does not match the description of the target, or its kind is ambiguous.
    """
    if column.missing.all():
        raise UserError(f"{column.where} has no values; a target needs some")
    kind = target.kind
    of_text = column.first_text is not None or column.boolean
    if kind is None and target.classes is None and not of_text and _holds_two(column):
        raise UserError(
            f"{column.where} holds only two different numbers, {' and '.join(column.classes())}; state its kind in "
            f"`targets`: binary, multiclass or regression"
        )
    if kind is None and target.classes is None and column.first_text is not None and column.mixed:
        problem = "other rows hold numbers; correct it (empty if it is missing), or state multiclass"
        raise column.wrong(column.first_text, f"{problem}{column.hint}")
    if kind is None and target.classes is None and column.hint:
        raise UserError(f"{column.where} is text, so its kind is unclear; state multiclass{column.hint}")
    if kind is None:
        kind = "multiclass" if of_text or target.classes is not None else "regression"
    if kind == "regression":
        present = column.centred[~column.missing]  # raises for text and infinity
        if (present == present[0]).all():
            raise _nothing_to_learn(column)
        return kind, []
    if target.unit is not None:
        raise UserError(f"{column.where} holds labels, which have no unit, got {target.unit!r}; leave it out")
    stated = None if target.classes is None else [str(label) for label in target.classes]
    labels = column.labels_like(stated)
    classes = stated or column.classes()
    if len(classes) < 2:
        raise _nothing_to_learn(column)
    if kind == "binary" and len(classes) != 2:
        content = f"{len(classes)} different values ({', '.join(map(repr, classes[:5]))})"
        instead = "multiclass" if of_text else "regression, or multiclass if they are labels"
        raise UserError(f"{column.where} has {content}, expected two for binary; state {instead}")
    if (row := labels.first(lambda label: label not in classes)) is not None:
        quoted = any(isinstance(label, bool) for label in target.classes or ()) and column.labels[row].casefold()
        hint = f"; in YAML, quote {', '.join(YAML)}, which are booleans" if quoted in YAML else ""
        expected = ", ".join(map(repr, classes[:10]))
        raise column.wrong(row, f"the label is out of range, expected one of {expected}{hint}")
    return kind, classes


def few_numbers(column: Column, name: str, target: Target) -> str | None:
    """Return a line about a target whose kind was inferred from few different whole numbers; otherwise None."""
    if target.kind is not None or column.whole is None:
        return None
    count = len(np.unique(column.whole[~column.missing]))
    if count > FEW:
        return None
    return (
        f"target {name!r} has only {count} different numbers and is a regression; state multiclass if they are labels"
    )


def _nothing_to_learn(column: Column) -> UserError:
    present = ~column.missing
    content = f"{column.shown(int(present.argmax()))} in every row" if present.any() else "no label"
    return UserError(f"{column.where} has {content}, so there is nothing to learn; leave it out of `targets`")


def yes_by_order(name: str, target: Target, classes: Sequence[str]) -> str | None:
    """Return a line that says which label of a binary target is yes, if only their order decides it; otherwise None.

    Metrics such as `average_precision` and `f1` are those of yes.
    """
    usual = [label.casefold() for label in classes] in USUAL or all(label in ("0", "1") for label in classes)
    if target.classes is not None or usual:
        return None
    no, yes = classes
    swapped = json.dumps([yes, no], ensure_ascii=False)
    return f"target {name!r}: yes is {yes!r} and no is {no!r}, in sorted order; `classes: {swapped}` swaps them"


def _holds_two(column: Column) -> bool:
    return len(np.unique(column.centred[~column.missing])) == 2


def task_of(name: str, kind: Kind, classes: int, target: Target) -> Task:
    """Return the task of a target.

    Args:
        name: Name of the column.
        kind: Kind of the target.
        classes: Number of classes.
        target: Description of the target. The class of its metric is imported here, after `cli.trust` has checked the
            names in a run of unknown origin.

    Raises:
        UserError: The kind of task does not have this metric, or has no class weights.
    """
    metric, weights = target.metric, target.class_weight
    try:
        chosen: Any = import_object(metric) if metric is not None and "." in metric else metric
        if kind == "regression":
            if weights is not None:
                raise UserError(f"class_weight: a regression has no classes, got {weights!r}; leave it out")
            return Regression(1, metric=chosen)
        if kind == "binary":
            return Binary(chosen, class_weight=weights)
        return Classification(classes, chosen, class_weight=weights)
    except UserError as error:
        raise UserError(f"Table targets: {name}: {error}") from error


def encoded(column: Column, kind: Kind, classes: list[str]) -> Tensor:
    """Convert a target column to a tensor; the values of rows with a missing target have no meaning.

    Returns:
        Targets of all rows: for a regression `(n, 1)`, float64, or int64 if all are whole numbers; otherwise class
        numbers `(n,)`, int64.
    """
    if kind == "regression":
        whole = column.whole
        exact = whole is not None and bool((np.abs(column.numbers[~column.missing]) < MOST).all())
        return torch.from_numpy(whole.astype(np.int64) if exact and whole is not None else column.numbers).unsqueeze(1)
    number_of = {label: i for i, label in enumerate(classes)}
    labels, codes = column.labels_like(classes)
    return torch.from_numpy(np.array([*(number_of.get(label, -1) for label in labels), -1])[codes])
