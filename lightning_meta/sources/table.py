"""A table of the user's own: several target columns of one row, or one target whose rows belong to tasks."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_meta.batches import SPLITS, Split
from lightning_meta.checks import names_in_list
from lightning_meta.data.source import TaskSource
from lightning_meta.data.task_set import TaskSet
from lightning_meta.errors import UserError, one_of
from lightning_meta.sources.columns import Coded, Column
from lightning_meta.sources.table_division import by_time, hashes_of_rows, hashes_of_texts, stratified, twins
from lightning_meta.sources.table_features import Categories, Scaling, encode_parts, learn_features
from lightning_meta.sources.table_files import Decimal, Spelling, instead_of, read_columns
from lightning_meta.sources.table_targets import Kind, Target, encoded, kind_of, task_of
from lightning_meta.sources.table_weights import row_weights, with_mean_1, with_weights
from lightning_meta.tasks import Task
from lightning_meta.tasks.table import TableSpec, TableTarget

# Arguments that name columns.
DIVIDING = ("split_column", "group_column", "time_column")
ROLES = ("task_column", *DIVIDING, "weights")
COLUMNS = ("targets", "features", "leave_out", "categorical", *ROLES)

_log = logging.getLogger(__name__)


class Table(TaskSource):
    """A CSV or Parquet file whose columns are features, targets and, if need be, the name of the row's task.

    Two regimes. With several `targets` each of them is a task, and all are predicted from the same row. With a
    `task_column` each of its values is a task of its own rows, and there is one target.

    A kind that is null is told by the column: text is `multiclass`, numbers are a `regression`; numbers of two values
    only could be either, so there the kind must be stated. A target that is missing is a label that is not there.

    Features of numbers are standardised by the mean and scale of the training rows, and a missing one is replaced by
    the training mean; or, by `scaling`, they are replaced by their quantiles, and a missing one by the median. Features
    of text become one input of 0 or 1 for each of the texts in the training rows; a missing text, or one not seen
    there, is 0 in all of them. With `categories: codes` they become one input each, which `nn.TabularMLP` embeds: 0 for
    a text not seen there, 1 for a missing one, 2 and more for the others in sorted order. A number that is the same in
    all training rows is an input of 0. Parquet's booleans are numbers, 0 or 1, and its dates text such as 2026-01-31;
    in CSV files both are text.

    Whole numbers keep all their digits: as targets, as ids of tasks and groups, and as labels.

    Rows are divided by a hash of `seed` and features, the same on any machine and in any order of rows: twins, rows of
    equal features, are never in two splits, whatever their targets or task. Each label of each target, and each task,
    is divided by `fractions` as nearly as that allows. With a `group_column` all rows of a group, such as a patient's,
    are in one split; with a `time_column` the earliest are for training and the latest for the test; a `split_column`
    leaves the division to the file. A warning says where these separate twins. A row without any label is in no split.

    A column that is named nowhere is a feature. To learn fewer of a table's targets, name the others in `leave_out`, or
    keep them here and choose by the data module's `tasks`.

    At a glance:
        - Tasks: target columns, or the values of a task column.
        - Held out: by a hash of features or groups, by time, or by a column.
        - From: your CSV or Parquet file.

    Example:
        In a configuration::

            class_path: lightning_meta.sources.Table
            init_args:
              path: houses.csv
              targets: {price: regression, sold: binary, style: null}

    Args:
        path: The file: `.csv` or `.tsv` in UTF-8 with a header, or `.parquet`.
        targets: By name of the column: `regression`, `binary`, `multiclass`, null, or a `Target` with its classes, its
            metric, its unit or its weights, as in `{kind: binary, metric: auroc, class_weight: balanced}`.
        features: Names of the feature columns; by default all that are nothing else.
        task_column: The column that names each row's task.
        split_column: The column that says `train`, `val` or `test`, instead of `fractions`.
        group_column: Rows with the same value here are in one split.
        fractions: Which part of the different rows, groups, or rows in order of time, goes to train, val and test.
        seed: Draws another division.
        categorical: Feature columns to be taken as text although they hold numbers.
        max_categories: The most different texts that a feature may have: more is likely a name or a date.
        missing_indicators: For every feature that misses values in training, one more input that is 1 where it does.
        time_column: Rows are divided by this column's numbers or dates.
        leave_out: Columns that are no features, such as other targets, names and notes.
        weights: The column of the rows' weights, numbers from 0 on, which is then no feature. The losses of rows are
            multiplied by them, in training, validation and test; metrics are not weighted. Their mean over the training
            rows of each task becomes 1.
        scaling: How numbers become inputs: `standard`; or by the quantiles of the training rows to a normal
            distribution, `quantile_normal`, or to one from 0 to 1, `quantile_uniform`, as `QuantileTransformer` of
            scikit-learn does without subsampling, for columns with long tails.
        delimiter: What divides the columns of a CSV file; by default a comma, and a tab in a `.tsv` file.
        decimal: What stands before the decimals of its numbers, a point or a comma.
        categories: How texts become inputs: `one_hot`; or as `codes`, for a backbone that embeds them, such as
            `nn.TabularMLP`. Of columns with hundreds of texts codes take less memory. `Linear` and gates by the inputs
            see them as one-hot.

    Raises:
        UserError: Options that do not go together, or a file or column that is not as they say.
    """

    def __init__(
        self,
        path: str | Path,
        targets: Mapping[str, None | Target | str],  # noqa: RUF036 - the parser takes the first that fits
        features: Sequence[str] | None = None,
        task_column: str | None = None,
        split_column: str | None = None,
        group_column: str | None = None,
        fractions: tuple[float, float, float] = (0.6, 0.2, 0.2),
        seed: int = 0,
        categorical: Sequence[str] = (),
        max_categories: int = 50,
        missing_indicators: bool = False,
        time_column: str | None = None,
        leave_out: Sequence[str] = (),
        weights: str | None = None,
        scaling: Scaling = "standard",
        delimiter: str | None = None,
        decimal: Decimal = ".",
        categories: Categories = "one_hot",
    ) -> None:
        self.path = Path(path).expanduser()
        if not isinstance(targets, Mapping):
            raise UserError(f"Table targets: expected the kind of each target column by its name, got {targets!r}")
        names_in_list(features=features, categorical=categorical, leave_out=leave_out)
        self.targets = {n: t if isinstance(t, Target) else Target(cast(Kind | None, t)) for n, t in targets.items()}
        self.features, self.categorical, self.max_categories = features, tuple(categorical or ()), max_categories
        self.task_column, self.split_column, self.group_column = task_column, split_column, group_column
        self.time_column, self.leave_out = time_column, tuple(leave_out or ())
        self.fractions, self.seed, self.missing_indicators = tuple(fractions), seed, missing_indicators
        self.weights, self.scaling, self.spelling = weights, scaling, Spelling(delimiter, decimal)
        self.categories = categories
        self._check_options()

    def tasks(self) -> dict[str, Task]:
        """A task a target, by name of the column; or a task a value of `task_column`, in order of the value."""
        kinds = self._kinds.items()
        tasks = {name: task_of(name, kind, len(classes), self.targets[name]) for name, (kind, classes) in kinds}
        if self.task_column is None:
            return tasks
        (task,) = tasks.values()
        return dict.fromkeys(self._column(self.task_column).classes(), task)

    def classes(self) -> dict[str, list[str]]:
        """By target of labels: the name of class 0, 1, ...; for binary, no and yes."""
        return {name: classes for name, (kind, classes) in self._kinds.items() if kind != "regression"}

    def sets(self) -> dict[Split, TaskSet]:
        """Inputs `(n, D)` float32; targets `(n_i, 1)` float64, whole numbers int64, or `(n_i,)` labels."""
        kinds = self._kinds
        values = {name: encoded(self._columns[name], *kinds[name]) for name in self.targets}
        present = {name: torch.from_numpy(~self._columns[name].missing) for name in self.targets}
        weights = None if self.weights is None else row_weights(self._column(self.weights))
        parts = {split: self._rows_in(split) for split in SPLITS}
        rows_of = {split: np.concatenate(list(of_task.values())) for split, of_task in parts.items()}
        inputs = encode_parts(self._feature_columns, self._spec.features, list(rows_of.values()))
        sets: dict[Split, TaskSet] = {}
        for x, (split, rows) in zip(inputs, rows_of.items(), strict=True):
            here = torch.from_numpy(rows)
            columns = {name: y[here] for name, y in values.items()}
            if self.task_column is None:
                made = TaskSet.of_columns(x, columns, {name: there[here] for name, there in present.items()})
            else:
                ends = np.cumsum([len(of_task) for of_task in parts[split].values()])
                places = dict(zip(parts[split], torch.arange(len(x)).tensor_split(ends.tolist()[:-1]), strict=True))
                (y,) = columns.values()
                made = TaskSet(x, {name: y[place] for name, place in places.items()}, places)
            sets[split] = made if weights is None else with_weights(made, weights[here])
        return sets if weights is None else with_mean_1(sets)

    def _rows_in(self, split: Split) -> dict[str, NDArray[np.int64]]:
        """The rows of a split, by task where a column names it."""
        here = self._split_of == split
        if self.task_column is None:
            return {"": np.flatnonzero(here)}
        texts, codes = self._column(self.task_column).coded
        rows = np.flatnonzero(here & self._labelled)
        return {name: rows[codes[rows] == texts.index(name)] for name in self.tasks()}

    def table(self) -> TableSpec:
        """How the file's rows become inputs, so that new rows become the same."""
        return self._spec

    @property
    def input_names(self) -> list[str]:
        """What each of the D inputs is: a column, `column=text`, or `column is missing`."""
        return self._spec.inputs

    @cached_property
    def _columns(self) -> dict[str, Column]:
        columns = read_columns(self.path, spelling=self.spelling)
        for option in COLUMNS:
            given = getattr(self, option)
            for name in [given] if isinstance(given, str) else given or ():
                if name not in columns:
                    instead = instead_of(name, list(columns))
                    raise UserError(f"Table {option}: {self.path} has no column {name!r}; {instead}")
        return columns

    def _column(self, name: str) -> Column:
        """A column that has a value in every row."""
        column = self._columns[name]
        if column.missing.any():
            raise column.wrong(int(column.missing.argmax()), "every row needs a value here")
        return column

    @cached_property
    def _kinds(self) -> dict[str, tuple[Kind, list[str]]]:
        return {name: kind_of(self._columns[name], target) for name, target in self.targets.items()}

    @cached_property
    def _feature_columns(self) -> dict[str, Column]:
        taken = {*self.targets, *self.leave_out, *(getattr(self, role) for role in ROLES)}
        names = self.features if self.features is not None else [n for n in self._columns if n not in taken]
        if not names:
            raise UserError(f"{self.path}: no column is left for a feature; name some in `features`")
        if wrong := [name for name in self.categorical if name not in names]:
            raise UserError(f"Table categorical: {wrong[0]!r} is no feature")
        return {name: self._columns[name] for name in names}

    @cached_property
    def _spec(self) -> TableSpec:
        train = self._split_of == "train"
        if not train.any():
            raise UserError(f"{self.path}: there is no training row among {len(train)}; mend the division")
        features = learn_features(
            self._feature_columns,
            train,
            self.categorical,
            self.max_categories,
            self.missing_indicators,
            self.scaling,
            self.categories,
        )
        targets = [
            TableTarget(name, classes, self.targets[name].unit or "") for name, (_, classes) in self._kinds.items()
        ]
        of_numbers = self.task_column is not None and self._column(self.task_column).first_text is None
        spelling = {"delimiter": self.spelling.delimiter or "", "decimal": self.spelling.decimal}
        return TableSpec(features, targets, self.task_column or "", of_numbers, **spelling)

    @cached_property
    def _labelled(self) -> NDArray[np.bool_]:
        labelled: NDArray[np.bool_] = ~np.all([self._columns[name].missing for name in self.targets], axis=0)
        return labelled

    @cached_property
    def _split_of(self) -> NDArray[np.str_]:
        """The split of each row, "" for a row without any label."""
        labelled = self._labelled
        split_of = np.zeros(len(labelled), dtype="<U5")
        rows = labelled.nonzero()[0]
        if self.split_column is not None:
            column = self._column(self.split_column)
            if (wrong := column.coded.first(lambda label: label not in SPLITS)) is not None:
                raise column.wrong(wrong, "expected train, val or test")
            split_of[rows] = np.array(column.coded.texts)[column.coded.codes[rows]]
        elif self.time_column is not None:
            split_of[rows] = by_time(self._column(self.time_column), rows, self.fractions)
        else:
            prefix = f"{self.seed}/"
            if self.group_column is None:  # twins are one unit
                units = hashes_of_rows(self._feature_columns.values(), rows, prefix)
            else:
                units = hashes_of_texts(self._column(self.group_column).coded, rows, prefix)
            split_of[rows] = stratified(units, self._strata(rows), self.fractions)
            if self.group_column is None:
                return split_of
        found = twins(hashes_of_rows(self._feature_columns.values(), rows, ""), split_of[rows])
        if found:
            _log.warning(
                "%s: %d validation and test rows have the features of a training row; their scores say little about "
                "new rows if their labels are the same as well",
                *(self.path, found),
            )
        return split_of

    def _strata(self, rows: NDArray[np.int_]) -> list[Coded]:
        """By target the label of each of some rows, with its task; of numbers that there is one."""
        tasks = Coded([""], np.zeros(len(self._labelled), np.int64))
        if self.task_column is not None:
            tasks = self._column(self.task_column).coded
        strata: list[Coded] = []
        for name, (kind, _) in self._kinds.items():
            column = self._columns[name]
            labels = Coded([""], np.where(column.missing, -1, 0)) if kind == "regression" else column.coded
            if kind == "regression" and self.task_column is None and not column.missing[rows].any():
                continue
            count = len(labels.texts)
            both = np.where(labels.codes < 0, -1, tasks.codes * count + labels.codes)[rows]
            names = [f"{task}\x1f{label}" for task in tasks.texts for label in labels.texts]
            strata.append(Coded(names, both))
        return strata

    def _check_options(self) -> None:
        self.spelling.check("Table", self.path)
        one_of("Table scaling", self.scaling, Scaling)
        one_of("Table categories", self.categories, Categories)
        if not self.targets:
            raise UserError("Table targets: expected the name of one target column at least")
        for name, target in self.targets.items():
            target.check(name)
        if self.task_column is not None and len(self.targets) != 1:
            raise UserError(f"Table targets: with a task_column there is one target, got {', '.join(self.targets)}")
        roles = [*self.targets, *(self.features or ()), *self.leave_out]
        roles += [name for name in (self.task_column, self.split_column, self.weights) if name is not None]
        if twice := [name for name in roles if roles.count(name) > 1]:
            raise UserError(
                f"Table: column {twice[0]!r} has two roles; it is a feature, a target, the task, the split, the "
                "weights or left out"
            )
        for role in ("group_column", "time_column"):
            if (name := getattr(self, role)) is not None and name in (self.task_column, self.weights):
                raise UserError(f"Table {role}: column {name!r} is the task or the weights; divide by another column")
        dividing = [role for role in DIVIDING if getattr(self, role) is not None]
        if len(dividing) > 1:
            raise UserError(f"Table: {dividing[0]} divides the rows; leave {' and '.join(dividing[1:])} out")
        fractions = self.fractions
        if len(fractions) != 3 or not min(fractions) > 0 or not math.isclose(sum(fractions), 1, abs_tol=1e-6):
            raise UserError(f"Table fractions={list(fractions)}: expected three positive numbers that add up to 1")
        if self.max_categories < 1:
            raise UserError(f"Table max_categories={self.max_categories}: expected at least 1")
