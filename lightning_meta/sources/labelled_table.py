"""A source for the user's own table in few-shot classification, with one example per row."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_meta.batches import SPLITS, Split
from lightning_meta.checks import names_in_list, whole
from lightning_meta.data.pool import Pool
from lightning_meta.errors import UserError, one_of
from lightning_meta.sources.class_lists import refuse_shared
from lightning_meta.sources.columns import Column
from lightning_meta.sources.division import divided_classes, enough_classes
from lightning_meta.sources.table_features import Features, Scaling, encode, learn_features
from lightning_meta.sources.table_files import Decimal, Spelling, features_of, read_columns, with_columns_of
from lightning_meta.sources.table_messages import say
from lightning_meta.sources.table_pools import TablePools

_log = logging.getLogger(__name__)


class LabelledTable(TablePools):
    """A CSV or Parquet file whose rows are examples of many classes, with columns of features and a column of labels.

    The classes, not the rows, are divided between training, validation and test, either at random, depending only on
    `seed` and the names of the classes, so that the division is the same on every machine; or by a `split_column`.

    Features are converted to inputs as in `Table`, with statistics of the rows of the training classes: numbers are
    standardised, and a missing number is replaced by the mean; text is one-hot encoded, with one input per text of the
    training rows. Rows without a label are left out.

    At a glance:
        - Classes: yours.
        - Examples: yours.
        - From: your CSV or Parquet file.

    Example:
        `configs/protonet_table.yaml`, or::

            source = LabelledTable("flowers.csv", label="species")

    Args:
        path: Path of the file: `.csv` or `.tsv` in UTF-8 with a header, or `.parquet`.
        label: Name of the column with the class, as text or whole numbers.
        features: Names of the feature columns; by default all columns without another role, except for the index of a
            DataFrame in a Parquet file.
        split_column: Name of a column with `train`, `val` or `test`, the same in all rows of a class.
        least_examples: Smallest number of rows of a class; classes with fewer are left out, and their number is logged.
            Set it to the number of shots and queries per class of a task.
        least_classes: Smallest number of classes per split, which has priority over the fractions; set it to the number
            of ways of the tasks.
        fractions: Shares of the classes for train, val and test, > 0, with sum 1; each split gets at least one class.
        seed: Seed of the division.
        categorical: Names of feature columns to treat as text although they hold numbers.
        max_categories: Largest number of different texts of a feature; a column with more is likely a name or a date.
        scaling: How numbers are scaled, as in `Table`.
        delimiter: Separator of the columns of a CSV file, one character; by default a comma, or a tab in a `.tsv` file.
        decimal: Decimal mark of the numbers of a CSV file, a point or a comma.

    Raises:
        UserError: Options contradict each other, or the file or a column does not match them.
    """

    def __init__(
        self,
        path: str | Path,
        label: str,
        features: Sequence[str] | None = None,
        split_column: str | None = None,
        least_examples: int = 1,
        least_classes: int = 1,
        fractions: tuple[float, float, float] = (0.6, 0.15, 0.25),
        seed: int = 0,
        categorical: Sequence[str] = (),
        max_categories: int = 50,
        scaling: Scaling = "standard",
        delimiter: str | None = None,
        decimal: Decimal = ".",
    ) -> None:
        self.path = Path(path).expanduser()
        self.scaling, self.spelling = scaling, Spelling(delimiter, decimal)
        self.spelling.check("LabelledTable", self.path)
        one_of("LabelledTable scaling", scaling, Scaling)
        names_in_list(features=features, categorical=categorical)
        whole(1, least_examples=least_examples, least_classes=least_classes, max_categories=max_categories)
        if len(fractions) != 3 or min(fractions) <= 0 or not math.isclose(sum(fractions), 1, abs_tol=1e-6):
            raise UserError(
                f"LabelledTable fractions={list(fractions)}: expected three positive numbers that add up to 1"
            )
        self.label, self.features, self.split_column = label, features, split_column
        self.least_examples, self.least_classes = least_examples, least_classes
        self.fractions, self.seed = tuple(fractions), seed
        self.categorical, self.max_categories = tuple(categorical or ()), max_categories

    def _files(self) -> list[Path]:
        return [self.path]

    def _read_pools(self) -> dict[Split, Pool]:
        inputs = encode(self._feature_columns, self._features)
        labels = np.array(self._columns[self.label].labels, dtype=object)
        pools: dict[Split, Pool] = {}
        for split in SPLITS:
            names = self._classes[split]
            number = {name: i for i, name in enumerate(names)}
            in_split = np.array([label in number for label in labels])
            pools[split] = Pool.from_examples(
                inputs[torch.from_numpy(in_split)], [number[label] for label in labels[in_split]], names
            )
        return pools

    def more_classes(self, needs: Mapping[Split, tuple[int, int]]) -> str:
        """Return advice for a message: a `least_classes` with which every split has enough, or a smaller way."""
        tasks = ", ".join(f"{ways} of {examples} rows in {split}" for split, (ways, examples) in needs.items())
        if self.split_column is not None:
            return f"in the column {self.split_column!r} of {self.path}: tasks need {tasks}"
        count = sum(map(len, self._classes.values()))
        if (least := enough_classes(count, self.fractions, self.least_classes, needs)) is not None:
            return f"with least_classes={least} of LabelledTable: tasks need {tasks}, and there are {count} classes"
        fewer = count // 3
        ways = f"; or set least_classes of LabelledTable and the ways of tasks to {fewer}" if fewer > 1 else ""
        return f"by more classes: tasks need {tasks}, and there are {count}{ways}"

    @cached_property
    def _columns(self) -> dict[str, Column]:
        options = ("label", "features", "categorical", "split_column")
        return with_columns_of(self, read_columns(self.path, spelling=self.spelling), options)

    @cached_property
    def _classes(self) -> dict[Split, list[str]]:
        """The classes of each split, sorted by name."""
        if self._stored is not None:
            return {split: list(pool.names) for split, pool in self._stored.pools.items()}
        column = self._columns[self.label]
        texts, codes = column.named
        if column.missing.any():
            meaning = ", ".join(map(repr, column.read_as_missing))
            hint = f"; {meaning} in the file means missing: write another text if it is a class" if meaning else ""
            message = "LabelledTable: %d of %d rows have no label and are left out%s"
            say(_log, logging.INFO, message, column.missing.sum(), len(column.missing), hint)
        counts = dict(zip(texts, np.bincount(codes + 1, minlength=len(texts) + 1)[1:].tolist(), strict=True))
        kept = {name for name, count in counts.items() if count >= self.least_examples}
        if len(kept) < len(counts):
            say(
                *(_log, logging.INFO),
                "LabelledTable: %d of %d classes have fewer than %d rows and are left out, such as %r",
                *(len(counts) - len(kept), len(counts), self.least_examples, min(counts.keys() - kept)),
            )
        if self.split_column is not None:
            return self._classes_of_file(kept)
        if len(kept) < 3 * self.least_classes:
            raise UserError(
                f"LabelledTable: {self.least_classes} classes each for train, val and test are "
                f"{3 * self.least_classes}, but column {self.label!r} of {self.path} has {len(kept)}"
                + (f" with {self.least_examples} rows or more" if len(kept) < len(counts) else "")
            )
        return divided_classes(kept, self.fractions, self.least_classes, self.seed)

    def _classes_of_file(self, kept: set[str]) -> dict[Split, list[str]]:
        assert self.split_column is not None
        column, labels = self._columns[self.split_column], self._columns[self.label].labels
        classes: dict[Split, dict[str, None]] = {split: {} for split in SPLITS}
        for row, (split, label) in enumerate(zip(column.labels, labels, strict=True)):
            if label not in kept:
                continue
            if split not in SPLITS:
                raise column.wrong(row, "expected train, val or test")
            classes[split][label] = None
        refuse_shared(classes, str(self.path), "give all rows of a class one split")
        return {split: sorted(names) for split, names in classes.items()}

    @cached_property
    def _feature_columns(self) -> dict[str, Column]:
        other_roles = {self.label, self.split_column}
        if wrong := [name for name in self.features or () if name in other_roles]:
            raise UserError(f"LabelledTable features: {wrong[0]!r} is the label or the split, and not a feature")
        return features_of(self, self._columns, other_roles)

    def _learn_features(self) -> Features:
        train = self._in_training()
        return learn_features(self._feature_columns, train, self.categorical, self.max_categories, False, self.scaling)

    def _in_training(self) -> NDArray[np.bool_]:
        """Return the mask `(n,)` of the rows that belong to a training class."""
        classes = set(self._classes["train"])
        return np.array([label in classes for label in self._columns[self.label].labels], np.bool_)
