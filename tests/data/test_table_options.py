"""Other scales and spellings of tables: quantiles, and CSV files with semicolons and commas."""

from __future__ import annotations

import csv
import random
import re
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow
import pytest
import torch
import yaml
from pyarrow import csv as csv_files
from pyarrow import parquet
from sklearn.preprocessing import QuantileTransformer

import lightning_meta as lm
from lightning_meta.batches import SPLITS
from lightning_meta.cli.main import main
from lightning_meta.errors import UserError
from lightning_meta.nn import MLP
from lightning_meta.sources import LabelledTable, RegressionTable, Table, Target
from lightning_meta.sources.table_features import CHUNK
from lightning_meta.tasks import Regression

Rows = list[dict[str, Any]]


def write(path: Path, rows: Rows, delimiter: str = ",", decimal: str = ".") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(rows[0])
        for row in rows:
            writer.writerow([str(v).replace(".", decimal) if isinstance(v, float) else v for v in row.values()])
    return path


def long_tails(count: int) -> Rows:
    """Numbers with a long tail, with many equal ones, and far ones in the test; some missing."""
    rng = np.random.default_rng(0)
    split = np.array(SPLITS)[rng.choice(3, count, p=[0.6, 0.2, 0.2])]
    tail, few = np.exp(3 * rng.normal(size=count)).round(3), rng.integers(0, 4, count)
    tail[split == "test"] *= 100
    missing = rng.random(count) < 0.1
    return [
        {"tail": "" if m else float(t), "few": int(f), "style": "ab"[f % 2], "y": float(i) / 2, "split": s}
        for i, (t, f, s, m) in enumerate(zip(tail, few, split, missing, strict=True))
    ]


@pytest.mark.parametrize("output", ["normal", "uniform"])
@pytest.mark.parametrize("count", [300, 2 * CHUNK])
def test_quantiles_are_those_of_scikit_learn(tmp_path: Path, output: str, count: int) -> None:
    rows = long_tails(count)
    scaling: Any = f"quantile_{output}"
    path = write(tmp_path / "t.csv", rows)
    source = Table(path, {"y": "regression"}, split_column="split", scaling=scaling)
    numbers = {
        split: np.array(
            [[np.nan if r["tail"] == "" else r["tail"], r["few"]] for r in rows if r["split"] == split], float
        )
        for split in SPLITS
    }
    transformer = QuantileTransformer(
        n_quantiles=min(1000, len(numbers["train"])), subsample=None, output_distribution=output
    ).fit(numbers["train"])
    for split in SPLITS:
        wanted = np.nan_to_num(transformer.transform(numbers[split]), nan=0.0 if output == "normal" else 0.5)
        x = source.sets()[split].inputs
        assert isinstance(x, torch.Tensor)
        np.testing.assert_allclose(x[:, :2].numpy(), wanted, rtol=1e-6, atol=1e-6)
        assert x[:, 2:].sum(1).unique().tolist() == [1.0]
    with pytest.raises(lm.UserError, match="scaling"):
        Table(path, {"y": "regression"}, scaling="log")  # type: ignore[arg-type]


def inputs_of(path: Path, numbers: Any, scaling: Any) -> torch.Tensor:
    """The inputs of the numbers, each by the quantiles of those in training."""
    splits = np.resize(["train", "train", "val", "train", "test"], len(numbers))
    parquet.write_table(pyarrow.table({"x": numbers, "y": np.arange(len(numbers)) / 2, "split": splits}), path)
    sets = Table(path, {"y": "regression"}, split_column="split", scaling=scaling).sets()
    order = np.concatenate([np.flatnonzero(splits == split) for split in SPLITS]).argsort()
    return torch.cat([cast(torch.Tensor, sets[split].inputs) for split in SPLITS])[order, 0]


@pytest.mark.parametrize("scaling", ["quantile_normal", "quantile_uniform"])
@pytest.mark.parametrize("unit", [1e-100, 1e-12, 1e-9, 1e-6, 1e9, 1e100])
def test_quantiles_do_not_depend_on_the_unit(unit: float, scaling: str, tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).lognormal(size=500)
    expected = inputs_of(tmp_path / "t.parquet", numbers, scaling)
    np.testing.assert_allclose(inputs_of(tmp_path / "t.parquet", numbers * unit, scaling), expected, atol=1e-5)
    assert len(expected.unique()) > 490  # only the extremes of training, and what is beyond them, are equal


