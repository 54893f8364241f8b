"""A source for the user's own tables in few-shot regression, with one example per row and many tasks."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_meta.batches import SPLITS, Split
from lightning_meta.checks import names_in_list, whole
from lightning_meta.data.pool import Pool
from lightning_meta.errors import UserError
from lightning_meta.sources.class_lists import refuse_shared
from lightning_meta.sources.columns import Column
from lightning_meta.sources.division import divided_classes
from lightning_meta.sources.table_features import Features, encode, learn_features
from lightning_meta.sources.table_files import Decimal, Spelling, features_of, read_columns, with_columns_of
from lightning_meta.sources.table_folder import read_folder, tables_in
from lightning_meta.sources.table_messages import say
from lightning_meta.sources.table_pools import TablePools
from lightning_meta.sources.table_rows import columns_in, rows_of
from lightning_meta.tasks.table import TableSpec

_log = logging.getLogger(__name__)


class RegressionTable(TablePools):
    """Rows of many tasks with real targets, such as machines, patients or sensors: one table, or a folder of them.

    An episode consists of rows of one task: K rows with their targets, and Q other rows to predict. The tasks, not the
    rows, are divided between training, validation and test: at random, depending only on `seed` and the names of the
    tasks, so that the division is the same on every machine; by the names in `division`; or by a `split_column`.

    Features are converted to inputs as in `Table`, with statistics of the rows of the training tasks: numbers are
    standardised, and a missing number is replaced by the mean; text is one-hot encoded, with one input per text of the
    training rows. Targets are also standardised with the rows of the training tasks; predictions and errors are in the
    units of the targets. Rows without a target are left out.

    With few test tasks, results say little about new tasks, however many episodes are drawn: the interval of a result
    is over episodes of these test tasks.

    At a glance:
        - Classes: yours (regression).
        - Examples: yours.
        - From: your CSV or Parquet file, or a folder of them, one a task.

    Example:
        `configs/maml_table.yaml`, or::

            source = RegressionTable("pumps.csv", targets="flow", task_column="pump")

    Args:
        path: Path of the file: `.csv` or `.tsv` in UTF-8 with a header, or `.parquet`; or of a folder of such files
            with the same columns, where each file is a task with the name of the file.
        targets: Name of the column to predict, or several names.
        task_column: Name of the column with the task of each row; cannot be combined with a folder.
        features: Names of the feature columns; by default all columns without another role, except for the index of a
            DataFrame in a Parquet file.
        split_column: Name of a column with `train`, `val` or `test`, the same in all rows of a task.
        division: Names of the tasks for validation and test, as in `{val: [pump_3], test: [pump_1, pump_7]}`; the other
            tasks are for training.
        least_rows: Smallest number of rows of a task; tasks with fewer are left out, and their number is logged. Set it
            to the number of shots and queries of an episode.
        fractions: Shares of the tasks for train, val and test, > 0, with sum 1; each split gets at least one task.
        seed: Seed of the division.
        categorical: Names of feature columns to treat as text although they hold numbers.
        max_categories: Largest number of different texts of a feature; a column with more is likely a name or a date.
        leave_out: Names of columns that are not features, such as other targets, names and notes.
        delimiter: Separator of the columns of a CSV file, one character; by default a comma, or a tab in a `.tsv` file.
        decimal: Decimal mark of the numbers of a CSV file, `.` or `,`.

    Raises:
        UserError: Options contradict each other, or a file or column does not match them.
    """

    regression = True

    def __init__(
        self,
        path: str | Path,
        targets: str | Sequence[str],
        task_column: str | None = None,
        features: Sequence[str] | None = None,
        split_column: str | None = None,
        division: Mapping[Literal["val", "test"], Sequence[str | int]] | None = None,
        least_rows: int = 1,
        fractions: tuple[float, float, float] = (0.6, 0.15, 0.25),
        seed: int = 0,
        categorical: Sequence[str] = (),
        max_categories: int = 50,
        leave_out: Sequence[str] = (),
        delimiter: str | None = None,
        decimal: Decimal = ".",
    ) -> None:
        self.path = Path(path).expanduser()
        names_in_list(features=features, categorical=categorical, leave_out=leave_out)
        whole(1, least_rows=least_rows, max_categories=max_categories)
        self.targets = (targets,) if isinstance(targets, str) else tuple(targets)
        self.task_column, self.split_column, self.division = task_column, split_column, division
        self.features, self.leave_out, self.least_rows = features, tuple(leave_out or ()), least_rows
        self.fractions, self.seed = tuple(fractions), seed
        self.categorical, self.max_categories = tuple(categorical or ()), max_categories
        self.spelling = Spelling(delimiter, decimal)
        self.spelling.check("RegressionTable", self.path)
        self._check_options()

    def _files(self) -> list[Path]:
        return tables_in(self.path) if self.path.is_dir() else [self.path]

    def _read_pools(self) -> dict[Split, Pool]:
        inputs, rows = encode(self._feature_columns, self._features), self._rows
        targets = np.stack([self._columns[name].numbers for name in self.targets], 1)
        pools: dict[Split, Pool] = {}
        for split in SPLITS:
            names = self._tasks[split]
            number = {name: i for i, name in enumerate(names)}
            in_split = [row for row in rows if self._task_of[row] in number]
            labels = [number[self._task_of[row]] for row in in_split]
            y = torch.from_numpy(targets[in_split].reshape(len(in_split), -1))
            pools[split] = Pool.from_examples(inputs[torch.tensor(in_split)], labels, names, targets=y)
        return pools

    def inputs_of(self, data: Any) -> Tensor:
        """Convert new rows to inputs of a model trained on these episodes, as for `module.predictor(inputs, targets)`.

        Args:
            data: Path of a table, or data that `pyarrow.table` accepts: a DataFrame, or a mapping of columns to lists.

        Returns:
            Inputs `(n, D)`, float32.

        Raises:
            UserError: A column is missing, or a value cannot be converted to an input.
        """
        converted = rows_of(TableSpec(list(self._features), []), (), columns_in(data, spelling=self.spelling))
        for note in converted.notes:
            _log.warning("%s", note)
        return converted.inputs

    @cached_property
    def _read(self) -> tuple[dict[str, Column], list[str] | None]:
        """The columns, and for a folder also the task of each row."""
        argument = "RegressionTable path="
        if not self.path.is_dir():
            if self.task_column is None:
                raise UserError(
                    f"RegressionTable task_column: {self.path} is not a folder; name the column of the tasks, or a "
                    "folder with a file for each task"
                )
            return read_columns(self.path, argument, self.spelling), None
        if self.task_column is not None:
            raise UserError(
                f"RegressionTable task_column={self.task_column}: {self.path} is a folder, whose files are the tasks; "
                "leave out task_column, or name one file"
            )
        return read_folder(self.path, argument, self.spelling)

    @cached_property
    def _columns(self) -> dict[str, Column]:
        options = ("targets", "task_column", "features", "split_column", "categorical", "leave_out")
        return with_columns_of(self, self._read[0], options)

    @cached_property
    def _task_of(self) -> list[str]:
        """The task of each row."""
        file_of_row = self._read[1]
        return file_of_row if file_of_row is not None else self._columns[str(self.task_column)].complete().labels

    @cached_property
    def _rows(self) -> list[int]:
        """The rows with all targets whose tasks have at least `least_rows` such rows."""
        for name in self.targets:
            if self._columns[name].beyond_float64:
                raise UserError(
                    f"{self._columns[name].where} holds whole numbers beyond 2^53, which float64 rounds; subtract a "
                    "constant"
                )
        missing: NDArray[np.bool_] = np.any([self._columns[name].missing for name in self.targets], axis=0)
        if missing.any():
            message = "RegressionTable: %d of %d rows lack a target and are left out"
            say(_log, logging.INFO, message, missing.sum(), len(missing))
        rows: list[int] = np.flatnonzero(~missing).tolist()
        counts = Counter(self._task_of[row] for row in rows)
        names = sorted(set(self._task_of))
        too_few = [name for name in names if counts[name] < self.least_rows]
        if too_few:
            say(
                *(_log, logging.INFO),
                "RegressionTable: %d of %d tasks have fewer than %d rows and are left out, such as %r",
                *(len(too_few), len(names), self.least_rows, too_few[0]),
            )
        return [row for row in rows if counts[self._task_of[row]] >= self.least_rows]

    @cached_property
    def _tasks(self) -> dict[Split, list[str]]:
        """The tasks of each split, sorted by name."""
        kept = {self._task_of[row] for row in self._rows}
        if self.split_column is not None:
            tasks = self._tasks_of_column()
        elif self.division is not None:
            tasks = self._tasks_of_division(kept)
        elif len(kept) < 3:
            condition = f" with {self.least_rows} rows or more" if self.least_rows > 1 else ""
            raise UserError(
                f"RegressionTable: train, val and test need a task each, but {self.path} has {len(kept)}{condition}"
            )
        else:
            tasks = divided_classes(kept, self.fractions, 1, self.seed)
        if empty := [split for split in SPLITS if not tasks[split]]:
            raise UserError(f"RegressionTable: {self.path} has no task for {empty[0]}; each split needs at least one")
        return tasks

    def _tasks_of_column(self) -> dict[Split, list[str]]:
        column = self._columns[str(self.split_column)].complete()
        tasks: dict[Split, set[str]] = {split: set() for split in SPLITS}
        for row in self._rows:
            if (split := column.labels[row]) not in SPLITS:
                raise column.wrong(row, "expected train, val or test")
            tasks[split].add(self._task_of[row])
        refuse_shared(tasks, str(self.path), "give all rows of a task one split", "task")
        return {split: sorted(names) for split, names in tasks.items()}

    def _tasks_of_division(self, kept: set[str]) -> dict[Split, list[str]]:
        assert self.division is not None
        held_out = self.division
        tasks: dict[Split, list[str]] = {
            "val": sorted(map(str, held_out["val"])),
            "test": sorted(map(str, held_out["test"])),
        }
        for split, names in tasks.items():
            for name in names:
                if name not in kept:
                    exists = name in self._task_of
                    why = f"has fewer than {self.least_rows} rows with a target" if exists else "is not a task"
                    some = ", ".join(map(repr, sorted(kept)[:10]))
                    raise UserError(f"RegressionTable division: {name!r} for {split} {why}; tasks are {some}")
        tasks["train"] = sorted(kept - {*tasks["val"], *tasks["test"]})
        refuse_shared(tasks, "RegressionTable division", "name it once", "task")
        return tasks

    @cached_property
    def _feature_columns(self) -> dict[str, Column]:
        columns = self._columns  # first, so that a missing column is reported before other mistakes
        other_roles = {*self.targets, *self.leave_out, self.task_column, self.split_column}
        return features_of(self, columns, other_roles)

    def _learn_features(self) -> Features:
        train = set(self._tasks["train"])
        in_training = np.zeros(len(self._task_of), np.bool_)
        in_training[[row for row in self._rows if self._task_of[row] in train]] = True
        return learn_features(self._feature_columns, in_training, self.categorical, self.max_categories, False)

    def _check_options(self) -> None:
        if not self.targets:
            raise UserError("RegressionTable targets: expected the name of at least one target column")
        roles = [*self.targets, *(self.features or ()), *self.leave_out]
        roles += [name for name in (self.task_column, self.split_column) if name is not None]
        if twice := [name for name in roles if roles.count(name) > 1]:
            raise UserError(
                f"RegressionTable: column {twice[0]!r} has two roles; it is a feature, a target, the task, the split "
                "or left out"
            )
        if self.split_column is not None and self.division is not None:
            raise UserError("RegressionTable: split_column divides the tasks; leave division out")
        if self.division is not None:
            division = self.division if isinstance(self.division, Mapping) else {}
            if set(division) != {"val", "test"} or any(isinstance(names, str) for names in division.values()):
                raise UserError(
                    f"RegressionTable division: expected lists of tasks for val and test, got {self.division!r}"
                )
        fractions = self.fractions
        if len(fractions) != 3 or not min(fractions) > 0 or not math.isclose(sum(fractions), 1, abs_tol=1e-6):
            raise UserError(
                f"RegressionTable fractions={list(fractions)}: expected three positive numbers that add up to 1"
            )
