from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import parquet
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from torch import Tensor

from lightning_meta.batches import SPLITS, Split
from lightning_meta.data import MultiTaskDataModule
from lightning_meta.errors import UserError
from lightning_meta.sources import Table, Target
from lightning_meta.tasks import Binary, Classification, Regression

Rows = list[dict[str, Any]]


def write(path: Path, rows: Rows) -> Path:
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    return path


def houses(count: int = 200, seed: int = 0) -> Rows:
    """Features area (numbers) and style (text), some missing; targets price, sold and grade, some missing."""
    rng = random.Random(seed)

    def sometimes(value: Any, share: float) -> Any:
        return None if rng.random() < share else value

    return [
        {
            "id": f"house {i}",
            "area": sometimes(round(rng.uniform(20, 200), 2), 0.1),
            "style": sometimes(rng.choice(["old", "new, fine", "mid\ncentury"]), 0.1),
            "price": sometimes(round(rng.gauss(300, 50), 1), 0.2),
            "sold": sometimes(rng.randrange(2), 0.2),
            "grade": sometimes(rng.choice("ABC"), 0.2),
            "town": rng.choice(["Ayr", "Bath", "Cork"]),
        }
        for i in range(count)
    ]


TARGETS: dict[str, Any] = {"price": None, "sold": "binary", "grade": None}
FEATURES = ("area", "style")


def table(path: Path, **options: Any) -> Table:
    return Table(path, **{"targets": TARGETS, "features": FEATURES, **options})


def inputs(source: Table, split: Split) -> Tensor:
    x = source.sets()[split].inputs
    assert isinstance(x, Tensor)
    return x


def rows_of(source: Table, split: Split, rows: Rows) -> list[int]:
    """The rows of the file in a split; an additional feature holds the number of the row, in standard units."""
    x = inputs(source, split)[:, -1].double()
    everything = torch.cat([inputs(source, s)[:, -1].double() for s in SPLITS])
    low, high = everything.min(), everything.max()
    return ((x - low) / (high - low) * (len(rows) - 1)).round().long().tolist()


@pytest.fixture
def numbered() -> Rows:
    """Every row has a label, and a feature that is its number."""
    return [{**row, "sold": i % 2, "number": i} for i, row in enumerate(houses())]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_several_targets_of_one_row_some_missing(tmp_path: Path, suffix: str, numbered: Rows) -> None:
    source = table(write(tmp_path / f"houses{suffix}", numbered), features=(*FEATURES, "number"))
    kinds = {name: (type(task), task.outputs) for name, task in source.tasks().items()}
    assert kinds == {"price": (Regression, 1), "sold": (Binary, 1), "grade": (Classification, 3)}
    assert source.classes() == {"sold": ["0", "1"], "grade": ["A", "B", "C"]}
    assert [len(inputs(source, split)) for split in SPLITS] == [120, 40, 40]
    seen = []
    for split in SPLITS:
        data = source.sets()[split]
        rows = rows_of(source, split, numbered)
        seen += rows
        for name in TARGETS:
            wanted = {place: numbered[row][name] for place, row in enumerate(rows) if numbered[row][name] is not None}
            found = dict(zip(data.rows[name].tolist(), data.targets[name].flatten().tolist(), strict=True))
            assert found.keys() == wanted.keys()
            for place, value in wanted.items():
                assert found[place] == pytest.approx("ABC".index(value) if name == "grade" else value)
    assert sorted(seen) == list(range(200))


