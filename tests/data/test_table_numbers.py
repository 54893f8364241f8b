"""Numbers of a table keep their digits: ids, targets, features, and what is predicted and measured."""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import parquet

from lightning_meta.batches import SPLITS
from lightning_meta.data import MultiTaskDataModule
from lightning_meta.errors import UserError
from lightning_meta.multitask import MultiHead
from lightning_meta.run.results import write_report
from lightning_meta.sources import Table, Target
from lightning_meta.tasks import Regression

BIG = 2**53
TYPES = {"csv": None, "int64": pyarrow.int64(), "uint64": pyarrow.uint64(), "dictionary": pyarrow.int64()}


def write(folder: Path, kind: str, **columns: Sequence[Any]) -> Path:
    """A table in a file; `kind` is that of the column `id`."""
    if kind == "csv":
        with (folder / "t.csv").open("w", newline="") as file:
            csv.writer(file).writerows([columns, *zip(*columns.values(), strict=True)])
        return folder / "t.csv"
    arrays = {n: pyarrow.array(v, TYPES[kind] if n == "id" else None) for n, v in columns.items()}
    if kind == "dictionary":
        arrays["id"] = arrays["id"].dictionary_encode()
    parquet.write_table(pyarrow.table(arrays), folder / "t.parquet")
    return folder / "t.parquet"


def ids(kind: str, count: int = 160) -> list[int]:
    """Eight ids that float64 merges to five, in turn."""
    first = 2**63 if kind == "uint64" else -BIG - 7 if kind == "int64" else BIG
    return [first + i % 8 for i in range(count)]


@pytest.mark.parametrize("kind", TYPES)
def test_ids_that_float64_merges_stay_apart(tmp_path: Path, kind: str) -> None:
    users = ids(kind)
    path = write(tmp_path, kind, id=users, a=[i % 7 for i in range(160)], y=[i / 3 for i in range(160)])
    names = [str(user) for user in sorted(set(users))]
    of_tasks = Table(path, {"y": "regression"}, task_column="id")
    assert list(of_tasks.tasks()) == names
    for number, name in enumerate(names):
        found = torch.cat([of_tasks.sets()[split].targets[name] for split in SPLITS])
        rows = [i for i, user in enumerate(users) if str(user) == name]
        assert sorted(found.flatten().tolist()) == [row / 3 for row in rows], number
    assert Table(path, {"y": "regression"}, categorical=["id"]).input_names[:8] == [
        f"id={name}" for name in sorted(names)
    ]
    assert Table(path, {"id": "multiclass"}, ["a"]).classes() == {"id": names}
    assert Table(path, {"id": Target(classes=sorted(set(users)))}, ["a"]).classes() == {"id": names}
    grouped = Table(path, {"y": "regression"}, ["a"], group_column="id")
    groups = [{users[round(3 * y)] for y in grouped.sets()[s].targets["y"].flatten().tolist()} for s in SPLITS]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 8


def test_an_id_that_some_rows_miss_keeps_its_digits(tmp_path: Path) -> None:
    """Missing values make a column of integers one of float64 in pandas, and in Arrow's own NumPy arrays."""
    known = [None if i % 5 == 4 else BIG + 2 * i + 1 for i in range(100)]
    path = write(tmp_path, "int64", id=known, y=[i / 3 for i in range(100)])
    source = Table(path, {"id": "regression"}, ["y"])
    found = [t for s in SPLITS for t in source.sets()[s].targets["id"].flatten().tolist()]
    assert sorted(found) == [v for v in known if v is not None]


@pytest.mark.parametrize("kind", ["csv text", "float64", "float32"])
def test_ids_that_have_lost_digits_before_are_refused(tmp_path: Path, kind: str) -> None:
    users = [BIG + i % 8 for i in range(40)]
    y = [i / 3 for i in range(40)]
    if kind == "csv text":
        path = write(tmp_path, "csv", id=[str(float(user)) for user in users], y=y)
    else:
        typed = pyarrow.array(np.array(users, kind))
        parquet.write_table(pyarrow.table({"id": typed, "y": y}), path := tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"column 'id', row 1 .*is '9.*may be rounded; use whole numbers or text"):
        Table(path, {"y": "regression"}, task_column="id").tasks()
    Table(path, {"y": "regression"}, ["id"]).sets()  # as a feature they are numbers like others


