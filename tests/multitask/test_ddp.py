"""One process and two ranks of a real Trainer: the same gradients, weights and figures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.multitask.ddp_driver import MODULES, TASKS, TRAINED, validate
from tests.ranks import run_driver

pytestmark = pytest.mark.slow  # two ranks of every shipped method are in the default suite

Ranks = list[dict[str, Any]]


def drive(folder: Path, world: int) -> Ranks:
    run_driver("tests.multitask.ddp_driver", folder, world)
    return [torch.load(folder / f"rank_{rank}.pt", weights_only=False) for rank in range(world)]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return drive(tmp_path_factory.mktemp("one"), 1)[0]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    return drive(tmp_path_factory.mktemp("two"), 2)


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a if a[name].numel())


# Training


@pytest.mark.parametrize("name", TRAINED)
def test_gradients_of_two_ranks_are_those_of_one_process_on_the_whole_batch(
    one: dict[str, Any], two: Ranks, name: str
) -> None:
    expected = one["train"][name]["gradients"]
    assert len(expected) == 5
    for step in expected:
        assert any(g.abs().max() > 1e-6 for g in step.values())
    for rank in two:
        for found, of_one in zip(rank["train"][name]["gradients"], expected, strict=True):
            assert distance(found, of_one) < 1e-12


@pytest.mark.parametrize("name", TRAINED)
def test_weights_and_state_after_five_steps_of_adam_are_those_of_one_process(
    one: dict[str, Any], two: Ranks, name: str
) -> None:
    expected = one["train"][name]["state"]
    for rank in two:
        assert distance(rank["train"][name]["state"], expected) < 1e-12


def test_embeddings_of_categories_after_five_steps_are_those_of_one_process(one: dict[str, Any], two: Ranks) -> None:
    assert any("embedding_" in name for name in one["embeddings"])
    for rank in two:
        assert distance(rank["embeddings"], one["embeddings"]) < 1e-12


@pytest.mark.parametrize("name", TRAINED)
def test_ranks_have_shares_of_the_same_batches(one: dict[str, Any], two: Ranks, name: str) -> None:
    whole, shares = one["train"][name], [rank["train"][name] for rank in two]
    assert all(share["tasks"] == whole["tasks"] for share in shares)
    for total, *parts in zip(whole["inputs"], *(share["inputs"] for share in shares), strict=True):
        assert sum(parts) == total
        assert max(parts) - min(parts) <= 1


@pytest.mark.parametrize("name", [name for name in TRAINED if "some" in name or "accumulated" in name])
def test_what_belongs_to_an_absent_task_stands_still(one: dict[str, Any], two: Ranks, name: str) -> None:
    batches = 2 if "accumulated" in name else 1
    for rank in (one, *two):
        noted = rank["train"][name]
        stood = moved = 0
        for first in range(0, 6, batches):  # the epoch of seven batches ends in a step of its own
            present = {task for tasks in noted["tasks"][first : first + batches] for task in tasks}
            for task, before, after in zip(TASKS, noted["own"][first], noted["own"][first + batches], strict=True):
                if before.numel():
                    assert torch.equal(before, after) == (task not in present), task
                    stood, moved = stood + (task not in present), moved + (task in present)
            if len(noted["tasks"]) <= first + batches:
                break
        if not name.startswith("one_hot"):  # which has nothing of a task's own
            assert stood > 2
            assert moved > 2


def test_the_data_leaves_ranks_and_batches_without_some_tasks(two: Ranks) -> None:
    # What the tests above rest on: pairs of tasks take turns, and one example of `sign` is for two ranks.
    drawn = two[0]["train"]["multi_head, some tasks"]["tasks"]
    assert all(len(tasks) == 2 for tasks in drawn)
    assert len({tuple(tasks) for tasks in drawn}) > 2
    assert all("sign" in tasks for tasks in two[0]["train"]["multi_head, all tasks"]["tasks"])


# Evaluation


@pytest.mark.parametrize("case", [*MODULES, "missing labels", "one batch", "targets of any shape"])
def test_figures_are_identical_at_one_and_two_ranks(one: dict[str, Any], two: Ranks, case: str) -> None:
    expected = one["evaluate"][case]
    assert {"val/score", "val/loss"} <= expected["val"].keys()
    assert {"test/score", "test/tasks"} <= expected["test"].keys()
    for found in (rank["evaluate"][case] for rank in two):
        for stage in ("val", "test"):
            assert found[stage].keys() == expected[stage].keys()
            for key, value in expected[stage].items():
                assert found[stage][key] == value or (math.isnan(value) and math.isnan(found[stage][key])), key
        for column, values in expected["predictions"].items():
            assert torch.equal(found["predictions"][column].nan_to_num(), values.nan_to_num()), column
        assert str(found["per_task"]) == str(expected["per_task"])


def test_every_test_example_is_counted_once(two: Ranks) -> None:
    for case, counts in (("multi_head", [30, 7]), ("one batch", [30, 7])):
        for rank in two:
            table = rank["evaluate"][case]["predictions"]
            found = [table["id"][table["task"] == i].tolist() for i in range(2)]
            assert found == [list(range(n)) for n in counts]


@pytest.mark.parametrize("kind", ["multi_head", "branches", "independent", "independent_loop"])
def test_validation_within_training_is_that_of_the_saved_weights(two: Ranks, kind: str, tmp_path: Path) -> None:
    # The first rank's running statistics are saved; both ranks validate with them.
    states = [rank["fit"][kind]["state"] for rank in two]
    assert distance(states[0], states[1]) == 0
    assert all(torch.isfinite(t.double()).all() for t in states[0].values())
    expected = validate(tmp_path, kind, states[0])
    for rank in two:
        logged = rank["fit"][kind]["val"]
        names = [name for name in expected if name != "val/score" or "independent" not in kind]  # there each one's best
        assert {name: logged[name] for name in names} == pytest.approx({n: expected[n] for n in names}, rel=1e-6)
