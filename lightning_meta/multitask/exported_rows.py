"""Rows of a CSV file as the inputs of an exported model.

This file only needs NumPy, so it can be copied to the machine that runs the model. With ONNX::

    session = onnxruntime.InferenceSession("model.onnx")
    about = json.loads(session.get_modelmeta().custom_metadata_map["lightning_meta.json"])
    with open("new.csv", newline="", encoding="utf-8-sig") as file:
        inputs = inputs_of(csv.DictReader(file, delimiter=about["delimiter"]), about)
    predictions = dict(zip([task["name"] for task in about["tasks"]], session.run(None, inputs)))
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

MISSING, UNSEEN = -1, -2
"""Codes of a missing text, and of a text that no training row has."""
WHOLE = re.compile(r"[+-]?[0-9]+")
SWAPPED = str.maketrans(",.", ".,")
BOOLEANS = {"false": 0.0, "true": 1.0}


def inputs_of(rows: Iterable[Mapping[str, str | None]], about: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Convert rows to the inputs of an exported model, with the same rules as `predict_table`.

    Args:
        rows: M rows, such as those of `csv.DictReader`: the text of each cell by column. Columns that the model does
            not need are ignored.
        about: Content of `lightning_meta.json` in the exported file.

    Returns:
        `numbers`, `(M, numbers)` float64, NaN if missing; and `codes`, `(M, texts)` int64.

    Raises:
        ValueError: A row has another number of cells than the header, a column is missing, or a cell is not a finite
            number. The message names the row, counted from 1 without the header, and the column and the cell if there
            is one.
    """
    numbers, codes = list[list[float]](), list[list[int]]()
    indices = [{text: index for index, text in enumerate(column["texts"])} for column in about["texts"]]
    for number, row in enumerate(rows, 1):
        line = getattr(rows, "line_num", None)  # of a DictReader: the line in which the row ends
        if line is not None:
            line -= sum(cell.count("\n") for cell in row.values() if isinstance(cell, str))
        place = f"row {number}" + (f" (line {line} of the file)" if line is not None else "")
        if None in row or None in row.values():
            header = [name for name in row if name is not None]
            raise ValueError(
                f"{place} has {'more' if None in row else 'fewer'} cells than the header has names: "
                f"{', '.join(header)}; check the delimiter"
            )
        numbers.append([_number(row, place, column, about) for column in about["numbers"]])
        pairs = zip(about["texts"], indices, strict=True)
        codes.append([_code(row, place, column, by_text, about) for column, by_text in pairs])
    return {
        "numbers": np.array(numbers, np.float64).reshape(len(numbers), len(about["numbers"])),
        "codes": np.array(codes, np.int64).reshape(len(codes), len(about["texts"])),
    }


def _cell(row: Mapping[str, str | None], place: str, column: str, about: Mapping[str, Any]) -> str:
    """The text of a cell without surrounding spaces; "" if it is missing."""
    if column not in row:
        raise ValueError(f"{place} has no column {column!r}, which the model needs; it has {', '.join(row)}")
    text = row[column]
    return "" if text is None or text in about["missing"] else text.strip()


def _number(row: Mapping[str, str | None], place: str, column: Mapping[str, Any], about: Mapping[str, Any]) -> float:
    """The number in a cell minus the offset of its column; NaN if it is missing."""
    text = _cell(row, place, column["column"], about)
    if not text:
        return math.nan
    if column.get("boolean") and text.casefold() in BOOLEANS:
        return BOOLEANS[text.casefold()]
    if WHOLE.fullmatch(text):  # subtract as integers: float64 would round large ones
        return float(int(text) - column["offset"])
    value = _as_float(text, about)
    if value is None or not math.isfinite(value):
        raise ValueError(f"{place}: column {column['column']!r} is {text!r}; expected a finite number")
    return float(value - column["offset"])


def _code(
    row: Mapping[str, str | None],
    place: str,
    column: Mapping[str, Any],
    indices: Mapping[str, int],
    about: Mapping[str, Any],
) -> int:
    """The code of the text in a cell: its index in the texts of the column, `UNSEEN` or `MISSING`."""
    text = _cell(row, place, column["column"], about)
    word = text.casefold()
    if word in BOOLEANS and column["of_numbers"] and indices.keys() <= {"0", "1"}:
        return indices.get(f"{BOOLEANS[word]:.0f}", UNSEEN)
    if word in BOOLEANS and not column["of_numbers"] and len(indices) <= 2:
        in_any_case = {known.casefold(): index for known, index in indices.items()}
        if len(in_any_case) == len(indices) and in_any_case.keys() <= BOOLEANS.keys():
            return in_any_case.get(word, UNSEEN)
    if text and column["of_numbers"]:  # equal numbers, such as 1, 1.0 and 01, are the same text
        value = _as_float(text, about)
        if WHOLE.fullmatch(text):
            text = str(int(text))
        elif value is not None and not math.isfinite(value):
            raise ValueError(f"{place}: column {column['column']!r} is {text!r}; expected a finite number or text")
        elif value is not None:
            text = f"{value:.0f}" if value == round(value) else repr(value)
    return indices.get(text, UNSEEN) if text else MISSING


def _as_float(text: str, about: Mapping[str, Any]) -> float | None:
    """Parse a number with the decimal mark of the table; None for other text, and for Python's underscores."""
    try:
        return None if "_" in text else float(text.translate(SWAPPED) if about["decimal"] == "," else text)
    except ValueError:
        return None
