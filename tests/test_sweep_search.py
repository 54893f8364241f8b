"""A search shared by several processes, killed and stopped at any moment; a script stands in for `fit`."""

from __future__ import annotations

import csv
import gc
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock

from lightning_meta.cli import children as cli_children
from lightning_meta.cli import main
from lightning_meta.cli.sweep import command as sweep_command
from lightning_meta.cli.sweep import study as sweep_study
from tests.sweep_toy import ended, kill_run, stand_in, started, starts
from tests.waiting import ENDLESS, wait_for

optuna = pytest.importorskip("optuna")

RATE, SEED = "model.init_args.inner_lr", "seed_everything"
GRID: dict[str, Any] = {
    "program": "scripts/fit.py",
    "method": "grid",
    "metric": {"name": "val/mse", "goal": "minimize"},
    "parameters": {RATE: {"values": [0.01, 0.1]}, SEED: {"values": [0, 1, 2]}},
    "command": ["${program}", "--config=maml.yaml", "${args}"],
}
RANDOM = {**GRID, "method": "random", "parameters": {RATE: {"min": 0.01, "max": 0.1}, SEED: {"values": [0, 1, 2]}}}
STAYS = f"time.sleep({ENDLESS})"
OPTIONS = ("--config", "s.yaml", "--name", "s")
FOLDER = Path("runs/s")
SOON = {"HEARTBEAT": 1, "STALE": 3}  # seconds


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, value in SOON.items():
        monkeypatch.setattr(sweep_study, name, value)
    return tmp_path


def search(*options: str, space: dict[str, Any] = GRID) -> int:
    Path("s.yaml").write_text(yaml.safe_dump(space))
    return main(["sweep", *OPTIONS, *options])


def table() -> list[dict[str, str]]:
    return list(csv.DictReader((FOLDER / "trials.csv").read_text().splitlines()))


def states() -> list[str]:
    return [row["state"] for row in table()]


def assert_whole(space: dict[str, Any], count: int, killed: list[str]) -> None:
    """Check that all trials are there with their values, and that each ran once, except those killed."""
    assert states() == ["complete"] * count
    assert all(row[name] for row in table() for name in (RATE, SEED))
    if space["method"] == "grid":
        assert len({(row[RATE], row[SEED]) for row in table()}) == count
    began = Counter(name for name, _, _ in starts())
    for row in table():
        name = f"trial_{row['trial']}"
        # A run that is killed may have ended already, or not have begun.
        assert began.pop(name) in ((1, 2) if name in killed else (1,))
    assert not began
    for name, given, _ in starts():
        row = next(row for row in table() if f"trial_{row['trial']}" == name)
        assert (given[RATE], given[SEED]) == (row[RATE], row[SEED])


def shared_round(space: dict[str, Any], count: int, seed: int = 0) -> None:
    """Three processes, one of which is killed at some moment, its run beside it or not, and started again."""
    draw = random.Random(seed)
    Path("s.yaml").write_text(yaml.safe_dump(space))
    options = (*OPTIONS, "--trials", str(count))
    processes = [started(*options, changed=SOON) for _ in range(3)]
    begun = draw.randint(0, count - 1)
    wait_for(lambda: len(starts()) >= begun)
    time.sleep(draw.uniform(0, 0.2))  # somewhere in a run
    processes[0].kill()
    ended(processes[0])
    found = sorted(FOLDER.glob("trial_*")) if draw.random() < 0.5 else []
    alive = [process.pid for process in processes[1:]]
    killed = [place.name for place in found if kill_run(place, but_of=alive)]
    processes[0] = started(*options, changed=SOON)
    assert [ended(process) for process in processes] == [0, 0, 0], said()
    assert_whole(space, count, killed)


def said() -> str:
    return "\n".join(file.read_text() for file in Path().glob("said_*"))


@pytest.mark.slow
def test_processes_share_a_search_and_none_runs_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "time.sleep(random.uniform(0, 0.2)); finish(number)")
    shared_round(GRID, 6)


