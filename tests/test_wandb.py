"""Weights & Biases, offline, read back from the files that wandb writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch.loggers import WandbLogger

import lightning_meta as lm
from lightning_meta.cli import main
from lightning_meta.run.wandb_logger import WandbRunLogger, _typed
from tests.test_cli import MAML, TOY
from tests.waiting import LIMIT
from tests.wandb_files import Stored, stored_in

wandb = pytest.importorskip("wandb")
LOGGED = "--trainer.logger=WandbLogger"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    wandb.teardown()  # which reads the environment once a process
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name, config in (("maml", MAML), ("toy", TOY)):
        tmp_path.joinpath(f"{name}.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def fit(*options: str, config: str = "maml") -> int:
    return main(["fit", "--config", f"{config}.yaml", LOGGED, *options])


def only(directory: str) -> Stored:
    (stored,) = stored_in(directory)
    return stored


def test_what_a_run_leaves_in_wandb() -> None:
    assert fit("--trainer.logger.init_args.log_model=true") == 0
    page = only("runs/maml/0")
    config = yaml.safe_load(Path("runs/maml/0/config.yaml").read_text())
    assert config == {k: v for k, v in page.config.items() if k not in ("_wandb", "git_revision")}
    assert "git_revision" in page.config  # null here, outside a repository
    results = json.loads(Path("runs/maml/0/results.json").read_text())
    tested = {k: v for k, v in results.items() if k.startswith("test/")}
    assert {"test/mse", "test/mse_ci95"} <= tested.keys()
    assert {k: page.summary[k] for k in tested} == pytest.approx(tested)
    names = {name for row in page.history for name in row}
    assert {"train/loss", "train/mse", "val/mse", "val/mse_ci95", "trainer/global_step"} <= names
    assert {"figures/training", "figures/tasks", "per_task"} <= names
    assert page.summary["per_task"]["nrows"] == 20
    assert [a.type for a in page.artifacts if a.type == "model"] == ["model"]
    assert (page.run.project, page.run.display_name, page.exit_code) == ("lightning_meta", "maml/0", 0)


def test_a_configuration_adds_wandb_to_another() -> None:
    with_wandb = Path(__file__).parents[1] / "configs" / "wandb.yaml"
    assert main(["fit", "--config", str(with_wandb), "--config", "toy.yaml"]) == 0
    page = only("runs/toy/0")
    assert (page.run.project, page.run.display_name) == ("lightning_meta", "toy/0")
    assert [a.type for a in page.artifacts if a.type == "model"] == ["model"]


@pytest.mark.slow
def test_two_runs_of_one_process_have_a_page_each() -> None:
    for _ in range(2):
        assert fit(config="toy") == 0
    first, second = only("runs/toy/0"), only("runs/toy/1")
    assert first.run.run_id != second.run.run_id
    assert [first.run.display_name, second.run.display_name] == ["toy/0", "toy/1"]


def test_a_resumed_run_goes_on_on_its_page() -> None:
    assert fit("--trainer.max_steps=4") == 0
    assert fit("--ckpt_path=last") == 0
    first, second = stored_in("runs/maml/0")
    assert first.run.run_id == second.run.run_id
    steps = [row["trainer/global_step"] for page in (first, second) for row in page.history if "train/loss" in row]
    assert steps == [1, 3, 5, 7]


def test_a_failed_run_is_marked_as_failed() -> None:
    assert fit("--model.nan_at=5", config="toy") == 1
    assert only("runs/toy/0").exit_code == 1


def test_an_explicit_number_of_a_run_and_a_disabled_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    named = [f"--trainer.logger.init_args.{name}" for name in ("id=chosen", "project=mine", "name=me")]
    assert fit(*named, config="toy") == 0
    run = only("runs/toy/0").run
    assert (run.run_id, run.project, run.display_name) == ("chosen", "mine", "me")
    wandb.teardown()  # which reads the environment once a process
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert fit(config="toy") == 0
    assert not stored_in("runs/toy/1")


def test_the_end_of_a_run_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(given: Any = None) -> float:
        logger = WandbRunLogger(settings=given, save_dir=".")
        settings = logger.experiment.settings
        logger.close(0)
        assert settings.finish_timeout_raises
        return settings.finish_timeout

    assert seconds() == 60
    assert seconds({"finish_timeout": 7}) == 7
    assert seconds(wandb.Settings(finish_timeout=8)) == 8
    wandb.teardown()  # which reads the environment once a process
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "9")
    assert seconds() == 9


@pytest.mark.slow
def test_without_the_service_training_goes_on_offline(capsys: pytest.CaptureFixture[str]) -> None:
    env = {**os.environ, "WANDB_MODE": "online", "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "x" * 40}
    command = [sys.executable, "-m", "lightning_meta", "fit", "--config", "maml.yaml", LOGGED]
    done = _run(command, {**env, "WANDB_INIT_TIMEOUT": "3"})
    assert done.returncode == 0, done.stderr
    assert "W&B cannot be reached" in done.stderr
    assert "runs/maml/0/wandb/offline-run-" in done.stderr
    assert only("runs/maml/0").exit_code == 0


@pytest.mark.slow
def test_without_an_account_one_line_says_what_to_do() -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")} | {"HOME": str(Path.cwd())}
    done = _run([sys.executable, "-m", "lightning_meta", "fit", "--config", "maml.yaml", LOGGED], env)
    assert done.returncode == 2
    assert "WANDB_MODE=offline" in done.stderr.strip().splitlines()[-1]
    assert not Path("runs").exists()


def _run(command: list[str], env: dict[str, str]) -> Any:
    root = str(Path(__file__).parents[1])
    env = {**env, "PYTHONPATH": root}
    return subprocess.run(
        command, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False, timeout=LIMIT
    )


def test_the_name_of_a_task_that_is_a_number_keeps_its_digits() -> None:
    assert _typed(["9007199254740993", "0.5", "r2"], 0) == ["9007199254740993", 0.5, "r2"]
    assert _typed(["7", "0.5"], -1) == [7.0, 0.5]  # of episodes, a number


def test_a_run_in_python_has_a_page_of_its_own() -> None:
    data = lm.EpisodicDataModule(lm.sources.Sinusoid(), shots=5, meta_batches_per_epoch=4, val_tasks=4, test_tasks=4)
    options: dict[str, Any] = {"name": "mine", "enable_progress_bar": False, "log_every_n_steps": 2}
    for steps, resume in ((4, None), (8, "last")):
        module, checkpoint = lm.MAML(lm.nn.MLP(hidden=[8]), inner_steps=1), lm.RunCheckpoint("val/mse")
        logger = WandbLogger(offline=True)
        lm.fit(module, data, seed=0, checkpoint=checkpoint, max_steps=steps, resume=resume, logger=logger, **options)
    first, second = stored_in("runs/mine/0")
    assert first.run.run_id == second.run.run_id
    assert (first.run.project, first.run.display_name, first.exit_code) == ("lightning_meta", "mine/0", 0)
    config = yaml.safe_load(Path("runs/mine/0/config.yaml").read_text())
    assert config == {k: v for k, v in second.config.items() if k not in ("_wandb", "git_revision")}
    assert "figures/training" in {name for row in second.history for name in row}
