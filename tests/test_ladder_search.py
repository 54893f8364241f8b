"""A ladder that searches: every rung with the same trials, tuned weights, weights read off, and a verdict on each."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console
from scipy import stats

from lightning_meta.cli import children, main
from lightning_meta.cli.fit import fit
from lightning_meta.cli.ladder import command
from lightning_meta.cli.ladder.command import run_in_processes
from lightning_meta.cli.ladder.file import read_ladder
from lightning_meta.cli.ladder.plan import PlannedRun
from lightning_meta.cli.ladder.search import Search
from lightning_meta.cli.ladder.tables import COLUMNS, verdict_table
from lightning_meta.cli.ladder.tuning import SearchResult, has_failed, mean_weights, note_failure
from lightning_meta.cli.sweep.file import Parameter
from lightning_meta.errors import NonFiniteLossError, UserError
from lightning_meta.report.transfer.intervals import method_verdicts, state

LR = "model.optimizer.lr"
LADDER: dict[str, Any] = {
    "seeds": [1, 2, 3],
    "baseline": "tuned_sum",
    "tune": {
        "trials": 3,
        "parameters": {LR: {"distribution": "log_uniform_values", "min": 0.003, "max": 0.3}},
    },
    "shared": {
        "data": {
            "class_path": "lightning_meta.MultiTaskDataModule",
            "init_args": {
                "source": {"class_path": "lightning_meta.testing.toys.Sums"},
                "batch_size": 8,
                "batches_per_epoch": 2,
                "seed": 0,
            },
        },
        "trainer": {"max_steps": 4, "accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1},
        "checkpoint": {"monitor": "val/score"},
    },
    "model": {
        "init_args": {
            "backbone": {"class_path": "lightning_meta.nn.MLP", "init_args": {"in_features": 4, "hidden": [6]}},
            "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.01}},
        }
    },
    "rungs": {
        "tuned_sum": {"class_path": "lightning_meta.MultiHead", "weights": "tuned"},
        "cagrad": {
            "class_path": "lightning_meta.MultiHead",
            "init_args": {"weighting": {"class_path": "lightning_meta.weightings.CAGrad"}},
        },
        "read_off": {"weights": "cagrad"},
    },
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save()
    return tmp_path


def save(**changes: Any) -> None:
    Path("toy.yaml").write_text(yaml.safe_dump({**LADDER, **changes}, sort_keys=False))


def climb(*options: str) -> int:
    return main(["ladder", "--config", "toy.yaml", *options])


def in_this_process(trained: list[str]) -> Callable[..., None]:
    """A replacement of `run_in_processes` that trains runs in this process and records their titles."""

    def train(
        runs: Sequence[tuple[str, PlannedRun]], jobs: int, threads: int, logs: Path, trials: bool = False
    ) -> None:
        for _, run in runs:
            trained.append(run.title)
            try:
                fit(run.arguments)
            except NonFiniteLossError:
                assert trials
                note_failure(run)

    return train


def config_of(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(Path("runs/toy", folder, "0", "config.yaml").read_text())
    return found["model"]["init_args"]


def rows_of(file: str) -> list[dict[str, str]]:
    with Path("runs/toy", file).open() as stream:
        return list(csv.DictReader(stream))


@pytest.mark.slow
def test_every_rung_is_trained_with_the_best_of_its_trials(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained: list[str] = []
    monkeypatch.setattr(command, "run_in_processes", in_this_process(trained))
    assert climb("--seeds=[1]") == 0
    said = capsys.readouterr().out
    assert len(trained) == 2 * 3 + 3
    rows = {row["rung"]: row for row in rows_of("report/verdicts.csv")}
    assert list(rows) == ["tuned_sum", "cagrad", "read_off"]
    assert {row["steps"] for row in rows.values()} == {"16"}  # 3 trials and a run of 4 steps each
    assert "At 16 training steps for each method, trials included, there are no verdicts, which need 3 seeds." in said
    notes = json.loads(Path("runs/toy/report/transfer.json").read_text())["notes"]
    assert not [note for note in notes if "differ in model." in note]  # the rates are tuned
    for rung in ("tuned_sum", "cagrad"):
        best = []
        for number in range(3):
            metrics = rows_of(f"trials/{rung}_trial_{number}/0/metrics.csv")
            best.append(max(float(row["val/score"]) for row in metrics if row["val/score"]))
        assert int(rows[rung]["best_trial"]) == int(np.argmax(best))
        chosen = config_of(f"trials/{rung}_trial_{np.argmax(best)}")
        assert config_of(rung) == chosen
        assert json.loads(rows[rung]["settings"]) == {LR: chosen["optimizer"]["init_args"]["lr"]}
    # The rates are the same for all. The sum tries two of them with weights of 1, then weights with the better one.
    tried = {rung: [config_of(f"trials/{rung}_trial_{n}") for n in range(3)] for rung in ("tuned_sum", "cagrad")}
    rates = {rung: [of["optimizer"]["init_args"]["lr"] for of in trials] for rung, trials in tried.items()}
    assert (rates["cagrad"][0], *sorted(rates["cagrad"][1:])) == (0.01, 0.00948683, 0.0948683)
    assert rates["tuned_sum"][:2] == rates["cagrad"][:2]
    assert [of["weighting"] for of in tried["tuned_sum"][:2]] == [None, None]
    best = [
        max(float(r["val/score"]) for r in rows_of(f"trials/tuned_sum_trial_{n}/0/metrics.csv") if r["val/score"])
        for n in (0, 1)
    ]
    assert rates["tuned_sum"][2] == rates["tuned_sum"][int(np.argmax(best))]
    weights = tried["tuned_sum"][2]["weighting"]["init_args"]["weights"]
    assert set(weights) == {"sum", "largest", "sign"}
    assert np.isclose(sum(weights.values()), 3, rtol=1e-5)
    # Weights that are read off are the means of those logged, and the other settings those of the trial.
    logged = rows_of(f"trials/cagrad_trial_{rows['cagrad']['best_trial']}/0/metrics.csv")
    logged = [row for row in logged if row["train/weight/sum"]]
    assert len(logged) == 4
    read, source = config_of("read_off"), config_of("cagrad")
    assert read["weighting"]["class_path"] == "lightning_meta.weightings.Fixed"
    for task, weight in read["weighting"]["init_args"]["weights"].items():
        assert np.isclose(weight, np.mean([float(row[f"train/weight/{task}"]) for row in logged]), rtol=1e-5)
    assert {**read, "weighting": None} == {**source, "weighting": None}
    ends = [line for line in notes if line.startswith("The best value is an end of those tried")]
    best_rate = source["optimizer"]["init_args"]["lr"]
    assert any("lr of cagrad" in line for line in ends) == (best_rate in (min(rates["cagrad"]), max(rates["cagrad"])))
    # Of two values the best is always an end, and read_off has no trials of its own.
    assert not any("tuned_sum" in line or "read_off" in line for line in ends)
    trained.clear()
    assert climb("--seeds=[1]") == 0
    assert not trained


@pytest.mark.slow
def test_a_trial_whose_training_fails_does_not_end_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[str] = []
    monkeypatch.setattr(command, "run_in_processes", in_this_process(trained))
    save(
        tune={"trials": 2, "parameters": {LR: {"values": [1.0e30]}}},
        rungs={"sgd": {"class_path": "lightning_meta.MultiHead"}},
        baseline="sgd",
    )
    for _ in range(2):
        assert climb("--seeds=[1]", "--model.optimizer=torch.optim.SGD") == 0
        assert trained == ["sgd_trial_0, seed 0", "sgd_trial_1, seed 0", "sgd, seed 1"]
    assert config_of("sgd")["optimizer"]["init_args"]["lr"] == 0.01


def test_the_trials_of_a_parameter_cover_its_range() -> None:
    names = [f"model.{i}" for i in range(4)]
    kinds = [
        Parameter((), 1.0, 16.0, log=True),
        Parameter((), 0.0, 8.0),
        Parameter((), 1, 4, whole=True),
        Parameter(("a", "b")),
    ]
    search = Search(5, 7, dict(zip(names, kinds, strict=True)))
    drawn = [search.settings(trial) for trial in range(1, 5)]
    assert search.settings(0) == {}
    expected: list[list[Any]] = [[2**0.5, 2**1.5, 2**2.5, 2**3.5], [1, 3, 5, 7], [1, 2, 3, 4], ["a", "a", "b", "b"]]
    for name, values in zip(names, expected, strict=True):
        found = sorted(of[name] for of in drawn)
        assert found == values if name == "model.3" else found == pytest.approx(values, abs=1e-5)


def test_the_weights_of_a_trial_do_not_depend_on_the_order_of_tasks() -> None:
    search = Search(3, 0, {})
    first, second = search.weights(1, ["a", "b", "c"]), search.weights(1, ["c", "a", "b"])
    assert first == second
    assert search.weights(2, ["a", "b", "c"]) != first
    # The logarithms of two weights differ by a normal number of variance 2.
    ratios = [np.log(of["a"] / of["b"]) for of in (Search(3, s, {}).weights(1, ["a", "b"]) for s in range(400))]
    assert stats.kstest(ratios, stats.norm(0, 2**0.5).cdf).pvalue > 1e-3


def test_weights_are_means_over_the_steps_that_had_the_task() -> None:
    Path("metrics.csv").write_text("step,train/weight/a,train/weight/b\n1,1.0,\n2,,\n3,2.0,nan\n")
    Path("per_task.csv").write_text("task\na\n")
    assert mean_weights(Path()) == {"a": 1.5}
    Path("per_task.csv").write_text("task\na\nb\n")
    with pytest.raises(UserError, match="no weight of task 'b' was logged; lower "):
        mean_weights(Path())


def test_verdicts_are_corrected_for_the_number_of_methods() -> None:
    of_seeds = {
        "a": [1.0, 1.1, 0.9, 1.0],
        "b": [0.03, 0.10, 0.06, 0.13],
        "c": [0.1, -0.1, 0.05, 0.0],
        "d": [-1.1, -0.9, -1.0, -0.9],
    }
    tasks = np.array([-0.01, 0.0, 0.01])
    seeds = {name: np.array(means)[:, None] + tasks for name, means in of_seeds.items()}
    found = method_verdicts({name: state(of)[1] for name, of in seeds.items()})
    p = {name: stats.ttest_1samp(of.mean(1), 0).pvalue for name, of in seeds.items()}
    largest = 0.0
    for rank, name in enumerate(sorted(p, key=lambda name: p[name])):  # Holm 1979
        largest = max(largest, min((4 - rank) * p[name], 1))
        assert found[name].p_holm == pytest.approx(largest)
    assert {name: of.verdict for name, of in found.items()} == {
        "a": "better",
        "b": "no difference shown",  # alone it would be one
        "c": "no difference shown",
        "d": "worse",
    }
    assert p["b"] < 0.05
    error = seeds["c"].mean(1).std(ddof=1) / 2
    limit = stats.t.ppf(1 - 0.05 / 4 / 2, 3)
    assert stats.nct.sf(limit, 3, found["c"].smallest / error) == pytest.approx(0.8, abs=1e-4)


def test_a_rung_that_is_trained_like_the_baseline_is_called_so() -> None:
    methods = {"same": state(np.zeros((3, 2)))[1], "shifted": state(np.full((3, 2), 0.1))[1]}
    found = method_verdicts(methods)
    assert {name: of.verdict for name, of in found.items()} == {
        "same": "same as the baseline",
        "shifted": "seeds do not differ",
    }


def test_a_row_is_short_with_many_tasks_and_the_table_warns_of_the_end_of_a_range(
    capsys: pytest.CaptureFixture[str],
) -> None:
    weights = {f"a superclass with a long name {i}": 0.25 + i / 10 for i in range(20)}
    method = method_verdicts({"cagrad": state(np.array([[0.1], [0.2], [0.0]]))[1]})["cagrad"]
    change = [getattr(method, name) for name in ("mean", "low", "high", "p_holm", "smallest", "verdict")]
    cells = [
        ["tuned_sum", 0.5, *[""] * 6, 12.3, 500.0, 90, 3, 60, {LR: 0.00852763}, weights],
        ["cagrad", 0.6, *change, 12.3, 500.0, 90, 1, 60, {LR: 0.1}, {}],
    ]
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in cells]
    results = {"cagrad": SearchResult(1, {LR: 0.1}, ends={LR: "largest of 4"})}
    methods = SimpleNamespace(has_errors=False)
    report: Any = SimpleNamespace(baseline="tuned_sum", methods=[methods])
    table, lines = verdict_table(report, rows, results)
    Console(width=160).print(table)
    said = capsys.readouterr().out
    (line,) = [line.strip() for line in said.splitlines() if line.strip().startswith("tuned_sum")]
    assert "lr 0.00852763; weights 0.25 to 2.15" in line
    assert line.endswith("baseline")
    budget, ends, correction = lines
    assert budget == "At 90 training steps for each method, trials included, no method is shown to beat tuned_sum."
    assert ends.endswith("another range may be better: lr of cagrad (largest of 4).")
    assert "corrected for 1 method (Holm" in correction
    methods.has_errors = True
    assert "Δ is not the difference of the scores" in verdict_table(report, rows, results)[1][1]


def test_two_seeds_give_no_verdict() -> None:
    (found,) = method_verdicts({"a": state(np.array([[0.1], [0.2]]))[1]}).values()
    assert found.verdict == "too few seeds"
    assert np.isnan(found.smallest)


@pytest.mark.slow
@pytest.mark.parametrize("data", ["cifar100", "landmine", "multi_mnist"])
def test_a_shipped_ladder_of_weightings_is_accepted(data: str, tmp_path: Path) -> None:
    file = Path(__file__).parents[1] / "configs" / f"ladder_weightings_{data}.yaml"
    ladder = read_ladder(str(file), tmp_path / data, None, None, ["--trainer.max_epochs=2"])
    assert ladder.baseline == "tuned_sum"
    assert {"tuned_sum", "equal", "uncertainty", "mgda", "cagrad", "read_off"} <= ladder.rungs.keys()
    assert {config["trainer"]["max_epochs"] for config in ladder.rungs.values()} == {2}
    first, second = ladder.trials["cagrad"][:2]
    rates = [trial["model"]["init_args"]["optimizer"]["init_args"]["lr"] for trial in (first, second)]
    assert rates[0] != rates[1]


def with_rungs(**rungs: Any) -> dict[str, Any]:
    return {"rungs": {**LADDER["rungs"], **rungs}}


def searching(name: str) -> dict[str, Any]:
    return {"tune": {"trials": 3, "parameters": {name: {"values": [1]}}}}


BAD: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "one trial": ({}, ["--trials=1"], "tune.trials or --trials: expected a whole number of at least 2"),
    "trials of text": (
        {"tune": {**LADDER["tune"], "trials": "x"}},
        [],
        "tune.trials or --trials: expected",
    ),
    "a seed of the ladder": (
        {"tune": {**LADDER["tune"], "seed": 2}},
        [],
        "that is no seed of the ladder, got 2",
    ),
    "nothing to search": (
        {"tune": {"trials": 3}},
        [],
        "tune.parameters: expected options of the model",
    ),
    "data to search": (searching("data.batch_size"), [], "tune.parameters: expected options of the model"),
    "an unknown option": (searching("model.lrr"), [], "rung tuned_sum_trial_1: --model.lrr: there is no such"),
    "an unknown key": (
        {"tune": {**LADDER["tune"], "budget": 3}},
        [],
        "trials, seed, parameters, got ['budget']",
    ),
    "a range upside down": (
        {"tune": {"trials": 3, "parameters": {LR: {"min": 1, "max": 0}}}},
        [],
        f"tune.parameters.{LR}: expected min and a larger max",
    ),
    "weights and a weighting": (
        with_rungs(tuned_sum={**LADDER["rungs"]["cagrad"], "weights": "tuned"}),
        [],
        "rungs.tuned_sum.weights: leave out model.weighting",
    ),
    "weights of an unknown rung": (
        with_rungs(read_off={"weights": "mgda"}),
        [],
        "weights are used (cagrad), got {'weights': 'mgda'}",
    ),
    "weights of a sum": (
        with_rungs(equal={"class_path": "lightning_meta.MultiHead"}, read_off={"weights": "equal"}),
        [],
        "rungs.read_off.weights: equal logs no weights (Equal)",
    ),
    "weights of a method without any": (
        with_rungs(tuned_sum={"class_path": "lightning_meta.Independent", "weights": "tuned"}),
        [],
        "rungs.tuned_sum.weights: leave out model.weighting, and use a model with shared parameters",
    ),
    "weights of another and a model": (
        with_rungs(read_off={"weights": "cagrad", "class_path": "lightning_meta.MultiHead"}),
        [],
        "rungs.read_off.weights: expected tuned and a model, or only the rung whose mean weights are used (cagrad)",
    ),
    "weights of no name": (with_rungs(read_off={"weights": ["cagrad"]}), [], "got {'weights': ['cagrad']}"),
    "no metric": (
        {"shared": {**LADDER["shared"], "checkpoint": {"monitor": None}}},
        [],
        "toy.yaml, tune: set shared.checkpoint.monitor",
    ),
    "weights of a rung that is left out": ({}, ["--rungs=[tuned_sum, read_off]"], "the rung whose mean weights"),
}


@pytest.mark.parametrize("case", BAD)
def test_mistakes_end_in_one_line_before_anything_is_trained(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    changes, options, expected = BAD[case]
    save(**changes)
    assert climb(*options) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert expected in said
    assert not Path("runs").exists()


def test_without_a_search_nothing_is_tuned(capsys: pytest.CaptureFixture[str]) -> None:
    without = {name: of for name, of in LADDER.items() if name != "tune"}
    Path("toy.yaml").write_text(yaml.safe_dump(without, sort_keys=False))
    assert climb("--trials=3") == 2
    assert "--trials: toy.yaml has no section tune, so there are no trials" in capsys.readouterr().err
    assert climb() == 2
    assert "rungs.tuned_sum.weights: add a section tune" in capsys.readouterr().err


def test_a_failed_training_is_noted_and_a_refused_one_ends_the_search(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = PlannedRun("a", 1, tmp_path / "configs" / "a.yaml")
    run.file.parent.mkdir()
    run.file.write_text("seed_everything: 1\n")
    for status in (2, 1):
        script = f"import sys; print('lightning-meta: error: no'); sys.exit({status})"
        monkeypatch.setattr(children, "FIT", (sys.executable, "-S", "-c", script))
        for trials in (False, True) if status == 2 else (False,):
            with pytest.raises(UserError, match=r"a, seed 1: no \(see .*a_seed_1\.log\)"):
                run_in_processes([("a", run)], 1, 1, tmp_path / "logs", trials)
        assert not has_failed(run)
    run_in_processes([("a", run), ("a", run)], 1, 1, tmp_path / "logs", trials=True)
    assert has_failed(run)
