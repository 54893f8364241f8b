"""Weights & Biases, online: wandb's own client against a stand-in of the service, which vanishes and comes back."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch import Callback

from tests.test_cli import MAML
from tests.waiting import LIMIT
from tests.wandb_files import Stored
from tests.wandb_service import HISTORY, Page, Service, State

pytest.importorskip("wandb")
pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
GATE = "--trainer.callbacks+=tests.test_wandb_online.Gate"
PATIENT = {"WANDB_FINISH_TIMEOUT": str(LIMIT), "WANDB_INIT_TIMEOUT": str(LIMIT), "WANDB_X_SERVICE_WAIT": str(LIMIT)}
SOON = {**PATIENT, "WANDB_FINISH_TIMEOUT": "5", "WANDB_HTTP_TIMEOUT": "5"}  # wandb itself would try for a week
STEPS = [1, 3, 5, 7]


class Gate(Callback):
    """Holds training as a step begins until the test lets it go on, by two files in the working directory.

    A third one, `closing`, appears when the run begins to wait for W&B.
    """

    def __init__(self, step: int = 4) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            run = trainer.loggers[1].experiment
            run.finish = _announced(run.finish)
            Path("reached").touch()
            while not Path("go").is_file():
                time.sleep(0.02)


def _announced(finish: Callable[..., None]) -> Callable[..., None]:
    def announce(**options: Any) -> None:
        Path("closing").touch()
        finish(**options)

    return announce


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.chdir(tmp_path)
    tmp_path.joinpath("maml.yaml").write_text(yaml.safe_dump(MAML))
    with Service() as up:
        yield up


def started(service: Service, *words: str, env: Mapping[str, str] = PATIENT) -> Any:
    """A process of a module that knows the service, and nothing else of the user's W&B."""
    others = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    env = {**others, **service.env, "WANDB_SILENT": "true", "PYTHONPATH": str(ROOT), **env}
    with Path("out").open("w") as out:
        return subprocess.Popen(
            [sys.executable, "-m", *words],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
        )


def fit(service: Service, *options: str, env: Mapping[str, str] = PATIENT) -> Any:
    """A run that has begun."""
    logged = ["--config=maml.yaml", "--trainer.logger=WandbLogger"]
    return started(service, "lightning_meta", "fit", *logged, *options, env=env)


def ended(process: Any, status: int = 0) -> str:
    """The stderr of a process that ends with a given status."""
    try:
        _, err = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
    assert process.returncode == status, err
    return err


def held(service: Service, *options: str, env: Mapping[str, str] = SOON) -> Any:
    """A run that is held before step 4, when the service has what came before."""
    process = fit(service, GATE, *options, env=env)
    service.wait(lambda: process.poll() is not None or Path("reached").is_file())
    service.wait(lambda: process.poll() is not None or 3 in the_page(service).steps())
    return process


def the_page(service: Service) -> Page:
    (page,) = service.pages.values()
    return page


def told_to_sync(said: str) -> list[str]:
    """The command of the one line that tells how to complete the page; a folder is its last word."""
    (line,) = [line for line in said.splitlines() if "wandb sync" in line]
    return re.findall(r"`(wandb sync .+)`", line)[0].split()


def sync(service: Service, command: list[str]) -> None:
    """Do as told, when the service is back."""
    service.become("down")
    service.become("up")
    ended(started(service, *command))


def assert_whole(page: Page, steps: list[int] = STEPS) -> None:
    """Everything of `runs/maml/0` is on the page, once."""
    assert page.steps() == steps
    assert page.exit_code == 0
    results = json.loads(Path("runs/maml/0/results.json").read_text())
    tested = {k: v for k, v in results.items() if k.startswith("test/")}
    assert {"test/mse", "test/mse_ci95"} <= tested.keys()
    assert {k: page.summary[k] for k in tested} == pytest.approx(tested)
    (header, *_) = csv.reader(Path("runs/maml/0/metrics.csv").read_text().splitlines())
    assert set(header) - {"step"} <= {name for row in page.history for name in row}
    assert {"figures/training", "figures/tasks"} <= page.summary.keys()
    config = yaml.safe_load(Path("runs/maml/0/config.yaml").read_text())
    stored = {k: v["value"] for k, v in page.config.items() if k not in ("_wandb", "git_revision")}
    assert stored == {**config, "ckpt_path": stored["ckpt_path"]}


def test_a_run_and_its_resumption_are_one_page(service: Service) -> None:
    model = "--trainer.logger.init_args.log_model=true"
    ended(fit(service, "--trainer.max_steps=4", model))
    first = the_page(service)
    assert_whole(first, [1, 3])
    ended(fit(service, "--ckpt_path=last", model))
    assert_whole(the_page(service))
    assert (first.first["project"], first.first["displayName"]) == ("lightning_meta", "maml/0")
    assert service.artifacts.keys() == {"model", "run_table"}
    assert {a["alias"] for a in service.artifacts["model"]["aliases"]} == {"best", "latest"}
    assert first.summary["per_task"]["nrows"] == 20


