"""`lightning-meta ladder`: every rung with every seed, once, on the same data with the same budget."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_meta.cli import main
from lightning_meta.cli.fit import rehearse
from lightning_meta.cli.ladder import command
from lightning_meta.cli.ladder.command import _data_messages_once
from lightning_meta.errors import UserError
from lightning_meta.run import read_checkpoint
from lightning_meta.sources import table, table_cache
from lightning_meta.sources.table_files import read_columns
from tests.waiting import KILL_ROUNDS, LIMIT, wait_for

ROOT = Path(__file__).parents[1]
LADDER: dict[str, Any] = {
    "seeds": [1, 2],
    "baseline": "plain",
    "shared": {
        "data": {"class_path": "tests.run.toys.ToyData", "init_args": {"length": 5}},
        "trainer": {"max_steps": 12, "accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 5},
        "checkpoint": {"monitor": "val/score", "every_n_steps": 3},
    },
    "model": {"init_args": {"lr": 0.05}},
    "rungs": {
        "plain": {"class_path": "tests.ladder_toys.ToyTasks"},
        "wide": {"class_path": "tests.ladder_toys.WideToyTasks", "init_args": {"width": 8}},
    },
}
RUNS = [("plain", 1), ("wide", 1), ("plain", 2), ("wide", 2)]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    save()
    return tmp_path


def save(**changes: Any) -> None:
    Path("toy.yaml").write_text(yaml.safe_dump({**LADDER, **changes}))


def climb(*options: str) -> int:
    return main(["ladder", "--config", "toy.yaml", *options])


def runs(name: str = "toy") -> dict[tuple[str, int], Path]:
    """The finished runs, by rung and seed."""
    found = {}
    for file in Path("runs", name).glob("*/*/results.json"):
        key = (file.parent.parent.name, json.loads(file.read_text())["seed"])
        assert key not in found
        found[key] = file.parent
    return found


def outcome(name: str = "toy") -> dict[tuple[str, int], tuple[Any, ...]]:
    """Metrics, test scores and weights of the runs."""
    seen = {}
    for key, run in runs(name).items():
        weights = read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]
        files = [(run / f).read_text() for f in ("metrics.csv", "per_task.csv")]
        seen[key] = (*files, {k: v.numpy().tobytes() for k, v in weights.items()})
    return seen


def test_every_rung_with_every_seed_then_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert climb() == 0
    said = capsys.readouterr().out
    for number, (rung, seed) in enumerate(RUNS, 1):
        assert f"run {number} of 4: {rung}, seed {seed}\n" in said
    assert "wide against plain" in said
    assert set(runs()) == set(RUNS)
    assert Path("runs/toy/report/forest.png").is_file()
    report = json.loads(Path("runs/toy/report/transfer.json").read_text())
    assert (report["baseline"], report["seeds"]) == ("plain", [1, 2])
    assert not [note for note in report["notes"] if "differ in" in note]
    for (rung, seed), run in runs().items():
        config = yaml.safe_load((run / "config.yaml").read_text())
        assert config["seed_everything"] == seed
        assert config["model"]["init_args"]["lr"] == 0.05
        assert config["model"]["init_args"]["width"] == (8 if rung == "wide" else 4)
        assert config["trainer"]["max_steps"] == 12
        # Its own file runs the same training alone.
        assert (Path("runs/toy/configs") / f"{rung}_seed_{seed}.yaml").is_file()


def test_a_rung_alone_is_the_same_run_by_fit() -> None:
    assert climb("--seeds=[2]") == 0
    assert main(["fit", "--config", "runs/toy/configs/wide_seed_2.yaml", "--runs=runs/alone"]) == 0
    a, b = (Path("runs", *p, "0", "metrics.csv").read_text() for p in (("toy", "wide"), ("alone", "wide")))
    assert a == b


def test_finished_runs_are_not_trained_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert climb("--seeds=[1]") == 0
    trained: list[list[str]] = []
    monkeypatch.setattr("lightning_meta.cli.ladder.command.fit", trained.append)
    assert climb("--seeds=[1]") == 0
    assert trained == []
    assert "run 2 of 2: wide, seed 1, finished before" in capsys.readouterr().out


@pytest.mark.slow
def test_stopped_in_a_run_it_goes_on_there_to_the_same_end() -> None:
    assert climb("--name=whole") == 0
    # A first try of its own dies before a checkpoint, a second in its eighth step.
    Path("runs/toy/plain/0").mkdir(parents=True)
    code = (
        "import sys, tests.ladder_toys as toys\n"
        "step = toys.ToyTasks.training_step\n"
        "def stop(self, x, i):\n"
        "    if self.global_step == 8 and type(self) is toys.WideToyTasks: raise KeyboardInterrupt\n"
        "    return step(self, x, i)\n"
        "toys.ToyTasks.training_step = stop\n"
        "from lightning_meta.cli import main\n"
        "sys.exit(main(['ladder', '--config', 'toy.yaml']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 130, done.stderr
    assert "run the same command again to resume it" in done.stderr
    assert set(runs()) == {("plain", 1)}
    assert climb() == 0
    assert set(runs()) == set(RUNS)
    assert {run.name for run in Path("runs/toy/wide").iterdir()} == {"0", "1"}
    assert outcome() == outcome("whole")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1] if KILL_ROUNDS else [0])
def test_killed_at_random_moments_it_ends_as_if_it_never_was(seed: int, folder: Path) -> None:
    found = {}
    for name, kills in (("whole", 0), ("killed", 12)):
        command = [sys.executable, "-m", "tests.run.kill_ladder", str(folder), str(kills), str(seed)]
        command += ["--config=toy.yaml", f"--name={name}", "--threads=1"]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        found[name] = outcome(name), Path("runs", name, "report", "transfer.csv").read_text()
        killed = int(done.stdout.strip().splitlines()[-1])
        assert killed >= kills / 3
    assert found["whole"][0].keys() == set(RUNS)
    assert found["whole"] == found["killed"]


@pytest.mark.slow
def test_results_do_not_depend_on_how_many_train_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert climb("--name=one", "--seeds=[1]") == 0
    assert climb("--name=two", "--seeds=[1]", "--jobs=2") == 0
    assert outcome("two") == outcome("one")
    assert len(outcome("one")) == 2


def test_children_have_their_share_of_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[dict[str, str]] = []
    popen = subprocess.Popen

    def start(command: list[str], env: dict[str, str], **options: Any) -> Any:
        started.append(env)
        return popen([sys.executable, "-c", "raise SystemExit(3)"], **options)

    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert climb("--jobs=4", "--threads=2") == 2
    assert [env["OMP_NUM_THREADS"] for env in started] == ["2"] * 4


@pytest.mark.slow
def test_one_that_fails_ends_the_ladder_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    save(shared={**LADDER["shared"], "checkpoint": {"monitor": "val/other_loss"}})
    for jobs in ("1", "2"):
        assert climb(f"--jobs={jobs}", "--seeds=[1]") == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "seed 1: --checkpoint.monitor: 'val/other_loss' is not logged in validation" in said


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_with_jobs_it_leaves_no_process_and_goes_on(stop: signal.Signals) -> None:
    slow = {**LADDER["shared"], "trainer": {**LADDER["shared"]["trainer"], "max_steps": 10**8}}
    save(shared=slow, seeds=[1])
    command = [sys.executable, "-c", "import os, sys; os.sched_getaffinity = lambda _: set(range(8))\n"]
    command[-1] += "from lightning_meta.cli import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen(
        [*command, "ladder", "--config", "toy.yaml", "--jobs=2"], stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: len(list(Path("runs").glob("toy/*/0/checkpoints/last.ckpt"))) == 2, process)
    process.send_signal(stop)
    _, said = process.communicate(timeout=LIMIT)
    assert process.returncode == 130, said
    assert "run the same command again" in said
    logs = list(Path("runs/toy/logs").glob("*.log"))
    assert len(logs) == 2
    for log in logs:  # each child had the time to end well
        assert "stopped in step" in log.read_text()
    assert not runs()


BAD: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "a budget of its own": (
        {"rungs": {**LADDER["rungs"], "wide": {"class_path": "tests.ladder_toys.ToyTasks", "trainer": {}}}},
        [],
        "toy.yaml, rungs.wide: expected class_path, init_args, weights, got ['trainer']",
    ),
    "an argument twice": (
        {"rungs": {**LADDER["rungs"], "wide": {"class_path": "tests.ladder_toys.ToyTasks", "init_args": {"lr": 1}}}},
        [],
        "rungs.wide.init_args.lr: model.init_args sets this for all rungs",
    ),
    "a mistake in the last rung": (
        {"rungs": {**LADDER["rungs"], "late": {"class_path": "tests.ladder_toys.ToyTasks", "init_args": {"wdth": 1}}}},
        [],
        "toy.yaml, rung late: --model.wdth: there is no such option of ToyTasks; did you mean width?",
    ),
    "a model of no rung": (
        {"model": {"class_path": "x"}},
        [],
        "model: expected init_args, got ['class_path']",
    ),
    "a seed in the wrong place": (
        {"shared": {**LADDER["shared"], "seed_everything": 1}},
        [],
        "shared.seed_everything: a ladder sets this itself",
    ),
    "no rungs": ({"rungs": {}}, [], "baseline: 'plain' is not one of the rungs to train"),
    "an unknown key": ({"seed": 3}, [], "expected seeds, baseline, shared, model, tune, rungs, got ['seed']"),
    "a folder for a name": ({"rungs": {"../up": {}}, "baseline": "../up"}, [], "'../up' cannot be the name"),
    "seeds of text": ({"seeds": ["a"]}, [], "expected different whole numbers from 0"),
    "a seed twice": ({}, ["--seeds=[1, 1]"], "expected different whole numbers from 0"),
    "an unknown rung": ({}, ["--rungs=[plain, tall]"], "there is no rung 'tall' in toy.yaml; it has plain, wide"),
    "without the baseline": ({}, ["--rungs=wide"], "'plain' is not one of the rungs to train (wide)"),
    "an unknown option": ({}, ["--trainer.max_step=3"], "trainer.max_step: there is no such option"),
    "a seed beside seeds": ({}, ["--seed_everything=3"], "--seed_everything: a ladder sets this for each run itself"),
    "a model on the line": ({}, ["--model=x"], "--model: a ladder sets this for each run itself"),
    "no jobs": ({}, ["--jobs=0"], "--jobs is at least 1"),
    "too many jobs": ({}, ["--jobs=9999"], "--jobs 9999 with --threads 1 needs 9999 cores"),
    "no groups": ({}, ["--groups=runs/x", "--group_count=0"], "--group_count is at least 1, got 0"),
    "a count without groups": ({}, ["--group_count=2"], "--group_count: name the run whose affinities propose groups"),
    "groups of no run": ({}, ["--groups=runs/x"], "--groups: runs/x: there is no such run directory"),
    "jobs of text": ({}, ["--jobs=x"], "--jobs"),
}


@pytest.mark.parametrize("case", BAD)
def test_mistakes_end_in_one_line_before_anything_is_trained(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    changes, options, expected = BAD[case]
    save(**changes)
    assert climb(*options) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("lightning-meta: error: ")
    assert expected in said
    assert not Path("runs").exists()


def test_files_that_are_no_ladder(capsys: pytest.CaptureFixture[str]) -> None:
    Path("broken.yaml").write_text("rungs: [")
    Path("single.yaml").write_text("model: x\n")
    for file, expected in {"none": "there is no file", "broken": "not valid YAML", "single": "is not a ladder"}.items():
        assert main(["ladder", "--config", f"{file}.yaml"]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert expected in said
    assert main(["ladder"]) == 2
    assert "--config: name the ladder's file" in capsys.readouterr().err


def test_a_changed_configuration_of_a_begun_run_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert climb("--seeds=[1]") == 0
    capsys.readouterr()
    for option in ("--trainer.max_steps=20", "--model.lr=0.5", "--data.length=6"):
        assert climb("--seeds=[1]", option) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "runs/toy/plain/0 was started with another configuration" in said
        assert option.partition("=")[0][2:].rpartition(".")[2] in said
        assert "give the ladder another --name" in said
    assert climb("--seeds=[1]", "--trainer.enable_progress_bar=true") == 0


def test_options_of_fit_hold_for_every_rung() -> None:
    assert climb("--seeds=[3]", "--trainer.max_steps=5", "--rungs=[plain, wide]") == 0
    assert {json.loads((run / "results.json").read_text())["steps"] for run in runs().values()} == {5}


def test_a_large_table_is_read_once_and_messages_about_it_are_shown_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_cache, "LEAST", 1)  # as if it were large
    readings: list[Path] = []

    def counted(path: Path, **options: Any) -> Any:
        readings.append(path)
        return read_columns(path, **options)

    monkeypatch.setattr(table, "read_columns", counted)
    rows = [f"{i % 7},5,{'yes' if i % 10 == 0 else 'no'}" for i in range(100)]
    Path("table.csv").write_text("\n".join(["a,same,rare", *rows]) + "\n")
    source = {
        "class_path": "lightning_meta.sources.Table",
        "init_args": {"path": "table.csv", "targets": {"rare": None}},
    }
    data = {"class_path": "lightning_meta.MultiTaskDataModule", "init_args": {"source": source}}
    network = {"class_path": "lightning_meta.nn.MLP", "init_args": {"in_features": 2, "hidden": [2]}}
    save(
        shared={"data": data, "trainer": {**LADDER["shared"]["trainer"], "max_steps": 1}},
        model={"init_args": {"backbone": network}},
        rungs={name: {"class_path": "lightning_meta.MultiHead"} for name in ("plain", "wide")},
    )
    assert climb("--seeds=[1]") == 0
    said = capsys.readouterr().err
    assert said.count("metric: 1 of 1 tasks") == 1
    assert said.count("constant in the training rows, so their inputs are always 0: 'same'") == 1
    assert said.count("table: inputs from the columns 'a', 'same'") == 1
    assert len(readings) == 1


MIXED = {"precision": "bf16-mixed", "device": "cpu"}


def table_ladder(**changes: Any) -> None:
    """Save a ladder of two linear models on a table."""
    rows = [f"{i % 7},{i % 7 + i % 3}" for i in range(100)]
    Path("table.csv").write_text("\n".join(["a,price", *rows]) + "\n")
    source = {
        "class_path": "lightning_meta.sources.Table",
        "init_args": {"path": "table.csv", "targets": {"price": "regression"}},
    }
    data = {"class_path": "lightning_meta.MultiTaskDataModule", "init_args": {"source": source}}
    save(
        shared={"data": data, "trainer": {**LADDER["shared"]["trainer"], "max_steps": 1}},
        model={},
        rungs={name: {"class_path": "lightning_meta.Linear"} for name in ("plain", "wide")},
        **changes,
    )


@pytest.mark.parametrize("search", [False, True])
def test_a_rung_that_does_not_fit_the_data_is_refused_before_another_is_trained(
    search: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    tune = {"tune": {"trials": 2, "parameters": {"model.optimizer.lr": {"values": [0.1, 0.2]}}}} if search else {}
    table_ladder(**tune)
    ladder = yaml.safe_load(Path("toy.yaml").read_text())
    backbone = {"class_path": "lightning_meta.nn.MLP", "init_args": {"in_features": 1, "hidden": [4]}}
    ladder["rungs"] = {
        "plain": {"class_path": "lightning_meta.MultiHead", "init_args": {"backbone": backbone}},
        "late": {"class_path": "lightning_meta.Grouped", "init_args": {"backbone": backbone, "groups": [["rent"]]}},
    }
    Path("toy.yaml").write_text(yaml.safe_dump(ladder, sort_keys=False))
    assert climb("--seeds=[1]") == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert "late" in said.err
    assert "--model.groups: there is no task 'rent'" in said.err
    assert "run 1 of" not in said.out
    assert not list(Path("runs").rglob("*.ckpt"))


@pytest.mark.parametrize(
    "option",
    [
        {"min_steps": 1},
        {"plugins": [{"class_path": "lightning.pytorch.plugins.MixedPrecision", "init_args": MIXED}]},
        {"precision": "64-true", "max_time": "00:01:00:00"},
    ],
)
def test_a_rung_with_options_of_the_trainer_is_set_up(option: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    rehearsed: list[Any] = []

    def noted(args: Any) -> None:
        rehearse(args)
        rehearsed.append(args)

    monkeypatch.setattr(command, "rehearse", noted)
    table_ladder()
    ladder = yaml.safe_load(Path("toy.yaml").read_text())
    ladder["shared"]["trainer"].update(option)
    Path("toy.yaml").write_text(yaml.safe_dump(ladder, sort_keys=False))
    assert climb("--seeds=[1]") == 0
    assert len(rehearsed) == 1


def test_of_a_search_a_trial_of_each_rung_is_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    rehearsed: list[str] = []

    def stop(*given: Any) -> None:
        raise UserError("enough")

    monkeypatch.setattr(command, "rehearse", lambda args: rehearsed.append(Path(args[1]).stem))
    monkeypatch.setattr(command, "run_in_processes", stop)
    table_ladder(tune={"trials": 3, "parameters": {"model.optimizer.lr": {"values": [0.1, 0.2, 0.4]}}})
    ladder = yaml.safe_load(Path("toy.yaml").read_text())
    backbone = {"class_path": "lightning_meta.nn.MLP", "init_args": {"in_features": 1, "hidden": [4]}}
    model = {"class_path": "lightning_meta.MultiHead", "init_args": {"backbone": backbone}}
    ladder["rungs"] = {"plain": model, "wide": model}
    Path("toy.yaml").write_text(yaml.safe_dump(ladder, sort_keys=False))
    assert climb("--seeds=[1]") == 2
    assert sorted(rehearsed) == ["plain_trial_0_seed_0", "wide_trial_0_seed_0"]


def test_finished_runs_are_not_reported_after_the_table_has_changed(capsys: pytest.CaptureFixture[str]) -> None:
    table_ladder()
    assert climb("--seeds=[1]") == 0
    assert climb("--seeds=[1]") == 0
    before = Path("table.csv").read_text()
    Path("table.csv").write_text("".join(before.splitlines(keepends=True)[:80]))
    capsys.readouterr()
    for seeds in ("[1]", "[1, 2]"):
        assert climb(f"--seeds={seeds}") == 2
        said = capsys.readouterr()
        assert "data: they have changed since runs/toy/plain/0 was trained on them" in said.err
        assert "give the ladder another --name, or remove runs/toy/plain/0" in said.err
        assert "run 1 of" not in said.out
    Path("table.csv").unlink()
    assert climb("--seeds=[1]") == 0  # the report of finished runs does not need the table
    assert "data: it cannot be checked that they are unchanged since runs/toy/plain/0" in capsys.readouterr().err


def test_finished_runs_are_reported_if_a_source_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    table_ladder()
    assert climb("--seeds=[1]") == 0

    def fails(*_: Any) -> None:
        raise FileNotFoundError("a file that a user's source reads")

    monkeypatch.setattr("lightning_meta.sources.Table.tasks", fails)
    capsys.readouterr()
    assert climb("--seeds=[1]") == 0
    assert "unchanged since runs/toy/plain/0 (a file that a user's source reads)" in capsys.readouterr().err


def test_warnings_about_a_run_are_shown_for_each_run(capsys: pytest.CaptureFixture[str]) -> None:
    handler = logging.StreamHandler(sys.stderr)
    logging.getLogger("lightning_meta").handlers = [handler]
    with _data_messages_once():
        for _ in range(2):
            for name in ("lightning_meta.data.multi_task", "lightning_meta.multitask.base"):
                handler.handle(logging.LogRecord(name, logging.WARNING, "", 0, f"by {name}", (), None))
    assert capsys.readouterr().err.splitlines() == [
        "by lightning_meta.data.multi_task",
        *["by lightning_meta.multitask.base"] * 2,
    ]
