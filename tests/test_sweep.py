"""Sweeps: by the code of W&B's agents, and on this machine by Optuna."""

from __future__ import annotations

import csv
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_meta.cli import main
from lightning_meta.cli.sweep.file import read_sweep
from lightning_meta.run.directory import is_held
from tests.sweep_toy import ended, started
from tests.test_cli import MAML, TOY
from tests.waiting import wait_for
from tests.wandb_files import stored_in

ROOT = Path(__file__).parents[1]
SWEEPS = sorted(ROOT.glob("configs/sweeps/*.yaml"))
SPACE: dict[str, Any] = {
    "program": "scripts/fit.py",
    "method": "random",
    "metric": {"name": "val/mse", "goal": "minimize"},
    "parameters": {
        "model.init_args.inner_lr": {"distribution": "log_uniform_values", "min": 0.001, "max": 0.1},
        "model.init_args.inner_steps": {"values": [1, 2]},
    },
    "command": ["${env}", "python", "${program}", "--config=maml.yaml", "${args}"],
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name, content in (("maml", MAML), ("toy", TOY), ("space", SPACE)):
        tmp_path.joinpath(f"{name}.yaml").write_text(yaml.safe_dump(content))
    return tmp_path


SOON = {"HEARTBEAT": 1, "STALE": 3}  # seconds


def trials(name: str = "sweep_space") -> list[dict[str, str]]:
    return list(csv.DictReader(Path(f"runs/{name}/trials.csv").read_text().splitlines()))


def agent_command(file: Path, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], Any]:
    """The command line and the environment that W&B's agent makes of a point of a sweep."""
    wandb_agent = pytest.importorskip("wandb.wandb_agent")
    content = yaml.safe_load(file.read_text())
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep123")
    monkeypatch.setenv("WANDB_SWEEP_PARAM_PATH", "")  # the agent sets it in this process, and leaves it
    started: list[tuple[list[str], Any]] = []

    class Process:
        last_sigterm_time = None

        def __init__(self, env: Any, command: list[str], forward_signals: Any = None) -> None:
            started.append((command, dict(env)))

    monkeypatch.setattr(wandb_agent, "AgentProcess", Process)
    agent = object.__new__(wandb_agent.Agent)
    agent.__dict__ |= {"_in_jupyter": False, "_sweep_command": content["command"], "_function": None}
    agent.__dict__ |= {"_forward_signals": False, "_run_processes": {}}
    args = {name: {"value": value} for name, value in values.items()}
    agent._command_run({"args": args, "run_id": "run456", "program": content["program"]})
    return started[0]


def a_point(file: Path) -> dict[str, Any]:
    """One value for each parameter."""
    return {name: p.values[-1] if p.values else p.low for name, p in read_sweep(file).parameters.items()}


def is_set(config: Any, name: str, value: Any) -> bool:
    """Whether an option in its short form, `model.inner_lr`, has this value in a configuration."""
    section, _, argument = name.partition(".")
    found = config[section]["init_args"][argument]
    return bool(found == value or found["class_path"].endswith(f".{value}"))


@pytest.mark.parametrize("form", ["short", "long"])
@pytest.mark.parametrize("file", SWEEPS, ids=lambda f: f.stem)
def test_every_shipped_sweep_expands_to_a_command_that_fit_takes(
    file: Path, form: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    point = a_point(file)
    if form == "long":
        point = {name.replace(".", ".init_args.", 1): value for name, value in point.items()}
    command, _ = agent_command(file, point, monkeypatch)
    assert command[0] == "/usr/bin/env"
    assert command[2] == "scripts/fit.py"
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit, match="0"):
        main(["fit", *command[3:], "--print_config"])
    config = yaml.safe_load(capsys.readouterr().out)
    for name, value in a_point(file).items():
        assert is_set(config, name, value)
    monitor = config["checkpoint"]["monitor"]
    assert read_sweep(file).metric == monitor
    assert not [option for option in read_sweep(file).options if "logger" in option]  # here it runs without W&B


