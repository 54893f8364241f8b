"""The index of a DataFrame, which pandas stores as a column of a Parquet file: it is no feature unless it is named."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow
import pytest
from pyarrow import parquet

import lightning_meta as lm
from lightning_meta.errors import UserError
from lightning_meta.nn import MLP
from lightning_meta.sources import LabelledTable, RegressionTable, Table

UNNAMED = "__index_level_0__"  # pandas' name of the column


def frame(index: str | None = None, count: int = 60) -> pandas.DataFrame:
    """Rows of several tables, joined, so that the index is not 0, 1, ..., and is stored as a column."""
    numbers = np.random.default_rng(0).normal(size=(count, 2))
    joined = pandas.DataFrame({"x": numbers[:, 0], "kind": list("abcdef") * (count // 6), "y": numbers[:, 1]})
    joined.index = pandas.Index([i % 12 for i in range(count)], name=index)
    return joined


def saved(path: Path, **options: Any) -> Path:
    frame(**options).to_parquet(path)
    return path


@pytest.mark.parametrize("index", [None, "patient"])
def test_the_index_is_no_feature_and_new_rows_need_not_have_it(
    index: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = saved(tmp_path / "t.parquet", index=index)
    assert (index or UNNAMED) in parquet.read_schema(path).names
    source = Table(path, {"y": "regression"}, leave_out=["kind"])
    with caplog.at_level(logging.INFO, "lightning_meta"):
        assert source.input_names == ["x"]
    said = f"Table: the index of the DataFrame is not a feature, unless `features` names it: '{index or UNNAMED}'"
    assert said in caplog.messages
    assert LabelledTable(path, "kind").input_names == ["x", "y"]
    assert RegressionTable(path, "y", task_column="kind").input_names == ["x"]
    (data := lm.MultiTaskDataModule(source)).setup("fit")
    model = lm.MultiHead(MLP(1, (4,)), tasks=data.spec)
    with_index = model.predict_table(frame(index))["y"]
    assert np.array_equal(model.predict_table(path)["y"], with_index)
    assert np.array_equal(model.predict_table({"x": frame()["x"].tolist()})["y"], with_index)


def test_an_index_that_is_named_has_its_role(tmp_path: Path) -> None:
    path = saved(tmp_path / "t.parquet", index="patient")
    source = Table(path, {"y": "regression"}, group_column="patient", leave_out=["kind"])
    patient = frame("patient").index.to_numpy()
    patients = [set(patient[source.file_rows(split)["y"]].tolist()) for split in ("train", "val", "test")]
    assert sum(map(len, patients)) == 12
    assert source.input_names == ["x"]
    assert Table(path, {"y": "regression"}, features=["patient"]).input_names == ["patient"]
    as_text = Table(path, {"y": "regression"}, leave_out=["x", "kind"], categorical=["patient"]).input_names
    assert as_text  # one input for each patient of the training rows
    assert set(as_text) <= {f"patient={i}" for i in range(12)}
    assert Table(path, {"patient": "regression"}, leave_out=["kind"]).input_names == ["x", "y"]


def test_a_model_whose_features_include_an_index_predicts_where_it_is_there(tmp_path: Path) -> None:
    """Earlier versions took the index for a feature."""
    path = saved(tmp_path / "t.parquet")
    (data := lm.MultiTaskDataModule(Table(path, {"y": "regression"}, features=["x", UNNAMED]))).setup("fit")
    model = lm.MultiHead(MLP(2, (4,)), tasks=data.spec)
    lists = {"x": frame()["x"].tolist(), UNNAMED: frame().index.tolist()}
    assert np.array_equal(model.predict_table(path)["y"], model.predict_table(lists)["y"])
    with pytest.raises(UserError, match=f"data has no column '{UNNAMED}', which the model needs"):
        model.predict_table({"x": [1.0]})


def test_the_files_of_a_folder_may_differ_in_their_indexes(tmp_path: Path) -> None:
    indexes: list[Any] = [None, [3, 1, 2, 0], list("abcd"), [5, 6, 7, 9]]
    for task, index in enumerate(indexes):
        columns = {"x": [1.0, 2.0, 3.0, 4.0 + task], "y": [0.0, 1.0, 0.0, 2.0]}
        pandas.DataFrame(columns, index=index).to_parquet(tmp_path / f"task {task}.parquet")
    source = RegressionTable(tmp_path, "y")
    assert source.input_names == ["x"]
    assert sum(pool.num_classes for pool in source.pools().values()) == 4


@pytest.mark.parametrize(
    "metadata", [b"", b"{", b"[]", b"\xff", b'{"index_columns": "x"}', b'{"index_columns": [["x"]]}', b"[" * 10**5]
)
def test_other_metadata_names_no_index(metadata: bytes, tmp_path: Path) -> None:
    table = pyarrow.Table.from_pandas(frame(), preserve_index=False).replace_schema_metadata({b"pandas": metadata})
    parquet.write_table(table, tmp_path / "t.parquet")
    assert Table(tmp_path / "t.parquet", {"y": "regression"}, leave_out=["kind"]).input_names == ["x"]
