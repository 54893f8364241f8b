"""A model that was trained on a table predicts for new rows, without the training data."""

from __future__ import annotations

import csv
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pandas
import pyarrow
import pyarrow.csv
import pytest
import torch
from pyarrow import parquet
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import lightning_meta as lm
from lightning_meta.cli.main import main
from lightning_meta.multitask.calibration import LabelCalibration, NumberCalibration
from lightning_meta.multitask.table_predictions import columns_for
from lightning_meta.nn import MLP
from lightning_meta.run.checkpoint_io import read_checkpoint
from lightning_meta.sources import Table, Target
from lightning_meta.sources.table_rows import columns_in, rows_of
from lightning_meta.tasks import Binary, Regression
from lightning_meta.tasks.table import NumberFeature, TableTarget
from tests import methods

Row = dict[str, Any]
METHODS: dict[str, Callable[[int], lm.MultiTaskModule]] = {
    "CGC": lambda inputs: lm.CGC(MLP(inputs, (8,))),
    "Conditioned": lambda inputs: lm.Conditioned(MLP(inputs, (8, 8)), enters="film", at=(1,)),
    "CrossStitch": lambda inputs: lm.CrossStitch(MLP(inputs, (8, 8))),
    "Grouped": lambda inputs: lm.Grouped(MLP(inputs, (8, 8)), [["price", "grade"], ["sold"]]),
    "Independent": lambda inputs: lm.Independent(MLP(inputs, (8,)), optimizer=partial(torch.optim.Adam, lr=0.1)),
    "Linear": lambda inputs: lm.Linear(),
    "LoRA": lambda inputs: lm.LoRA(MLP(inputs, (8, 8))),
    "MTAN": lambda inputs: lm.MTAN(MLP(inputs, (8, 8))),
    "MixtureOfExperts": lambda inputs: lm.MixtureOfExperts(MLP(inputs, (8,))),
    "MultiHead": lambda inputs: lm.MultiHead(MLP(inputs, (8, 8))),
    "PLE": lambda inputs: lm.PLE(MLP(inputs, (8, 8))),
}
FEATURES = ("area", "style", "floor")