@pytest.mark.parametrize("state", ["error", "hang"])  # down: in a resumed run, below
def test_the_service_vanishes_in_training(state: State, service: Service) -> None:
    process = held(service, "--trainer.logger.init_args.log_model=true")
    service.become(state)
    Path("go").touch()
    said = ended(process)
    assert the_page(service).exit_code is None
    command = told_to_sync(said)
    stored = Stored(Path(command[-1]))
    assert [row["trainer/global_step"] for row in stored.history if "train/loss" in row] == STEPS
    assert (stored.exit_code, stored.run.run_id) == (0, next(iter(service.pages)))
    assert {"per_task.csv", "checkpoints/best.ckpt"} <= set(stored.files)
    sync(service, command)
    assert_whole(the_page(service))
    for name in ("per_task.csv", "checkpoints/best.ckpt"):
        assert the_page(service).files[name] == Path("runs/maml/0", name).read_bytes()


@pytest.mark.parametrize("when", ["start", "middle"])
def test_the_service_vanishes_in_a_resumed_run(when: str, service: Service) -> None:
    ended(fit(service, "--trainer.max_steps=4"))
    before = the_page(service).history
    if when == "start":
        service.become("down")
        process = fit(service, "--ckpt_path=last", env={"WANDB_INIT_TIMEOUT": "5"})
    else:
        process = fit(service, "--ckpt_path=last", GATE, "--trainer.callbacks.step=6", env=SOON)
        service.wait(lambda: 5 in the_page(service).steps())
        service.become("down")
        Path("go").touch()
    sync(service, told_to_sync(ended(process)))
    assert_whole(the_page(service))
    assert the_page(service).history[: len(before)] == before


@pytest.mark.parametrize("state", ["down", "deaf"])
def test_a_short_outage_leaves_no_trace(state: State, service: Service) -> None:
    process = held(service, env=PATIENT)
    service.become(state)
    Path("go").touch()
    service.wait(lambda: process.poll() is not None or Path("runs/maml/0/results.json").is_file())
    service.become("up")
    assert "sync" not in ended(process)
    assert_whole(the_page(service))
    assert len(the_page(service).stream[HISTORY]) == len(the_page(service).history)


def test_stopped_in_an_outage(service: Service) -> None:
    process = held(service)
    service.become("hang")
    process.send_signal(signal.SIGTERM)
    Path("go").touch()
    said = ended(process, 143)
    assert "--ckpt_path" in said
    stored = Stored(Path(told_to_sync(said)[-1]))
    assert stored.exit_code != 0
    assert [row["trainer/global_step"] for row in stored.history if "train/loss" in row] == [1, 3]


def test_impatient_at_the_end_of_a_run(service: Service) -> None:
    process = held(service, env={**SOON, "WANDB_FINISH_TIMEOUT": "60"})  # which wandb's own process waits for yet
    service.become("hang")
    Path("go").touch()
    service.wait(lambda: process.poll() is not None or Path("closing").is_file())
    process.send_signal(signal.SIGINT)
    assert told_to_sync(ended(process, 130))
    assert Path("runs/maml/0/results.json").is_file()


def test_a_sweep_and_its_agent(service: Service, tmp_path: Path) -> None:
    rates = [0.1, 0.001]
    sweep = {
        "program": str(ROOT / "scripts" / "fit.py"),
        "method": "random",
        "metric": {"name": "val/mse", "goal": "minimize"},
        "parameters": {"model.init_args.inner_lr": {"values": rates}},
        "command": [
            "${env}",
            sys.executable,
            "${program}",
            "--config=maml.yaml",
            "--trainer.logger=WandbLogger",
            "${args}",
        ],
    }
    tmp_path.joinpath("sweep.yaml").write_text(yaml.safe_dump(sweep))
    ended(started(service, "wandb", "sweep", "--project", "lightning_meta", "sweep.yaml"))
    assert yaml.safe_load(service.sweeps["sweep0"]["config"]) == sweep
    service.points = [{"model.init_args.inner_lr": rate} for rate in rates]
    ended(started(service, "wandb", "agent", "me/lightning_meta/sweep0"))
    pages = [service.pages[f"point{i}"] for i in range(2)]
    for rate, page in zip(rates, pages, strict=True):
        assert (page.first["sweep"], page.first["project"], page.exit_code) == ("sweep0", "lightning_meta", 0)
        assert page.config["model"]["value"]["init_args"]["inner_lr"] == rate
        assert page.config["model.init_args.inner_lr"]["value"] == rate
        assert "val/mse" in page.summary
        assert page.steps() == STEPS
