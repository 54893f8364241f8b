"""`lightning_meta.evaluate` and `test` over ways and shots: single tests give the same, and NumPy does."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from scipy import stats
from torch import nn

import lightning_meta as lm
from lightning_meta.batches import SPLITS, Split
from lightning_meta.cli import main
from lightning_meta.errors import UserError
from lightning_meta.fitting import grid
from lightning_meta.fitting.evaluation import Evaluation
from lightning_meta.meta.scores import TaskScores
from lightning_meta.tasks import EpisodeSpec
from tests.data.test_task_list import GOOD, write_rows
from tests.ddp_driver import Tiny
from tests.evaluation_driver import evaluated
from tests.ranks import run_driver

TEST = ["test", "--ckpt_path=runs/tiny/0", "--trust", "--trainer.enable_progress_bar=false"]


class Noisy(lm.Source):
    """Classes that are hard to tell apart, in pools of which it says how often they were asked for."""

    asked = 0

    def pools(self) -> dict[Split, lm.Pool]:
        """12 examples of 6 classes."""
        self.asked += 1
        generator = torch.Generator().manual_seed(0)
        pools: dict[Split, lm.Pool] = {}
        for split in SPLITS:
            x = torch.rand(6, 1, 1, 4, 4, generator=generator) + 2 * torch.rand(6, 12, 1, 4, 4, generator=generator)
            names = tuple(f"{split} {c}" for c in range(6))
            pools[split] = lm.Pool(x.flatten(0, 1) / 3, torch.full((6,), 12), names, names)
        return pools


def by_hand(file: Path) -> np.ndarray:
    """The accuracy of the nearest class mean of pixels in each task of a list of `Noisy`."""
    pool = Noisy().pools()["test"]
    x = pool.x.flatten(1).double().numpy().reshape(len(pool.names), 12, -1)
    tasks: dict[str, dict[str, list[tuple[str, np.ndarray]]]] = {}
    for task, part, name, example in list(csv.reader(file.read_text().splitlines()))[1:]:
        sets = tasks.setdefault(task, {"support": [], "query": []})
        sets[part].append((name, x[pool.names.index(name), int(example)]))
    scores = []
    for sets in tasks.values():
        names = sorted({name for name, _ in sets["support"]})
        means = np.stack([np.mean([v for name, v in sets["support"] if name == n], 0) for n in names])
        scores.append(np.mean([names[((means - v) ** 2).sum(1).argmin()] == name for name, v in sets["query"]]))
    return np.array(scores)


def test_every_cell_is_the_test_of_its_ways_and_shots_and_as_numpy_has_it(tmp_path: Path) -> None:
    source = Noisy()
    data = lm.EpisodicDataModule(source, 3, 2, 5, test_tasks=40)
    module = lm.ProtoNet(nn.Flatten())
    found = lm.evaluate(module, data, ways=[2, 5], shots=[1, 3], queries=4, tasks=30)
    assert [(e.ways, e.shots, e.queries, e.tasks) for e in found] == [(n, k, 4, 30) for n in (2, 5) for k in (1, 3)]
    for each in found:
        options: dict[str, Any] = {
            "test_ways": each.ways,
            "test_shots": each.shots,
            "test_queries": 4,
            "test_tasks": 30,
        }
        single = lm.EpisodicDataModule(Noisy(), 3, 2, 5, **options)
        single.write_test_tasks(tmp_path / "tasks.csv")
        expected = by_hand(tmp_path / "tasks.csv")
        assert [row["score"] for row in each.per_task] == pytest.approx(expected)
        assert each.score == pytest.approx(expected.mean())
        assert each.interval == pytest.approx(stats.t.ppf(0.975, 29) * expected.std(ddof=1) / 30**0.5)
        assert each.point.chance == 1 / each.ways
    assert source.asked == 1
    # The data module is as before, and so is the next test of it.
    (own,) = lm.evaluate(module, data)
    assert (own.ways, own.shots, own.queries, own.tasks) == (3, 2, 5, 40)
    assert len({each.score for each in found}) == 4


def test_no_predictions_are_kept_for_a_grid_and_all_for_a_test() -> None:
    kept = []

    class Watched(TaskScores):
        def compute(self) -> Any:
            table = super().compute()
            kept.append(table.outputs.numel())
            return table

    data = lm.EpisodicDataModule(Tiny(), 3, 1, 2, test_tasks=6)
    module = lm.ProtoNet(nn.Flatten())
    module.test_scores = Watched(keep_outputs=True)
    lm.evaluate(module, data, shots=[1, 2])
    L.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False).test(module, data, verbose=False)
    assert kept == [0, 0, 6 * 6 * 3]


def test_a_result_is_shown_on_one_line_whatever_the_number_of_tasks() -> None:
    scores = [{"task": float(i), "score": 0.5} for i in range(1000)]
    result = Evaluation(5, 1, 15, 1000, "accuracy", 0.72366, 0.00636, {"test/accuracy": 0.72366}, scores)
    assert repr(result) == "Evaluation(ways=5, shots=1, queries=15, tasks=1000, accuracy=0.7237 ± 0.0064)"
    for single in (result._replace(tasks=1, interval=math.nan), result._replace(metric="mse", interval=math.nan)):
        assert "±" not in repr(single) + grid._shown(single)
        assert "nan" not in repr(single) + grid._shown(single)
    assert grid._shown(result) == "72.37 ± 0.64 %"


def test_regression_has_shots_alone() -> None:
    data = lm.EpisodicDataModule(lm.sources.Sinusoid(), shots=5, queries=4, test_tasks=6)
    module = lm.MAML(lm.nn.MLP(1, (4,)), 0.01, 1)
    found = lm.evaluate(module, data, shots=[2, 5])
    assert [(e.ways, e.shots, e.metric, e.point.chance) for e in found] == [(0, 2, "mse", None), (0, 5, "mse", None)]
    with pytest.raises(UserError, match=r"^ways: regression tasks have no classes; leave it out"):
        lm.evaluate(module, data, ways=[2, 5])


SPEC = EpisodeSpec("classification", (1, 16, 16), 3, 10)
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a way of MAML": ({"ways": [3, 5]}, "ways: this MAML has a head for 3 ways, got 5"),
    "too many classes": ({"ways": [3, 50]}, "ways: 50 classes a task were asked for, but the test split has 6"),
    "too many examples": ({"shots": [1, 50]}, "shots + queries: 50 + 3 = 53 examples a class were asked for"),
    "one way": ({"ways": [1]}, "ways: at least 2 is needed, got 1"),
    "no shots": ({"shots": []}, "shots: a number from 1 up, or several of them, is needed"),
    "no number": ({"shots": ["2"]}, "shots: a whole number of at least 1 is needed, got '2'"),
    "no tasks": ({"tasks": 0}, "tasks: at least 1 is needed, got 0"),
    "nothing logged": (
        {"barebones": True},
        "barebones: it turns off the logging that the results are read from; leave",
    ),
    "of the Trainer": ({"devises": 2}, "devises"),
    "no callback": ({"callbacks": [3]}, "callbacks: a Callback is needed, got int '3'"),
    "a generator": ({"callbacks": (c for c in [L.Callback()])}, "callbacks: a Callback is needed, got generator"),
    "no logger": ({"logger": "wandb"}, "logger: a Logger is needed, got str 'wandb'"),
    "no time": ({"max_time": "1h"}, "max_time: a time above 0 is needed, as DD:HH:MM:SS"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_evaluated_is_one_line_before_the_first_task(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options, line = BAD[case]
    data = lm.EpisodicDataModule(Tiny(), 3, 2, 3, test_tasks=4)
    module = lm.MAML(nn.Flatten(), episodes=SPEC) if "MAML" in case else lm.ProtoNet(nn.Flatten())
    monkeypatch.setattr(TaskScores, "update", lambda *args: pytest.fail("a task was evaluated"))
    with pytest.raises(UserError) as raised:
        lm.evaluate(module, data, **options)
    assert str(raised.value).startswith(line) or case == "of the Trainer"
    assert line in str(raised.value)


@pytest.mark.parametrize("several", [list, tuple, lambda callbacks: callbacks[0]], ids=["list", "tuple", "one"])
def test_callbacks_are_used_however_they_are_given(several: Any) -> None:
    class Counts(L.Callback):
        ended = 0

        def on_test_end(self, *args: Any) -> None:
            self.ended += 1

    counts = Counts()
    lm.evaluate(lm.ProtoNet(nn.Flatten()), lm.EpisodicDataModule(Tiny(), 3, 2, 3), tasks=4, callbacks=several([counts]))
    assert counts.ended == 1


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_an_evaluation_in_another_precision_leaves_the_weights_as_they_are(precision: Any) -> None:
    data = lm.EpisodicDataModule(Tiny(), 3, 1, 2, test_tasks=6)
    module = lm.ProtoNet(lm.nn.Conv4(in_channels=1, width=4, blocks=1), batch_norm="inductive", episodes=SPEC)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    lm.evaluate(module, data, precision=precision, accelerator="cpu")
    lm.calibrate(module, data, tasks=4, precision=precision, accelerator="cpu")
    after = module.state_dict()
    assert module.dtype == torch.float32
    assert all(value.dtype == before[name].dtype and value.equal(before[name]) for name, value in after.items())


@pytest.mark.parametrize("method", [lm.ProtoNet, lm.MAML])
def test_a_module_that_was_never_fitted_is_not_bound_to_the_tasks_of_its_test(method: Any) -> None:
    data = lm.EpisodicDataModule(Tiny(), 3, 2, 3, test_tasks=4)
    module = method(nn.Sequential(nn.Flatten(), nn.Linear(256, 4)))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    found = lm.evaluate(module, data, ways=[4, 2], shots=1, accelerator="cpu")
    assert [each.ways for each in found] == [4, 2]
    assert module.episodes is None
    after = module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    data.setup("fit")
    module.episodes = data.spec
    module.configure_model()
    assert module.spec.outputs == 3


# The command.


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of two steps, whose own test tasks are those of a list."""
    folder = tmp_path_factory.mktemp("evaluate")
    backbone = {"class_path": "lightning_meta.nn.Conv4", "init_args": {"in_channels": 1, "width": 4, "blocks": 2}}
    sizes = {"ways": 3, "shots": 1, "queries": 4, "meta_batches_per_epoch": 2, "val_tasks": 2, "test_tasks": 9}
    sizes["test_task_list"] = str(write_rows(folder / "own.csv", GOOD))  # type: ignore[assignment]
    source = {"class_path": "tests.ddp_driver.Tiny"}
    config = {
        "model": {"class_path": "lightning_meta.ProtoNet", "init_args": {"backbone": backbone}},
        "data": {"class_path": "lightning_meta.EpisodicDataModule", "init_args": {"source": source, **sizes}},
        "trainer": {"max_steps": 2, "accelerator": "cpu", "enable_progress_bar": False},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", str(folder / "tiny.yaml"), "--runs", str(folder / "runs")]) == 0
    return folder


@pytest.fixture
def here(runs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(runs)
    return runs


def newest() -> Path:
    return max(Path("runs/tiny/0/tests").iterdir(), key=lambda folder: int(folder.name))


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


def test_fit_tests_on_the_list_and_notes_it(here: Path) -> None:
    said = results(Path("runs/tiny/0"))
    assert said["test/tasks"] == 1
    assert said["task_list"] == str(here / "own.csv")
    assert len(said["task_list_sha256"]) == 64


def test_a_grid_leaves_a_table_a_picture_and_the_tasks_of_every_cell(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TEST, "--ways=2,5", "--shots=[1, 3]", "--tasks=7", "--queries=5"]) == 0
    table = capsys.readouterr().out
    folder, said = newest(), results(newest())
    assert {f.name for f in folder.iterdir()} == {"config.yaml", "results.json", "grid.csv", "figures"} | {
        f"per_task_{n}way_{k}shot.csv" for n in (2, 5) for k in (1, 3)
    }
    with Image.open(folder / "figures" / "shot_and_way.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 5
    rows = list(csv.DictReader((folder / "grid.csv").read_text().splitlines()))
    assert [(r["ways"], r["shots"], r["chance"], r["tasks"]) for r in rows] == [
        (n, k, c, "7") for n, c in (("2", "0.5"), ("5", "0.2")) for k in ("1", "3")
    ]
    for row, cell in zip(rows, said["grid"], strict=True):
        tasks = csv.DictReader((folder / f"per_task_{row['ways']}way_{row['shots']}shot.csv").read_text().splitlines())
        scores = [float(task["score"]) for task in tasks]
        assert np.mean(scores) == pytest.approx(float(row["accuracy"])) == pytest.approx(cell["accuracy"])
        least = 1 / (5 * int(row["ways"])) / 7**0.5  # where all scores are equal
        interval = stats.t.ppf(0.975, 6) * max(np.std(scores, ddof=1), least) / 7**0.5
        assert interval == pytest.approx(float(row["accuracy_ci95"])) == pytest.approx(cell["accuracy_ci95"])
        assert f"{100 * np.mean(scores):.2f} ± {100 * interval:.2f} %" in table
    for shown in ("1-shot", "3-shot", "2-way", "5-way", "50.00 %", "20.00 %", "95 %"):
        assert shown in table
    assert "task_list" not in said  # the run's own list is not what these tasks are of
    assert main([*TEST, "--ways=5", "--shots=3", "--tasks=7", "--queries=5"]) == 0
    assert results(newest())["test/accuracy"] == pytest.approx(said["grid"][3]["accuracy"], abs=1e-7)
    assert {"predictions.npz", "per_task.csv"} <= {f.name for f in newest().iterdir()}


def test_the_command_takes_a_list(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    query = [(1, part, name, number) for _, part, name, number in GOOD]
    write_rows(here / "two.csv", [*GOOD, *query])
    assert main([*TEST, "--task_list=two.csv"]) == 0
    assert results(newest())["test/tasks"] == 2
    assert results(newest())["task_list"] == "two.csv"
    capsys.readouterr()
    for option, line in (
        ("--ways=3", "--ways: --task_list determines the tasks; use one of the two"),
        ("--task_list=none.csv", "--task_list: there is no file or folder none.csv"),
    ):
        assert main([*TEST, "--task_list=two.csv", option]) == 2
        assert capsys.readouterr().err == f"lightning-meta: error: {line}\n"


def test_mistakes_of_the_command_are_its_own_options(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(Path("runs").rglob("*"))
    for option, line in (
        ("--ways=3,50", "--ways: 50 classes a task were asked for, but the test split has 6"),
        ("--ways=1,3", "--ways: at least 2 is needed, got 1"),
        ("--ways=1", "--ways: a number from 2 up is needed; got 1"),
        ("--shots=x", "--shots: expected a whole number, or several, such as 5,20; got 'x'"),
        ("--shots=1,,2", "--shots: expected a whole number, or several, such as 5,20; got '1,,2'"),
        ("--shots=1,50", "--shots + --queries: 50 + 4 = 54 examples a class were asked for"),
    ):
        assert main([*TEST, option]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"lightning-meta: error: {line}"), said
        assert said.count("\n") == 1
    assert sorted(Path("runs").rglob("*")) == before


@pytest.mark.slow
def test_two_ranks_evaluate_the_same_tasks_as_one(tmp_path: Path) -> None:
    rows = []
    for task in range(7):
        names = [f"test {c}" for c in range(2 + task % 3)]
        rows += [(task, part, name, i) for part, i in (("support", task), ("query", 11)) for name in names]
    write_rows(tmp_path / "list.csv", rows)
    one = evaluated(1, tmp_path)
    run_driver("tests.evaluation_driver", tmp_path, 2)
    assert [len(cell) for cell in one["grid"]] == [9] * 4
    assert one["listed"]["task"] == list(range(7))
    for rank in (0, 1):
        other = json.loads((tmp_path / f"rank_{rank}.json").read_text())
        assert other["grid"] == one["grid"]
        assert other["intervals"] == one["intervals"]
        assert other["listed"]["task"] == one["listed"]["task"]
        assert other["listed"]["target"] == one["listed"]["target"]
        np.testing.assert_allclose(other["listed"]["output"], one["listed"]["output"], rtol=1e-5)


def test_other_sizes_than_those_of_a_list_are_refused(tmp_path: Path) -> None:
    listed = lm.EpisodicDataModule(Tiny(), 3, 1, 4, test_task_list=write_rows(tmp_path / "own.csv", GOOD))
    with pytest.raises(UserError, match=r"^test_task_list: the list .* determines ways, shots, queries and tasks"):
        lm.evaluate(lm.ProtoNet(nn.Flatten()), listed, ways=[2])