@pytest.mark.slow
def test_processes_share_a_search_in_many_rounds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for i in range(10):
        place = tmp_path / str(i)
        place.mkdir()
        monkeypatch.chdir(place)
        stand_in(monkeypatch, "time.sleep(random.uniform(0, 0.2)); finish(number)")
        shared_round((GRID, RANDOM)[i % 2], 6, seed=i)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
@pytest.mark.parametrize("failure", [False, True])
def test_no_connection_outlives_the_search(failure: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "refuse('too few classes')" if failure else "finish()")
    gc.disable()  # a connection is closed by who opened it, not by whoever collects it
    try:
        assert search() == (2 if failure else 0)
        # A file may be closed while the folder is listed.
        names = [str(fd.readlink()) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
    finally:
        gc.enable()
    assert not [name for name in names if name.endswith("study.db")]


@contextmanager
def storage() -> Iterator[Any]:
    """The study of the sweep, whose connections are closed at the end."""
    opened = optuna.storages.RDBStorage(f"sqlite:///{FOLDER}/study.db")
    try:
        yield opened
    finally:
        opened.remove_session()
        opened.engine.dispose()


def test_a_trial_that_was_cut_off_before_its_values_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    assert search("--trials=1", space=RANDOM) == 0
    with storage() as shared:
        study = optuna.load_study(study_name="sweep", storage=shared)
        study.ask()
        study.ask({RATE: optuna.distributions.FloatDistribution(0.01, 0.1)})
    assert search("--trials=3", space=RANDOM) == 0
    assert_whole(RANDOM, 3, [])


def _die_at_the_third_trial() -> None:
    add, made = optuna.Study.add_trial, []

    def add_or_die(study: Any, trial: Any) -> None:
        made.append(trial)
        if len(made) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        add(study, trial)

    optuna.Study.add_trial = add_or_die


@pytest.mark.slow
def test_a_grid_is_whole_after_a_kill_while_it_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    Path("s.yaml").write_text(yaml.safe_dump(GRID))
    assert ended(started(*OPTIONS, before=_die_at_the_third_trial)) == -signal.SIGKILL
    assert search() == 0
    assert_whole(GRID, 6, [])


def test_a_grid_goes_on_with_the_points_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    assert search("--trials=4") == 0
    assert search("--trials=9") == 0  # there are but six
    assert search() == 0
    assert_whole(GRID, 6, [])


@pytest.mark.slow
def test_bayes_goes_beyond_its_random_start(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, f"finish(abs(float(given['{RATE}']) - 0.05))")
    assert search("--trials=16", space={**RANDOM, "method": "bayes"}) == 0
    assert states() == ["complete"] * 16
    late = [float(row["val/mse"]) for row in table()[10:]]
    assert min(late) < 0.02


def _begun(count: int) -> bool:
    return len(starts()) > count and (FOLDER / "trial_0" / "0").is_dir()


@pytest.mark.slow
def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, STAYS)
    Path("s.yaml").write_text(yaml.safe_dump(GRID))
    for _ in range(2):
        count = len(starts())
        process = started(*OPTIONS, "--trials=1", changed=SOON)
        wait_for(partial(_begun, count))
        process.kill()
        ended(process)
        assert kill_run(FOLDER / "trial_0")
    stand_in(monkeypatch)
    assert search() == 0
    assert states() == ["complete"] * 6
    assert not (FOLDER / "trial_0" / "1").exists()


@pytest.mark.slow
def test_a_run_with_a_checkpoint_is_gone_on_with(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "checkpoint(); " + STAYS)
    Path("s.yaml").write_text(yaml.safe_dump(GRID))
    process = started(*OPTIONS, changed=SOON)
    wait_for((FOLDER / "trial_0/0/checkpoints/last.ckpt").is_file)
    process.kill()
    ended(process)
    assert kill_run(FOLDER / "trial_0")
    stand_in(monkeypatch)
    assert search("--trials=1") == 0
    assert [resumed for _, _, resumed in starts()] == [False, True]