def test_csv_and_parquet_are_the_same_and_row_order_does_not_matter(tmp_path: Path) -> None:
    rows = houses()
    expected = table(write(tmp_path / "a.csv", rows))
    assert table(write(tmp_path / "b.parquet", rows)).fingerprint() == expected.fingerprint()
    shuffled = table(write(tmp_path / "c.csv", random.Random(1).sample(rows, len(rows))))

    def content(source: Table, split: Split) -> list[tuple[float, ...]]:
        data = source.sets()[split]
        y = data.targets["price"][:, 0]
        return sorted(
            (*x, t) for x, t in zip(inputs(source, split)[data.rows["price"]].tolist(), y.tolist(), strict=True)
        )

    for split in SPLITS:
        np.testing.assert_allclose(content(expected, split), content(shuffled, split), atol=1e-6)
    other = table(tmp_path / "a.csv", seed=1)
    assert other.fingerprint() != expected.fingerprint()
    assert expected.fingerprint() == "49961540bdd983cac71a877a8cc20b34cda51d63e7eb4fb8124089622d4e1843"


def test_features_are_learned_on_training_rows(tmp_path: Path) -> None:
    rng = random.Random(2)
    rows: Rows = [
        {"area": rng.gauss(3, 2) + 100 * (split != "train"), "style": rng.choice(styles), "y": i, "split": split}
        for split, styles in (("train", ["a", "b", "c"]), ("val", ["a", "new"]), ("test", ["c", "newer"]))
        for i in range(50)
    ]
    for row in rows[::7]:
        row["area"] = None
    for row in rows[::5]:
        row["style"] = None
    source = Table(write(tmp_path / "t.csv", rows), {"y": "regression"}, split_column="split", missing_indicators=True)
    names = ["area", "area is missing", "style=a", "style=b", "style=c", "style is missing"]
    assert source.input_names == names
    train = [row for row in rows if row["split"] == "train"]
    scaler = StandardScaler().fit([[np.nan if r["area"] is None else r["area"]] for r in train])
    encoder = OneHotEncoder(categories=[["a", "b", "c"]], handle_unknown="ignore", sparse_output=False)
    encoder.fit([["a"], ["b"], ["c"]])
    for split in SPLITS:
        here = [row for row in rows if row["split"] == split]
        area = np.nan_to_num(scaler.transform([[np.nan if r["area"] is None else r["area"]] for r in here]))
        missing = np.array([[r["area"] is None, r["style"] is None] for r in here], float)
        style = encoder.transform([[r["style"] or "?"] for r in here])
        wanted = np.concatenate([area, missing[:, :1], style, missing[:, 1:]], axis=1)
        np.testing.assert_allclose(inputs(source, split).numpy(), wanted, rtol=1e-4, atol=1e-5)
        assert source.sets()[split].targets["y"][:, 0].tolist() == list(range(50))


def test_a_task_for_each_value_of_a_column(tmp_path: Path) -> None:
    rows = [{**row, "number": i} for i, row in enumerate(houses(300))]
    rows = [row for row in rows if row["town"] != "Cork"] + [row for row in rows if row["town"] == "Cork"][:3]
    source = Table(write(tmp_path / "t.csv", rows), {"price": None}, ["area", "number"], task_column="town")
    assert list(source.tasks()) == ["Ayr", "Bath", "Cork"]
    for split in SPLITS:
        for town in source.tasks():
            data = source.sets()[split]
            prices = [r["price"] for r in rows if r["town"] == town and r["price"] is not None]
            assert set(data.targets[town][:, 0].numpy()) <= set(prices)
    for town in source.tasks():
        counts = [source.sets()[split].counts[town] for split in SPLITS]
        total = sum(r["town"] == town and r["price"] is not None for r in rows)
        assert sum(counts) == total
        if town != "Cork":
            assert counts == pytest.approx([0.6 * total, 0.2 * total, 0.2 * total], abs=1)
    assert source.sets()["train"].counts["Cork"] >= 1
    numbers = [{"task": i % 3, "x": i, "y": i * 0.5} for i in range(60)]
    assert list(Table(write(tmp_path / "n.csv", numbers), {"y": None}, task_column="task").tasks()) == ["0", "1", "2"]


