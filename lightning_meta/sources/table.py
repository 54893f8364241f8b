"""A source for the user's own table, whose tasks are several target columns, or groups of rows with one target."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_meta.batches import SPLITS, Split
from lightning_meta.building import build
from lightning_meta.checks import names_in_list
from lightning_meta.data.hashes import HashedParts, Hashes, of_sets
from lightning_meta.data.source import TaskSource
from lightning_meta.data.task_set import TaskSet
from lightning_meta.describing import describe
from lightning_meta.errors import UserError, one_of, some_of
from lightning_meta.sources.columns import Coded, Column
from lightning_meta.sources.table_cache import Encoded, is_cached, read_or_encode, sets_of, tensors_of
from lightning_meta.sources.table_division import by_time, hashes_of_rows, hashes_of_texts, stratified, twins
from lightning_meta.sources.table_features import Categories, Scaling, encode_parts, learn_features, numbers_rows
from lightning_meta.sources.table_files import Decimal, Spelling, features_of, read_columns, with_columns_of
from lightning_meta.sources.table_messages import say
from lightning_meta.sources.table_targets import Kind, Target, encoded, few_numbers, kind_of, task_of, yes_by_order
from lightning_meta.sources.table_weights import row_weights, with_mean_1, with_weights
from lightning_meta.tasks import Task
from lightning_meta.tasks.table import TableSpec, TableTarget

# Names of the arguments that name columns.
DIVIDING = ("split_column", "group_column", "time_column")
ROLES = ("task_column", *DIVIDING, "weights")
COLUMNS = ("targets", "features", "leave_out", "categorical", *ROLES)

_log = logging.getLogger(__name__)


class _Stored(NamedTuple):
    """A table in the cache: the kinds and classes of its targets, the names of its tasks, and its encoding and sets."""

    kinds: dict[str, tuple[Kind, list[str]]]
    task_names: list[str]
    spec: TableSpec
    sets: HashedParts


class Table(TaskSource):
    """A CSV or Parquet file whose columns are features, targets and, optionally, the name of the task of each row.

    There are two settings. With several `targets`, each target is a task, and all are predicted from the same row. With
    a `task_column`, the rows with each of its values are a task, and there is one target.

    If the kind of a target is null, it is inferred from the column: text is `multiclass`, numbers are `regression`. A
    column with only two different numbers is ambiguous, so its kind must be stated. Missing targets are treated as
    unlabelled. In CSV files, an empty cell and the texts NA, N/A, n/a, #N/A, #N/A N/A, #NA, NULL, null, NaN, nan, -NaN,
    -nan, 1.#IND, 1.#QNAN, -1.#IND and -1.#QNAN mean missing; a text that `classes` of a target states is a label.

    Numeric features are standardised with the mean and standard deviation of the training rows, and a missing number is
    replaced by the training mean. With the other values of `scaling`, numbers are replaced by their quantiles, and a
    missing number by the median. A number that is constant in the training rows becomes an input that is always 0. Text
    features are one-hot encoded, with one input for each text in the training rows; a missing text, or one that does
    not occur there, is 0 in all of them. With `categories: codes`, each becomes a single input, which
    `nn.TabularMLP` embeds: 0 for a text that does not occur in the training rows, 1 for a missing text, and 2, 3, ...
    for the others in sorted order. Booleans of Parquet files are numbers, 0 or 1; their dates and times are text such
    as 2026-01-31 and 2026-01-31 14:05:00, whatever the unit in the file, and those with a time zone are in UTC. In CSV
    files all of them are text. A model trained on either predicts rows of the other. The labels of a
    boolean target, and the tasks of a boolean column, are False and True.

    Whole numbers keep all digits, whether they are targets, IDs of tasks and groups, or labels.

    Rows are divided by a hash of `seed` and their features, so the division is the same on every machine and does not
    depend on the order of rows. Twins, which are rows with equal features, are never in two splits, whatever their
    targets or task. Subject to this, each label of each target, and each task, is divided by `fractions` as closely as
    possible. With a `group_column`, all rows of a group, such as those of a patient, are in one split; with a
    `time_column`, the earliest rows are for training and the latest for the test; with a `split_column`, the file
    states the division. A warning is logged if these three separate twins. Rows without any label are in no split.

    Columns without another role are features. To learn only some of the targets of a table, name the others in
    `leave_out`, or list all of them here and select some with `tasks` of the data module.

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
        path: Path of the file: `.csv` or `.tsv` in UTF-8 with a header, or `.parquet`.
        targets: Kind of each target by name of the column: `regression`, `binary`, `multiclass`, null, or a `Target`
            with classes, a metric, a unit or class weights, as in
            `{kind: binary, metric: auroc, class_weight: balanced}`.
        features: Names of the feature columns; by default all columns without another role, except for the index of a
            DataFrame in a Parquet file.
        task_column: Name of the column with the task of each row.
        split_column: Name of a column with `train`, `val` or `test`, used instead of `fractions`.
        group_column: Name of a column; rows with the same value in it are in one split.
        fractions: Shares of the distinct rows, of the groups, or of the rows in order of time for train, val and test,
            > 0, with sum 1.
        seed: Seed of the division.
        categorical: Names of feature columns to treat as text although they hold numbers.
        max_categories: Largest number of different texts of a feature, at least 1; a column with more is likely a name
            or a date.
        missing_indicators: Whether each feature with missing values in training gets an additional input, which is 1
            for missing values.
        time_column: Name of a column with numbers or dates by which rows are divided; all dates are in one time zone.
        leave_out: Names of columns that are not features, such as other targets, names and notes.
        weights: Name of a column with the weights of rows, at least 0, which is then not a feature. They multiply the
            losses of rows in training, validation and test; metrics are not weighted. Training rows with the weight 0
            are left out. Weights are scaled so that the mean of the others is 1 for each task.
        scaling: How numbers are scaled: `standard`; or with the quantiles of the training rows to a normal distribution
            (`quantile_normal`) or to a uniform one from 0 to 1 (`quantile_uniform`), for columns with long tails, as
            with `QuantileTransformer` of scikit-learn without subsampling.
        delimiter: Separator of the columns of a CSV file, one character; by default a comma, or a tab in a `.tsv` file.
        decimal: Decimal mark of the numbers of a CSV file, a point or a comma.
        categories: How text is converted to inputs: `one_hot`, or `codes` for a backbone that embeds them, such as
            `nn.TabularMLP`. For columns with hundreds of texts, codes take less memory. `Linear` and gates that depend
            on the inputs convert codes to one-hot inputs.

    Raises:
        UserError: Options contradict each other, or the file or a column does not match them.
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

    def prepare(self) -> None:
        """Read and encode a large file into the cache, unless it is there; runs in one process per machine."""
        _ = self._stored

    def tasks(self) -> dict[str, Task]:
        """Return a task per target, by name of the column; or a task per value of `task_column`, sorted by value."""
        kinds = self._kinds.items()
        tasks = {name: task_of(name, kind, len(classes), self.targets[name]) for name, (kind, classes) in kinds}
        if self.task_column is None:
            return tasks
        (task,) = tasks.values()
        return dict.fromkeys(self._task_names, task)

    def classes(self) -> dict[str, list[str]]:
        """Return the labels of each classification target by class number; for a binary target, no and yes."""
        return {name: classes for name, (kind, classes) in self._kinds.items() if kind != "regression"}

    def sets(self) -> dict[Split, TaskSet]:
        """Return sets with inputs `(n, D)`, float32, and the targets of each task.

        Targets of a regression are `(n_i, 1)`, float64, or int64 if all are whole numbers; labels are `(n_i,)`.
        """
        if self._stored is not None:
            self.task_hashes = self._stored.sets
            return dict(cast(Mapping[Split, TaskSet], self._stored.sets.parts))
        kinds = self._kinds
        values = {name: encoded(self._columns[name], *kinds[name]) for name in self.targets}
        present = {name: torch.from_numpy(~self._columns[name].missing) for name in self.targets}
        weights = None if self.weights is None else row_weights(self._columns[self.weights].complete())
        task_rows = {split: self._rows_in(split) for split in SPLITS}
        split_rows = {split: np.concatenate(list(by_task.values())) for split, by_task in task_rows.items()}
        inputs = encode_parts(self._feature_columns, self._spec.features, list(split_rows.values()))
        sets: dict[Split, TaskSet] = {}
        for x, (split, rows) in zip(inputs, split_rows.items(), strict=True):
            index = torch.from_numpy(rows)
            columns = values
            if self.task_column is None:
                places = {name: mask[index].nonzero()[:, 0] for name, mask in present.items()}
            else:  # the rows of a split are sorted by task
                ends = np.cumsum([len(of_task) for of_task in task_rows[split].values()])
                places = dict(zip(task_rows[split], torch.arange(len(x)).tensor_split(ends.tolist()[:-1]), strict=True))
                (y,) = values.values()
                columns = dict.fromkeys(places, y)
            targets = {name: columns[name][index[place]] for name, place in places.items()}
            task_set = TaskSet(x, targets, places)
            sets[split] = task_set if weights is None else with_weights(task_set, weights[index])
        return sets if weights is None else with_mean_1(sets)

    def file_rows(self, split: Split) -> dict[str, NDArray[np.int64]]:
        """Return the rows of the file that are the examples of each task in a split.

        Example i of a task is row `file_rows(split)[task][i]` of the file, so these are also the rows of the `id` in
        `predictions.npz`.

        Args:
            split: Name of the split: `train`, `val` or `test`.

        Returns:
            Numbers of rows by name of the task, `(n_i,)`, counted from 0 without the header; rows without a label of
            the task are left out.
        """
        one_of("split", split, Split)
        rows = self._rows_in(split)
        if self.task_column is None:
            return {name: rows[""][~self._columns[name].missing[rows[""]]] for name in self.targets}
        return rows

    def _rows_in(self, split: Split) -> dict[str, NDArray[np.int64]]:
        """Return the rows of a split by task; without a `task_column`, all rows under ""."""
        in_split = self._split_of == split
        if self.task_column is None:
            return {"": np.flatnonzero(in_split)}
        texts, codes = self._columns[self.task_column].complete().named
        rows = np.flatnonzero(in_split & self._labelled)
        return {name: rows[codes[rows] == texts.index(name)] for name in self._task_names}

    def table(self) -> TableSpec:
        """Return how rows of the file are converted to inputs, so that new rows can be converted in the same way."""
        return self._spec

    @property
    def input_names(self) -> list[str]:
        """Names of the D inputs, each a column, `column=text`, or `column is missing`."""
        return self._spec.inputs

    def _weighing(self, train: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The training rows with a weight above 0; all of them if none has one, which the data module refuses."""
        if self.weights is None:
            return train
        weighing = train & (row_weights(self._columns[self.weights].complete()) > 0).numpy()
        return weighing if weighing.any() else train

    @cached_property
    def _stored(self) -> _Stored | None:
        """A large table, from the cache; None if the file is small or a subclass may read it in another way."""
        if not is_cached(self, [self.path]):
            return None
        tensors, about = read_or_encode(lambda: [self.path], self, self._encoded)
        hashes = Hashes(about["sha256"]["whole"], about["sha256"]["splits"])
        kinds = {name: (kind, classes) for name, (kind, classes) in about["kinds"].items()}
        sets = HashedParts(sets_of(tensors, about["tasks"]), hashes)
        return _Stored(kinds, about["tasks"], build(about["spec"]), sets)

    def _encoded(self) -> Encoded:
        fresh = copy(self)  # its columns are freed at the end, before the result is written
        fresh.__dict__["_stored"] = None
        sets = fresh.sets()
        about = {"kinds": fresh._kinds, "tasks": fresh._task_names, "spec": describe(fresh._spec)}
        return Encoded(tensors_of(sets), {**about, "sha256": of_sets(sets)._asdict()})

    @cached_property
    def _columns(self) -> dict[str, Column]:
        columns = with_columns_of(self, read_columns(self.path, spelling=self.spelling), COLUMNS)
        stated = {name: [str(label) for label in target.classes or ()] for name, target in self.targets.items()}
        return {name: column.keeping(stated.get(name, ())) for name, column in columns.items()}

    @cached_property
    def _kinds(self) -> dict[str, tuple[Kind, list[str]]]:
        if self._stored is not None:
            return self._stored.kinds
        return {name: kind_of(self._columns[name], target) for name, target in self.targets.items()}

    @cached_property
    def _task_names(self) -> list[str]:
        if self._stored is not None:
            return self._stored.task_names
        return list(self.targets) if self.task_column is None else self._columns[self.task_column].complete().classes()

    @cached_property
    def _feature_columns(self) -> dict[str, Column]:
        other_roles = {*self.targets, *self.leave_out, *(getattr(self, role) for role in ROLES)}
        return features_of(self, self._columns, other_roles)

    @cached_property
    def _spec(self) -> TableSpec:
        if self._stored is not None:
            return self._stored.spec
        train = self._split_of == "train"
        if not train.any():
            raise UserError(f"{self.path}: there is no training row among {len(train)}; change the division")
        features = learn_features(
            self._feature_columns,
            self._weighing(train),
            self.categorical,
            self.max_categories,
            self.missing_indicators,
            self.scaling,
            self.categories,
        )
        targets = [
            TableTarget(name, classes, self.targets[name].unit or "") for name, (_, classes) in self._kinds.items()
        ]
        for name, (kind, classes) in self._kinds.items():
            if kind == "binary" and (line := yes_by_order(name, self.targets[name], classes)):
                say(_log, logging.WARNING, "Table: %s", line)
            if kind == "regression" and (advice := self._columns[name].grouped) is not None:
                say(_log, logging.WARNING, "%s: %s", self._columns[name].where, advice)
            if kind == "regression" and (line := few_numbers(self._columns[name], name, self.targets[name])):
                say(_log, logging.WARNING, "Table: %s", line)
        self._say_missing_labels()
        if numbering := [name for name, column in self._feature_columns.items() if numbers_rows(column)]:
            names = ", ".join(map(repr, numbering))
            say(
                _log,
                logging.WARNING,
                "Table: these features have a different whole number in every row, as IDs and times do; name "
                "IDs in leave_out, and a time in time_column: %s",
                names,
            )
        tasks = None if self.task_column is None else self._columns[self.task_column].complete()
        of_numbers = tasks is not None and tasks.first_text is None and not tasks.boolean
        spelling = {"delimiter": self.spelling.delimiter or "", "decimal": self.spelling.decimal}
        return TableSpec(features, targets, self.task_column or "", of_numbers, **spelling)

    def _say_missing_labels(self) -> None:
        """Log how many labels of each target are missing, and which texts are the reason, in one line."""
        missing = {name: int(self._columns[name].missing.sum()) for name in self.targets}
        counts = [f"{name!r} {count}" for name, count in missing.items() if count]
        if not counts:
            return
        texts = dict.fromkeys(
            repr(text)
            for name, (kind, _) in self._kinds.items()
            if missing[name] and kind != "regression"
            for text in self._columns[name].read_as_missing
        )
        hint = f"; {', '.join(texts)} in the file means missing, unless `classes` states it as a label" if texts else ""
        message = "Table: missing labels in %d rows: %s%s"
        say(_log, logging.INFO, message, len(self._labelled), some_of(counts, 5), hint)

    @cached_property
    def _labelled(self) -> NDArray[np.bool_]:
        labelled: NDArray[np.bool_] = ~np.all([self._columns[name].missing for name in self.targets], axis=0)
        return labelled

    @cached_property
    def _split_of(self) -> NDArray[np.str_]:
        """The split of each row, `(n,)`; "" for a row without any label."""
        labelled = self._labelled
        split_of = np.zeros(len(labelled), dtype="<U5")
        rows = labelled.nonzero()[0]
        if self.split_column is not None:
            column = self._columns[self.split_column].complete()
            if (wrong := column.coded.first(lambda label: label not in SPLITS)) is not None:
                raise column.wrong(wrong, "expected train, val or test")
            split_of[rows] = np.array(column.coded.texts)[column.coded.codes[rows]]
        elif self.time_column is not None:
            split_of[rows] = by_time(self._columns[self.time_column].complete(), rows, self.fractions)
        else:
            prefix = f"{self.seed}/"
            if self.group_column is None:  # twins are one unit
                units = hashes_of_rows(self._feature_columns.values(), rows, prefix)
            else:
                units = hashes_of_texts(self._columns[self.group_column].complete().coded, rows, prefix)
            split_of[rows] = stratified(units, self._strata(rows), self.fractions)
            if self.group_column is None:
                return split_of
        leaked = twins(hashes_of_rows(self._feature_columns.values(), rows, ""), split_of[rows])
        if leaked:
            say(
                _log,
                logging.WARNING,
                "%s: %d validation and test rows have the same features as a training row; if their labels are also "
                "the same, their scores say little about new rows",
                *(self.path, leaked),
            )
        return split_of

    def _strata(self, rows: NDArray[np.int_]) -> list[Coded]:
        """Return what to divide evenly: for each target, the pair of task and label of the given rows.

        A regression has one label, for rows whose target is present. It is left out if there is no `task_column` and
        none of the rows lacks the target.
        """
        tasks = Coded([""], np.zeros(len(self._labelled), np.int64))
        if self.task_column is not None:
            tasks = self._columns[self.task_column].complete().named
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
            raise UserError("Table targets: expected the name of at least one target column")
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