@pytest.mark.slow
def test_a_run_that_outlives_its_sweep_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "while not os.path.exists('may_end'): time.sleep(0.01)\nfinish(7.0)")
    Path("s.yaml").write_text(yaml.safe_dump(GRID))
    process = started(*OPTIONS, changed=SOON)
    wait_for((FOLDER / "trial_0/0").is_dir)
    process.kill()
    ended(process)
    process = started(*OPTIONS, "--trials=1", changed=SOON)
    wait_for(lambda: "trial_0 is still running" in said())
    Path("may_end").touch()
    assert ended(process) == 0
    assert [row["val/mse"] for row in table()] == ["7.0"]
    assert len(starts()) == 1


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_ends_the_run_too(
    number: int, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    heed = "signal.signal(signal.SIGTERM, lambda *_: (checkpoint(), sys.exit(143)))\n"
    stand_in(monkeypatch, heed + "(run / 'ready').touch(); " + STAYS)
    Path("s.yaml").write_text(yaml.safe_dump(GRID))
    process = started(*OPTIONS)
    wait_for((FOLDER / "trial_0/0/ready").is_file)
    os.kill(process.pid or 0, number)
    assert ended(process) == status
    assert f"stopped by {signal.Signals(number).name}; run the same command again" in said()
    assert not kill_run(FOLDER / "trial_0")
    stand_in(monkeypatch)
    assert search("--trials=1") == 0
    assert [resumed for _, _, resumed in starts()] == [False, True]
    printed = capsys.readouterr().out  # in Optuna the resumed trial has the number 1
    assert "trial 0: val/mse 1" in printed
    assert "│ 0     │ 1 " in printed


@pytest.mark.parametrize("again", [True, False], ids=["by a second signal", "in time"])
def test_a_run_that_does_not_end_is_ended(again: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stay = "signal.signal(signal.SIGTERM, lambda *_: (run / 'asked').touch())\n(run / 'ready').touch()\n"
    stand_in(monkeypatch, stay + STAYS)
    Path("s.yaml").write_text(yaml.safe_dump(GRID))
    process = started(*OPTIONS, changed={"GRACE": 600 if again else 0.3})
    wait_for((FOLDER / "trial_0/0/ready").is_file)
    os.kill(process.pid or 0, signal.SIGINT)
    if again:
        wait_for((FOLDER / "trial_0/0/asked").is_file)  # two signals at once could arrive as one
        os.kill(process.pid or 0, signal.SIGINT)
    assert ended(process) == 130
    assert "Traceback" not in said()
    assert not kill_run(FOLDER / "trial_0")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_is_killed_does_not_stand_in_the_way(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_children, "TOGETHER", 0.05)
    stand_in(monkeypatch, f"os.kill(os.getpid(), {int(number)}) if number == 0 else finish()")
    assert search() == 0
    assert states() == ["fail"] + ["complete"] * 5


def test_a_point_that_is_refused_does_not_stand_in_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, f"refuse('too few classes') if given['{RATE}'] == '0.01' else finish()")
    assert search() == 0
    assert states() == ["fail"] * 3 + ["complete"] * 3
    assert search() == 0
    assert len(starts()) == 6


@pytest.mark.slow
def test_what_all_trials_have_in_common_ends_the_search_until_it_is_mended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for failure in ("refuse(f'no such data, see {place}')", "raise RuntimeError", "os.kill(os.getpid(), 9)"):
        monkeypatch.setattr(cli_children, "TOGETHER", 0.05)
        stand_in(monkeypatch, failure)
        before = len(starts())
        assert search("--trainer.max_steps=5") == 2
        assert len(starts()) - before == 4  # the first with another learning rate
        assert capsys.readouterr().err.count("\n") == 1
    stand_in(monkeypatch)
    assert search("--trainer.max_steps=6") == 0  # the mend may be of the options
    assert states() == ["complete"] * 6
    assert search("--trainer.max_steps=5") == 2
    assert "trainer.max_steps 6, not 5" in capsys.readouterr().err


def test_another_metric_is_read_from_the_run_that_lacked_the_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(monkeypatch, "finish(3.0)")
    assert search("--trials=1", space={**GRID, "metric": {"name": "val/loss", "goal": "minimize"}}) == 2
    assert "val/loss was never logged; name one of val/mse in the sweep's file" in capsys.readouterr().err
    assert search("--trials=1") == 0
    assert len(starts()) == 1
    assert table()[0]["val/mse"] == "3.0"


def test_a_full_disk_ends_the_search_and_fails_no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "refuse('cannot write (x: No space left on device); make room') if number == 2 else finish()")
    assert search() == 2
    stand_in(monkeypatch)
    assert search() == 0
    assert states() == ["complete"] * 6


