"""A run that is resumed with other options says so, refuses what would make it another run, and claims nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_meta.cli import main
from lightning_meta.errors import UserError
from lightning_meta.run import read_checkpoint
from lightning_meta.run.differences import differences
from lightning_meta.run.record import KEY
from tests.run.test_resume import MODEL
from tests.run.toys import ToyModule

SMALL = ["--data.length=4", "--trainer.max_steps=4", "--model.optimizer=torch.optim.Adam", "--model.optimizer.lr=0.1"]
RATE = "--model.optimizer.lr=0.02"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 4 steps; tests work on copies."""
    folder = tmp_path_factory.mktemp("original")
    assert main(["fit", *MODEL, *SMALL, f"--runs={folder}"]) == 0
    return folder


@pytest.fixture
def runs(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "runs"))


def resume(runs: Path, *options: str, path: str | Path = "last") -> int:
    return main(["fit", *MODEL, *SMALL, f"--runs={runs}", f"--ckpt_path={path}", *options])


def content(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def results(runs: Path, version: int = 0) -> dict[str, Any]:
    return json.loads((runs / "toy" / str(version) / "results.json").read_text())


def configuration(runs: Path, version: int = 0) -> dict[str, Any]:
    return yaml.safe_load((runs / "toy" / str(version) / "config.yaml").read_text())


def last(runs: Path, version: int = 0) -> dict[str, Any]:
    return read_checkpoint(runs / "toy" / str(version) / "checkpoints" / "last.ckpt")


def rate(runs: Path, version: int = 0) -> float:
    return last(runs, version)["optimizer_states"][0]["param_groups"][0]["lr"]


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    return said


MEANING = {
    "learning rate": ([RATE], "model.optimizer.lr 0.1 -> 0.02"),
    "weight decay": (["--model.optimizer.weight_decay=0.5"], "model.optimizer.weight_decay 0.0 -> 0.5"),
    "model": (["--model.nan_at=90"], "model.nan_at -1 -> 90"),
    "data": (["--data.length=5"], "data.length 4 -> 5"),
    "monitor": (
        ["--checkpoint.monitor=val/other", "--checkpoint.mode=max"],
        "checkpoint.monitor val/accuracy -> val/other",
    ),
    "mode": (["--checkpoint.mode=min"], "checkpoint.mode max -> min"),
    "precision": (["--trainer.precision=bf16-mixed"], "trainer.precision null -> bf16-mixed"),
    "clipping": (["--trainer.gradient_clip_val=0.5"], "trainer.gradient_clip_val null -> 0.5"),
    "accumulation": (["--trainer.accumulate_grad_batches=2"], "trainer.accumulate_grad_batches 1 -> 2"),
    "part of the data": (["--trainer.limit_train_batches=2"], "trainer.limit_train_batches null -> 2"),
}
IMPOSSIBLE = {
    "optimizer": (["--model.optimizer=torch.optim.SGD", RATE], "model.optimizer torch.optim.Adam -> torch.optim.SGD"),
    "seed": (["--seed_everything=1"], "seed_everything 0 -> 1"),
    "precision of weights": (["--trainer.precision=64-true"], "trainer.precision null -> 64-true"),
    "steps already done": (["--trainer.max_steps=3"], "is at step 4 already, got 3"),
    "architecture": (["--model.backbone=torch.nn.Identity"], "start a new run"),
    "name": (["--name=other"], "--name other"),
}


@pytest.mark.parametrize("case", [*MEANING, *IMPOSSIBLE])
def test_another_run_is_refused_and_stays_as_it_was(case: str, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options, expected = {**MEANING, **IMPOSSIBLE}[case]
    before = content(runs)
    allowed = ["--allow_changes"] if case in IMPOSSIBLE else []
    capsys.readouterr()
    assert resume(runs, "--trainer.max_steps=6", *options, *allowed, path=runs / "toy" / "0") == 2
    said = one_line(capsys)
    assert expected in said
    assert ("--allow_changes" in said) == (case in MEANING)
    assert content(runs) == before


@pytest.mark.parametrize("case", [case for case in MEANING if case != "monitor"])
def test_what_is_allowed_is_used_and_noted(case: str, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options, expected = MEANING[case]
    assert resume(runs, "--trainer.max_steps=6", *options, "--allow_changes") == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("resumed")]
    assert len(said) == 1
    assert f"changed by --allow_changes: {expected}; changed: trainer.max_steps 4 -> 6" in said[0]
    changes = results(runs)["resumes"]
    assert [set(resumed) for resumed in changes] == [{"step", "changes"}]
    assert changes[0]["step"] == 4
    assert list(changes[0]["changes"]) == [expected.split()[0]]
    text = (runs / "toy" / "0" / "config.yaml").read_text()
    assert f"# From step 4 on: {expected}\n" in text
    assert last(runs)[KEY]["options"]["trainer"]["max_steps"] == 6
    again = content(runs)
    assert resume(runs, "--trainer.max_steps=6", *options) == 0  # it is the run's own option by now
    assert results(runs)["resumes"] == changes
    assert content(runs).keys() == again.keys()


def test_a_new_rate_is_that_of_a_run_that_always_had_it(runs: Path, tmp_path: Path) -> None:
    more = ["--trainer.max_steps=9", RATE, "--model.optimizer.weight_decay=0.3"]  # the schedule steps at 7
    assert resume(runs, *more, "--allow_changes") == 0
    assert main(["fit", *MODEL, *SMALL, *more, f"--runs={tmp_path / 'whole'}"]) == 0
    found, expected = (last(folder) for folder in (runs, tmp_path / "whole"))
    assert rate(runs) == pytest.approx(0.018)
    groups = [checkpoint["optimizer_states"][0]["param_groups"] for checkpoint in (found, expected)]
    assert groups[0] == groups[1]
    assert found["lr_schedulers"][0]["base_lrs"] == expected["lr_schedulers"][0]["base_lrs"] == [0.02]
    state = found["optimizer_states"][0]["state"][0]
    assert state["step"] == 9  # what Adam had gathered stayed


def test_harmless_differences_take_effect_and_are_listed_once(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stopping = [
        "--trainer.callbacks+=EarlyStopping",
        "--trainer.callbacks.monitor=val/accuracy",
        "--trainer.callbacks.mode=max",
    ]
    options = ["--trainer.max_steps=8", "--trainer.log_every_n_steps=1", "--checkpoint.every_n_steps=7", *stopping]
    assert resume(runs, *options) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("resumed")]
    for expected in (
        "at step 4; changed: ",
        "trainer.max_steps 4 -> 8",
        "trainer.log_every_n_steps 50 -> 1",
        "trainer.callbacks null -> ['lightning.pytorch.callbacks.EarlyStopping']",
        "checkpoint.every_n_steps 500 -> 7",
    ):
        assert expected in line
    assert results(runs)["steps"] == 8
    assert "resumes" not in results(runs)
    assert configuration(runs)["trainer"]["max_steps"] == 8


def test_a_new_patience_takes_effect(runs: Path) -> None:
    stopping = [
        "--trainer.callbacks+=EarlyStopping",
        "--trainer.callbacks.monitor=val/accuracy",
        "--trainer.callbacks.mode=max",
    ]
    stopping += ["--trainer.callbacks.min_delta=100"]
    assert resume(runs, "--trainer.max_steps=8", *stopping, "--trainer.callbacks.patience=50") == 0
    assert resume(runs, "--trainer.max_steps=80", *stopping, "--trainer.callbacks.patience=2") == 0
    assert results(runs)["steps"] < 80


def test_the_same_options_say_that_nothing_has_changed(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert resume(runs) == 0
    assert "at step 4; nothing has changed" in capsys.readouterr().err


@pytest.mark.parametrize("harm", ["edited", "missing", "damaged", "copied"])
def test_the_checkpoint_says_the_options_whatever_became_of_the_file(
    harm: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, checkpoint = runs / "toy" / "0" / "config.yaml", runs / "toy" / "0" / "checkpoints" / "last.ckpt"
    if harm == "edited":
        config.write_text(config.read_text().replace("lr: 0.1", "lr: 0.02"))
    elif harm == "missing":
        config.unlink()
    elif harm == "damaged":
        config.write_text("model: [")
    else:
        checkpoint = Path(shutil.copy(checkpoint, tmp_path / "somewhere.ckpt"))
    before = content(tmp_path)
    capsys.readouterr()
    assert resume(runs, "--trainer.max_steps=6", RATE, path=checkpoint) == 2
    assert "model.optimizer.lr 0.1 -> 0.02" in one_line(capsys)
    assert content(tmp_path) == before
    assert resume(runs, "--trainer.max_steps=6", path=checkpoint) == 0
    version = 1 if harm == "copied" else 0
    assert rate(runs, version) == configuration(runs, version)["model"]["init_args"]["optimizer"]["init_args"]["lr"]
    noted = [resumed["checkpoint"] for resumed in results(runs, version).get("resumes", [])]
    assert noted == ([str(checkpoint)] if harm == "copied" else [])


def test_a_checkpoint_that_no_run_wrote_cannot_be_compared(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = last(runs)
    del checkpoint[KEY]
    checkpoint["callbacks"] = {}
    alone = runs.parent / "alone.ckpt"
    torch.save(checkpoint, alone)
    capsys.readouterr()
    assert resume(runs, path=alone) == 2
    assert "is at step 4 already, got 4; give 5 or more" in one_line(capsys)
    assert resume(runs, "--trainer.max_steps=5", path=alone) == 0
    assert "could not be compared: the options (the checkpoint was not written by `fit`)" in capsys.readouterr().err


def test_the_class_paths_of_an_earlier_version_are_no_difference() -> None:
    new = {"class_path": "lightning_meta.MAML", "init_args": {"inner_lr": 0.1}}
    old = {"class_path": "lightning_meta.meta.maml.MAML", "init_args": {"inner_lr": 0.1}}
    assert differences({"model": old}, {"model": new}) == []


KEPT = {
    "in the test": (["--trainer.limit_val_batches=0", "--checkpoint.monitor=null"], "test_step"),
    "in a validation": (["--checkpoint.every_n_steps=1"], "validation_step"),
    "of a callback": (
        ["--checkpoint.every_n_steps=1", "--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/foo"],
        "",
    ),
    "before a checkpoint": ([], "validation_step"),
}


@pytest.mark.parametrize("case", KEPT)
def test_what_was_trained_and_written_outlives_a_mistake(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise UserError("a mistake")

    options, step = KEPT[case]
    if step:
        monkeypatch.setattr(ToyModule, step, refuse)
    assert main(["fit", *MODEL, *SMALL, f"--runs={tmp_path}", *options]) == 2
    if case == "before a checkpoint":
        assert not (tmp_path / "toy").exists()
    else:
        assert last(tmp_path)["global_step"] > 0


def test_a_mistake_in_a_training_step_is_none_of_the_checkpoint(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("a mistake")

    monkeypatch.setattr(ToyModule, "training_step", fail)
    with pytest.raises(ValueError, match="a mistake"):
        resume(runs, "--trainer.max_steps=6")


def test_the_state_of_an_optimizer_that_does_not_fit_is_one_line(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = last(runs)
    checkpoint["optimizer_states"][0]["state"][0]["exp_avg"] = torch.zeros(3, 3)
    torch.save(checkpoint, runs / "toy/0/checkpoints/last.ckpt")
    assert resume(runs, "--trainer.max_steps=6") == 2
    assert "cannot be resumed: what it holds does not fit this run" in capsys.readouterr().err


@pytest.mark.parametrize("moment", ["training_step", "test_step"])
def test_what_was_not_used_is_not_claimed(moment: str, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    before = content(runs)
    with monkeypatch.context() as patch:
        patch.setattr(ToyModule, moment, killed)
        with pytest.raises(SystemExit, match="130"):
            resume(runs, "--trainer.max_steps=6", RATE, "--allow_changes")
    config, said = runs / "toy/0/config.yaml", runs / "toy/0/results.json"
    if moment == "training_step":  # nothing was trained with the new rate
        assert before[str(config)] == config.read_bytes()
        assert before[str(said)] == said.read_bytes()
        assert resume(runs, "--trainer.max_steps=6") == 0
        assert rate(runs) == 0.1
    else:  # the old results are not those of the new weights
        assert configuration(runs)["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.02
        assert not said.exists()
        assert resume(runs, "--trainer.max_steps=6", RATE) == 0
        assert results(runs)["steps"] == 6
    assert not list(runs.rglob("*before_resume*.json"))


def test_the_best_begins_anew_under_another_rule(runs: Path) -> None:
    assert resume(runs, "--checkpoint.mode=min", "--allow_changes") == 0  # no step left, so no validation
    assert results(runs)["checkpoint"] == "checkpoints/last.ckpt"
    assert configuration(runs)["checkpoint"]["mode"] == "min"


def test_the_time_is_that_of_all_processes(runs: Path) -> None:
    file = runs / "toy/0/checkpoints/last.ckpt"
    checkpoint = read_checkpoint(file)
    checkpoint[KEY]["seconds"] = 1000.0
    torch.save(checkpoint, file)
    assert resume(runs) == 0
    assert results(runs)["wall_time_s"] > 1000


def test_any_seed_is_the_run_s_own_in_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    any_seed = ["fit", *MODEL, *SMALL, f"--runs={tmp_path}", "--seed_everything=true"]
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert main(any_seed) == 0
    seed = results(tmp_path)["seed"]
    monkeypatch.setenv("PL_GLOBAL_SEED", "8")
    assert main([*any_seed, "--ckpt_path=last", "--trainer.max_steps=6"]) == 0
    assert results(tmp_path)["seed"] == seed


def test_a_checkpoint_that_lightning_finds_by_itself_is_compared(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lightning.pytorch.trainer.connectors import checkpoint_connector

    monkeypatch.chdir(runs)
    shutil.copy(runs / "toy/0/checkpoints/last.ckpt", runs / "hpc_ckpt_1.ckpt")  # as a job leaves it that is requeued
    monkeypatch.setattr(checkpoint_connector, "SLURMEnvironment", type("Found", (), {"detect": lambda: True}))
    assert main(["fit", *MODEL, *SMALL, f"--runs={runs}", RATE]) == 2
    assert "model.optimizer.lr 0.1 -> 0.02" in capsys.readouterr().err
    assert not (runs / "toy" / "1").exists()


def test_a_damaged_record_is_one_line(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = runs / "toy/0/checkpoints/last.ckpt"
    checkpoint = read_checkpoint(file)
    nested: list[Any] = []
    for _ in range(40):
        nested = [nested, nested]  # 2^40 values in a small file
    records: dict[str, Any] = {"empty": [], "options": {"options": 3}, "resumes": {"resumes": [1]}}
    records["nested"] = {"options": {"x": nested}}
    for name, record in records.items():
        torch.save({**checkpoint, KEY: record}, file)
        capsys.readouterr()
        assert resume(runs) == 2
        line = one_line(capsys)
        if name == "nested":
            assert "is refused: it holds more than" in line
        else:
            assert "is damaged: its record of the run cannot be read" in line


EPISODES = [
    "--model=MAML",
    "--model.backbone=MLP",
    "--model.backbone.hidden=[4]",
    "--data=EpisodicDataModule",
    "--data.source=Sinusoid",
    *("--data.val_tasks=1", "--data.test_tasks=2", "--data.meta_batch_size=1"),
    "--checkpoint.monitor=val/loss",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.max_steps=1",
    "--name=episodes",
]
TABLE = [
    "--model=MultiHead",
    "--model.backbone=MLP",
    "--model.backbone.hidden=[4]",
    "--data=MultiTaskDataModule",
    "--data.source=Table",
    "--data.source.targets={b: regression}",
    "--checkpoint.monitor=val/loss",
    "--checkpoint.mode=min",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.max_steps=2",
    "--name=table",
]


def test_other_examples_and_another_division_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.csv"
    rows = ["a,b", *(f"{i},{i % 7}" for i in range(80))]
    file.write_text("\n".join(rows))
    options = ["fit", *TABLE, f"--data.source.path={file}", f"--runs={tmp_path / 'runs'}"]
    assert main(options) == 0
    capsys.readouterr()
    assert main([*options, "--ckpt_path=last", "--data.source.seed=1"]) == 2
    said = one_line(capsys)
    for expected in ("data.source.seed 0 -> 1", "examples.train", "examples.val", "examples.test"):
        assert expected in said
    file.write_text("\n".join([*rows[:-1], "79,6"]))  # the same options, and one label is another
    assert main([*options, "--ckpt_path=last"]) == 2
    said = one_line(capsys)
    assert "trained with other options: examples." in said
    file.write_text("\n".join(rows))
    moved = Path(shutil.copy(file, tmp_path / "moved.csv"))  # the same rows elsewhere
    assert main([*options, "--ckpt_path=last", f"--data.source.path={moved}", "--trainer.max_steps=3"]) == 0
    said = capsys.readouterr().err
    assert "; changed: trainer.max_steps 2 -> 3, data.source.path " in said
    assert "rows.csv -> " in said
    assert "moved.csv" in said


def test_long_values_are_told_apart() -> None:
    folder = "/a/long/folder" * 20
    (found,) = differences({"runs_of": f"{folder}/rows.csv"}, {"runs_of": f"{folder}/moved.csv"})
    assert str(found) == f"runs_of ...{folder[-19:]}/rows.csv -> ...{folder[-19:]}/moved.csv"
    (found,) = differences({"x": "a" * 200}, {"x": "b" * 200})
    assert str(found) == f"x {'a' * 77}... -> {'b' * 77}..."


def test_an_option_that_is_no_more_or_not_given_any_more_has_its_default() -> None:
    old = {"class_path": "tests.run.toys.ToyModule", "init_args": {"nan_at": 3, "gone": 1}}
    found = differences({"model": old}, {"model": {**old, "init_args": {}}})
    assert [(str(d), d.kind) for d in found] == [
        ("model.nan_at 3 -> -1", "meaning"),
        ("model.gone 1 -> null", "meaning"),
    ]


def test_an_option_that_only_sets_the_first_weights_cannot_change() -> None:
    """A class names its own; of another class an option of that name is no such option."""
    old = {"class_path": "lightning_meta.CrossStitch", "init_args": {"own": 0.9}}
    (found,) = differences({"model": old}, {"model": {**old, "init_args": {"own": 0.5}}})
    assert (found.kind, found.option) == ("impossible", "model.own")
    other = {"class_path": "lightning_meta.MultiHead", "init_args": {"own": 0.9}}
    (found,) = differences({"model": other}, {"model": {**other, "init_args": {"own": 0.5}}})
    assert found.kind == "meaning"
