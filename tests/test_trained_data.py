"""`test` warns if the data are no longer those of training, which the scores alone would not show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import lightning_meta as lm
from lightning_meta.cli import main
from lightning_meta.errors import UserError
from lightning_meta.fitting.trained_data import warn_of_other_training_data
from lightning_meta.run.checkpoint_io import read_checkpoint
from lightning_meta.run.record import KEY

OPTIONS: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False, "max_steps": 2}
WARNING = "data: the training split is not the one that the model was trained on: "


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(names: str) -> list[str]:
    return [f"{name},{x / 8},{100 * (ord(name) % 5) + 50 * x / 8}" for name in names for x in range(8)]


def pumps(source: type[lm.sources.RegressionTable] = lm.sources.RegressionTable) -> lm.EpisodicDataModule:
    Path("pumps.csv").write_text("\n".join(["pump,x,flow", *rows("abcdefghijkl")]))
    table = source("pumps.csv", targets="flow", task_column="pump")
    return lm.EpisodicDataModule(table, shots=3, queries=3, meta_batches_per_epoch=2, val_tasks=4, test_tasks=4)


def trained() -> Path:
    run = lm.fit(lm.MAML(lm.nn.MLP(1, [8])), pumps(), name="pumps", **OPTIONS)
    assert run.directory is not None
    return run.directory


def said(run: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    capsys.readouterr()
    assert main(["test", f"--ckpt_path={run}", "--trainer.enable_progress_bar=false", *options]) == 0
    return capsys.readouterr().err


def test_a_table_that_has_grown_and_another_division_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    run = trained()
    assert said(run, capsys, "--data.source.seed=3").count(WARNING) == 1
    assert said(run, capsys, "--data.source.seed=3", "--shots=2,3").count(WARNING) == 1
    with Path("pumps.csv").open("a") as file:
        file.write("\n" + "\n".join(rows("mnopqr")))
    assert said(run, capsys).count(WARNING) == 1


def test_other_shots_queries_and_tasks_and_a_file_that_has_moved_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    run = trained()
    moved = Path("pumps.csv").rename("elsewhere.csv")
    options = ["--shots=2", "--queries=5", "--tasks=6", "--data.evaluation_seed=1", f"--data.source.path={moved}"]
    assert WARNING not in said(run, capsys, *options)


def test_a_table_of_several_tasks_that_has_changed_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [f"{x},{x % 7},{2 * x + x % 7},{x // 3 % 2}" for x in range(60)]
    Path("rows.csv").write_text("\n".join(["a,b,first,second", *lines]))
    targets: dict[str, Any] = {"first": "regression", "second": "binary"}
    data = lm.MultiTaskDataModule(lm.sources.Table("rows.csv", targets=targets), batch_size=8)
    run = lm.fit(lm.MultiHead(lm.nn.MLP(2, [8])), data, name="rows", **OPTIONS).directory
    assert run is not None
    assert WARNING not in said(run, capsys)
    Path("rows.csv").write_text("\n".join(["a,b,first,second", *lines, *lines[:20]]))
    assert said(run, capsys).count(WARNING) == 1
    grown = lm.MultiTaskDataModule(lm.sources.Table("rows.csv", targets=targets), batch_size=8)
    with pytest.raises(UserError, match="or is divided in another way"):
        lm.calibrate_table(lm.load(run), grown, accelerator="cpu")


def test_a_calibration_of_a_table_that_is_divided_in_another_way_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """With texts alone, the features of both divisions are equal."""
    lines = [f"{'uvw'[x * 7 % 3]},{'pq'[x % 5 % 2]},{x * 3 % 7 % 2},{x % 40}" for x in range(400)]
    Path("texts.csv").write_text("\n".join(["a,b,y,group", *lines]))

    def divided(seed: int) -> lm.MultiTaskDataModule:
        return lm.MultiTaskDataModule(lm.sources.Table("texts.csv", {"y": "binary"}, seed=seed, group_column="group"))

    run = lm.fit(lm.MultiHead(lm.nn.MLP(5, [8])), divided(0), name="texts", **OPTIONS).directory
    assert run is not None
    for seed, warnings in ((0, 0), (7, 1)):
        caplog.clear()
        lm.calibrate_table(lm.load(run), divided(seed), accelerator="cpu")
        assert caplog.text.count(WARNING) == warnings


def test_a_calibration_on_classes_of_training_is_named(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    lines = [f"{ord(name) + x / 8},{x % 3},{name}" for name in "abcdefghijklmnopqrst" for x in range(8)]
    Path("kinds.csv").write_text("\n".join(["u,v,kind", *lines]))
    source = lm.sources.LabelledTable("kinds.csv", label="kind")
    sizes: dict[str, Any] = {"meta_batches_per_epoch": 2, "val_tasks": 4, "test_tasks": 4}
    data = lm.EpisodicDataModule(source, ways=2, shots=2, queries=3, **sizes)
    run = lm.fit(lm.ProtoNet(lm.nn.MLP(2, [8])), data, name="kinds", **OPTIONS).directory
    assert run is not None
    for seed, warnings in ((source.seed, 0), (3, 1)):
        division = lm.sources.LabelledTable("kinds.csv", label="kind", seed=seed)
        caplog.clear()
        lm.calibrate(
            lm.load(run),
            lm.EpisodicDataModule(division, ways=2, shots=2, queries=3, **sizes),
            tasks=40,
            accelerator="cpu",
        )
        assert caplog.text.count(WARNING) == warnings
    assert WARNING not in said(run, capsys, "--calibrate=0.9", "--tasks=40")
    assert said(run, capsys, "--calibrate=0.9", "--tasks=40", "--data.source.seed=3").count(WARNING) == 1


def test_evaluate_names_them_too(caplog: pytest.LogCaptureFixture) -> None:
    module, other = lm.load(trained()), pumps()
    assert isinstance(other.source, lm.sources.RegressionTable)
    lm.evaluate(module, pumps(), shots=[2, 3], accelerator="cpu")
    assert WARNING not in caplog.text
    other.source.seed = 3
    lm.evaluate(module, other, shots=[2, 3], accelerator="cpu")
    assert caplog.text.count(WARNING) == 1
    caplog.clear()
    lm.fit(module, pumps(), name="more", **OPTIONS)
    lm.evaluate(module, other, accelerator="cpu")
    assert WARNING not in caplog.text  # what it was trained on is no longer known


class Mine(lm.sources.RegressionTable):
    """Another source."""


def test_data_of_another_source_were_chosen_on_purpose(caplog: pytest.LogCaptureFixture) -> None:
    record = read_checkpoint(trained() / "checkpoints" / "best.ckpt")[KEY]
    for source, warns in ((Mine, False), (lm.sources.RegressionTable, True)):
        data = pumps(source)
        data.source.seed = 3  # type: ignore[union-attr]
        data.prepare_data()
        data.setup("test")
        caplog.clear()
        warn_of_other_training_data(record, data)
        assert (WARNING in caplog.text) == warns