@pytest.mark.parametrize("kind", ["csv", "int64"])
def test_a_feature_far_from_0_tells_rows_apart(tmp_path: Path, kind: str) -> None:
    times = [1_700_000_000_000_000_000 + 10 * i for i in range(100)]  # nanoseconds; float64 has steps of 256
    source = Table(write(tmp_path, kind, id=times, y=[i / 3 for i in range(100)]), {"y": "regression"}, ["id"])
    found: dict[float, float] = {}
    for split in SPLITS:
        data = source.sets()[split]
        assert isinstance(data.inputs, torch.Tensor)
        found |= zip(data.targets["y"].flatten().tolist(), data.inputs.flatten().tolist(), strict=True)
    steps = np.diff([found[y] for y in sorted(found)])
    np.testing.assert_allclose(steps, steps[0], rtol=1e-4)


@pytest.mark.parametrize(("first", "step"), [(1_700_000_000, 10), (1_700_000_000.25, 0.5), (2**60, 1)])
def test_targets_predictions_and_errors_keep_their_digits(tmp_path: Path, first: float, step: float) -> None:
    targets = [first + step * i for i in range(300)]
    data = MultiTaskDataModule(
        Table(write(tmp_path, "csv", a=range(300), y=targets), {"y": "regression"}), batch_size=64, seed=0
    )
    data.setup("fit")
    assert data.spec is not None
    assert sorted(t for s in SPLITS for t in data.sets[s].targets["y"].flatten().tolist()) == targets
    task = data.spec.tasks["y"]
    assert isinstance(task, Regression)
    torch.manual_seed(0)
    module = MultiHead(torch.nn.Sequential(torch.nn.Flatten()), tasks=data.spec)
    module.configure_model()
    train = data.sets["train"]
    x = train.inputs
    assert isinstance(x, torch.Tensor)
    z = task.standardised(train.targets["y"], torch.float32)
    slope = float((x * z).sum() / (x * x).sum())  # the line that fits: standardised inputs to standardised targets
    with torch.no_grad():
        head = next(m for m in module.heads.modules() if isinstance(m, torch.nn.Linear))
        head.weight.fill_(slope)
        head.bias.zero_()
    predicted = module.predict("y", x).flatten()
    wanted = train.targets["y"].flatten()
    precision = max(1e-3 * step, 2.0**-52 * first)
    assert float((predicted - wanted).abs().max()) <= 1.01 * precision + step * 1e-3
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    (logged,) = L.Trainer(accelerator="cpu", **quiet).test(module, datamodule=data, verbose=False)[:1]
    assert logged["test/mae/y"] <= precision + step * 1e-3
    assert logged["test/r2/y"] == pytest.approx(1, abs=1e-5)
    write_report(tmp_path, module.test_report)
    stored = np.load(tmp_path / "predictions.npz")
    test = data.sets["test"].targets["y"].flatten()
    assert stored["target"][:, 0].tolist() == [float(t) for t in test.tolist()]


def rows(count: int = 60, **changed: Mapping[int, float]) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {"a": [i % 7 + 0.5 for i in range(count)], "b": list(range(count))}
    columns |= {"y": [i / 3 for i in range(count)], "split": [SPLITS[i // (count // 3)] for i in range(count)]}
    for name, cells in changed.items():
        for row, value in cells.items():
            columns[name][row] = value
    return columns


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"a": {50: 1e39}}, r"column 'a', row 51 \(line 52 of the file\) is '1e\+39': after scaling it is larger"),
        ({"a": {3: 1e200}}, r"column 'a', row .* is .*: after scaling"),
        ({"a": {3: float("inf")}}, r"column 'a', row 4 \(line 5 of the file\) is 'inf': expected a finite number"),
        ({"b": {i: 1e-320 * (i % 2) for i in range(60)}}, r"column 'b', row .* is .*: the column varies too little"),
        ({"y": {3: 1e200}}, r"task 'y': the spread of the targets is more or less than float64 holds; scale them"),
    ],
)  # fmt: skip
def test_numbers_that_overflow_are_named(tmp_path: Path, changed: Any, message: str) -> None:
    path = write(tmp_path, "csv", **rows(**changed))
    with pytest.raises(UserError, match=message):
        MultiTaskDataModule(Table(path, {"y": "regression"}, split_column="split")).setup("fit")


def test_large_numbers_that_are_alike_are_standardised(tmp_path: Path) -> None:
    path = write(tmp_path, "csv", a=[1e39 * (i + 1) for i in range(60)], y=[i / 3 for i in range(60)])
    x = Table(path, {"y": "regression"}).sets()["train"].inputs
    assert isinstance(x, torch.Tensor)
    assert float(x.mean()) == pytest.approx(0, abs=1e-6)
    assert float(x.std(correction=0)) == pytest.approx(1, abs=1e-5)