@pytest.mark.slow
@pytest.mark.parametrize("name", [file.stem for file in SWEEPS])
def test_an_agents_run_keeps_its_sweep_and_its_values(name: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    file = ROOT / "configs" / "sweeps" / f"{name}.yaml"
    command, env = agent_command(file, a_point(file), monkeypatch)
    env |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    few = ["--data.meta_batches_per_epoch=2", "--data.val_tasks=4", "--data.test_tasks=4"]
    few = few if name != "multi_head_glyphs" else ["--trainer.limit_val_batches=2", "--trainer.limit_test_batches=2"]
    few += [
        "--trainer.max_steps=4",
        "--trainer.limit_train_batches=2",
        f"--runs={folder / 'runs'}",
        "--trainer.enable_progress_bar=false",
    ]
    env["WANDB_SWEEP_PARAM_PATH"] = str(Path(env["WANDB_SWEEP_PARAM_PATH"]).absolute())
    done = subprocess.run([*command, *few], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (page,) = stored_in(folder / "runs" / name / "0")
    assert (page.run.run_id, page.run.sweep_id) == ("run456", "sweep123")
    assert read_sweep(file).metric in page.summary
    for parameter, value in a_point(file).items():
        assert is_set(page.config, parameter, value)


def test_what_every_trial_would_be_refused_for_is_said_before_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "--config", "space.yaml", "--trials", "2", "--trainer.max_stepz=6"]) == 2
    assert "did you mean --trainer.max_steps?" in capsys.readouterr().err
    values = {"parameters": {"model.init_args.inner_stepz": {"values": [1, 2]}}}
    Path("typo.yaml").write_text(yaml.safe_dump({**SPACE, **values}))
    assert main(["sweep", "--config", "typo.yaml", "--trials", "2"]) == 2
    assert "inner_stepz: there is no such option of MAML" in capsys.readouterr().err
    assert not Path("runs").exists()


@pytest.mark.slow
def test_a_search_goes_on_where_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("optuna")
    assert main(["sweep", "--config", "space.yaml", "--trials", "2", "--trainer.max_steps=6"]) == 0
    assert Path("runs/sweep_space/trial_1/0/results.json").read_text().count('"steps": 6')
    before = trials()
    assert [t["state"] for t in before] == ["complete"] * 2
    assert main(["sweep", "--config", "space.yaml", "--trials", "3"]) == 2
    assert "a sweep with --trainer.max_steps 6, not none; give" in capsys.readouterr().err
    assert main(["sweep", "--config", "space.yaml", "--trials", "3", "--trainer.max_steps", "6"]) == 0
    assert trials()[:2] == before
    assert len(trials()) == 3
    said = capsys.readouterr().out
    best = min(trials(), key=lambda t: float(t["val/mse"]))
    assert f"the best run: runs/sweep_space/trial_{best['trial']}/0" in said
    stored = yaml.safe_load(Path(f"runs/sweep_space/trial_{best['trial']}/0/config.yaml").read_text())
    assert stored["model"]["init_args"]["inner_lr"] == float(best["model.init_args.inner_lr"])
    rows = csv.DictReader(Path(f"runs/sweep_space/trial_{best['trial']}/0/metrics.csv").read_text().splitlines())
    assert min(float(r["val/mse"]) for r in rows if r["val/mse"]) == float(best["val/mse"])


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["0", "0/checkpoints/last.ckpt"], ids=["early", "after a checkpoint"])
def test_a_killed_sweep_goes_on_with_the_run_that_was_cut_off(moment: str) -> None:
    pytest.importorskip("optuna")
    space = {**SPACE, "method": "grid", "parameters": {"model.init_args.inner_lr": {"values": [0.01, 0.1]}}}
    Path("grid.yaml").write_text(yaml.safe_dump(space))
    options = ("--config", "grid.yaml", "--trainer.max_steps=40")
    place = Path("runs/sweep_grid/trial_0")
    first = started(*options, changed=SOON)
    wait_for((place / moment).exists)
    first.kill()
    ended(first)
    assert ended(started(*options, changed=SOON)) == 0
    assert [t["state"] for t in trials("sweep_grid")] == ["complete"] * 2
    assert sorted(t["model.init_args.inner_lr"] for t in trials("sweep_grid")) == ["0.01", "0.1"]
    assert not (place / "1").exists()
    assert '"steps": 40' in (place / "0" / "results.json").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("stop", "status"), [("terminate", 143), ("kill", -9)])
