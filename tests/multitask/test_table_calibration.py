"""How sure a model of a table is: sets, abstention and intervals as numpy computes them, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.optimize import minimize_scalar

import lightning_meta as lm
from lightning_meta.cli.calibrating import read_table_calibration
from lightning_meta.cli.main import main
from lightning_meta.errors import UserError
from lightning_meta.functional.conformal import hierarchical_quantile
from lightning_meta.multitask.calibration import (
    LabelCalibration,
    NumberCalibration,
    TableCalibration,
    coverage_of,
    fewest_labels,
)
from lightning_meta.nn import MLP
from tests.multitask import coverage_simulation
from tests.multitask.test_table_predictions import FEATURES, fit, houses, read, table, write

QUIET = "--trainer.enable_progress_bar=false"
ROWS = houses(240)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a table and a run that was trained on it."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make = lambda inputs: lm.MultiHead(MLP(inputs, (8,)), optimizer=partial(torch.optim.Adam, lr=0.02))  # noqa: E731
        fit(table(write(folder / "houses.csv", ROWS)), make, epochs=4)
        write(folder / "houses.csv", ROWS)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the trained run in the working directory, which a test may change."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    config = tmp_path / "runs" / "run" / "0" / "config.yaml"
    config.write_text(config.read_text().replace(str(trained), str(tmp_path)))
    monkeypatch.chdir(tmp_path)
    return Path("runs/run/0")


def predicted(run: Path, split: str, task: str) -> tuple[Any, list[Any]]:
    """The uncalibrated predictions for the labelled rows of a split, and their labels."""
    rows = [row for row in ROWS if row["split"] == split and row[task] is not None]
    return lm.load(run).predict_table({name: [row[name] for row in rows] for name in FEATURES}), [r[task] for r in rows]


def kth(scores: Any, coverage: float) -> float:
    return float(np.sort(scores)[int(np.ceil((len(scores) + 1) * coverage - 1e-9)) - 1])


def test_the_command_learns_from_validation_rows_and_predict_writes_sets_and_intervals(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["test", "--ckpt_path", str(run), "--calibrate", "0.8", QUIET]) == 0
    said = capsys.readouterr().out
    assert f"written to {run / 'calibration_table.json'}" in said
    assert "for 80 % of rows or more" in " ".join(said.split())
    stored = json.loads((run / "calibration_table.json").read_text())
    held_out = [row for row in ROWS if row["split"] == "test"]
    write(Path("new.csv"), held_out, leave_out=("price", "sold", "grade", "split"))
    assert main(["predict", "--ckpt_path", str(run), "--table", "new.csv", "--calibrated", "--batch_size", "7"]) == 0
    assert "labels, for which no class is probable enough (columns abstained)" in capsys.readouterr().out
    written = read("predictions.csv")
    plain = lm.load(run).predict_table("new.csv", batch_size=7)
    assert list(written[0]) == [
        *("row", "price [kEUR]", "lower(price) [kEUR]", "upper(price) [kEUR]"),
        *("sold", "set(sold)", "abstained(sold)", "p(sold=no)", "p(sold=yes)"),
        *("grade", "set(grade)", "abstained(grade)", "p(grade=A)", "p(grade=B)", "p(grade=C)"),
    ]
    for name, value in plain.items():
        if not name.startswith("p("):  # predictions are those without a calibration
            assert [type(value[0])(row[name]) for row in written] == list(value)

    found, wanted = predicted(run, "val", "price")
    radius = kth(np.abs(found["price [kEUR]"] - wanted), 0.8)
    assert stored["tasks"]["price"] == {"labels": len(wanted), "radius": pytest.approx(radius, rel=1e-6)}
    for row in written:
        price, ends = float(row["price [kEUR]"]), [float(row[f"{end}(price) [kEUR]"]) for end in ("lower", "upper")]
        assert ends == pytest.approx([price - radius, price + radius], rel=1e-9)
    found, wanted = predicted(run, "test", "price")
    inside = np.mean(np.abs(found["price [kEUR]"] - wanted) <= radius)
    measured = stored["measured"]["test"]
    of_numbers, _, of_classes = said.partition("Calibrated on")[0].partition("in the set")
    assert "interval width" in " ".join(of_numbers.split())
    assert f"{2 * radius:.3g} kEUR" in of_numbers  # widths and sizes of sets are not in one table
    assert "sold" not in of_numbers
    assert "price" not in of_classes
    expected = {"labels": len(wanted), **_wilson(inside, len(wanted)), "coverage": inside, "width": 2 * radius}
    assert measured["price"] == pytest.approx(expected, abs=1e-4)

    for task, classes in (("sold", ["no", "yes"]), ("grade", list("ABC"))):
        found, wanted = predicted(run, "val", task)
        of_task = stored["tasks"][task]
        p, y = _probabilities(found, task, classes), np.array([classes.index(label) for label in wanted])
        of_label = p[np.arange(len(y)), y]
        assert of_task["labels"] == len(y) < 60  # missing labels are skipped
        assert of_task["quantile"] == pytest.approx(kth(1 - of_label, 0.8), abs=1e-6)
        assert of_task["threshold"] == pytest.approx(1 - kth(1 - p.max(1), 0.8), abs=1e-6)
        smoothed = np.full(p.shape, 1 / (len(y) + 2) / (len(classes) - 1))
        smoothed[np.arange(len(y)), y] = (len(y) + 1) / (len(y) + 2)
        loss = lambda beta, p=p, t=smoothed: -(t * np.log(_sharper(p, np.exp(beta)))).sum()  # noqa: E731
        assert of_task["temperature"] == pytest.approx(np.exp(-minimize_scalar(loss).x), rel=1e-3)
        p = _probabilities(plain, task, classes)
        expected = _sharper(p, 1 / of_task["temperature"])
        for row, probable, tempered in zip(written, p, expected, strict=True):
            inside = [c for c, value in zip(classes, probable, strict=True) if 1 - value <= of_task["quantile"] + 1e-6]
            assert json.loads(row[f"set({task})"]) == inside
            assert row[f"abstained({task})"] == str(max(probable) < of_task["threshold"] - 1e-6).lower()
            assert [float(row[f"p({task}={c})"]) for c in classes] == pytest.approx(list(tempered), abs=1e-5)
        found, wanted = predicted(run, "test", task)
        p, y = _probabilities(found, task, classes), np.array([classes.index(label) for label in wanted])
        sets, kept = 1 - p <= of_task["quantile"] + 1e-6, p.max(1) >= of_task["threshold"] - 1e-6
        right, inside = p.argmax(1) == y, sets[np.arange(len(y)), y].mean()
        figures = {"labels": len(y), "coverage": inside, **_wilson(inside, len(y)), "set_size": sets.sum(1).mean()}
        figures |= {"accuracy": right.mean(), "abstained": 1 - kept.mean(), "accuracy_of_rest": right[kept].mean()}
        assert measured[task] == pytest.approx(figures, abs=1e-5)
        interval = f"{100 * figures['coverage_low']:.1f}, {100 * figures['coverage_high']:.1f}"
        assert f"{stored['tasks'][task]['labels']}, {len(y)} " in said
        assert f"{100 * inside:.1f} [{interval}] %" in said


def _wilson(share: float, count: int) -> dict[str, float]:
    interval = stats.binomtest(round(share * count), count).proportion_ci(0.95, "wilson")
    return {"coverage_low": interval.low, "coverage_high": interval.high}


def test_without_test_labels_there_is_no_coverage() -> None:
    assert coverage_of(torch.zeros(0, dtype=torch.bool))["coverage_low"] is None
    one = coverage_of(torch.ones(3, dtype=torch.bool))
    assert (one["coverage"], one["coverage_high"]) == (1, 1)
    assert one["coverage_low"] == pytest.approx(_wilson(1, 3)["coverage_low"], abs=1e-6)


def _probabilities(found: Any, task: str, classes: list[str]) -> Any:
    return np.stack([found[f"p({task}={c})"] for c in classes], 1).astype(float)


def _sharper(p: Any, beta: float) -> Any:
    powers = p**beta
    return powers / powers.sum(1, keepdims=True)


@pytest.mark.slow
def test_what_does_not_fit_is_refused_in_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(Path("new.csv"), ROWS[:3], leave_out=("price", "sold", "grade", "split"))
    file = run / "calibration_table.json"

    def refused(said: str, *args: str) -> None:
        capsys.readouterr()
        assert main(list(args)) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert said in error
        assert not Path("predictions.csv").exists()

    predict = ("predict", "--ckpt_path", str(run), "--table", "new.csv", "--calibrated")
    calibrate = ("test", "--ckpt_path", str(run), QUIET, "--calibrate")
    command = f"run `lightning-meta test --ckpt_path {run} --calibrate 0.9`"
    refused(f"--calibrated: {run} is not calibrated; {command}", *predict)
    refused("--calibrate: 0.99 needs 99 labels of a task in the validation split, and", *calibrate, "0.99")
    refused("--calibrate: a share above 0 and below 1", *calibrate, "1")
    refused("--importance: --calibrate does not test", *calibrate, "0.9", "--importance")
    refused("--ways: lightning_meta.MultiTaskDataModule has no test_ways", *calibrate, "0.9", "--ways=2")
    swapped = {"train": "val", "val": "train", "test": "test"}
    write(Path("houses.csv"), [{**row, "split": swapped[row["split"]]} for row in ROWS])
    refused("--data: its table has other features than that of training, or is divided", *calibrate, "0.9")
    write(Path("houses.csv"), ROWS)
    assert not file.exists()
    assert main([*calibrate, "0.9"]) == 0
    text, model = json.loads(file.read_text()), lm.load(run)
    damages: list[dict[str, Any]] = [
        {"tasks": {**text["tasks"], "price": {"labels": 9, "radius": float("nan")}}},
        {"tasks": {**text["tasks"], "sold": text["tasks"]["price"]}},
        {"tasks": {"price": text["tasks"]["price"]}},
        {"coverage": 2},
        {"tasks": []},
    ]
    for changed in damages:
        file.write_text(json.dumps({**text, **changed}))
        with pytest.raises(UserError, match="is not a calibration, or it is damaged"):
            read_table_calibration(str(run), model)
    file.write_text(json.dumps({**text, "weights": "none of these"}))
    refused("was made with other weights; calibrate again by `lightning-meta test", *predict)
    shutil.copy(run / "checkpoints" / "best.ckpt", "alone.ckpt")
    refused("--calibrated: alone.ckpt is not in a run directory", *predict[:2], "alone.ckpt", *predict[3:])


def test_a_quantile_is_finite_from_the_fewest_labels_on() -> None:
    for coverage in (0.5, 0.75, 0.8, 0.9, 0.95, 0.99, 0.3, 0.9999, 0.99995):
        least = fewest_labels(coverage)
        assert least == pytest.approx(max(1, np.ceil(coverage / (1 - coverage) - 1e-6)))
        sizes = range(max(1, least - 3), least + 3)
        finite = [bool(hierarchical_quantile(torch.rand(n, 1), 1 - coverage) < torch.inf) for n in sizes]
        assert finite == [n >= least for n in sizes]


def test_nine_labels_that_are_all_predicted_right_do_not_make_the_model_certain() -> None:
    labels = torch.arange(9) % 2
    logits = torch.linspace(1, 3, 9)[:, None] * torch.nn.functional.one_hot(labels, 2)
    p = LabelCalibration.of(0.9, logits, labels).probabilities(logits).amax(1)
    assert p.min() < 10 / 11 < p.max() < 0.99


def test_each_row_has_the_calibration_of_its_own_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The task of a row is named by a column; predictions are made in Python."""
    monkeypatch.chdir(tmp_path)
    rows = [row for row in ROWS if row["price"] is not None]
    for row in rows[1::3]:
        row["price"] *= 2  # another spread
    path = write(tmp_path / "houses.csv", rows)
    options: dict[str, Any] = {"targets": {"price": "regression"}, "task_column": "town"}
    data = lm.MultiTaskDataModule(table(path, **options), seed=0)
    data.setup("fit")
    assert data.spec is not None
    module = lm.MultiHead(MLP(len(table(path, **options).input_names), (8,)), tasks=data.spec)
    calibration, measured = lm.calibrate_table(module, data, coverage=0.75, accelerator="cpu")
    assert set(calibration.tasks) == set(measured) == {"town 0", "town 1", "town 2"}
    new = {name: [row[name] for row in rows[:30]] for name in (*FEATURES, "town")}
    found = module.predict_table(new, calibration=calibration)
    assert list(found) == ["town", "price", "lower(price)", "upper(price)"]
    radii = [calibration.tasks[town].radius for town in found["town"]]  # type: ignore[union-attr]
    assert len(set(radii)) == 3
    np.testing.assert_allclose(found["upper(price)"] - found["lower(price)"], 2 * np.array(radii), rtol=1e-5)
    other = TableCalibration(0.9, {"town 0": NumberCalibration(9, 1.0)})
    with pytest.raises(UserError, match="calibration: it has no task 'town 1'"):
        module.predict_table(new, calibration=other)
    with pytest.raises(UserError, match=r"coverage: 0\.99 needs 99 labels of a task in the validation split"):
        lm.calibrate_table(module, data, coverage=0.99, accelerator="cpu")
    norm = torch.nn.BatchNorm1d(len(table(path, **options).input_names), track_running_stats=False)
    with pytest.raises(UserError, match=r"module: backbone .* has no running statistics, so predictions depend on"):
        lm.calibrate_table(lm.MultiHead(norm, tasks=data.spec), data, accelerator="cpu")
    module.tasks = replace(data.spec, table=None)
    with pytest.raises(UserError, match="was not trained on a"):
        lm.calibrate_table(module, data)


