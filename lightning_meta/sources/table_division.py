"""Dividing the rows of a table between training, validation and test."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lightning_meta.batches import SPLITS
from lightning_meta.sources.columns import Column

DATE = re.compile(r"\d{4}-\d{2}-\d{2}(?:[T ]\d{2}:\d{2}(?::\d{2}(?:\.\d+)?)?)?")
"""Text that sorts by time."""


def contents(columns: Iterable[Column], count: int) -> list[str]:
    """The values of each of n rows in one string, the same for twins: rows of which all values are equal."""
    given = list(columns)
    as_text = [c for c in given if c.first_text is not None or c.beyond_float64]
    numbers = [np.nan_to_num(c.numbers, nan=np.inf) for c in given if c not in as_text]
    rows = np.column_stack([np.zeros((count, 0)), *numbers]).astype("<f8")
    texts = zip([""] * count, *(c.labels for c in as_text), strict=True)
    return ["\x1f".join([row.tobytes().hex(), *more]) for row, more in zip(rows, texts, strict=True)]


def stratified(
    units: Sequence[str], strata: Sequence[Mapping[int, str]], fractions: Sequence[float], seed: int
) -> NDArray[np.str_]:
    """Divide units of rows so that each stratum is divided by the fractions, as nearly as whole units allow.

    Iterative stratification: the rarest stratum first; those of its units that no rarer one has placed fill its share
    of each split, counted in rows, in the order of their hashes (after Sechidis et al., On the Stratification of
    Multi-Label Data, ECML PKDD 2011, section 3.2, which places one example at a time).

    Args:
        units: The unit of each row: twins, or the rows of a group, are one.
        strata: What is to be divided evenly, such as the labels of a target; each by row, the label of those that have
            one.
        fractions: Of train, val and test.
        seed: Draws another division.

    Returns:
        `(n,)` the split of each row.
    """
    hashes = {unit: hashlib.sha256(f"{seed}/{unit}".encode()).digest() for unit in set(units)}
    place = {unit: i for i, unit in enumerate(sorted(hashes, key=hashes.__getitem__))}
    unit_of = np.array([place[unit] for unit in units])
    members: dict[tuple[int, str], set[int]] = {}
    for number, labels in enumerate(strata):
        for row, label in labels.items():
            members.setdefault((number, label), set()).add(int(unit_of[row]))
    split_of, rows = np.full(len(place), -1), np.bincount(unit_of).astype(float)
    shares = np.asarray(fractions, float)
    for number, stratum in enumerate(sorted(members, key=lambda s: (len(members[s]), s))):
        # Of a stratum of two or three units one of these gets none: not always the same.
        order = [0, 1, 2] if number % 2 else [0, 2, 1]
        _fill(split_of, rows, np.array(sorted(members[stratum])), shares, order)
    _fill(split_of, rows, np.arange(len(place)), shares, [0, 1, 2])
    named: NDArray[np.str_] = np.array(SPLITS)[split_of][unit_of]
    return named


def _fill(
    split_of: NDArray[np.int_],
    rows: NDArray[np.float64],
    members: NDArray[np.int_],
    shares: NDArray[np.float64],
    order: Sequence[int],
) -> None:
    """Place the units of a stratum that have no split yet; one at least is for training."""
    placed = split_of[members] >= 0
    free = members[~placed]
    if not len(free):
        return
    have = np.bincount(split_of[members[placed]], rows[members[placed]], minlength=3)
    wanted = np.maximum(shares * rows[members].sum() - have, 0)
    middle = rows[free].cumsum() - rows[free] / 2  # of each unit, if all rows stand in line
    bounds = wanted[order].cumsum()[:2] * (rows[free].sum() / wanted.sum())
    split_of[free] = np.array(order)[(middle[:, None] >= bounds + 1e-9).sum(1)]
    if not (split_of[members] == 0).any():
        split_of[free[0]] = 0


def by_time(column: Column, rows: NDArray[np.int_], fractions: Sequence[float]) -> NDArray[np.str_]:
    """Divide rows by time: the earliest for training, the latest for the test; rows of one time are in one split.

    Args:
        column: Numbers, or dates such as 2026-01-31 or 2026-01-31 14:05.
        rows: Which rows are divided.
        fractions: Of train, val and test.

    Returns:
        The split of each of `rows`.

    Raises:
        UserError: A text is no date.
    """
    if column.first_text is None:
        times = column.centred[rows]
    else:
        texts = column.spelled
        for row in rows.tolist():
            if not DATE.fullmatch(texts[row]):
                raise column.wrong(row, "expected a number, or a date such as 2026-01-31 or 2026-01-31 14:05")
        times = np.array([texts[row].replace("T", " ") for row in rows.tolist()])
    earlier = np.searchsorted(np.sort(times), times) / max(len(rows), 1)  # the share of the rows before each one's time
    bounds = np.cumsum(fractions)[:2] - 1e-9
    named: NDArray[np.str_] = np.array(SPLITS)[(earlier[:, None] >= bounds).sum(1)]
    return named


def twins(content: Sequence[str], split_of: NDArray[np.str_]) -> int:
    """How many validation and test rows have the content of a training row."""
    train = {text for text, split in zip(content, split_of, strict=True) if split == "train"}
    return sum(text in train for text, split in zip(content, split_of, strict=True) if split in ("val", "test"))
