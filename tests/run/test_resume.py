"""A run that is killed and resumed ends as if it had never stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_meta.cli import main
from lightning_meta.run import read_checkpoint
from tests.run.toys import ToyModule
from tests.waiting import KILL_ROUNDS, LIMIT

ROOT = Path(__file__).parents[2]
MODEL = [
    "--model=tests.run.toys.ToyModule",
    "--model.backbone=torch.nn.Linear",
    "--model.backbone.in_features=5",
    "--model.backbone.out_features=5",
    "--data=tests.run.toys.ToyData",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--name=toy",
]
# Where checkpoints, validations and epochs fall, in steps.
SCHEDULES = {
    "apart": ["--checkpoint.every_n_steps=3", "--data.length=10", "--trainer.val_check_interval=4"],
    "coinciding": ["--checkpoint.every_n_steps=5", "--data.length=5", "--trainer.val_check_interval=5"],
    "across_epochs": [
        "--checkpoint.every_n_steps=4",
        "--data.length=6",
        "--trainer.val_check_interval=4",
        "--trainer.check_val_every_n_epoch=null",
    ],
    "accumulating": [
        "--checkpoint.every_n_steps=2",
        "--data.length=9",
        "--trainer.val_check_interval=3",
        "--trainer.accumulate_grad_batches=2",
    ],
    "every_step": ["--checkpoint.every_n_steps=1", "--data.length=4", "--trainer.val_check_interval=2"],
}


def drive(folder: Path, options: list[str], kills: int, seed: int = 0, events: int = 400, seconds: float = 0.8) -> Path:
    """The run directory of a run that was killed and resumed so many times, in processes of its own."""
    folder.mkdir()
    command = [sys.executable, "-m", "tests.run.kill_driver", str(folder), str(kills), str(seed)]
    command += [str(events), str(seconds), *([] if options[0] == "--config" else MODEL), *options]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    # Into a file: a loader's process whose parent is killed before torch looks for it lives on, and would hold a pipe.
    said = folder / "said"
    with said.open("w") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=output, stderr=output, start_new_session=True)
    try:
        status = process.wait(LIMIT)
    finally:
        with suppress(ProcessLookupError):  # where nothing is left
            os.killpg(process.pid, signal.SIGKILL)
    assert status == 0, said.read_text()[-3000:]
    (run,) = (folder / "runs").glob("*/*")
    return run


def run_in(folder: Path, options: list[str]) -> Path:
    """The run directory of a run in this process; a second one in the same folder resumes it."""
    resumed = ["--ckpt_path=last"] if (folder / "toy").is_dir() else []
    assert main(["fit", *MODEL, f"--runs={folder}", *options, *resumed]) == 0
    (run,) = (folder / "toy").iterdir()
    return run


def fingerprint(run: Path) -> dict[str, Any]:
    """Everything that must be the same, as comparable data."""
    files = {file.name: file.read_text() for file in sorted(run.glob("*.csv"))}
    results = json.loads((run / "results.json").read_text())
    # Nor the commit: tests run while their repository is worked in.
    results = {
        k: v for k, v in results.items() if not k.endswith("time_s") and k not in ("git_revision", "peak_memory_mb")
    }
    checkpoints = {}
    for name in ("best", "last"):
        checkpoint = read_checkpoint(run / "checkpoints" / f"{name}.ckpt")
        checkpoint["quiet_moment"].pop("seconds")
        checkpoint["lightning_meta_run"].pop("seconds")
        checkpoint["lightning_meta_run"]["options"]["trainer"].pop("callbacks", None)  # some stop the run
        checkpoints[name] = {k: checkpoint[k] for k in checkpoint if k not in ("loops", "callbacks")}
    names = sorted(str(file.relative_to(run)) for file in run.rglob("*"))
    return {"names": names, "files": files, "results": results, "checkpoints": plain(checkpoints)}


def plain(value: Any) -> Any:
    """Tensors as bytes, so that == compares bits."""
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), tuple(value.shape), value.numpy().tobytes())
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value


LIMITS = {"steps": ["--trainer.max_steps=23"], "epochs": ["--trainer.max_epochs=3"]}


@pytest.mark.slow
def test_a_killed_run_ends_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    options = [*SCHEDULES["apart"], *LIMITS["steps"], "--trainer.log_every_n_steps=1"]
    whole = drive(tmp_path / "whole", options, kills=0)
    killed = drive(tmp_path / "killed", options, kills=4, seed=0, events=250)
    assert fingerprint(killed) == fingerprint(whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schedule", "limit"),
    [(schedule, limit) for schedule in SCHEDULES for limit in LIMITS if KILL_ROUNDS or limit == "steps"]
    + ([] if KILL_ROUNDS else [("apart", "epochs")]),
)
def test_killed_at_many_random_moments(tmp_path: Path, schedule: str, limit: str) -> None:
    options = [*SCHEDULES[schedule], *LIMITS[limit], "--trainer.log_every_n_steps=1"]
    whole = fingerprint(drive(tmp_path / "whole", options, kills=0))
    kills = 12 if KILL_ROUNDS else 4
    for seed in range(KILL_ROUNDS or 1):
        assert fingerprint(drive(tmp_path / f"killed{seed}", options, kills=kills, seed=seed, events=500)) == whole


FEW = ["--data.val_tasks=8", "--data.test_tasks=8"]
SCRIPTS = ["--data.tasks=[Greek,Armenian,Digit]", "--data.batch_size=4", "--data.train_subset=10"]
WATCHED = ["--trainer.callbacks+=lightning_meta.GradientConflict", "--trainer.callbacks.every_n_steps=4"]
SHIPPED = {
    "protonet_glyphs": [*FEW, "--data.meta_batches_per_epoch=7"],
    "maml_glyphs": [*FEW, "--data.meta_batches_per_epoch=6", "--data.num_workers=2"],
    "maml_sinusoid": [*FEW, "--data.meta_batches_per_epoch=5"],
    "independent_glyphs": [*SCRIPTS, "--data.batches_per_epoch=6", "--data.tasks_per_batch=2"],
    "multi_head_glyphs": [
        *(*SCRIPTS, *WATCHED, "--data.batches_per_epoch=5"),
        "--model.weighting=lightning_meta.weightings.DynamicWeightAverage",
    ],
    "mixture_of_experts_glyphs": [
        *(*SCRIPTS, "--data.batches_per_epoch=7", "--data.tasks_per_batch=2", "--data.num_workers=2"),
        "--model.weighting=lightning_meta.weightings.RandomWeights",
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("config", SHIPPED if KILL_ROUNDS else ["maml_glyphs", "mixture_of_experts_glyphs"])
def test_shipped_methods_killed_at_random_moments(tmp_path: Path, config: str) -> None:
    options = ["--config", str(ROOT / "configs" / f"{config}.yaml"), *SHIPPED[config]]
    options += ["--trainer.max_steps=25", "--checkpoint.every_n_steps=3", "--trainer.log_every_n_steps=1"]
    options += ["--trainer.enable_progress_bar=false", *([] if "sinusoid" in config else ["--model.backbone.width=4"])]
    whole = fingerprint(drive(tmp_path / "whole", options, kills=0))
    killed = drive(tmp_path / "killed", options, kills=8 if KILL_ROUNDS else 3, seed=1, events=400, seconds=8.0)
    assert fingerprint(killed) == whole


def test_a_finished_run_goes_on_with_more_steps(tmp_path: Path) -> None:
    # 15 steps end in the middle of an epoch, 20 at the end of one.
    options = [*SCHEDULES["apart"], "--trainer.log_every_n_steps=1"]
    whole = run_in(tmp_path / "whole", [*options, "--trainer.max_steps=27"])
    for steps in (15, 20, 27):
        parts = run_in(tmp_path / "parts", [*options, f"--trainer.max_steps={steps}"])
    assert (parts / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
    assert fingerprint(parts)["checkpoints"]["last"] == fingerprint(whole)["checkpoints"]["last"]


def test_a_finished_run_that_is_resumed_only_tests_again(tmp_path: Path) -> None:
    options = [*SCHEDULES["apart"], *LIMITS["steps"], "--trainer.log_every_n_steps=1"]
    once = fingerprint(run_in(tmp_path / "run", options))
    assert fingerprint(run_in(tmp_path / "run", options)) == once


def test_early_stopping_is_remembered(tmp_path: Path) -> None:
    stopping = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/accuracy"]
    stopping += ["--trainer.callbacks.mode=max"]
    stopping += ["--trainer.callbacks.patience=1", "--trainer.callbacks.min_delta=100"]
    options = [*SCHEDULES["apart"], "--trainer.max_steps=200", *stopping]
    once = fingerprint(run_in(tmp_path / "run", options))
    assert once["results"]["steps"] < 20
    assert fingerprint(run_in(tmp_path / "run", options)) == once


def test_results_go_as_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The results belong to checkpoints that are about to be replaced."""
    options = [*SCHEDULES["apart"], "--trainer.log_every_n_steps=1"]
    whole = run_in(tmp_path / "whole", [*options, "--trainer.max_steps=27"])
    run = run_in(tmp_path / "run", [*options, "--trainer.max_steps=15"])
    with monkeypatch.context() as patch:
        patch.setattr(ToyModule, "on_train_batch_start", _interrupted, raising=False)
        again = ["fit", *MODEL, f"--runs={tmp_path / 'run'}", *options, "--trainer.max_steps=27", "--ckpt_path=last"]
        with pytest.raises(SystemExit, match="130"):
            main(again)
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] > 15
    assert not (run / "results.json").exists()
    assert main(again) == 0
    assert fingerprint(run) == fingerprint(whole)


def _interrupted(module: ToyModule, batch: Any, batch_idx: int) -> None:
    if module.global_step == 20:
        raise KeyboardInterrupt


def test_a_run_has_its_results_once_all_else_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ladder and a search continue a run that has no `results.json`."""

    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    options = [*SCHEDULES["apart"], "--trainer.max_steps=5"]
    with monkeypatch.context() as patch:
        patch.setattr("lightning_meta.fitting.summary.write_figures", interrupted)
        assert main(["fit", *MODEL, f"--runs={tmp_path}", *options]) == 130
    assert not (tmp_path / "toy" / "0" / "results.json").exists()
    run = run_in(tmp_path, options)
    assert (run / "results.json").is_file()
    assert (run / "figures" / "tasks.png").is_file()


def test_a_picture_that_fails_costs_no_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any) -> None:
        raise RuntimeError("no such glyph")

    monkeypatch.setattr("lightning_meta.fitting.summary.write_figures", fails)
    with pytest.raises(RuntimeError, match="no such glyph"):
        main(["fit", *MODEL, f"--runs={tmp_path}", *SCHEDULES["apart"], "--trainer.max_steps=5"])
    assert json.loads((tmp_path / "toy" / "0" / "results.json").read_text())["steps"] == 5