def test_a_task_with_too_few_labels_does_not_keep_the_others_from_being_calibrated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [dict(row) for row in ROWS]
    for row in [row for row in rows if row["split"] == "val"][7:]:
        row["grade"] = None
    run = lm.fit(lm.Linear(), lm.MultiTaskDataModule(table(write(tmp_path / "houses.csv", rows))), max_epochs=1)
    command = ["test", "--ckpt_path", str(run.directory), QUIET, "--calibrate", "0.9"]
    assert main(command) == 0
    (said,) = [message for message in caplog.messages if message.startswith("calibration: ")]
    assert "1 of 3 tasks have fewer than the 9 validation labels" in said
    assert re.search(r"no set or interval: 'grade' [0-7]$", said)
    new = write(tmp_path / "new.csv", rows[:9], leave_out=("price", "sold", "grade", "split"))
    assert main(["predict", "--ckpt_path", str(run.directory), "--table", str(new), "--calibrated"]) == 0
    header = Path("predictions.csv").read_text().splitlines()[0]
    assert "grade" in header.split(",")
    assert "set(sold)" in header
    assert "lower(price)" in header
    assert "set(grade)" not in header


@pytest.mark.parametrize("kind", ["regression", "multiclass"])
def test_rows_of_a_task_that_is_not_calibrated_have_no_set_or_interval(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    target = "price" if kind == "regression" else "grade"
    rows = [row for row in ROWS if row[target] is not None]
    small = [row for row in rows if row["split"] == "val" and row["town"] == "town 1"]
    rows = [row for row in rows if row not in small[5:]]
    source = table(write(tmp_path / "houses.csv", rows), targets={target: kind}, task_column="town")
    run = lm.fit(lm.Linear(), lm.MultiTaskDataModule(source), max_epochs=1)
    assert main(["test", "--ckpt_path", str(run.directory), QUIET, "--calibrate", "0.9"]) == 0
    new = write(tmp_path / "new.csv", rows[:30], leave_out=(target, "split"))
    assert main(["predict", "--ckpt_path", str(run.directory), "--table", str(new), "--calibrated"]) == 0
    column = "lower(price)" if kind == "regression" else "set(grade)"
    cells = [(row["town"], row[column]) for row in read(Path("predictions.csv"))]
    assert {town for town, cell in cells if not cell} == {"town 1"}
    assert {town for town, cell in cells if cell} == {"town 0", "town 2"}
    header = Path("predictions.csv").read_text().splitlines()[0]
    for town in ("town 0", "town 1"):  # the columns do not depend on the rows
        of_town = [row for row in rows[:30] if row["town"] == town]
        write(new, of_town, leave_out=(target, "split"))
        predict = ["predict", "--ckpt_path", str(run.directory), "--table", str(new), "--calibrated", "--overwrite"]
        assert main(predict) == 0
        assert Path("predictions.csv").read_text().splitlines()[0] == header
        assert [bool(row[column]) for row in read(Path("predictions.csv"))] == [town == "town 0"] * len(of_town)


def test_new_groups_may_be_covered_less(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [row | {"street": i // 5} for i, row in enumerate(ROWS) if row["price"] is not None]
    source = table(
        write(tmp_path / "houses.csv", rows), targets={"price": "regression"}, group_column="street", split_column=None
    )
    data = lm.MultiTaskDataModule(source)
    data.setup("fit")
    module = lm.MultiHead(MLP(len(source.input_names), (8,)), tasks=data.spec)
    lm.calibrate_table(module, data, coverage=0.75, accelerator="cpu")
    assert "divided by its group_column" in caplog.text


@pytest.mark.slow
def test_sets_and_intervals_hold_new_labels_within_a_point(tmp_path: Path) -> None:
    """1000 labels of each target, the mean of five divisions; the same rows chose the checkpoint."""
    found = []
    for seed in range(5):
        (tmp_path / str(seed)).mkdir()
        found.append(coverage_simulation.simulated(seed, 1000, tmp_path / str(seed)))
    for calibrated_by in (0, 1):
        for name in coverage_simulation.KINDS:
            assert np.mean([each[calibrated_by][name] for each in found]) == pytest.approx(0.9, abs=0.01)