def test_a_sweep_that_is_ended_ends_its_run_with_a_checkpoint(stop: str, status: int) -> None:
    pytest.importorskip("optuna")
    options = ("--config", "space.yaml", "--trials", "1", "--trainer.max_steps=100000")
    place = Path("runs/sweep_space/trial_0")
    sweep = started(*options)
    wait_for(lambda: list(place.glob("0/metrics.csv")))
    getattr(sweep, stop)()
    assert ended(sweep) == status
    wait_for(lambda: not is_held(place / "0"))
    assert "by SIGTERM" in (place / "log").read_text()
    assert (place / "0" / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.slow
def test_a_trial_that_fails_is_noted_and_one_that_is_refused_ends_the_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("optuna")
    space = {**SPACE, "method": "grid", "metric": {"name": "val/accuracy", "goal": "maximize"}}
    space["parameters"] = {"model.init_args.nan_at": {"values": [5]}}
    space["command"] = ["${program}", "--config=toy.yaml", "${args}"]
    Path("nan.yaml").write_text(yaml.safe_dump(space))
    assert main(["sweep", "--config", "nan.yaml"]) == 0
    assert [t["state"] for t in trials("sweep_nan")] == ["fail"]
    space["parameters"] = {"model.init_args.nan": {"values": [5]}}
    Path("typo.yaml").write_text(yaml.safe_dump(space))
    assert main(["sweep", "--config", "typo.yaml"]) == 2
    assert "nan" in capsys.readouterr().err.strip().splitlines()[-1]


def _inner_lr(**spec: Any) -> dict[str, Any]:
    return {"parameters": {"model.init_args.inner_lr": spec}}


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no sweep": ({"parameters": None}, "is not a sweep"),
    "method": ({"method": "best"}, "expected one of grid, random, bayes"),
    "metric": ({"metric": {"name": "test/mse", "goal": "minimize"}}, "as in {name: val/accuracy, goal: maximize}"),
    "text": ({"parameters": {"model.init_args.inner_lr": {"min": "1e-4", "max": 1}}}, "write 0.0001"),
    "option": ({"parameters": {"modle.lr": {"values": [1]}}}, "fit has no such option"),
    "grid": ({"method": "grid"}, "a grid needs values"),
    "metric as a word": ({"metric": "val/accuracy"}, "as in {name: val/accuracy, goal: maximize}"),
    "metric's target": ({"metric": {"name": "val/mse", "goal": "minimize", "target": 0}}, "target"),
    "no goal": ({"metric": {"name": "val/mse"}}, "as in {name: val/accuracy, goal: maximize}"),
    "number": ({"parameters": {3: {"values": [1]}}}, "bad.yaml, 3: fit has no such option"),
    "nothing": ({"parameters": {}}, "is not a sweep"),
    "half": (_inner_lr(distribution="int_uniform", min=0.5, max=2.5), "expected whole numbers"),
    "probabilities": (_inner_lr(values=[0.1, 0.2], probabilities=[0.9, 0.1]), "expected value, values, or min and max"),
    "step": (_inner_lr(min=0.1, max=0.2, q=0.01), "expected value, values, or min and max"),
    "normal": (_inner_lr(distribution="normal", mu=0.1, sigma=0.2), "expected value, values, or min and max"),
    "range of values": (_inner_lr(values=[0.1], distribution="uniform"), "expected value, values, or min and max"),
    "twice": (_inner_lr(values=[1, 0.1, 1.0]), "expected different numbers, texts or booleans, got [1, 0.1, 1.0]"),
    "null": (_inner_lr(value=None), "numbers, texts or booleans, got [None]"),
    "endless": (_inner_lr(min=0.1, max=float("inf")), "a larger max"),
    "cap": ({"run_cap": 3}, "got ['run_cap']"),
    "checkpoint": ({"command": ["${program}", "--ckpt_path=last", "${args}"]}, "differs for each run"),
    "early": ({"early_terminate": {"type": "hyperband"}}, "got ['early_terminate']"),
    "command": ({"command": ["python", "fit.py"]}, "${program}"),
}


@pytest.mark.slow
def test_threads_of_a_sweep_are_those_of_its_runs() -> None:
    command = ["sweep", "--config", "space.yaml", "--trials", "1", "--threads", "1"]
    assert main(command) == 0
    assert len(trials()) == 1


