"""`lightning-meta ladder --groups`: a rung of the groups that recorded affinities propose, and what it beats."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import lightning_meta as lm
from lightning_meta.cli import main
from lightning_meta.cli.ladder import command
from lightning_meta.cli.ladder.groups import grouped_rung
from lightning_meta.cli.ladder.plan import PlannedRun
from lightning_meta.errors import UserError
from lightning_meta.run.gradient_table import PAIRS, SHARES, append_rows

ROOT = Path(__file__).parents[1]
LADDER: dict[str, Any] = {
    "seeds": [1, 2, 3],
    "baseline": "apart",
    "shared": {
        "data": {
            "class_path": "lightning_meta.MultiTaskDataModule",
            "init_args": {"source": {"class_path": "tests.multitask.toys.Toys"}, "batch_size": 8},
        },
        "trainer": {
            "max_steps": 12,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "callbacks": [{"class_path": "lightning_meta.GradientConflict", "init_args": {"every_n_steps": 4}}],
        },
        "checkpoint": {"monitor": "val/score"},
    },
    "model": {
        "init_args": {
            "backbone": {"class_path": "lightning_meta.nn.MLP", "init_args": {"in_features": 4, "hidden": [8]}},
            "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.01}},
        }
    },
    "rungs": {"apart": {"class_path": "lightning_meta.Independent"}, "one": {"class_path": "lightning_meta.MultiHead"}},
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    Path("toy.yaml").write_text(yaml.safe_dump(LADDER))
    return tmp_path


def recording(run: Path, measurements: list[np.ndarray], names: str = "abc") -> None:
    """A finished run with these affinities."""
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("{}")
    (run / "results.json").write_text('{"steps": 40}')
    for step, z in enumerate(measurements):
        append_rows(run / SHARES, step, [(name, 1.0, 1 / len(names)) for name in names])
        places = [(i, j) for i in range(len(names)) for j in range(len(names)) if np.isfinite(z[i, j])]
        append_rows(run / PAIRS, step, [(names[i], names[j], 0.5, z[i, j]) for i, j in places])


def test_recorded_affinities_are_means_over_measurements_and_then_over_runs(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    first, second = draw.normal(size=(3, 3, 3)), draw.normal(size=(1, 3, 3))
    first[0, 0, 1] = np.nan  # a and b were not in the first batch together
    recording(tmp_path / "r" / "0", list(first))
    turned = [2, 0, 1]
    recording(tmp_path / "r" / "1", [z[np.ix_(turned, turned)] for z in second], names="cab")
    found = lm.recorded_affinity(tmp_path / "r")
    assert found.tasks == ("a", "b", "c")
    expected = (np.nanmean(first, axis=0) + second[0]) / 2
    torch.testing.assert_close(found.affinity, torch.from_numpy(expected), rtol=1e-4, atol=1e-5)
    assert (found.cosine == 0.5).all()
    listed = lm.recorded_affinity([tmp_path / "r" / "0", tmp_path / "r" / "1"])
    assert torch.equal(listed.affinity, found.affinity)


def test_the_proposed_groups_are_those_of_the_recorded_affinities(tmp_path: Path) -> None:
    z = np.array([[1, -0.2, 0.3], [-0.1, 1, -0.3], [0.1, -0.2, 1]])
    recording(tmp_path / "r" / "0", [z])
    rungs, lines = grouped_rung(str(tmp_path / "r"), 2)
    model = {"class_path": "lightning_meta.Grouped", "init_args": {"groups": [["a", "c"], ["b"]]}}
    assert rungs == {"groups_2": model}
    assert lines[:2] == ["groups_2, group 1: a (+0.1), c (+0.3)", "groups_2, group 2: b (alone)"]
    assert "recorded in 40 training steps of " in lines[2]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "there is no such run directory"),
        ({"config.yaml": "{}"}, "is not finished, and its affinities may change; finish it first"),
        (
            {"config.yaml": "{}", "results.json": "{}"},
            "has no gradient_conflict.csv; train it with",
        ),
    ],
)
def test_runs_that_propose_nothing_are_refused(
    files: dict[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in files.items():
        Path("run").mkdir(exist_ok=True)
        Path("run", name).write_text(text)
    assert main(["ladder", "--config", "toy.yaml", "--groups", "run"]) != 0
    said = capsys.readouterr().err
    assert "--groups: " in said
    assert message in said


def test_tasks_that_never_met_and_runs_of_other_tasks_are_refused(tmp_path: Path) -> None:
    z = np.ones((3, 3))
    z[0, 1] = np.nan
    recording(tmp_path / "r" / "0", [z])
    with pytest.raises(UserError, match="of task 0 onto task 1 is nan; two tasks that were never in the same"):
        grouped_rung(str(tmp_path / "r" / "0"), 2)
    recording(tmp_path / "r" / "1", [np.ones((2, 2))], names="ab")
    with pytest.raises(UserError, match="different tasks: 'c' is in one only"):
        lm.recorded_affinity(tmp_path / "r")


def test_a_single_group_adds_no_rung(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recording(tmp_path / "r" / "0", [np.ones((3, 3))])
    planned: list[PlannedRun] = []
    monkeypatch.setattr(command, "_train", lambda data, options, separate, runs: planned.extend(runs))
    monkeypatch.setattr(command, "_report", lambda *_: None)
    assert main(["ladder", "--config", "toy.yaml", "--seeds=[1]", "--groups", "r"]) == 0
    assert {run.rung for run in planned} == {"apart", "one"}
    said = capsys.readouterr().out
    assert "groups_3: the affinities propose to train all tasks together, as MultiHead does; no rung is added." in said


@pytest.mark.slow
def test_the_groups_of_a_ladder_are_trained_and_compared_with_both_ends(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ladder", "--config", "toy.yaml"]) == 0, capsys.readouterr().err
    command_line = ["ladder", "--config", "toy.yaml", "--groups", "runs/toy/one", "--group_count", "2"]
    capsys.readouterr()
    assert main(command_line) == 0
    said = capsys.readouterr().out
    assert said.count("finished before") == 6
    recorded = lm.recorded_affinity("runs/toy/one")
    groups = [[recorded.tasks[t] for t in g] for g in lm.task_groups(recorded.affinity, 2).groups]
    for version in range(3):
        config = yaml.safe_load(Path(f"runs/toy/groups_2/{version}/config.yaml").read_text())
        assert config["model"]["init_args"]["groups"] == groups
    notes = json.loads(Path("runs/toy/report/transfer.json").read_text())["notes"]
    for other, what in (("apart", "each alone"), ("one", "all together")):
        (line,) = [note for note in notes if note.startswith(f"groups_2 against {other} ({what}). For the method: ")]
        assert f"{mean_difference('groups_2', other):+.3f}" in line
    assert main(command_line) == 0
    assert capsys.readouterr().out.count("finished before") == 9


def mean_difference(rung: str, other: str) -> float:
    """The mean over seeds and tasks of the difference of the test metrics, R² clipped as in the report."""
    values = {}
    for name in (rung, other):
        for version in range(3):
            with Path(f"runs/toy/{name}/{version}/per_task.csv").open() as file:
                values[name, version] = [max(float(row["test"]), -1.0) for row in csv.DictReader(file)]
    return float(np.mean([np.subtract(values[rung, v], values[other, v]) for v in range(3)]))