def test_a_feature_that_never_changed_in_training_moves_nothing_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The weight of such an input was never trained: another number in a test row would be multiplied by chance."""
    columns = rows(a={i: 2020 + (i >= 40) for i in range(60)})
    country = ["NL" if i < 40 else "BE" for i in range(60)]
    columns |= {"country": country, "or_missing": [None if i == 3 else c for i, c in enumerate(country)]}
    with caplog.at_level(logging.WARNING, "lightning_meta"):
        source = Table(write(tmp_path, "csv", **columns), {"y": "regression"}, split_column="split")
        inputs = [source.sets()[split].inputs for split in SPLITS]
    assert all(isinstance(x, torch.Tensor) and not x[:, 0].any() and x[:, 1].any() for x in inputs)
    assert [r.getMessage() for r in caplog.records] == [
        "Table: these columns are constant in the training rows, so their inputs are always 0: 'a'",
        "Table: these columns have the same text in all training rows, so nothing is learned from them: 'country'",
    ]


def test_dates_are_text_and_booleans_numbers(tmp_path: Path) -> None:
    days = np.datetime64("2026-01-01") + np.arange(60) % 6
    flags = [bool(i % 2) for i in range(60)]
    columns: dict[str, Any] = {"day": days, "flag": flags, "n": range(60), "y": [i / 3 for i in range(60)]}
    parquet.write_table(pyarrow.table(columns), path := tmp_path / "t.parquet")
    spelled = write(tmp_path, "csv", **{**columns, "day": [str(day) for day in days]})
    names = sorted({str(day) for day in days})
    for file in (path, spelled):
        assert list(Table(file, {"y": "regression"}, ["flag"], task_column="day").tasks()) == names
        assert Table(file, {"y": "regression"}, ["day", "n"]).input_names[:-1] == [f"day={name}" for name in names]
        assert [type(t).__name__ for t in Table(file, {"flag": "binary"}, ["y"]).tasks().values()] == ["Binary"]
        with pytest.raises(UserError, match=r"column 'day', row 1 .*is '2026-01-01': expected a number"):
            Table(file, {"day": "regression"}, ["y"]).tasks()
    assert Table(path, {"y": "regression"}, ["flag"]).input_names == ["flag"]


@pytest.mark.parametrize("zone", [None, "UTC"])
def test_the_text_of_a_time_does_not_depend_on_its_unit(tmp_path: Path, zone: str | None) -> None:
    times = np.datetime64("2026-01-31T12:00:00", "s") + 6 * 3600 * (np.arange(60) % 4)  # the third is midnight
    inputs = []
    for unit in ("s", "ms", "us", "ns"):
        column = pyarrow.array(times).cast(pyarrow.timestamp(unit)).cast(pyarrow.timestamp(unit, zone))
        columns = {"when": column, "n": list(range(60)), "y": [i / 3 for i in range(60)]}
        parquet.write_table(pyarrow.table(columns), path := tmp_path / f"{unit}.parquet")
        inputs.append(Table(path, {"y": "regression"}).input_names)
        clock = pyarrow.table({**columns, "when": pyarrow.array(times).cast("time64[ns]")})
        parquet.write_table(clock, path := tmp_path / "clock.parquet")
        assert Table(path, {"y": "regression"}).input_names[2] == "when=12:00:00"  # after 00:00:00 and 06:00:00
    texts = ["2026-01-31 12:00:00", "2026-01-31 18:00:00", "2026-02-01", "2026-02-01 06:00:00"]
    if zone is not None:
        texts = [f"{text}{' 00:00:00' * (len(text) == 10)}+00:00" for text in texts]
    assert inputs[0] == [*(f"when={text}" for text in texts), "n"]
    assert inputs == [inputs[0]] * 4


def test_an_accelerator_without_float64_takes_what_float32_can_hold(tmp_path: Path) -> None:
    path = write(
        tmp_path, "csv", a=range(60), y=[1_700_000_000.25 + i for i in range(60)], z=[0.1 * i for i in range(60)]
    )
    near = Table(path, {"z": "regression"}, ["a"]).sets()["train"].without_float64()
    assert near.targets["z"].dtype == torch.float32
    with pytest.raises(UserError, match=r"task 'y': this accelerator has no float64.*subtract a constant"):
        Table(path, {"y": "regression"}, ["a"]).sets()["train"].without_float64()