def test_what_a_sweep_sets_is_not_set_beside_it(capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--model.init_args.inner_lr=0.1", "--model.inner_lr=0.1", "--ckpt_path=last"):
        assert main(["sweep", "--config", "space.yaml", "--trials", "1", option]) == 2
        assert "sets this for each trial itself" in capsys.readouterr().err
    assert main(["sweep", "--trials", "1"]) == 2
    assert "--config: name the sweep" in capsys.readouterr().err


@pytest.mark.parametrize("case", BAD)
def test_a_sweep_that_cannot_be_is_refused_in_one_line(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    change, said = BAD[case]
    Path("bad.yaml").write_text(yaml.safe_dump({**SPACE, **change}))
    assert main(["sweep", "--config", "bad.yaml", "--trials", "1"]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert said in line
    assert not Path("runs").exists()


@pytest.mark.parametrize("logger", [["--trainer.logger=WandbLogger"], ["--trainer.logger", "WandbLogger"]])
def test_loggers_are_left_out_as_one_word_or_two(logger: list[str]) -> None:
    more = ["--trainer.logger.project", "p", "--trainer.logger+=CSVLogger", "--trainer.max_steps", "3"]
    command = ["${program}", "--config", "maml.yaml", *logger, *more, "${args}"]
    Path("loggers.yaml").write_text(yaml.safe_dump({**SPACE, "command": command}))
    assert read_sweep("loggers.yaml").options == ("--config", "maml.yaml", "--trainer.max_steps", "3")


def test_its_help_tells_how_several_gpus_are_used(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["sweep", "--help"])
    assert "CUDA_VISIBLE_DEVICES=1" in capsys.readouterr().out


def table_search(parameters: dict[str, Any], rows: list[str]) -> None:
    """Write the files of a search over a linear model of `table.csv`."""
    Path("table.csv").write_text("\n".join(["a,price", *rows]) + "\n")
    source = {
        "class_path": "lightning_meta.sources.Table",
        "init_args": {"path": "table.csv", "targets": {"price": "regression"}},
    }
    config = {
        "model": {"class_path": "lightning_meta.Linear"},
        "data": {"class_path": "lightning_meta.MultiTaskDataModule", "init_args": {"source": source}},
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False},
        "checkpoint": {"monitor": "val/score"},
    }
    Path("linear.yaml").write_text(yaml.safe_dump(config))
    space = {**SPACE, "parameters": parameters, "method": "grid"}
    space |= {"command": ["${program}", "--config=linear.yaml", "${args}"]}
    space |= {"metric": {"name": "val/score", "goal": "maximize"}}
    Path("space.yaml").write_text(yaml.safe_dump(space))


@pytest.mark.slow
@pytest.mark.parametrize("changed", ["better.csv", "worse.csv"])
def test_a_search_over_tables_does_not_go_on_if_one_of_them_has_changed(
    changed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("optuna")
    files = {"better.csv": 3, "worse.csv": 7}
    for file, noise in files.items():
        rows = [f"{i % 7},{i % 7 + i % noise}" for i in range(100)]
        Path(file).write_text("\n".join(["a,price", *rows]) + "\n")
    table_search({"data.source.path": {"values": list(files)}, "seed_everything": {"values": [1, 2]}}, rows)
    assert main(["sweep", "--config", "space.yaml", "--trials", "3"]) == 0
    Path(changed).write_text("".join(Path(changed).read_text().splitlines(keepends=True)[:80]))
    capsys.readouterr()
    assert main(["sweep", "--config", "space.yaml"]) == 2
    assert "data: they have changed since runs/sweep_space/trial_" in capsys.readouterr().err


@pytest.mark.slow
def test_a_search_does_not_go_on_with_a_table_that_has_changed(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("optuna")
    rows = [f"{i % 7},{i % 7 + i % 3}" for i in range(100)]
    table_search({"seed_everything": {"values": [1, 2]}}, rows)
    assert main(["sweep", "--config", "space.yaml", "--trials", "1"]) == 0
    Path("table.csv").write_text("\n".join(["a,price", *rows[:80]]) + "\n")
    capsys.readouterr()
    assert main(["sweep", "--config", "space.yaml"]) == 2
    said = capsys.readouterr()
    assert "data: they have changed since runs/sweep_space/trial_0/0 was trained on them; give the sweep" in said.err
    assert "remove" not in said.err  # the study would keep the value of the trial
    assert "trial 1" not in said.out
    Path("table.csv").write_text("\n".join(["a,price", *rows]) + "\n")
    assert main(["sweep", "--config", "space.yaml"]) == 0
    assert [row["state"] for row in trials()] == ["complete", "complete"]