def test_the_dense_end_of_a_long_tail_is_kept_and_rounding_moves_no_number(tmp_path: Path) -> None:
    tail = np.exp(10 * np.random.default_rng(0).normal(size=500))  # from 1e-13 to 1e13
    assert len(inputs_of(tmp_path / "t.parquet", tail, "quantile_normal").unique()) > 490
    shares = np.resize([0.1, 0.1 + 0.2, 0.2, 0.25, 0.3], 500)  # 0.1 + 0.2 is just above 0.3, in a fifth of all rows
    x = inputs_of(tmp_path / "t.parquet", shares, "quantile_normal")
    assert x[4] == x[1] > 5


def test_a_table_with_semicolons_and_decimal_commas_is_the_same(tmp_path: Path) -> None:
    rows = long_tails(120)
    plain = Table(write(tmp_path / "plain.csv", rows), {"y": "regression"})
    european = write(tmp_path / "european.csv", rows, ";", ",")
    options: Any = {"delimiter": ";", "decimal": ","}
    assert Table(european, {"y": "regression"}, **options).fingerprint() == plain.fingerprint()
    labelled = LabelledTable(tmp_path / "plain.csv", "few", ["tail"], scaling="quantile_normal")
    assert LabelledTable(european, "few", ["tail"], scaling="quantile_normal", **options).fingerprint() == (
        labelled.fingerprint()
    )
    for source in (Table(european, {"y": "regression"}), Table(tmp_path / "plain.csv", {"y": None}, delimiter=";")):
        with pytest.raises(lm.UserError, match=r"its columns are separated by '[;,]'; set delimiter='[;,]'") as error:
            source.sets()
        assert "\n" not in str(error.value)
    text = [{**row, "tail": "1,5" if i else "1.5"} for i, row in enumerate(rows)]
    with pytest.raises(
        lm.UserError, match=r"column 'tail', row 1 \(line 2 of the file\) is '1\.5': other rows hold numbers"
    ):
        Table(write(tmp_path / "mixed.csv", text, ";", ","), {"y": "regression"}, **options).sets()


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("t.csv", {"delimiter": ";;"}, "delimiter: expected one character, such as ';', got ';;'"),
        ("t.csv", {"decimal": ";"}, "decimal: expected '.' or ',', got ';'"),
        ("t.csv", {"delimiter": ",", "decimal": ","}, "delimiter and decimal are both ','"),
        (
            "t.parquet",
            {"delimiter": ";"},
            "delimiter and decimal apply only to CSV files; leave them out for t.parquet",
        ),
    ],
)
def test_spellings_that_cannot_be(path: str, options: Any, message: str) -> None:
    for source in (lambda: Table(path, {"y": None}, **options), lambda: LabelledTable(path, "y", **options)):
        with pytest.raises(lm.UserError) as error:
            source()
        assert message in str(error.value)


def test_new_rows_are_read_and_scaled_as_those_of_training(tmp_path: Path) -> None:
    rows = long_tails(120)
    options: Any = {"delimiter": ";", "decimal": ",", "scaling": "quantile_uniform"}
    path = write(tmp_path / "t.csv", rows, ";", ",")
    data = lm.MultiTaskDataModule(Table(path, {"y": "regression"}, split_column="split", **options), seed=0)
    run = lm.fit(lm.MultiHead(MLP(4, (8,))), data, name="t", runs=tmp_path, max_epochs=1, enable_progress_bar=False)
    module = lm.load(run.directory or "")
    test = data.sets["test"]
    assert isinstance(test.inputs, torch.Tensor)
    wanted = module.predict("y", test.inputs).flatten()
    new = [row for row in rows if row["split"] == "test"]
    random.Random(0).shuffle(new)
    order = [[row["y"] for row in new].index(y) for y in test.targets["y"].flatten().tolist()]
    plain, european = write(tmp_path / "plain.csv", new), write(tmp_path / "new.csv", new, ";", ",")
    in_memory = {name: [None if row[name] == "" else row[name] for row in new] for name in new[0]}
    for found in (
        module.predict_table(european),
        module.predict_table(plain, delimiter=",", decimal="."),
        module.predict_table(in_memory),
    ):
        torch.testing.assert_close(torch.as_tensor(found["y"])[order].float(), wanted.float(), rtol=1e-4, atol=1e-4)
    with pytest.raises(lm.UserError, match=r"separated by ','; set delimiter=','"):
        module.predict_table(plain)
    out = tmp_path / "out.csv"
    main(
        [
            "predict",
            f"--ckpt_path={tmp_path / 't' / '0'}",
            f"--table={plain}",
            "--delimiter=,",
            "--decimal=.",
            f"--out={out}",
        ]
    )
    with out.open(newline="") as file:
        written = [float(row["y"]) for row in csv.DictReader(file)]
    np.testing.assert_allclose(np.array(written)[order], wanted.numpy(), rtol=1e-4, atol=1e-4)