def houses(count: int = 120, seed: int = 0) -> list[Row]:
    """Features with missing values, targets with missing labels, a town, and a split."""
    rng = random.Random(seed)

    def sometimes(value: Any) -> Any:
        return None if rng.random() < 0.15 else value

    def house(i: int) -> Row:
        area, style = rng.uniform(20, 200), rng.choice(["old", "new, fine", "mid"])
        return {
            "area": sometimes(round(area, 2)),
            "style": sometimes(style),
            "floor": rng.choice(["1", "2", "2.0", "10"]),
            "price": sometimes(round(1e6 + 2 * area + rng.gauss(0, 9), 1)),
            "sold": sometimes("yes" if area > 90 else "no"),
            "grade": sometimes("ABC"[int(area // 70)]),
            "town": f"town {i % 3}",
            "split": ("train", "train", "val", "test")[i // 3 % 4],
        }

    return [house(i) for i in range(count)]


def write(path: Path, rows: list[Row], leave_out: tuple[str, ...] = ()) -> Path:
    names = [name for name in rows[0] if name not in leave_out]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path


def read(path: str | Path) -> list[dict[str, str]]:
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


TARGETS: dict[str, Any] = {
    "price": Target("regression", unit="kEUR"),
    "sold": Target("binary", classes=["no", "yes"]),
    "grade": "multiclass",
}


def table(path: Path, **options: Any) -> Table:
    fixed: dict[str, Any] = {"features": FEATURES, "categorical": ["floor"], "split_column": "split"}
    return Table(path, **{"targets": TARGETS, "missing_indicators": True, **fixed, **options})


def fit(source: Table, make: Callable[[int], lm.MultiTaskModule], epochs: int = 2) -> Path:
    """A trained run; the training data is gone."""
    source.sets()
    torch.manual_seed(0)
    module = make(len(source.input_names))
    data = lm.MultiTaskDataModule(source, batch_size=16, seed=0)
    run = lm.fit(module, data, name="run", max_epochs=epochs, enable_progress_bar=False)
    source.path.unlink()
    assert run.directory is not None
    return run.directory


def of_test(run: Path, task: str) -> tuple[np.ndarray, np.ndarray]:
    """The outputs of the network for the labelled rows of a task in the run's test, and their targets."""
    with np.load(run / "predictions.npz") as stored:
        of = stored["task"] == stored["names"].tolist().index(task)
        return stored["output"][of], stored["target"][of]


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_method_is_tried() -> None:
    assert set(METHODS) == set(methods.MULTI_TASK)


@pytest.mark.parametrize("method", METHODS)
def test_predictions_for_the_test_rows_are_those_of_the_run_s_test(method: str, tmp_path: Path) -> None:
    """The command predicts all targets of a row from its features, with the weights that the test used."""
    rows = houses()
    run = fit(table(write(tmp_path / "houses.csv", rows)), METHODS[method], epochs=5 if method == "Independent" else 2)
    if method == "Independent":  # else the weights of each task's best are those at hand
        assert len(set(lm.load(run).best.steps)) > 1
    held_out = [row for row in rows if row["split"] == "test"]
    new = write(tmp_path / "new.csv", held_out, leave_out=("price", "sold", "grade", "split"))
    assert main(["predict", "--ckpt_path", str(run), "--table", str(new), "--batch_size", "7"]) == 0
    found = read("predictions.csv")
    assert list(found[0]) == [
        *("row", "price [kEUR]", "sold", "p(sold=no)", "p(sold=yes)"),
        *("grade", "p(grade=A)", "p(grade=B)", "p(grade=C)"),
    ]
    assert [row["row"] for row in found] == [str(i + 1) for i in range(len(held_out))]
    train = [float(row["price"]) for row in rows if row["split"] == "train" and row["price"] is not None]

    labelled = {name: [i for i, row in enumerate(held_out) if row[name] is not None] for name in TARGETS}
    outputs, _ = of_test(run, "price")
    price = np.array([float(found[i]["price [kEUR]"]) for i in labelled["price"]])
    np.testing.assert_allclose(price, outputs[:, 0].astype(float) * np.std(train) + np.mean(train), atol=1e-3, rtol=0)
    np.testing.assert_allclose((price - np.mean(train)) / np.std(train), outputs[:, 0], atol=2e-6)

    outputs, _ = of_test(run, "sold")
    yes = [float(found[i]["p(sold=yes)"]) for i in labelled["sold"]]
    np.testing.assert_allclose(yes, 1 / (1 + np.exp(-outputs[:, 0])), atol=1e-6)
    assert [found[i]["sold"] for i in labelled["sold"]] == ["yes" if x > 0 else "no" for x in outputs[:, 0]]

    outputs, _ = of_test(run, "grade")
    grades = [[float(found[i][f"p(grade={c})"]) for c in "ABC"] for i in labelled["grade"]]
    np.testing.assert_allclose(grades, softmax(outputs), atol=1e-6)
    assert [found[i]["grade"] for i in labelled["grade"]] == ["ABC"[j] for j in outputs.argmax(1)]
    for row in found:
        assert float(row["p(sold=no)"]) + float(row["p(sold=yes)"]) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    "method", [m if m == "Independent" else pytest.param(m, marks=pytest.mark.slow) for m in METHODS]
)
def test_rows_of_tasks_in_a_column_are_predicted_by_their_own_task(method: str, tmp_path: Path) -> None:
    rows = houses()
    source = table(write(tmp_path / "houses.csv", rows), targets={"sold": "binary"}, task_column="town")
    make = METHODS[method]
    if method == "Grouped":  # its groups name the tasks
        make = lambda inputs: lm.Grouped(MLP(inputs, (8, 8)), [["town 0", "town 2"], ["town 1"]])  # noqa: E731
    run = fit(source, make)
    held_out = [row for row in rows if row["split"] == "test" and row["sold"] is not None]
    random.Random(0).shuffle(held_out)
    found = lm.load(run).predict_table({name: [row[name] for row in held_out] for name in (*FEATURES, "town")})
    assert list(found) == ["town", "sold", "p(sold=no)", "p(sold=yes)"]
    assert found["town"].tolist() == [row["town"] for row in held_out]
    for town in ("town 0", "town 1", "town 2"):
        outputs, targets = of_test(run, town)
        in_file_order = sorted(
            (i for i, row in enumerate(held_out) if row["town"] == town), key=lambda i: rows.index(held_out[i])
        )
        assert [held_out[i]["sold"] for i in in_file_order] == ["yes" if y else "no" for y in targets[:, 0]]
        np.testing.assert_allclose(found["p(sold=yes)"][in_file_order], 1 / (1 + np.exp(-outputs[:, 0])), atol=1e-6)
        assert (found["sold"][in_file_order] == np.where(outputs[:, 0] > 0, "yes", "no")).all()


def test_the_checkpoint_holds_the_encoder_as_plain_data(tmp_path: Path) -> None:
    """The encoder equals scikit-learn's on the training rows, and encodes new rows of any file type alike."""
    rows = houses()
    run = fit(table(write(tmp_path / "houses.csv", rows)), METHODS["MultiHead"], epochs=1)
    stored = read_checkpoint(run / "checkpoints" / "best.ckpt")["lightning_meta"]["init_args"]["tasks"]["init_args"]
    assert stored["table"]["class_path"] == "lightning_meta.tasks.TableSpec"
    spec = lm.load(run).spec.table
    new = houses(50, seed=1)
    new[0] |= {"style": "never seen", "area": None, "floor": "2.00"}
    train = [row for row in rows if row["split"] == "train"]

    def column(of: list[Row], name: str) -> list[Any]:
        return [[np.nan if row[name] is None else row[name]] for row in of]

    area = np.nan_to_num(StandardScaler().fit(column(train, "area")).transform(column(new, "area")))
    styles = OneHotEncoder(categories=[["mid", "new, fine", "old"]], handle_unknown="ignore", sparse_output=False)
    style = styles.fit([["mid"], ["new, fine"], ["old"]]).transform([[row["style"] or "?"] for row in new])
    floors = OneHotEncoder(categories=[["1", "10", "2"]], sparse_output=False).fit([["1"], ["2"], ["10"]])
    floor = floors.transform([[f"{float(row['floor']):.0f}"] for row in new])
    missing = np.array([[row["area"] is None, row["style"] is None] for row in new], float)
    wanted = np.concatenate([area, missing[:, :1], style, missing[:, 1:], floor], axis=1)
    parquet.write_table(pyarrow.Table.from_pylist(new), "new.parquet")
    lists = {name: [row[name] for row in reversed(new)] for name in reversed(FEATURES)}
    for data, expected in ((write(tmp_path / "new.csv", new), wanted), ("new.parquet", wanted), (lists, wanted[::-1])):
        np.testing.assert_allclose(rows_of(spec, ["price"], columns_in(data)).inputs, expected, atol=1e-6)


def model(source: Table) -> lm.MultiTaskModule:
    """A module for a table, not trained; the table is gone."""
    data = lm.MultiTaskDataModule(source, seed=0)
    data.setup("fit")
    assert data.spec is not None
    source.path.unlink()
    return lm.MultiHead(MLP(len(source.input_names), (8,)), tasks=data.spec)


@pytest.fixture
def trained(tmp_path: Path) -> lm.MultiTaskModule:
    return model(table(write(tmp_path / "houses.csv", houses())))


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [
        ("area", "large", r"new\.csv: column 'area', row 3 \(line 4 of the file\) is 'large': expected a number"),
        ("area", "inf", r"column 'area', row 3 \(line 4 of the file\) is 'inf': expected a finite number"),
        (
            "area",
            "1e300",
            r"column 'area', row 3 \(line 4 of the file\) is '1e300': after scaling it is larger than float32 can hold",
        ),
        (
            "town",
            "town 9",
            r"column 'town', row 3 \(line 4 of the file\) is 'town 9': the model has no such task; it has 'town 0', 't",
        ),
        ("town", None, r"column 'town', row 3 \(line 4 of the file\) is None: every row needs a value here"),
    ],
)
def test_a_value_that_means_nothing_is_refused_by_column_row_and_value(
    column: str, value: Any, told: str, tmp_path: Path
) -> None:
    source = table(write(tmp_path / "houses.csv", houses()), targets={"sold": "binary"}, task_column="town")
    rows = houses(5, seed=1)
    rows[2][column] = value
    with pytest.raises(lm.UserError, match=told):
        model(source).predict_table(write(tmp_path / "new.csv", rows))


def test_missing_columns_are_all_named(trained: lm.MultiTaskModule, tmp_path: Path) -> None:
    path = write(tmp_path / "new.csv", [{"Area": 1.0, "floor": 2}])
    told = r"new\.csv has no column 'area' \(and 1 more that the model needs: 'style'\); did you mean 'Area'\?"
    with pytest.raises(lm.UserError, match=told):
        trained.predict_table(path)
    with pytest.raises(lm.UserError, match=r"nowhere\.csv: there is no such file"):
        trained.predict_table("nowhere.csv")
    with pytest.raises(lm.UserError, match=r"data: expected a path, a DataFrame or lists by column, got int"):
        trained.predict_table(3)
    with pytest.raises(lm.UserError, match=r"'style' holds booleans, but in training the texts .*'old'; use these"):
        trained.predict_table({"area": [1.0], "style": [True], "floor": [1]})


@pytest.mark.parametrize(
    ("style", "cause"),
    [
        (["old", 3.5], "Expected bytes, got a 'float' object"),
        ([3.5, "old"], "Could not convert 'old' with type str"),
        ({0: "old", 1: "mid"}, "got dict"),  # as by `to_dict` of a DataFrame
        ("ol", "got str"),
        (3.5, "'float' object is not iterable"),
    ],
)
def test_a_column_that_is_no_list_of_numbers_or_texts_is_named(
    style: Any, cause: str, trained: lm.MultiTaskModule
) -> None:
    with pytest.raises(lm.UserError, match=f"^data: column 'style': expected a list of numbers or one of .*: {cause}"):
        trained.predict_table({"area": [1.0, 2.0], "style": style, "floor": [1, 2]})


@pytest.mark.parametrize("missing", [None, np.nan, pandas.NA], ids=str)
def test_lists_may_miss_values_among_numbers_and_texts(trained: lm.MultiTaskModule, missing: Any) -> None:
    new = pandas.DataFrame({"area": [50.0, None, 90.0], "style": ["old", "mid", None], "floor": [1, 2, None]})
    lists = {name: [missing if pandas.isna(v) else v for v in new[name]] for name in FEATURES}
    of_lists, of_arrays = lists, {name: np.array(column, object) for name, column in lists.items()}
    expected = trained.predict_table(new)
    for data in (of_lists, of_arrays, new.to_dict("list")):
        predicted = trained.predict_table(data)
        assert predicted.keys() == expected.keys()
        assert all(np.array_equal(predicted[name], expected[name]) for name in expected)


def test_booleans_of_a_csv_and_a_parquet_file_are_the_same(tmp_path: Path) -> None:
    """In a CSV file they are text, as a feature, a category, a target and a task."""
    draws = [random.Random(i).random() for i in range(80)]
    columns: dict[str, list[Any]] = {
        "a": draws,
        "flag": [u < 0.5 for u in draws],
        "y": [u + (u < 0.5) for u in draws],
        "sold": [u < 0.4 for u in draws],
        "new": [bool(i % 2) for i in range(80)],
    }
    table = pyarrow.table(columns)
    parquet.write_table(table, tmp_path / "t.parquet")
    pyarrow.csv.write_csv(table, tmp_path / "t.csv")  # writes true and false
    text = table.set_column(1, "flag", pyarrow.array([str(flag) for flag in columns["flag"]]))
    pyarrow.csv.write_csv(text, tmp_path / "upper.csv")  # as pandas: True and False
    for file in ("t.parquet", "t.csv", "upper.csv"):
        for kind in ("plain", "categorical", "tasks"):
            options: dict[str, Any] = {"categorical": ["flag"]} if kind == "categorical" else {}
            targets = {"y": "regression"} if kind == "tasks" else {"y": "regression", "sold": "binary"}
            features = ["a", "flag"] if kind == "tasks" else ["a", "flag", "new"]
            of_task = "new" if kind == "tasks" else None
            copied = Path(shutil.copy(tmp_path / file, tmp_path / f"copy_{file}"))
            trained = model(Table(copied, targets, features, task_column=of_task, **options))
            of_file = [trained.predict_table(tmp_path / f) for f in ("t.parquet", "t.csv", "upper.csv")]
            of_file.append(trained.predict_table(columns))
            of_file.append(trained.predict_table(pandas.DataFrame(columns).astype({"flag": "category"})))
            for other in of_file[1:]:
                assert np.array_equal(other["y"], of_file[0]["y"])
            if kind != "tasks":
                probabilities = {name.casefold() for name in of_file[0] if name.startswith("p(")}
                assert probabilities == {"p(sold=false)", "p(sold=true)"}


def test_a_checkpoint_of_before_booleans_were_marked_matches_its_table(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    columns = {"flag": [i % 3 == 0 for i in range(60)], "x": list(range(60)), "y": [i / 3 for i in range(60)]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    data = lm.MultiTaskDataModule(Table(tmp_path / "t.parquet", {"y": "regression"}), seed=0)
    data.setup("fit")
    assert data.spec is not None
    assert data.spec.table is not None
    flag, x = data.spec.table.features
    assert isinstance(flag, NumberFeature)
    assert flag.boolean
    before = replace(data.spec, table=replace(data.spec.table, features=(replace(flag, boolean=False), x)))
    trainer = lightning.Trainer(logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.test(lm.MultiHead(MLP(2, (4,)), tasks=before), datamodule=data, verbose=False)
    assert "encoded differently" not in caplog.text


@pytest.mark.parametrize("by_column", [False, True])
def test_the_predictions_of_a_test_are_in_the_unit_of_the_target_and_lead_to_the_rows(
    by_column: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = houses(200)
    path = write(tmp_path / "houses.csv", rows)
    targets = {"price": "regression"} if by_column else {"price": "regression", "sold": "binary", "grade": None}
    source = table(path, targets=targets, **({"task_column": "town"} if by_column else {}))
    run = lm.fit(lm.Linear(), lm.MultiTaskDataModule(source), name="run", max_epochs=1)
    assert run.directory is not None
    stored = np.load(run.directory / "predictions.npz")
    new = lm.load(run.directory).predict_table(path)
    for number, name in enumerate(stored["names"]):
        own = stored["task"] == number
        of_file = source.file_rows("test")[name][stored["id"][own]]
        target = "price" if by_column else name
        assert {rows[row]["split"] for row in of_file} == {"test"}
        if target == "price":
            assert stored["target"][own, 0].tolist() == [rows[row]["price"] for row in of_file]
            assert np.allclose(stored["prediction"][own, 0], new["price"][of_file])
        else:
            labels = np.array(source.classes()[name])
            assert labels[stored["target"][own, 0].astype(int)].tolist() == [str(rows[r][name]) for r in of_file]
            assert labels[stored["prediction"][own, 0].astype(int)].tolist() == new[name][of_file].tolist()
        if by_column:
            assert all(str(rows[row]["town"]) == name for row in of_file)


def test_what_is_handled_as_in_training_is_told(
    trained: lm.MultiTaskModule, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A text that was not seen is none of the texts, a missing number is the mean of training."""
    rows = [{"extra": "?", **row, "style": "old", "area": 100} for row in houses(4, seed=1)]
    rows[1] |= {"style": "brand new"}
    rows[2] |= {"style": "wooden", "area": None}
    rows[3] |= {"area": 1e6}
    trained.predict_table(write(tmp_path / "new.csv", rows, leave_out=("sold", "grade")))
    assert [record.getMessage() for record in caplog.records] == [
        "column 'area': 1 of 4 values are missing, the first in row 3 (line 4 of the file); as in training, they are "
        "treated as the training mean",
        "column 'style': 2 of 4 values do not occur in training, the first in row 2 (line 3 of the file), 'brand new' "
        "(and 1 more texts); they are treated as none of the training texts",
        "targets in the table are ignored: 'price'",
        "column 'area': 1 of 4 values are more than 10 times as far from the mean as any input in training, the first "
        "in row 4 (line 5 of the file), '1000000.0'",
    ]
    caplog.clear()
    known = [{**row, "style": "old", "area": 100} for row in houses(4, seed=1)]
    trained.predict_table(write(tmp_path / "known.csv", known, leave_out=tuple(TARGETS)))
    assert not caplog.records


@pytest.mark.parametrize("categories", ["one_hot", "codes"])
def test_what_is_missing_is_compared_with_training(categories: Any, tmp_path: Path) -> None:
    """Training rows miss areas, but no style: only the former count as in training."""
    rows = [{**row, "area": row["area"] if i % 3 else None} for i, row in enumerate(houses())]
    rows = [{**row, "style": row["style"] or "old"} for row in rows]
    spec = table(write(tmp_path / "houses.csv", rows), categories=categories).table()
    new = [{**row, "area": None, "style": None} for row in houses(2, seed=1)]
    columns = columns_in(write(tmp_path / "new.csv", new, leave_out=tuple(TARGETS)))
    codes = "a separate category, which was never trained"
    becomes = "none of the training texts" if categories == "one_hot" else codes
    found = rows_of(spec, (), columns)
    assert found.notes == [
        "column 'area': 2 of 2 values are missing, the first in row 1 (line 2 of the file); as in training, they are "
        "treated as the training mean",
        "column 'style': 2 of 2 values are missing, the first in row 1 (line 2 of the file), while no training row "
        f"misses one; they are treated as {becomes}",
    ]
    unknown = replace(spec, features=[replace(feature, missed=None) for feature in spec.features])
    assert unknown == spec  # what a checkpoint of an earlier version holds is the same table
    before = rows_of(unknown, (), columns)
    assert torch.equal(before.inputs, found.inputs)
    assert "in training" not in before.notes[0]


def test_only_the_tasks_of_the_model_are_predicted(tmp_path: Path) -> None:
    data = lm.MultiTaskDataModule(table(write(tmp_path / "houses.csv", houses())), tasks=["grade", "price"], seed=0)
    data.setup("fit")
    module = lm.MultiHead(MLP(9, (8,)), tasks=data.spec)
    found = module.predict_table({"area": [100.0, 50.0], "style": ["old", "mid"], "floor": [1, 2]})
    assert list(found) == ["price [kEUR]", "grade", "p(grade=A)", "p(grade=B)", "p(grade=C)"]
    assert all(len(values) == 2 for values in found.values())


def test_ids_beyond_float64_are_the_same_inputs_as_in_training(tmp_path: Path) -> None:
    """The encoder takes off an exact offset, in a file of ids that begins with another one."""
    first = 2**60 + 1
    rows = [{"id": first + i, "y": i % 7, "split": ("train", "train", "val", "test")[i % 4]} for i in range(80)]
    source = Table(write(tmp_path / "ids.csv", rows), {"y": "regression"}, split_column="split")
    expected = source.sets()["test"].inputs
    assert isinstance(expected, torch.Tensor)
    spec = source.table()
    held_out = [row for row in rows if row["split"] == "test"]
    new = columns_in(write(tmp_path / "new.csv", held_out))
    assert torch.equal(rows_of(spec, ["y"], new).inputs, expected)
    assert len(set(rows_of(spec, ["y"], new).inputs[:, 0].tolist())) == 20


def with_commas(path: Path, rows: list[Row]) -> Path:
    """Write a table as spreadsheets in many countries do, with semicolons and decimal commas."""
    write(path, rows)
    with path.open(newline="", encoding="utf-8") as file:
        cells = [[cell.replace(".", ",") for cell in row] for row in csv.reader(file)]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=";").writerows(cells)
    return path


def test_predictions_are_written_as_the_table_is_and_keep_its_ids(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = houses(), [{"id": f"0{i}=1,5", **row} for i, row in enumerate(houses(5, seed=1))]
    new[0]["id"] = "-12,5"  # no formula
    source = table(with_commas(tmp_path / "houses.csv", old), delimiter=";", decimal=",")
    run = fit(source, METHODS["MultiHead"], epochs=1)
    file, options = with_commas(tmp_path / "new.csv", new), ["--ckpt_path", str(run), "--table", "new.csv"]
    assert main(["predict", *options, "--keep", "id", "--keep", "town"]) == 0
    with Path("predictions.csv").open(newline="", encoding="utf-8") as of:
        header, *written = csv.reader(of, delimiter=";")
    assert header[:4] == ["row", "id", "town", "price [kEUR]"]
    assert [row[:3] for row in written] == [[str(i), *(row[n] for n in ("id", "town"))] for i, row in enumerate(new, 1)]
    expected = lm.load(run).predict_table(file)["price [kEUR]"]
    assert [float(row[3].replace(",", ".")) for row in written] == pytest.approx(expected.tolist())
    assert all("." not in row[3] for row in written)
    capsys.readouterr()
    for kept, told in (
        ("ID", "--keep: the table has no column 'ID'"),
        ("price [kEUR]", "--keep: the table has no column"),
    ):
        assert main(["predict", *options, "--overwrite", "--keep", kept]) == 2
        assert told in capsys.readouterr().err
    assert main(["predict", *options, "--overwrite", "--keep", "row"]) == 2
    assert "--keep: 'row' is the column that counts the rows" in capsys.readouterr().err
    assert main(["predict", *options, "--overwrite", "--delimiter", "|", "--keep", "id"]) == 2
    assert "set --delimiter ';'" in capsys.readouterr().err  # rather than that there is no such column to keep
    assert main(["predict", *options, "--overwrite", "--keep", "sold"]) == 2
    assert "--keep: 'sold' is the name of a column of the predictions" in capsys.readouterr().err
    assert main(["predict", *options, "--overwrite", "--decimal", "."]) == 2
    assert "if they are, set --decimal ','" in capsys.readouterr().err
    assert main(["predict", *options, "--out", "predictions.tsv"]) == 0
    assert Path("predictions.tsv").read_text().startswith("row\tprice [kEUR]\t")
    # A table with points and commas is written with them.
    write(tmp_path / "plain.csv", houses(5, seed=1))
    given = ["--table", "plain.csv", "--delimiter", ",", "--decimal", ".", "--overwrite"]
    assert main(["predict", "--ckpt_path", str(run), *given]) == 0
    assert [float(row["price [kEUR]"]) for row in read("predictions.csv")] == pytest.approx(expected.tolist())


def test_the_command_refuses_what_cannot_be_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = fit(table(write(tmp_path / "houses.csv", houses())), METHODS["MultiHead"], epochs=1)
    new = write(tmp_path / "new.csv", houses(3, seed=1))
    best = run / "checkpoints" / "best.ckpt"
    stored = read_checkpoint(best)
    del stored["lightning_meta"]["init_args"]["tasks"]["init_args"]["table"]
    torch.save(stored, "without.ckpt")
    capsys.readouterr()
    for options, told in (
        (
            ["--ckpt_path", "without.ckpt", "--table", str(new)],
            "the model was not trained on a lightning_meta.sources.Table",
        ),
        (["--ckpt_path", str(run), "--table", "no.csv"], "--table no.csv: there is no such file"),
        (["--ckpt_path", str(run), "--table", str(new), "--support", "x"], "--support applies only to images"),
        (["--ckpt_path", str(run)], "--support: give a folder of labelled images, or --table a table of new rows"),
        (["--ckpt_path", str(run), "--support", "x", "--query", "x"], "give --table for new rows of the table"),
    ):
        assert main(["predict", *options]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert told in error
    assert not Path("predictions.csv").exists()


def test_a_model_that_is_trained_further_on_another_table_takes_its_encoder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = fit(table(write(tmp_path / "houses.csv", houses())), METHODS["MultiHead"], epochs=1)
    other = table(write(tmp_path / "more.csv", houses(200, seed=3)))
    other.sets()
    module = lm.load(first)
    before = module.spec.table
    assert before != other.table()
    trainer = lightning.Trainer(logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.test(module, lm.MultiTaskDataModule(other, seed=0), verbose=False)
    assert "the rows are encoded differently than in training" in caplog.text
    assert module.spec.table == before  # a test changes nothing
    again = lm.fit(module, lm.MultiTaskDataModule(other, seed=0), name="more", max_epochs=1, enable_progress_bar=False)
    assert again.directory is not None
    assert lm.load(again.directory).spec.table == other.table()


SHARED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "probability": (
        {"sold": "binary", "p(sold=yes)": "regression"},
        {},
        r"'sold' and 'p\(sold=yes\)' .*'p\(sold=yes\)'",
    ),
    "interval": ({"lower(price)": "regression", "price": "regression"}, {}, r"'lower\(price\)' and 'price' .*"),
    "unit": ({"price": Target("regression", unit="EUR"), "price [EUR]": "regression"}, {}, r"called 'price \[EUR\]'"),
    "task": ({"sold": "binary"}, {"task_column": "p(sold=no)"}, r"'p\(sold=no\)' and 'sold' both have"),
}


@pytest.mark.parametrize("case", SHARED)
def test_predictions_of_two_targets_with_the_same_name_are_refused_before_training(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets, options, told = SHARED[case]
    rows = [
        {
            "area": i % 9,
            "sold": ("no", "yes")[i % 2],
            "p(sold=yes)": i / 9,
            "price": i / 2,
            "lower(price)": i / 3,
            "price [EUR]": i / 7,
            "p(sold=no)": "ab"[i % 3 // 2],
        }
        for i in range(60)
    ]
    source = Table(write(Path("t.csv"), rows), targets, features=["area"], **options)
    with pytest.raises(lm.UserError, match=f"^targets: .*{told}.*; rename one of them in the table$"):
        lm.MultiTaskDataModule(source).setup("fit")
    lm.MultiTaskDataModule(source).setup("test")  # of a model of an earlier version
    if case == "interval":  # these overlap only if the model is calibrated
        return
    with monkeypatch.context() as patch:  # as in earlier versions
        patch.setattr("lightning_meta.data.multi_task.refuse_shared_predictions", lambda *_: None)
        earlier = model(Table(Path("t.csv"), targets, features=["area"], **options))
    with pytest.raises(lm.UserError, match=r"^two columns of the predictions are called .*; rename a target"):
        earlier.predict_table({"area": [1.0], "p(sold=no)": ["a"]})


def test_a_target_knows_the_names_of_its_predictions() -> None:
    outputs = torch.zeros(3, 1)
    price, number = TableTarget("price", unit="EUR"), Regression(1).fitted(torch.arange(9.0)[:, None])
    assert set(columns_for(price, number, outputs, NumberCalibration(9, 1.0))) == set(price.predictions)
    assert set(columns_for(price, number, outputs)) < set(price.predictions)
    sold = TableTarget("sold", ("no", "yes"))
    assert set(columns_for(sold, Binary(), outputs, LabelCalibration(9, 1.0, 0.5, 0.5))) == set(sold.predictions)
    assert set(columns_for(sold, Binary(), outputs)) < set(sold.predictions)
