"""Plain data, stored in checkpoints, on how rows of a table are converted to inputs and what the targets are."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from lightning_meta.errors import UserError

UNSEEN, FIRST = 0, 2
"""Codes in a column of text: of texts that no training row has, and of the first text; 1 is the missing text."""


@dataclass(frozen=True)
class NumberFeature:
    """A column of numbers: the input is (x − offset − mean) / scale, or 0 if x is missing.

    With quantiles the input is F(x − offset), the share of training numbers below x, or Φ⁻¹ of this share; the median
    if x is missing.

    Attributes:
        name: The column.
        mean: Mean μ of the training rows minus the offset.
        scale: Standard deviation σ of the training rows, > 0.
        offset: Integer subtracted before conversion to float64, so that large integers stay distinct.
        constant: Whether all training rows have the same number: the input is 0 whatever the number.
        indicator: Whether an additional input marks missing numbers.
        quantiles: Quantiles of the training rows minus the offset, at evenly spaced levels from 0 to 1; empty for
            standardised columns.
        normal: Whether Φ⁻¹ is applied to the share, so that training inputs are normally distributed.
        missed: Whether a training row misses the number; None in checkpoints of earlier versions.
        boolean: Whether the column held booleans, so that the texts true and false are 1 and 0; False in checkpoints of
            earlier versions.
    """

    name: str
    mean: float = 0.0
    scale: float = 1.0
    offset: int = 0
    constant: bool = False
    indicator: bool = False
    quantiles: Sequence[float] = ()
    normal: bool = False
    missed: bool | None = field(default=None, compare=False)  # it changes no input
    boolean: bool = field(default=False, compare=False)  # nor does it

    def __post_init__(self) -> None:
        kinds = {"mean": float, "scale": float, "offset": int, "constant": bool, "indicator": bool, "normal": bool}
        _check_types(self, name=str, boolean=bool, **kinds)
        _check_missed(self)
        object.__setattr__(self, "quantiles", _ascending(self.name, self.quantiles))
        if not (isfinite(self.mean) and isfinite(self.scale) and self.scale > 0):
            raise UserError(f"column {self.name!r}: mean {self.mean} and scale {self.scale} are not valid")

    @property
    def missing_input(self) -> float:
        """The input for a missing number: the mean, or with quantiles the median."""
        return 0.5 if self.quantiles and not self.normal else 0.0

    @property
    def inputs(self) -> list[str]:
        """The names of its inputs."""
        return [self.name, *([f"{self.name} is missing"] if self.indicator else [])]


@dataclass(frozen=True)
class TextFeature:
    """A column of text: an input of 0 or 1 for each text of the training rows; all are 0 for unseen and missing texts.

    With `coded` it is a single input: 0 for an unseen text, 1 for a missing one, 2 for the first text, 3 for the
    second, ...

    Attributes:
        name: The column.
        texts: Distinct texts of the training rows, sorted.
        of_numbers: Whether the column held numbers, so that 1 and 1.0 are the same text.
        indicator: Whether an additional input marks missing texts.
        coded: Whether the input is an integer code.
        missed: Whether a training row misses the text; None in checkpoints of earlier versions.
    """

    name: str
    texts: Sequence[str]
    of_numbers: bool = False
    indicator: bool = False
    coded: bool = False
    missed: bool | None = field(default=None, compare=False)  # it changes no input

    def __post_init__(self) -> None:
        _check_types(self, name=str, of_numbers=bool, indicator=bool, coded=bool)
        _check_missed(self)
        object.__setattr__(self, "texts", _texts(f"column {self.name!r}", self.texts))
        if self.coded and self.indicator:
            raise UserError(f"column {self.name!r}: a code says where the text is missing, and needs no indicator")

    @property
    def inputs(self) -> list[str]:
        """The names of its inputs."""
        if self.coded:
            return [self.name]
        return [*(f"{self.name}={t}" for t in self.texts), *([f"{self.name} is missing"] if self.indicator else [])]


@dataclass(frozen=True)
class TableTarget:
    """A target column.

    Attributes:
        name: The column.
        classes: The names of class 0, 1, ...; none for a regression.
        unit: Unit of a regression target; "" if unknown.
    """

    name: str
    classes: Sequence[str] = ()
    unit: str = ""

    def __post_init__(self) -> None:
        _check_types(self, name=str, unit=str)
        object.__setattr__(self, "classes", _texts(f"target {self.name!r}", self.classes))

    @property
    def predictions(self) -> list[str]:
        """The names of all columns of predictions that it may have, with and without a calibration."""
        if not self.classes:
            unit = f" [{self.unit}]" if self.unit else ""
            return [f"{self.name}{unit}", f"lower({self.name}){unit}", f"upper({self.name}){unit}"]
        of_classes = [f"p({self.name}={c})" for c in self.classes]
        return [self.name, f"set({self.name})", f"abstained({self.name})", *of_classes]


@dataclass(frozen=True)
class TableSpec:
    """The conversion of rows of a `Table` to inputs, fitted to its training rows, and the names of its targets.

    Attributes:
        features: Features, in input order.
        targets: Targets, in task order; a single one if there is a task column.
        task_column: Name of the column with each row's task; "" if each target is a task.
        task_of_numbers: Whether the task column held numbers, so that 1 and 1.0 are the same task.
        delimiter: Column separator of the CSV file; "" if it follows from the file's suffix.
        decimal: Decimal mark of the CSV file.
    """

    features: Sequence[NumberFeature | TextFeature]
    targets: Sequence[TableTarget]
    task_column: str = ""
    task_of_numbers: bool = False
    delimiter: str = ""
    decimal: str = "."

    def __post_init__(self) -> None:
        _check_types(self, task_column=str, task_of_numbers=bool, delimiter=str, decimal=str)
        for name, kinds in (("features", (NumberFeature, TextFeature)), ("targets", (TableTarget,))):
            values = getattr(self, name)
            if not isinstance(values, list | tuple) or not all(isinstance(value, kinds) for value in values):
                raise UserError(f"TableSpec: {name} are not {name} of a table")
            object.__setattr__(self, name, tuple(values))

    @property
    def inputs(self) -> list[str]:
        """Names of the D inputs: a column, `column=text`, or `column is missing`."""
        return [name for feature in self.features for name in feature.inputs]

    @property
    def codes(self) -> list[int]:
        """Number of codes of each of the D inputs, including those of unseen and missing texts; 0 for a number."""
        counts: list[int] = []
        for feature in self.features:
            coded = isinstance(feature, TextFeature) and feature.coded
            counts += [len(feature.texts) + FIRST] if coded else [0] * len(feature.inputs)  # type: ignore[union-attr]
        return counts


def refuse_shared_predictions(targets: Sequence[TableTarget], task_column: str) -> None:
    """Refuse targets of which two have a column of predictions with the same name.

    Args:
        targets: The targets.
        task_column: Name of the column with the tasks, which is a column of the predictions, too; "" if there is none.

    Raises:
        UserError: Two columns of predictions have the same name.
    """
    names = [(task_column, task_column)] if task_column else []
    names += [(target.name, name) for target in targets for name in target.predictions]
    owners: dict[str, str] = {}
    for owner, name in names:
        if name in owners:
            raise UserError(
                f"targets: {owners[name]!r} and {owner!r} both have a column of predictions that is called {name!r}; "
                "rename one of them in the table"
            )
        owners[name] = owner


def _check_types(owner: Any, **kinds: type) -> None:
    """Refuse attributes of another type, which a damaged checkpoint may have."""
    for name, kind in kinds.items():
        value = getattr(owner, name)
        if type(value) is not kind:
            raise UserError(f"{type(owner).__name__}: {name} is {str(value)[:50]!r}, expected {kind.__name__}")


def _check_missed(feature: NumberFeature | TextFeature) -> None:
    if feature.missed is not None:
        _check_types(feature, missed=bool)


def _texts(where: str, texts: Any) -> tuple[str, ...]:
    if not isinstance(texts, list | tuple) or not all(type(text) is str for text in texts):
        raise UserError(f"{where}: expected a list of texts")
    return tuple(texts)


def _ascending(name: str, quantiles: Any) -> tuple[float, ...]:
    sound = isinstance(quantiles, list | tuple) and all(type(q) is float and isfinite(q) for q in quantiles)
    if not sound or any(low > high for low, high in itertools.pairwise(quantiles)):
        raise UserError(f"column {name!r}: expected quantiles as finite numbers that do not fall")
    return tuple(quantiles)