CHANGED: dict[str, tuple[dict[str, Any], str]] = {
    "method": ({"method": "random"}, "method grid, not random"),
    "goal": ({"metric": {"name": "val/mse", "goal": "maximize"}}, "goal minimize, not maximize"),
    "metric": ({"metric": {"name": "val/loss", "goal": "minimize"}}, "metric val/mse, not val/loss"),
    "values": ({"parameters": {**GRID["parameters"], SEED: {"values": [0, 5]}}}, f"values of {SEED} "),
    "names": ({"parameters": {RATE: {"values": [0.01, 0.1]}}}, f"values of {SEED} "),
    "options": (
        {"command": [*GRID["command"], "--trainer.max_steps", "3"]},
        "with --trainer.max_steps none, not 3",
    ),
}


@pytest.mark.parametrize("case", CHANGED)
def test_a_search_does_not_go_on_as_another(
    case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    change, told = CHANGED[case]
    stand_in(monkeypatch)
    assert search("--trials=1") == 0
    assert search("--trials=2", space={**GRID, **change}) == 2
    *warned, line = capsys.readouterr().err.splitlines()
    assert len(warned) == (case == "goal")  # that it finds the worst
    assert told in line
    assert "give this one another --name" in line
    assert len(starts()) == 1


def test_a_damaged_or_foreign_study_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(monkeypatch)
    file = FOLDER / "study.db"
    FOLDER.mkdir(parents=True)
    file.write_text("no database" * 1000)
    assert search() == 2
    assert one_line(capsys).endswith("or give this sweep another --name")
    file.unlink()
    with storage() as foreign:
        optuna.create_study(study_name="sweep", storage=foreign).add_trial(optuna.create_trial(value=1.0))
    assert search() == 2
    assert "is not the study of a sweep" in one_line(capsys)
    file.unlink()
    assert search("--trials=1") == 0
    capsys.readouterr()
    file.write_bytes(file.read_bytes()[:20000])
    assert search() == 2
    assert str(file) in one_line(capsys)
    assert len(starts()) == 1


def test_a_trial_that_another_process_takes_over_is_not_run_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "finish(3.0)")
    read = cli_children.reached

    def pause_for_long(place: Path, *options: Any) -> float:
        with storage() as shared:
            study = optuna.load_study(study_name="sweep", storage=shared)
            if len(study.trials) == 1:
                study.tell(0, state=optuna.trial.TrialState.FAIL)  # as another process does after a minute
        return read(place, *options)

    monkeypatch.setattr(sweep_command, "reached", pause_for_long)
    assert search("--trials=1") == 0
    assert len(starts()) == 1
    assert [(row["trial"], row["state"], row["val/mse"]) for row in table()] == [("0", "complete", "3.0")]


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_study_that_another_process_holds_is_waited_for_with_a_bound(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(monkeypatch)
    FOLDER.mkdir(parents=True)
    monkeypatch.setattr(sweep_study, "LOCKED", 0.2)
    with FileLock(FOLDER / "study.lock"):
        assert search() == 2
    assert "study.lock: waited 0 s for another process of this sweep to release the lock" in one_line(capsys)