def comma_table(folder: Path, suffix: str = ".csv", **columns: list[str]) -> Path:
    """Numbers with a comma before their decimals, in a file with semicolons; and a target of whole numbers."""
    rows = {"y": [str(i % 9) for i in range(200)], "w": [str(i) for i in range(200)], **columns}
    path = folder / f"comma{suffix}"
    if suffix == ".parquet":
        parquet.write_table(pyarrow.table(rows), path)
        return path
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=";").writerows([list(rows), *zip(*rows.values(), strict=True)])
    return path


MANY, FEW = [f"{i},5" for i in range(200)], ["1", "2,5"] * 100


@pytest.mark.parametrize(
    ("columns", "options", "said"),
    [
        ({"x": MANY}, {"targets": {"y": "regression"}}, ".* 120 different texts in training rows.*"),
        (
            {"x": FEW},
            {"targets": {"y": "regression"}},
            r"column 'x', row 2 \(line 3 of the file\) is '2,5': other rows hold numbers",
        ),
        (
            {"x": MANY},
            {"targets": {"x": "regression"}},
            r"column 'x', row 1 \(line 2 of the file\) is '0,5': expected a number",
        ),
        ({"x": MANY}, {"targets": {"x": None}}, "column 'x' is text, so its kind is unclear; state multiclass"),
    ],
)
def test_numbers_with_another_decimal_mark_are_named(
    columns: dict[str, list[str]], options: Any, said: str, tmp_path: Path
) -> None:
    path = comma_table(tmp_path, ".csv", **columns)
    hint = r".*; all values look like numbers with the decimal mark ',': if they are, set decimal=','$"
    with pytest.raises(UserError, match=f"({said}){hint}"):
        Table(path, delimiter=";", **options).sets()
    Table(path, delimiter=";", decimal=",", **options).sets()


@pytest.mark.parametrize(
    ("decimal", "texts", "said"),
    [
        (".", ["1,250", "985"], "if ',' separates thousands, remove it from the file; if it is the decimal mark, set "),
        (".", ["1,250,000", "985.5"], "',' seems to separate thousands: remove it from the file"),
        (".", ["1.250,75", "985"], "'.' seems to separate thousands: remove it from the file, and set decimal=','"),
        (",", ["1.250", "985,5"], "'.' seems to separate thousands: remove it from the file"),
        (",", ["1.250", "985"], "if '.' separates thousands, remove it from the file; if it is the decimal mark, set "),
        (",", ["0.125", "0.5"], "all values look like numbers with the decimal mark '.': if they are, set decimal='.'"),
        (".", ["1,250", "9 m"], None),
    ],
)
def test_a_mark_of_thousands_is_no_decimal_mark(
    decimal: Any, texts: list[str], said: str | None, tmp_path: Path
) -> None:
    path = comma_table(tmp_path, ".csv", x=texts * 100)
    with pytest.raises(UserError) as error:
        Table(path, {"x": "regression"}, delimiter=";", decimal=decimal).tasks()
    _, _, hint = str(error.value).partition(": expected a number")
    assert hint.startswith(f"; {said}") if said else not hint


