"""Texts that mean missing in a CSV file, such as NA: which they are, and classes of that name."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import csv, parquet

import lightning_meta as lm
from lightning_meta.batches import SPLITS
from lightning_meta.errors import UserError
from lightning_meta.nn import MLP
from lightning_meta.sources import LabelledTable, RegressionTable, Table, Target, table_cache
from lightning_meta.sources.columns import MISSING

COUNT = 120


def write(path: Path, **columns: list[Any]) -> Path:
    """A table with the number x and other columns, as they are written in the file, without quotes."""
    numbers = np.random.default_rng(0).normal(size=COUNT)
    rows = zip(numbers, *columns.values(), strict=True)
    lines = [",".join(["x", *columns]), *(",".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def counts(source: Table, name: str) -> dict[str, int]:
    """How many labels of each class there are in all splits."""
    labels = torch.cat([data.targets[name] for data in source.sets().values()])
    names = source.classes()[name]
    return dict(zip(names, torch.bincount(labels, minlength=len(names)).tolist(), strict=True))


def test_these_texts_mean_missing() -> None:
    assert set(MISSING) == set(csv.ConvertOptions().null_values)
    documented = Table.__doc__ or ""
    assert all(text in documented for text in MISSING)


@pytest.mark.parametrize("text", [text for text in MISSING if text])
def test_a_text_that_is_stated_as_a_class_is_one(text: str, tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", grade=["low", text, "high", ""] * (COUNT // 4))
    source = Table(path, {"grade": Target("multiclass", classes=["low", text, "high"])})
    assert counts(source, "grade") == {"low": 30, text: 30, "high": 30}
    rows = np.concatenate([source.file_rows(split)["grade"] for split in SPLITS])
    assert sorted(rows % 4) == [0] * 30 + [1] * 30 + [2] * 30
    assert counts(Table(path, {"grade": "binary"}), "grade") == {"high": 30, "low": 30}
    (data := lm.MultiTaskDataModule(source, batch_size=16)).setup("fit")
    predicted = lm.MultiHead(MLP(1, (4,)), tasks=data.spec).predict_table(path)
    assert list(predicted) == ["grade", "p(grade=low)", f"p(grade={text})", "p(grade=high)"]


def test_such_a_class_may_be_among_numbers_unless_it_is_one(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", grade=["1", "NA", "0", ""] * (COUNT // 4))
    source = Table(path, {"grade": Target("multiclass", classes=[0, 1, "NA"])})
    assert counts(source, "grade") == {"0": 30, "1": 30, "NA": 30}
    assert counts(Table(path, {"grade": Target("binary", classes=[0, 1])}), "grade") == {"0": 30, "1": 30}
    grades = ["1", "NaN", "0", ""] * (COUNT // 4)
    parquet.write_table(pyarrow.table({"x": range(COUNT), "grade": grades}), tmp_path / "t.parquet")
    for file in (write(tmp_path / "t.csv", grade=grades), tmp_path / "t.parquet"):
        with pytest.raises(UserError, match=r"column 'grade', row 2 .*is 'NaN', which means a missing number") as error:
            Table(file, {"grade": Target("multiclass", classes=[0, 1, "NaN"])}).sets()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_class_is_refused(empty: str) -> None:
    with pytest.raises(UserError, match=r"grade has classes .*; an empty cell means a missing label"):
        Table("t.csv", {"grade": Target("multiclass", classes=["low", empty, "high"])})


@pytest.mark.parametrize("cached", [False, True])
def test_one_line_says_how_many_labels_are_missing(
    cached: bool, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(table_cache, "LEAST", 1 if cached else 10**9)
    path = write(
        tmp_path / "t.csv",
        grade=["low", "NA", "high", ""] * (COUNT // 4),
        price=["1.5", "2.5", "NA", "3"] * (COUNT // 4),
        whole=["a", "b"] * (COUNT // 2),
        **{f"t{i}": ["a", "b", ""] * (COUNT // 3) for i in range(6)},
    )
    hint = "; 'NA' in the file means missing, unless `classes` states it as a label"
    kinds: dict[str, Any] = {"grade": "multiclass", "price": "regression", "whole": "binary"}
    more: dict[str, Any] = {f"t{i}": "binary" for i in range(6)}
    stated: dict[str, Any] = {"grade": Target("multiclass", classes=["low", "NA", "high"])}
    others = ", ".join(f"'t{i}' 40" for i in range(3))
    for targets, said in (
        (kinds, f"'grade' 60, 'price' 30{hint}"),
        (kinds | more, f"'grade' 60, 'price' 30, {others} and 3 more{hint}"),
        (stated, "'grade' 30"),
        ({"price": "regression"}, "'price' 30"),
        ({"whole": "binary"}, None),
    ):
        for _ in range(2):
            caplog.clear()
            with caplog.at_level(logging.INFO, "lightning_meta"):
                lm.MultiTaskDataModule(Table(path, targets, features=["x"])).setup("fit")
            lines = [line for line in caplog.messages if "missing labels" in line]
            assert lines == [f"Table: missing labels in 120 rows: {said}"] * (said is not None)


def test_other_places_name_the_texts_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "t.csv", country=["NA", "DE", "FR", "IT", "ES"] * (COUNT // 5), z=list(range(COUNT)))
    with caplog.at_level(logging.INFO, "lightning_meta"):
        LabelledTable(path, "country").pools()
    expected = "24 of 120 rows have no label and are left out; 'NA' in the file means missing: write another text"
    assert expected in caplog.text
    told = r"column 'country', row 1 \(line 2 of the file\) is None: every row needs a value here; an empty cell, NA"
    with pytest.raises(UserError, match=told):
        RegressionTable(path, "x", task_column="country", division={"val": ["NA"], "test": ["DE"]}).pools()