def test_equal_rows_and_groups_are_never_in_two_splits(tmp_path: Path) -> None:
    twins = [{"x": i // 3, "y": i // 3 * 0.3, "patient": i // 30} for i in range(300)]
    source = Table(write(tmp_path / "t.csv", twins), {"y": None}, ["x"])
    found = [set(inputs(source, split)[:, 0].tolist()) for split in SPLITS]
    assert [len(f) for f in found] == [60, 20, 20]
    assert not found[0] & found[1] | found[0] & found[2] | found[1] & found[2]
    assert [len(inputs(source, split)) for split in SPLITS] == [180, 60, 60]
    grouped = Table(tmp_path / "t.csv", {"y": None}, ["x"], group_column="patient")
    assert grouped.input_names == ["x"]
    patients = [{round(y * 10) // 30 for y in grouped.sets()[s].targets["y"][:, 0].tolist()} for s in SPLITS]
    assert [len(p) for p in patients] == [6, 2, 2]
    assert len(set.union(*patients)) == 10


def test_all_other_columns_are_features_and_rows_without_a_label_are_left_out(tmp_path: Path) -> None:
    rows = [{"a": i * 1.5, "code": i % 4, "flag": bool(i % 2), "y": i if i % 10 else None} for i in range(100)]
    source = Table(write(tmp_path / "t.parquet", rows), {"y": None}, categorical=["code"])
    assert source.input_names == ["a", "code=0", "code=1", "code=2", "code=3", "flag"]
    assert sum(len(inputs(source, split)) for split in SPLITS) == 90


def test_numbers_are_told_from_text(tmp_path: Path) -> None:
    rows = [{"x": x, "y": i * 0.5} for i, x in enumerate(["+1", " 2 ", "3e0", "", "NA", "-0", "0"] * 9)]
    source = Table(write(tmp_path / "t.csv", rows), {"y": None}, fractions=(0.98, 0.01, 0.01))
    assert source.input_names == ["x"]
    assert inputs(source, "train").unique().numel() == 5  # 0, 1, 2, 3, and their mean where missing
    text = [{"x": x, "y": i * 0.5} for i, x in enumerate(["01_a", "x", ""] * 9)]
    assert Table(write(tmp_path / "u.csv", text), {"y": None}, fractions=(0.9, 0.05, 0.05)).input_names == [
        "x=01_a",
        "x=x",
    ]


def test_stated_classes_keep_their_order(tmp_path: Path) -> None:
    rows = [{"x": i, "size": ("S", "M", "L")[i % 3], "ok": ("yes", "no")[i % 2], "n": i % 2 + 1} for i in range(60)]
    path = write(tmp_path / "t.csv", rows)
    targets: dict[str, Any] = {
        "size": Target(classes=["S", "M", "L", "XL"]),
        "ok": Target("binary", ["no", "yes"]),
        "n": Target("multiclass", [2, 1]),
    }
    source = Table(path, targets, ["x"])
    assert source.tasks()["size"].outputs == 4
    assert source.classes() == {"size": ["S", "M", "L", "XL"], "ok": ["no", "yes"], "n": ["2", "1"]}
    everything = torch.cat([inputs(source, split)[:, 0] for split in SPLITS])
    for name, wanted in (("size", [0, 1, 2]), ("ok", [1, 0]), ("n", [1, 0])):
        labels = torch.cat([source.sets()[split].targets[name] for split in SPLITS])[everything.argsort()]
        assert labels.tolist() == [wanted[i % len(wanted)] for i in range(60)]


def test_it_serves_batches(tmp_path: Path) -> None:
    data = MultiTaskDataModule(table(write(tmp_path / "t.csv", houses())), batch_size=8)
    data.prepare_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch.inputs.shape[1:] == (4,)
    assert set(batch.targets) == set(TARGETS)


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(UserError) as error:  # noqa: PT012 - options are refused at once, the file when it is read
        source = table(path, **options)
        source.tasks()
        source.sets()
    assert "\n" not in str(error.value)
    return str(error.value)


def with_value(column: str, row: int, value: Any) -> Rows:
    rows = houses(60)
    rows[row - 1][column] = value
    return rows


@pytest.mark.parametrize(
    ("column", "value", "options", "message"),
    [
        ("price", "much", {"targets": {"price": "regression"}}, "is 'much': expected a number"),
        ("price", "much", {}, "is 'much': other rows hold numbers; correct it (empty if it is"),
        ("price", "1_000", {}, "is '1_000'"),
        ("price", "inf", {}, "is 'inf': expected a finite number"),
        ("area", "-Infinity", {}, "is '-Infinity': expected a finite number"),
        ("area", "wide", {}, "is 'wide': other rows hold numbers; correct it (empty if it is"),
        ("sold", 2, {}, "column 'sold' has 3 different values ('0', '1', '2'), expected two for binary"),
        ("grade", "D", {"targets": {"grade": Target(classes=["A", "B", "C"])}}, "'D': the label is out of range"),
        ("town", None, {"targets": {"price": None}, "task_column": "town"}, "None: every row needs a value here"),
        ("town", "Ayr", {"split_column": "town"}, "expected train, val or test"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_by_column_and_row(
    tmp_path: Path, column: str, value: Any, options: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "t.csv", with_value(column, 7, value))
    line = refusal(path, **options)
    assert message in line
    assert line.startswith(f"{path}: column {column!r}")
    assert column in ("sold", "town") or f"{column!r}, row 7 (line " in line


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,y\n\n1,2\n\n\n2,x\n", "column 'y', row 2 (line 6 of the file) is 'x'"),
        ('a,y\n"1\n1",2\n2,x\n', "column 'y', row 2 (line 4 of the file) is 'x'"),
        ("\n\na,y\r\n1,2\r\n2,x\r\n", "column 'y', row 2 (line 5 of the file) is 'x'"),
        ("a,y\n1,2\n\n2,3,4\n", "line 4 has 3 cells, but the header in line 1 has 2; correct the line, or remove"),
        ('a,y\n1,2\n"2,3\n4,5\n', "line 3 has 1 cell, but the header in line 1 has 2; a cell in it has line breaks"),
        ("# exported\n\na,y\n1,2\n", "line 3 has 2 cells, but the header in line 1 has 1; correct the line, or remove"),
        ("sep=,\na,y,z\n1,2,3\n", "line 2 has 3 cells, but the header in line 1 has 2; correct the line, or remove"),
    ],
)
def test_lines_are_those_of_the_file(tmp_path: Path, text: str, message: str) -> None:
    """Empty lines are no rows, and a cell may contain line breaks."""
    (path := tmp_path / "t.csv").write_bytes(text.encode())
    with pytest.raises(UserError) as error:
        Table(path, {"y": "regression"}).tasks()
    assert str(error.value).startswith(f"{path}: {message}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": {"cost": None}}, "has no column 'cost'; it has 'id', 'area'"),
        ({"features": ["area", "rooms"]}, "has no column 'rooms'"),
        ({"task_column": "city", "targets": {"price": None}}, "has no column 'city'"),
        ({"targets": {"sold": None}}, "holds only two different numbers, 0 and 1; state its kind"),
        ({"targets": {"price": "ranking"}}, "expected 'regression' or 'binary' or 'multiclass', got 'ranking'"),
        ({"targets": {"grade": Target("binary", ["A", "B", "C"])}}, "expected two for binary"),
        ({"targets": {"grade": Target(classes=["A", "A"])}}, "expected at least two, without duplicates"),
        ({"targets": {"price": Target("regression", ["A", "B"])}}, "a regression has no classes"),
        ({"targets": {}}, "expected the name of at least one target column"),
        ({"task_column": "town"}, "with a task_column there is one target, got price, sold, grade"),
        ({"features": ["area", "price"]}, "column 'price' has two roles"),
        ({"targets": {"price": None}, "task_column": "area"}, "column 'area' has two roles"),
        ({"fractions": (0.5, 0.5, 0.5)}, "three positive numbers that add up to 1"),
        ({"fractions": (1.0, 0.0, 0.0)}, "three positive numbers that add up to 1"),
        ({"features": None}, "column 'id' has"),
        ({"features": []}, "no column is left for a feature"),
        ({"categorical": ["town"]}, "'town' is not a feature"),
        ({"split_column": "town", "group_column": "id"}, "leave group_column out"),
        ({"max_categories": 0}, "max_categories=0"),
        ({"max_categories": 2}, "has 3 different texts in training rows, such as 'mid\\\\ncentury'"),
    ],
)
def test_options_that_do_not_fit(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    assert message.replace("\\\\", "\\") in refusal(write(tmp_path / "t.csv", houses(100)), **options)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"", "the table has no columns"),
        ("t.csv", b"area,style,price,sold,grade\n", "the table has no rows"),
        ("t.csv", b"area,style,price,sold,area\n1,a,2,0,A\n", "2 columns have the name 'area'"),
        ("t.csv", b"area,style,price,sold,grade\n1,2\n", "line 2 has 2 cells"),
        ("t.csv", b"area,style,price,sold,grade\n1,\xff,2,0,A\n", "save it as UTF-8"),
        ("t.csv", b"\xff\xfea\x00", "save it as UTF-8"),
        ("t.parquet", b"PAR1 and no more", "cannot be read"),
        ("t.parquet", b"", "cannot be read"),
        ("t.xlsx", b"", "expected a table in a file named .csv, .tsv or .parquet"),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    line = refusal(tmp_path / name)
    assert message in line
    assert line.startswith(f"{tmp_path / name}: ")
    assert "there is no such file" in refusal(tmp_path / "other.csv")


def test_a_column_of_another_type_is_refused_only_where_it_is_used(tmp_path: Path) -> None:
    rows: Rows = [{"x": float(i), "list": [i, i], "y": i * 0.1} for i in range(30)]
    path = write(tmp_path / "t.parquet", rows)
    assert Table(path, {"y": None}, ["x"]).input_names == ["x"]
    with pytest.raises(UserError, match=r"column 'list' is of type list<.*expected numbers or text"):
        Table(path, {"y": None}).sets()


def test_a_task_or_a_split_without_training_data(tmp_path: Path) -> None:
    def rows(splits: Sequence[str]) -> Rows:
        return [{"x": i, "y": i * 0.5, "task": "ab"[i % 2], "split": splits[i % 2]} for i in range(40)]

    path = write(tmp_path / "t.csv", rows(["val", "test"]))
    with pytest.raises(UserError, match="there is no training row among 40"):
        Table(path, {"y": None}, ["x"], split_column="split").sets()
    mixed = rows(["train", "val"])
    mixed[0]["split"] = "test"
    path = write(tmp_path / "u.csv", mixed)
    source = Table(path, {"y": None}, ["x"], task_column="task", split_column="split")
    with pytest.raises(UserError, match="task 'b' has no training example"):
        MultiTaskDataModule(source).setup("fit")


def test_formulas_and_hostile_text_are_text(tmp_path: Path) -> None:
    rows = [{"x": ["=1+1", "__import__('os').getcwd()", "{0.__class__}"][i % 3], "n": i, "y": i} for i in range(40)]
    names = Table(write(tmp_path / "t.csv", rows), {"y": None}).input_names
    assert names[:3] == sorted(f"x={row['x']}" for row in rows[:3])


@pytest.mark.parametrize("kind", ["binary", "multiclass"])
def test_a_target_of_one_class_is_said_to_teach_nothing(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    file.write_text("a,y\n" + "".join(f"{i},1\n" for i in range(40)))
    with pytest.raises(UserError, match="column 'y' has '1' in every row, so there is nothing to learn; leave it out"):
        Table(str(file), targets={"y": kind}).tasks()