@pytest.mark.parametrize(("decimal", "mark"), [(".", "."), (",", ",")])
def test_numbers_whose_decimals_may_be_thousands_are_named(
    decimal: Any, mark: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """These are read as decimals, since that is what the options say."""
    plain = {"x": ["1.250", "985", "1.101"], "y": ["1.5", "2", "1.250"], "z": ["1.125", "2", "7.125"]}
    columns = {name: [text.replace(".", mark) for text in texts] * 67 for name, texts in plain.items()}
    path = comma_table(tmp_path, ".csv", **{name: texts[:200] for name, texts in columns.items()}, w=["1", "3"] * 100)
    for target in ("x", "y"):
        caplog.clear()
        Table(path, {target: "regression"}, delimiter=";", decimal=decimal).sets()
        said = f"{path}: column 'x': '1{mark}250' is read as 1.25; if {mark!r} separates thousands, remove it"
        assert sum("thousands" in record.getMessage() for record in caplog.records) == 1
        assert said in caplog.text


def test_classes_that_yaml_reads_as_booleans_are_refused_with_the_way_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "t.csv"
    path.write_text("\n".join(["x,ok", *(f"{i},{'yes' if i % 3 else 'no'}" for i in range(60))]) + "\n")
    with pytest.raises(UserError, match="expected one of 'False', 'True'; in YAML, quote no, yes, off"):
        Table(path, {"ok": Target("binary", classes=[False, True])}).tasks()
    source = {"class_path": "lightning_meta.sources.Table", "init_args": {"path": str(path), "targets": "TARGETS"}}
    data = {"class_path": "lightning_meta.MultiTaskDataModule", "init_args": {"source": source}}
    config = yaml.safe_dump({"model": {"class_path": "lightning_meta.Linear"}, "data": data})
    file = tmp_path / "config.yaml"
    file.write_text(config.replace("TARGETS", "{ok: {kind: binary, classes: [no, yes]}}"))
    assert main(["fit", "--config", str(file), "--print_config"]) == 2
    said = capsys.readouterr().err
    assert "got False (in YAML, quote no, yes, off, on, false, true, which are booleans)" in said


@pytest.mark.parametrize("words", [None, ("false", "true"), ("False", "True"), ("FALSE", "TRUE")])
def test_booleans_have_the_same_classes_and_tasks_in_every_file(words: tuple[str, str] | None, tmp_path: Path) -> None:
    """Those of a Parquet file (None) are called as pandas writes them to a CSV file."""
    flags, path = [i % 3 == 0 for i in range(60)], tmp_path / ("t.parquet" if words is None else "t.csv")
    cells = flags if words is None else [words[flag] for flag in flags]
    table = pyarrow.table({"x": range(60), "ok": cells, "y": [i * 0.3 for i in range(60)]})
    (parquet.write_table if words is None else csv_files.write_csv)(table, path)
    names = list(words or ("False", "True"))
    assert Table(path, {"ok": None}).classes() == {"ok": names}
    assert list(Table(path, {"y": "regression"}, task_column="ok").tasks()) == names
    assert set(RegressionTable(path, "y", task_column="ok")._task_of) == set(names)
    stated: list[list[Any]] = [[False, True], ["true", "false"], ["FALSE", "True"], ["0", "1"], [1, 0]]
    for classes in stated:
        source = Table(path, {"ok": Target("binary", classes=classes)})
        assert source.classes() == {"ok": [str(label) for label in classes]}
        rows = source.file_rows("train")["ok"]
        swapped = str(classes[0]).casefold() in ("1", "true")
        assert source.sets()["train"].targets["ok"].tolist() == [flags[row] != swapped for row in rows]
    with pytest.raises(
        UserError, match=rf"row 1 .*is '{names[1]}': the label is out of range, expected one of 'a', 'b'"
    ):
        Table(path, {"ok": Target("binary", classes=["a", "b"])}).tasks()


def test_a_boolean_in_every_row_is_shown_as_such(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"x": range(60), "ok": [True] * 60}), path := tmp_path / "t.parquet")
    for kind in (None, "binary"):
        with pytest.raises(UserError, match="column 'ok' has 'True' in every row, so there is nothing to learn"):
            Table(path, {"ok": kind}).tasks()


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        *(("{}%", "%"), ("{} kg", "kg"), ("{}m²", "m²"), ("$ {}", "$"), ("EUR {}", "EUR"), ("-{}.5 °C", "°C")),
        *(
            ("{}€", "€"),
            ("{} €", "€"),
            ("{}\N{NO-BREAK SPACE}€", "€"),
            ("-${}", "$"),
            ("£-{}", "£"),
            ("{}€/m²", "€/m²"),
        ),
        *(("Q{}", None), ("room {}", None), ("2026-{}", None), ("{}-a", None), ("{}:00", None), ("-$-{}", None)),
        *(("({})", None), ("${}k", None)),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_numbers_with_a_unit_are_named(
    text: str, unit: str | None, kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    columns = {"x": [text.format(10 + i % 7) for i in range(60)], "n": list(range(60)), "y": [i / 3 for i in range(60)]}
    path = tmp_path / f"t.{kind}"
    (csv_files.write_csv if kind == "csv" else parquet.write_table)(pyarrow.table(columns), path)
    Table(path, {"y": "regression"}).sets()
    said = [message for message in caplog.messages if f"all values are numbers with {unit!r}" in message]
    assert len(said) == (unit is not None)
    caplog.clear()
    Table(path, {"y": "regression"}, categorical=["x"]).sets()
    assert "all values are numbers" not in caplog.text
    if unit is None:
        assert Table(path, {"x": None}).classes()["x"]
    else:
        with pytest.raises(UserError, match=f"state multiclass; all values are numbers with '{re.escape(unit)}'"):
            Table(path, {"x": None}).classes()


@pytest.mark.parametrize(
    ("texts", "unit"),
    [
        *((["12 %", "13%"], "%"), (["-$12", "$13.50", "$ 14"], "$"), (["USD 1", "-USD 2"], "USD")),
        *((["12 %", "13 €"], None), (["$12", "12$"], None)),
    ],
)
def test_numbers_with_one_unit_may_be_written_with_and_without_a_space(
    texts: list[str], unit: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    columns = {"x": [texts[i % len(texts)] for i in range(60)], "n": list(range(60)), "y": [i / 3 for i in range(60)]}
    parquet.write_table(pyarrow.table(columns), path := tmp_path / "t.parquet")
    Table(path, {"y": "regression"}).sets()
    assert (f"all values are numbers with {unit!r}: for a number" in caplog.text) == (unit is not None)


def test_what_a_table_says_of_targets_and_features(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    numbers = {"id": range(1001, 1201), "spread": [i * i for i in range(200)], "y": [i % 7 for i in range(200)]}
    labels = {"sold": ["ja", "nein"] * 100, "ill": ["no", "yes"] * 100, "sign": ["-1", "1"] * 100, "bit": [0, 1] * 100}
    parquet.write_table(pyarrow.table({**numbers, **labels}), path := tmp_path / "t.parquet")
    targets: dict[str, Any] = {"y": "regression", **dict.fromkeys(labels, "binary")}
    Table(path, targets).sets()
    assert [record.getMessage() for record in caplog.records] == [
        "Table: target 'sold': yes is 'nein' and no is 'ja', in sorted order; `classes: [\"nein\", \"ja\"]` swaps them",
        "Table: these features have a different whole number in every row, as IDs and times do; name IDs in "
        "leave_out, and a time in time_column: 'id'",
    ]
    caplog.clear()
    Table(path, {"y": None}, features=["spread"]).sets()
    assert [record.getMessage() for record in caplog.records] == [
        "Table: target 'y' has only 7 different numbers and is a regression; state multiclass if they are labels"
    ]
    caplog.clear()
    targets["sold"] = Target("binary", classes=["nein", "ja"])
    Table(path, targets, leave_out=["id"]).sets()
    assert not caplog.records
    parquet.write_table(pyarrow.table({"x": range(60), "y": [19.0] * 30 + [None] * 30}), path)
    with pytest.raises(UserError, match=r"column 'y' has '19\.0' in every row, so there is nothing to learn"):
        Table(path, {"y": "regression"}).tasks()


def test_few_such_numbers_are_categories_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With few different values, numbers with commas may be meant as text, so there is only a warning."""
    options: Any = {"targets": {"y": "regression"}, "delimiter": ";"}
    table = Table(comma_table(tmp_path, x=["0,5", "2,5"] * 100), **options)
    assert table.input_names == ["w", "x=0,5", "x=2,5"]
    assert "column 'x' is text, such as '0,5'; all values look like numbers with the decimal mark ','" in caplog.text
    caplog.clear()
    Table(comma_table(tmp_path, x=["0,5", "2,5"] * 100), categorical=["x"], **options).sets()
    with pytest.raises(UserError, match=r"expected a number$"):
        Table(comma_table(tmp_path, ".parquet", x=MANY), {"x": "regression"}).sets()
    assert "decimals" not in caplog.text


@pytest.mark.parametrize("described", [{"kind": "regression", "unit": "kEUR"}, Regression(1)])
def test_a_target_that_is_described_by_another_object_is_refused(described: Any) -> None:
    targets: Any = {"y": described}
    with pytest.raises(UserError, match=r"^Table targets: y: expected a kind, .*, such as Target\('regression', unit="):
        Table("t.csv", targets)
