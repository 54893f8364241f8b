"""One process and two ranks of a real Trainer: the same training, the same figures, one writer."""

from __future__ import annotations

import csv
import json
import math
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from lightning_meta.run import read_checkpoint
from tests.ranks import run_driver

pytestmark = pytest.mark.slow  # two ranks of every shipped method are in the default suite

TRAINED = ["protonet", "protonet_augmented", "protonet_inductive", "maml", "maml_inductive", "maml_measured"]
EVALUATED = ["protonet", "maml"]


class Ran(NamedTuple):
    """The output of `tests/ddp_driver.py`: the records of each rank, and the run directories."""

    folder: Path
    ranks: list[dict[str, Any]]


def drive(folder: Path, world: int) -> Ran:
    run_driver("tests.ddp_driver", folder, world)
    return Ran(folder, [torch.load(folder / f"rank_{rank}.pt", weights_only=True) for rank in range(world)])


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return drive(tmp_path_factory.mktemp("one"), 1)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return drive(tmp_path_factory.mktemp("two"), 2)


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest difference of two state_dicts."""
    assert a.keys() == b.keys()
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a if a[name].numel())


# Training


@pytest.mark.parametrize("name", TRAINED)
def test_two_ranks_train_as_one_process_with_the_same_meta_batches(one: Ran, two: Ran, name: str) -> None:
    expected = one.ranks[0]["train"][name]["state"]
    assert all(tensor.dtype == torch.float64 for tensor in expected.values() if tensor.is_floating_point())
    for rank in two.ranks:
        assert distance(rank["train"][name]["state"], expected) < 1e-12


def test_augmented_images_train_another_network(one: Ran) -> None:
    states = one.ranks[0]["train"]
    assert distance(states["protonet_augmented"]["state"], states["protonet"]["state"]) > 1e-3


def test_ranks_visit_tasks_as_rank_0_has_chosen(two: Ran) -> None:
    """The driver makes their measurements come out differently."""
    assert [rank["train"]["maml_measured"]["task_map"][0] for rank in two.ranks] == ["loop", "loop"]


def test_running_statistics_have_moved_and_are_those_of_all_ranks(one: Ran, two: Ran) -> None:
    means = {k: v for k, v in one.ranks[0]["train"]["protonet"]["state"].items() if k.endswith(".running_mean")}
    assert len(means) == 4
    assert all(mean.abs().max() > 1e-3 for mean in means.values())
    for rank in two.ranks:
        state = rank["train"]["protonet"]["state"]
        assert distance({k: state[k] for k in means}, means) < 1e-12


@pytest.mark.parametrize("name", TRAINED)
def test_every_rank_trains_on_its_own_share_of_the_same_tasks(one: Ran, two: Ran, name: str) -> None:
    (whole,) = (rank["train"][name]["tasks"] for rank in one.ranks)
    first, second = (rank["train"][name]["tasks"] for rank in two.ranks)
    assert whole == [list(range(4 * b, 4 * b + 4)) for b in range(4)]
    assert set(chain(*first)).isdisjoint(chain(*second))
    assert [a + b for a, b in zip(first, second, strict=True)] == whole


# Evaluation


@pytest.mark.parametrize("case", ["9 tasks", "9 tasks, 2 workers", "1 task"])
@pytest.mark.parametrize("name", EVALUATED)
def test_figures_are_identical_at_one_and_two_ranks_and_any_workers(one: Ran, two: Ran, name: str, case: str) -> None:
    # One task leaves the second rank with nothing of its own to do.
    expected = one.ranks[0]["evaluate"][f"{name}, {case.split(',')[0]}"]
    assert {"val/loss", "val/accuracy", "val/accuracy_ci95"} <= expected["val"].keys()
    for found in (rank["evaluate"][f"{name}, {case}"] for rank in one.ranks + two.ranks):
        for stage in ("val", "test"):
            assert found[stage].keys() == expected[stage].keys()
            for key, value in expected[stage].items():
                assert found[stage][key] == value or (math.isnan(value) and math.isnan(found[stage][key])), key
        assert all(torch.equal(found["table"][key], column) for key, column in expected["table"].items())


@pytest.mark.parametrize(("case", "tasks"), [("9 tasks", 9), ("1 task", 1)])
def test_every_test_task_is_counted_once(two: Ran, case: str, tasks: int) -> None:
    for rank in two.ranks:
        found = rank["evaluate"][f"protonet, {case}"]
        assert found["test"]["test/tasks"] == tasks
        assert found["table"]["task"].tolist() == list(range(tasks))
        assert found["test"]["test/accuracy"] == pytest.approx(float(found["table"]["score"].mean()), abs=1e-7)


# The run directory


def test_only_rank_0_writes(two: Ran) -> None:
    first, second = (rank["written"] for rank in two.ranks)
    assert {Path(path).name.strip(".").split(".")[0] for path in first} >= {"metrics", "results", "last", "best"}
    assert second == []


def test_one_run_directory_with_every_step_once(one: Ran, two: Ran) -> None:
    steps = []
    for ran in (one, two):
        (directory,) = (ran.folder / "runs" / "tiny").iterdir()
        rows = csv.DictReader((directory / "metrics.csv").read_text().splitlines())
        steps.append([row["step"] for row in rows if row["train/loss"]])
        assert json.loads((directory / "results.json").read_text())["test/tasks"] == 9
    assert steps[0] == steps[1]
    assert len(set(steps[0])) == len(steps[0]) == 8


def test_a_stop_and_a_resume_leave_two_ranks_where_they_leave_one_process(one: Ran, two: Ran) -> None:
    ends = [read_checkpoint(ran.folder / "runs" / "tiny" / "0" / "checkpoints" / "last.ckpt") for ran in (one, two)]
    assert [end["global_step"] for end in ends] == [8, 8]
    assert distance(ends[1]["state_dict"], ends[0]["state_dict"]) < 1e-12
