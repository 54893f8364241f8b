"""Rows of a CSV file as the inputs of an exported model. This file needs numpy alone: copy it to where the model runs.

With ONNX::

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
"""The codes of a text that is missing, and of one that no training row has."""
WHOLE = re.compile(r"[+-]?[0-9]+")
SWAPPED = str.maketrans(",.", ".,")


def inputs_of(rows: Iterable[Mapping[str, str | None]], about: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Turn rows into the inputs of an exported model, as `predict_table` reads them.

    Args:
        rows: M of them, as `csv.DictReader` gives them: by column, the text of the cell. Further columns are not looked
            at.
        about: What `lightning_meta.json` in the exported file says.

    Returns:
        `numbers`, `(M, numbers)` float64, NaN where missing; and `codes`, `(M, texts)` int64.

    Raises:
        ValueError: A column is missing, or a cell is no finite number: the row, from 1, the column and the cell.
    """
    numbers, codes = list[list[float]](), list[list[int]]()
    places = [{text: place for place, text in enumerate(column["texts"])} for column in about["texts"]]
    for number, row in enumerate(rows, 1):
        if None in row or None in row.values():
            header = [name for name in row if name is not None]
            raise ValueError(
                f"row {number} has {'more' if None in row else 'fewer'} cells than the header has names: "
                f"{', '.join(header)}; a wrong delimiter can be the reason"
            )
        numbers.append([_number(row, number, column, about) for column in about["numbers"]])
        pairs = zip(about["texts"], places, strict=True)
        codes.append([_code(row, number, column, known, about) for column, known in pairs])
    return {
        "numbers": np.array(numbers, np.float64).reshape(len(numbers), len(about["numbers"])),
        "codes": np.array(codes, np.int64).reshape(len(codes), len(about["texts"])),
    }


def _cell(row: Mapping[str, str | None], number: int, column: str, about: Mapping[str, Any]) -> str:
    """The trimmed text of a cell, "" where it is missing."""
    if column not in row:
        raise ValueError(f"row {number} has no column {column!r}, which the model needs; it has {', '.join(row)}")
    text = row[column]
    return "" if text is None or text in about["missing"] else text.strip()


def _number(row: Mapping[str, str | None], number: int, column: Mapping[str, Any], about: Mapping[str, Any]) -> float:
    text = _cell(row, number, column["column"], about)
    if not text:
        return math.nan
    if WHOLE.fullmatch(text):  # exact, before float64 merges neighbours
        return float(int(text) - column["offset"])
    value = _as_float(text, about)
    if value is None or not math.isfinite(value):
        raise ValueError(f"row {number}: column {column['column']!r} is {text!r}; expected a finite number")
    return float(value - column["offset"])


def _code(
    row: Mapping[str, str | None],
    number: int,
    column: Mapping[str, Any],
    places: Mapping[str, int],
    about: Mapping[str, Any],
) -> int:
    text = _cell(row, number, column["column"], about)
    if text and column["of_numbers"]:  # equal numbers are one text: 1, 1.0 and 01
        value = _as_float(text, about)
        if WHOLE.fullmatch(text):
            text = str(int(text))
        elif value is not None and not math.isfinite(value):
            raise ValueError(f"row {number}: column {column['column']!r} is {text!r}; expected a finite number or text")
        elif value is not None:
            text = f"{value:.0f}" if value == round(value) else repr(value)
    return places.get(text, UNSEEN) if text else MISSING


def _as_float(text: str, about: Mapping[str, Any]) -> float | None:
    """A number as the table spells it; None for other text, and for the underscores that Python allows."""
    try:
        return None if "_" in text else float(text.translate(SWAPPED) if about["decimal"] == "," else text)
    except ValueError:
        return None
