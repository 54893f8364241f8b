"""Tables of the user's own for few-shot regression: every row is an example of the task that it names."""

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
from lightning_meta.data.hashes import of_pools
from lightning_meta.data.pool import Pool
from lightning_meta.data.source import Source
from lightning_meta.errors import UserError
from lightning_meta.sources.class_lists import refuse_shared
from lightning_meta.sources.columns import Column
from lightning_meta.sources.division import divided_classes
from lightning_meta.sources.table_features import Features, encode, learn_features
from lightning_meta.sources.table_files import Decimal, Spelling, instead_of, read_columns
from lightning_meta.sources.table_folder import read_folder
from lightning_meta.sources.table_rows import columns_in, rows_of
from lightning_meta.tasks.table import TableSpec

_log = logging.getLogger(__name__)


class RegressionTable(Source):
    """Rows of many tasks with real targets, such as machines, patients or sensors: one table, or a folder of them.

    An episode is of one task: K of its rows with their targets, and Q others to predict. The tasks, not the rows, are
    divided between training, validation and test: at random, but the same on every machine, by `seed` and the names of
    the tasks alone; by their names in `division`; or as a `split_column` says.

    Features become numbers as in `Table`, and what is learned of them is learned from the rows of the training tasks:
    numbers are standardised, and a missing one is replaced by the mean; text becomes one input of 0 or 1 for each of
    the texts in training rows. Targets are standardised by the rows of the training tasks as well; predictions and
    errors are in the targets' own units. A row without a target is left out.

    Few test tasks say little about new ones, however many episodes are drawn of them: the interval of a result is over
    episodes of these tasks.

    At a glance:
        - Classes: yours (regression).
        - Examples: yours.
        - From: your CSV or Parquet file, or a folder of them, one a task.

    Example:
        `configs/maml_table.yaml`, or::

            source = RegressionTable("pumps.csv", targets="flow", task_column="pump")

    Args:
        path: The file: `.csv` or `.tsv` in UTF-8 with a header, or `.parquet`; or a folder of such files with the same
            columns, each a task that is named by its file.
        targets: The column that is predicted, or several of them.
        task_column: The column that names each row's task; not with a folder.
        features: Names of the feature columns; by default all that are nothing else.
        split_column: The column that says `train`, `val` or `test`, the same in all rows of a task.
        division: The names of the tasks for validation and test, as in `{val: [pump_3], test: [pump_1, pump_7]}`; the
            others are for training.
        least_rows: Tasks with fewer rows are left out, and a line says how many: the shots and queries of an episode.
        fractions: Which part of the tasks goes to train, val and test; each gets one at least.
        seed: Draws another division.
        categorical: Feature columns to be taken as text although they hold numbers.
        max_categories: The most different texts that a feature may have: more is likely a name or a date.
        leave_out: Columns that are no features, such as other targets, names and notes.
        delimiter: What divides the columns of a CSV file; by default a comma, and a tab in a `.tsv` file.
        decimal: What stands before the decimals of a number in a CSV file, `.` or `,`.

    Raises:
        UserError: Options that do not go together, or a file or column that is not as they say.
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

    def pools(self) -> dict[Split, Pool]:
        """Inputs `(n, D)` float32 and targets `(n, outputs)` float64, task by task in the order of their names."""
        inputs, rows = encode(self._feature_columns, self._features), self._rows
        targets = np.stack([self._columns[name].numbers for name in self.targets], 1)
        pools: dict[Split, Pool] = {}
        for split in SPLITS:
            names = self._tasks[split]
            number = {name: i for i, name in enumerate(names)}
            here = [row for row in rows if self._task_of[row] in number]
            labels = [number[self._task_of[row]] for row in here]
            y = torch.from_numpy(targets[here].reshape(len(here), -1))
            pools[split] = Pool.from_examples(inputs[torch.tensor(here)], labels, names, targets=y)
        return pools

    def inputs_of(self, data: Any) -> Tensor:
        """New rows as the inputs that a model of these episodes takes, such as `module.predictor(inputs, targets)`.

        Args:
            data: The path of a table, or what `pyarrow.table` takes: a DataFrame, or lists by column.

        Returns:
            `(n, D)` float32.

        Raises:
            UserError: A column is missing, or a value cannot become an input.
        """
        made = rows_of(TableSpec(list(self._features), []), (), columns_in(data, spelling=self.spelling))
        for note in made.notes:
            _log.warning("%s", note)
        return made.inputs

    def fingerprint(self) -> str:
        """The sha256 of all examples as `pools` gives them."""
        return of_pools(self.pools()).whole

    @property
    def input_names(self) -> list[str]:
        """What each of the D inputs is: a column, or `column=text`."""
        return [name for feature in self._features for name in feature.inputs]

    @cached_property
    def _read(self) -> tuple[dict[str, Column], list[str] | None]:
        """The columns, and of a folder the task of each row."""
        argument = "RegressionTable path="
        if not self.path.is_dir():
            if self.task_column is None:
                raise UserError(
                    f"RegressionTable task_column: {self.path} is no folder; name the column of the tasks, or give a "
                    "folder with a file for each task"
                )
            return read_columns(self.path, argument, self.spelling), None
        if self.task_column is not None:
            raise UserError(
                f"RegressionTable task_column={self.task_column}: {self.path} is a folder, whose files are the tasks; "
                "leave it out, or name one file"
            )
        return read_folder(self.path, argument, self.spelling)

    @cached_property
    def _columns(self) -> dict[str, Column]:
        columns = self._read[0]
        for option in ("targets", "task_column", "features", "split_column", "categorical", "leave_out"):
            given = getattr(self, option)
            for name in [given] if isinstance(given, str) else given or ():
                if name not in columns:
                    instead = instead_of(name, list(columns))
                    raise UserError(f"RegressionTable {option}: {self.path} has no column {name!r}; {instead}")
        return columns

    @cached_property
    def _task_of(self) -> list[str]:
        """The task of each row."""
        of_files = self._read[1]
        return of_files if of_files is not None else self._full(str(self.task_column)).labels

    def _full(self, name: str) -> Column:
        """A column that has a value in every row."""
        column = self._columns[name]
        if column.missing.any():
            raise column.wrong(int(column.missing.argmax()), "every row needs a value here")
        return column

    @cached_property
    def _rows(self) -> list[int]:
        """The rows of tasks that are kept, with all targets."""
        for name in self.targets:
            if self._columns[name].beyond_float64:
                raise UserError(
                    f"{self._columns[name].where} holds whole numbers beyond 2^53, which merge; subtract a constant"
                )
        missing: NDArray[np.bool_] = np.any([self._columns[name].missing for name in self.targets], axis=0)
        if missing.any():
            _log.info("RegressionTable: %d of %d rows miss a target and are left out", missing.sum(), len(missing))
        rows: list[int] = np.flatnonzero(~missing).tolist()
        counts = Counter(self._task_of[row] for row in rows)
        names = sorted(set(self._task_of))
        few = [name for name in names if counts[name] < self.least_rows]
        if few:
            _log.info(
                "RegressionTable: %d of %d tasks have fewer than %d rows and are left out, such as %r",
                *(len(few), len(names), self.least_rows, few[0]),
            )
        return [row for row in rows if counts[self._task_of[row]] >= self.least_rows]

    @cached_property
    def _tasks(self) -> dict[Split, list[str]]:
        """The tasks of each split, in the order of their names."""
        kept = {self._task_of[row] for row in self._rows}
        if self.split_column is not None:
            tasks = self._tasks_of_column()
        elif self.division is not None:
            tasks = self._tasks_of_division(kept)
        elif len(kept) < 3:
            enough = f" with {self.least_rows} rows or more" if self.least_rows > 1 else ""
            raise UserError(
                f"RegressionTable: train, val and test need a task each, but {self.path} has {len(kept)}{enough}"
            )
        else:
            tasks = divided_classes(kept, self.fractions, 1, self.seed)
        if empty := [split for split in SPLITS if not tasks[split]]:
            raise UserError(f"RegressionTable: {self.path} has no task for {empty[0]}; each split needs one at least")
        return tasks

    def _tasks_of_column(self) -> dict[Split, list[str]]:
        column = self._full(str(self.split_column))
        tasks: dict[Split, set[str]] = {split: set() for split in SPLITS}
        for row in self._rows:
            if (split := column.labels[row]) not in SPLITS:
                raise column.wrong(row, "expected train, val or test")
            tasks[split].add(self._task_of[row])
        refuse_shared(tasks, str(self.path), "give all rows of a task one split", "task")
        return {split: sorted(names) for split, names in tasks.items()}

    def _tasks_of_division(self, kept: set[str]) -> dict[Split, list[str]]:
        assert self.division is not None
        given = self.division
        held: dict[Split, list[str]] = {"val": sorted(map(str, given["val"])), "test": sorted(map(str, given["test"]))}
        for split, names in held.items():
            for name in names:
                if name not in kept:
                    there = name in self._task_of
                    why = f"has fewer than {self.least_rows} rows with a target" if there else "is no task"
                    some = ", ".join(map(repr, sorted(kept)[:10]))
                    raise UserError(f"RegressionTable division: {name!r} for {split} {why}; tasks are {some}")
        held["train"] = sorted(kept - {*held["val"], *held["test"]})
        refuse_shared(held, "RegressionTable division", "name it once", "task")
        return held

    @cached_property
    def _feature_columns(self) -> dict[str, Column]:
        columns = self._columns  # read first: a column that is not there is said before one that has two roles
        taken = {*self.targets, *self.leave_out, self.task_column, self.split_column}
        names = self.features if self.features is not None else [name for name in columns if name not in taken]
        if not names:
            raise UserError(f"{self.path}: no column is left for a feature; name some in `features`")
        if wrong := [name for name in self.categorical if name not in names]:
            raise UserError(f"RegressionTable categorical: {wrong[0]!r} is no feature")
        return {name: columns[name] for name in names}

    @cached_property
    def _features(self) -> Features:
        train = set(self._tasks["train"])
        in_training = np.zeros(len(self._task_of), np.bool_)
        in_training[[row for row in self._rows if self._task_of[row] in train]] = True
        return learn_features(self._feature_columns, in_training, self.categorical, self.max_categories, False)

    def _check_options(self) -> None:
        if not self.targets:
            raise UserError("RegressionTable targets: expected the name of one target column at least")
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
            given = self.division if isinstance(self.division, Mapping) else {}
            if set(given) != {"val", "test"} or any(isinstance(names, str) for names in given.values()):
                raise UserError(
                    f"RegressionTable division: expected lists of tasks for val and test, got {self.division!r}"
                )
        fractions = self.fractions
        if len(fractions) != 3 or not min(fractions) > 0 or not math.isclose(sum(fractions), 1, abs_tol=1e-6):
            raise UserError(f"RegressionTable fractions={list(fractions)}: three positive numbers that add up to 1")
