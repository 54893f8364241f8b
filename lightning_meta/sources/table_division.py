"""Division of the rows of a table between training, validation and test."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from lightning_meta.batches import SPLITS
from lightning_meta.sources.columns import Coded, Column

DATE = re.compile(
    r"(?P<day>\d{4}-\d{2}-\d{2})"
    r"(?:[T ](?P<time>\d{2}:\d{2}(?::\d{2}(?:\.\d+)?)?)"
    r"(?P<zone>Z|(?P<sign>[+-])(?P<hours>\d{2})(?::?(?P<minutes>\d{2}))?)?)?"
)
"""Dates, whose alphabetical order is their order in time, and the time zone of times of day."""
CHUNK = 4096  # number of rows hashed at once


def hashes_of_rows(columns: Iterable[Column], rows: NDArray[np.int64], prefix: str) -> NDArray[np.bytes_]:
    """Return the SHA-256 of a prefix and the values of each row; it is the same for twins, rows with equal values.

    Args:
        columns: Columns of the table.
        rows: Rows to hash, `(m,)`.
        prefix: Beginning of the hashed text.

    Returns:
        Hashes `(m,)`, of 32 bytes each.
    """
    columns = list(columns)
    coded_columns = [c.coded for c in columns if c.first_text is not None or c.beyond_float64]
    number_columns = [c.numbers for c in columns if not (c.first_text is not None or c.beyond_float64)]
    # The texts of a column, each after a separator; the last element is for missing texts, whose code is -1.
    words = [np.array([*(f"\x1f{text}".encode() for text in c.texts), b"\x1f"], dtype=object) for c in coded_columns]
    begin, width, sha256 = prefix.encode(), 16 * len(number_columns), hashlib.sha256  # a float64 has 16 hex digits
    digests = []
    for start in range(0, len(rows), CHUNK):  # in chunks, as the texts of a million rows would fill the memory
        part = rows[start : start + CHUNK]
        values = np.empty((len(part), len(number_columns)), "<f8")
        for i, numbers in enumerate(number_columns):
            values[:, i] = numbers[part]
        values[np.isnan(values)] = np.inf  # one bit pattern for all missing numbers
        text = values.tobytes().hex().encode()
        ends = np.full(len(part), b"\x1f", object)
        for column_words, coded in zip(words, coded_columns, strict=True):
            ends += column_words[coded.codes[part]]
        starts = range(0, len(part) * width, width) if width else [0] * len(part)
        part_digests = [
            sha256(begin + text[i : i + width] + end).digest() for i, end in zip(starts, ends.tolist(), strict=True)
        ]
        digests.append(b"".join(part_digests))
    return np.frombuffer(b"".join(digests), "S32") if digests else np.empty(0, "S32")


def hashes_of_texts(coded: Coded, rows: NDArray[np.int64], prefix: str) -> NDArray[np.bytes_]:
    """Return the SHA-256 of a prefix and the text of each row.

    Args:
        coded: Texts of all rows of the table.
        rows: Rows to hash, `(m,)`, without missing texts.
        prefix: Beginning of the hashed text.

    Returns:
        Hashes `(m,)`, of 32 bytes each.
    """
    digests = b"".join(hashlib.sha256(f"{prefix}{text}".encode()).digest() for text in coded.texts)
    return np.frombuffer(digests, "S32")[coded.codes[rows]]


def stratified(units: NDArray[np.bytes_], strata: Sequence[Coded], fractions: Sequence[float]) -> NDArray[np.str_]:
    """Divide units of rows so that each stratum is divided by the fractions, as closely as whole units allow.

    This is iterative stratification (after Sechidis et al., On the Stratification of Multi-Label Data, ECML PKDD 2011,
    section 3.2, which places one example at a time). Strata are processed from the rarest to the most frequent. The
    units of a stratum without a split yet fill its share of each split, counted in rows, in the order of their hashes.

    Args:
        units: Hash of the unit of each row, `(n,)`. Twins, or the rows of a group, are one unit. The order of the
            hashes replaces a random order of the units.
        strata: Labels of the n rows that are to be divided evenly, for example one element for each target.
        fractions: Shares of train, val and test.

    Returns:
        Split of each row, `(n,)`.
    """
    unit_of = np.unique(units, return_inverse=True)[1]
    count = int(unit_of.max()) + 1 if len(unit_of) else 0
    members: dict[tuple[int, str], NDArray[np.int64]] = {}
    for number, (labels, codes) in enumerate(strata):
        present = codes >= 0
        pairs = np.sort(codes[present] * count + unit_of[present])  # pairs of label and unit, as one integer each
        pairs = pairs[np.diff(pairs, prepend=-1) > 0]  # removes duplicates
        bounds = np.searchsorted(pairs, np.arange(len(labels) + 1) * count)
        for code, label in enumerate(labels):
            if len(of_label := pairs[bounds[code] : bounds[code + 1]]):
                members[number, label] = of_label - code * count
    split_of, rows = np.full(count, -1), np.bincount(unit_of, minlength=count).astype(float)
    shares = np.asarray(fractions, float)
    for number, stratum in enumerate(sorted(members, key=lambda s: (len(members[s]), s))):
        # In a stratum of two or three units, val or test may get none. Alternate, so that it is not always the same.
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
    """Assign the units of a stratum that have no split yet; at least one unit of the stratum is for training.

    Args:
        split_of: Number of the split of each unit, -1 for none; it is changed in place.
        rows: Number of rows of each unit.
        members: Units of the stratum.
        shares: Shares of train, val and test.
        order: Order in which the splits are filled.
    """
    placed = split_of[members] >= 0
    free = members[~placed]
    if not len(free):
        return
    rows_placed = np.bincount(split_of[members[placed]], rows[members[placed]], minlength=3)
    rows_needed = np.maximum(shares * rows[members].sum() - rows_placed, 0)
    # Lay the units end to end, each as long as its number of rows: its middle decides its split.
    middle = rows[free].cumsum() - rows[free] / 2
    bounds = rows_needed[order].cumsum()[:2] * (rows[free].sum() / rows_needed.sum())
    split_of[free] = np.array(order)[(middle[:, None] >= bounds + 1e-9).sum(1)]
    if not (split_of[members] == 0).any():
        split_of[free[0]] = 0


def by_time(column: Column, rows: NDArray[np.int_], fractions: Sequence[float]) -> NDArray[np.str_]:
    """Divide rows by time: the earliest for training, the latest for the test; rows with equal times share a split.

    Args:
        column: Column of numbers, or of dates such as 2026-01-31, 2026-01-31 14:05 or 2026-01-31T14:05:00Z.
        rows: Rows to divide, `(m,)`.
        fractions: Shares of train, val and test.

    Returns:
        Split of each of the rows, `(m,)`.

    Raises:
        UserError: A text is not a date, or the time zones differ.
    """
    times: NDArray[np.float64] | NDArray[np.str_]
    if column.first_text is None:
        times = column.centred[rows]
    else:
        dates = column.spelled
        wrong = np.array([*(DATE.fullmatch(text) is None for text in dates.texts), True])[dates.codes[rows]]
        if wrong.any():
            row = int(rows[wrong.argmax()])
            expected = "expected a number, or a date such as 2026-01-31 or 2026-01-31 14:05"
            raise column.wrong(row, f"{expected}; write dates in this order, year, month and day, in the file")
        times = _without_zone(column, rows)[dates.codes[rows]]
    earlier = np.searchsorted(np.sort(times), times) / max(len(rows), 1)  # share of the rows with an earlier time
    bounds = np.cumsum(fractions)[:2] - 1e-9
    named: NDArray[np.str_] = np.array(SPLITS)[(earlier[:, None] >= bounds).sum(1)]
    return named


def _without_zone(column: Column, rows: NDArray[np.int_]) -> NDArray[np.str_]:
    """Return the distinct dates of a column without their time zone, whose offset is the same in the given rows."""
    dates = column.spelled
    parts = [DATE.fullmatch(text) for text in dates.texts]
    zones = [None if part is None else _offset(part) for part in parts]
    codes = dates.codes[rows]
    other = np.array([zone != zones[codes[0]] for zone in zones])[codes] if len(rows) else np.zeros(0, bool)
    if other.any():
        row = int(rows[other.argmax()])
        problem = f"its time zone is not that of {column.shown(int(rows[0]))}; write all times in one zone, such as UTC"
        raise column.wrong(row, problem)
    return np.array(["" if part is None else f"{part['day']} {part['time'] or ''}".strip() for part in parts])


def _offset(date: re.Match[str]) -> int | None:
    """Return the minutes that a time is ahead of UTC; None without a time zone."""
    if date["zone"] is None:
        return None
    minutes = 60 * int(date["hours"] or 0) + int(date["minutes"] or 0)
    return -minutes if date["sign"] == "-" else minutes


def twins(units: NDArray[np.bytes_], split_of: NDArray[np.str_]) -> int:
    """Return the number of validation and test rows that have the same hash as a training row."""
    return int(np.isin(units[np.isin(split_of, ("val", "test"))], units[split_of == "train"]).sum())
