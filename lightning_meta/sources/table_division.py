"""Dividing the rows of a table between training, validation and test."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from lightning_meta.batches import SPLITS
from lightning_meta.sources.columns import Coded, Column

DATE = re.compile(r"\d{4}-\d{2}-\d{2}(?:[T ]\d{2}:\d{2}(?::\d{2}(?:\.\d+)?)?)?")
"""Text that sorts by time."""
CHUNK = 4096  # rows that are hashed at once


def hashes_of_rows(columns: Iterable[Column], rows: NDArray[np.int64], prefix: str) -> NDArray[np.bytes_]:
    """The sha256 of a prefix and the values of each row: the same for twins, rows of which all values are equal.

    Args:
        columns: Of all rows.
        rows: `(m,)` which are hashed.
        prefix: Begins what is hashed.

    Returns:
        `(m,)` of 32 bytes.
    """
    given = list(columns)
    as_text = [c.coded for c in given if c.first_text is not None or c.beyond_float64]
    numbers = [c.numbers for c in given if not (c.first_text is not None or c.beyond_float64)]
    words = [np.array([*(f"\x1f{text}".encode() for text in of.texts), b"\x1f"], dtype=object) for of in as_text]
    begin, width, sha256 = prefix.encode(), 16 * len(numbers), hashlib.sha256
    digests = []
    for start in range(0, len(rows), CHUNK):  # of a million rows the texts would fill the memory
        part = rows[start : start + CHUNK]
        values = np.empty((len(part), len(numbers)), "<f8")
        for at, of_column in enumerate(numbers):
            values[:, at] = of_column[part]
        values[np.isnan(values)] = np.inf
        text = values.tobytes().hex().encode()
        ends = np.full(len(part), b"\x1f", object)
        for of, coded in zip(words, as_text, strict=True):
            ends += of[coded.codes[part]]
        starts = range(0, len(part) * width, width) if width else [0] * len(part)
        here = [
            sha256(begin + text[i : i + width] + end).digest() for i, end in zip(starts, ends.tolist(), strict=True)
        ]
        digests.append(b"".join(here))
    return np.frombuffer(b"".join(digests), "S32") if digests else np.empty(0, "S32")


def hashes_of_texts(coded: Coded, rows: NDArray[np.int64], prefix: str) -> NDArray[np.bytes_]:
    """The sha256 of a prefix and the text of each of m rows, none of them missing; `(m,)` of 32 bytes."""
    digests = b"".join(hashlib.sha256(f"{prefix}{text}".encode()).digest() for text in coded.texts)
    return np.frombuffer(digests, "S32")[coded.codes[rows]]


def stratified(units: NDArray[np.bytes_], strata: Sequence[Coded], fractions: Sequence[float]) -> NDArray[np.str_]:
    """Divide units of rows so that each stratum is divided by the fractions, as nearly as whole units allow.

    Iterative stratification: the rarest stratum first; those of its units that no rarer one has placed fill its share
    of each split, counted in rows, in the order of their hashes (after Sechidis et al., On the Stratification of
    Multi-Label Data, ECML PKDD 2011, section 3.2, which places one example at a time).

    Args:
        units: `(n,)` the hash of each row's unit, which draws its place: twins, or the rows of a group, are one.
        strata: What is to be divided evenly, such as the labels of a target; each the labels of the n rows.
        fractions: Of train, val and test.

    Returns:
        `(n,)` the split of each row.
    """
    unit_of = np.unique(units, return_inverse=True)[1]
    count = int(unit_of.max()) + 1 if len(unit_of) else 0
    members: dict[tuple[int, str], NDArray[np.int64]] = {}
    for number, (labels, codes) in enumerate(strata):
        present = codes >= 0
        pairs = np.sort(codes[present] * count + unit_of[present])
        pairs = pairs[np.diff(pairs, prepend=-1) > 0]
        bounds = np.searchsorted(pairs, np.arange(len(labels) + 1) * count)
        for code, label in enumerate(labels):
            if len(of_label := pairs[bounds[code] : bounds[code + 1]]):
                members[number, label] = of_label - code * count
    split_of, rows = np.full(count, -1), np.bincount(unit_of, minlength=count).astype(float)
    shares = np.asarray(fractions, float)
    for number, stratum in enumerate(sorted(members, key=lambda s: (len(members[s]), s))):
        # Of a stratum of two or three units one of these gets none: not always the same.
        order = [0, 1, 2] if number % 2 else [0, 2, 1]
        _fill(split_of, rows, members[stratum], shares, order)
    _fill(split_of, rows, np.arange(count), shares, [0, 1, 2])
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
        spelled = column.spelled
        wrong = np.array([*(DATE.fullmatch(text) is None for text in spelled.texts), True])[spelled.codes[rows]]
        if wrong.any():
            row = int(rows[wrong.argmax()])
            raise column.wrong(row, "expected a number, or a date such as 2026-01-31 or 2026-01-31 14:05")
        times = np.array([text.replace("T", " ") for text in spelled.texts])[spelled.codes[rows]]
    earlier = np.searchsorted(np.sort(times), times) / max(len(rows), 1)  # the share of the rows before each one's time
    bounds = np.cumsum(fractions)[:2] - 1e-9
    named: NDArray[np.str_] = np.array(SPLITS)[(earlier[:, None] >= bounds).sum(1)]
    return named


def twins(units: NDArray[np.bytes_], split_of: NDArray[np.str_]) -> int:
    """How many validation and test rows have the hash of a training row."""
    return int(np.isin(units[np.isin(split_of, ("val", "test"))], units[split_of == "train"]).sum())
