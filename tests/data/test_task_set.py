from __future__ import annotations

import pytest
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from torch.utils._pytree import tree_leaves
from torch.utils.data._utils.pin_memory import pin_memory

from lightning_meta.batches import Common, Examples, Split, TaskBatch
from lightning_meta.data.hashes import of_sets
from lightning_meta.data.task_set import TaskSet
from lightning_meta.errors import UserError


def apart() -> TaskSet:
    """Two tasks with a data set each: inputs 0, 1, 2 and 10, 11."""
    a = Examples(torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([0, 1, 0]))
    b = Examples(torch.tensor([[10.0], [11.0]]), torch.tensor([2, 1]))
    return TaskSet.of_examples({"a": a, "b": b})


def shared() -> TaskSet:
    """Four inputs, 0 to 3: a label of a for 0, 1 and 3, of b for 1 and 2."""
    x = torch.arange(4.0).view(4, 1)
    columns = {"a": torch.tensor([10, 11, -1, 13]), "b": torch.tensor([-1, 21, 22, -1])}
    present = {"a": torch.tensor([True, True, False, True]), "b": torch.tensor([False, True, True, False])}
    return TaskSet.of_columns(x, columns, present)


def test_data_sets_of_their_own() -> None:
    data = apart()
    assert data.names == ["a", "b"]
    assert data.counts == {"a": 3, "b": 2}
    assert data.input_shapes == {"a": (1,), "b": (1,)}
    assert not data.overlapping
    batch = data.batch({"b": torch.tensor([1, 0]), "a": torch.tensor([2])})
    assert isinstance(batch.inputs, torch.Tensor)
    assert batch.inputs[batch.rows["b"]].flatten().tolist() == [11, 10]
    assert batch.targets["b"].tolist() == [1, 2]
    assert batch.inputs[batch.rows["a"]].flatten().tolist() == [2]


def test_batches_with_other_numbers_of_examples_have_rows_of_their_own() -> None:
    data = apart()
    for ids in ({"a": [2, 0], "b": [1]}, {"a": [1], "b": [0, 1]}, {"b": [1, 0]}, {"a": [2, 1], "b": [0]}):
        batch = data.batch({name: torch.tensor(of) for name, of in ids.items()})
        assert isinstance(batch.inputs, torch.Tensor)
        for name, of in ids.items():
            assert batch.inputs[batch.rows[name]].flatten().tolist() == [10 * (name == "b") + i for i in of]


def test_rows_of_an_evaluation_can_be_saved_for_a_later_backward_pass() -> None:
    data, ids = apart(), {"a": torch.tensor([2, 0]), "b": torch.tensor([1])}
    with torch.inference_mode():
        data.batch(ids)
    x = torch.ones(3, 1, requires_grad=True)
    x[data.batch(ids).rows["a"]].sum().backward()
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [1, 1, 0]


@pytest.mark.parametrize("data", [apart(), shared()], ids=["apart", "shared"])
def test_lightning_moves_a_batch_whole_and_keeps_the_kind_of_its_rows(data: TaskSet) -> None:
    batch = data.batch({"a": torch.tensor([1, 2]), "b": torch.tensor([0, 1])})
    moved = move_data_to_device(batch, torch.device("meta"))
    assert type(moved) is TaskBatch
    for of, there in zip(batch, moved, strict=True):
        assert type(of) is type(there)
        if isinstance(of, dict) and isinstance(there, dict):
            assert list(of) == list(there)
        for before, after in zip(tree_leaves(of), tree_leaves(there), strict=True):
            assert (after is None) if before is None else (after.shape, after.device.type) == (before.shape, "meta")


def test_what_all_tasks_have_in_common_is_moved_once() -> None:
    data = TaskSet.of_columns(torch.arange(4.0).view(4, 1), *[dict.fromkeys("ab", torch.ones(4, dtype=torch.bool))] * 2)
    ids = torch.tensor([3, 1])
    moved = data.batch(dict.fromkeys("ab", ids)).to("meta")
    assert isinstance(moved.rows, Common)
    assert moved.rows["a"] is moved.rows["b"]
    assert moved.ids["a"] is moved.ids["b"]


def test_what_all_tasks_have_in_common_is_pinned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches are pinned before each copy to a GPU; pinning is simulated here, as it needs a GPU."""
    pinned: list[torch.Tensor] = []

    def pin(x: torch.Tensor) -> torch.Tensor:
        pinned.append(x.clone())
        return pinned[-1]

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    names, there = "abc", torch.ones(4, dtype=torch.bool)
    data = TaskSet.of_columns(torch.arange(4.0).view(4, 1), *[dict.fromkeys(names, there)] * 2)
    batch = pin_memory(data.batch(dict.fromkeys(names, torch.tensor([3, 1]))))
    assert type(batch) is TaskBatch
    assert isinstance(batch.rows, Common)
    assert batch.rows["a"] is batch.rows["c"]
    assert batch.ids["a"] is batch.ids["c"]
    assert {id(leaf) for leaf in tree_leaves(batch) if leaf is not None} == set(map(id, pinned)), "each is pinned"


def test_one_input_with_several_targets_is_in_a_batch_once() -> None:
    data = shared()
    assert data.overlapping
    assert data.counts == {"a": 3, "b": 2}
    assert data.positions["a"].tolist() == [0, 1, -1, 2]
    batch = data.batch({"a": torch.tensor([1, 2]), "b": torch.tensor([0, 1])})
    assert isinstance(batch.inputs, torch.Tensor)
    assert sorted(batch.inputs.flatten().tolist()) == [1, 2, 3]
    for name, base in (("a", 10), ("b", 20)):
        assert (batch.inputs[batch.rows[name]].flatten() + base).tolist() == batch.targets[name].tolist()


def test_inputs_of_different_shapes_are_kept_apart() -> None:
    data = TaskSet.of_examples(
        {"a": Examples(torch.zeros(2, 3), torch.zeros(2)), "b": Examples(torch.ones(1, 4), torch.ones(1))}
    )
    assert data.input_shapes == {"a": (3,), "b": (4,)}
    assert not data.overlapping
    batch = data.batch({"b": torch.tensor([0])})
    assert isinstance(batch.inputs, dict)
    assert batch.inputs["b"].shape == (1, 4)
    assert data.select(["b"]).names == ["b"]


@pytest.mark.parametrize("data", [apart(), shared()], ids=["apart", "shared"])
def test_select_keeps_each_label_with_its_input(data: TaskSet) -> None:
    chosen = data.select(["b"])
    assert chosen.names == ["b"]
    assert isinstance(data.inputs, torch.Tensor)
    assert isinstance(chosen.inputs, torch.Tensor)
    assert torch.equal(chosen.inputs[chosen.rows["b"]], data.inputs[data.rows["b"]])
    assert len(chosen.inputs) == 2
    both = data.select(["b", "a"])
    assert both.names == ["b", "a"]
    assert both.counts == {"b": 2, "a": 3}


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="task 'a' has 2 inputs and 3 targets"):
        TaskSet.of_examples({"a": Examples(torch.zeros(2, 1), torch.zeros(3))})
    x, y = torch.zeros(3, 1), {"a": torch.zeros(2)}
    for rows, message in (
        ([1, 1], "without duplicates"),
        ([2, 1], "rows must be in ascending order"),
        ([0, 1, 2], "2 targets for 3 rows"),
    ):
        with pytest.raises(ValueError, match=message):
            TaskSet(x, y, {"a": torch.tensor(rows)})
    with pytest.raises(ValueError, match="name the same tasks"):
        TaskSet(x, y, {"b": torch.tensor([0, 1])})


def test_fingerprint_follows_inputs_targets_rows_names_and_splits() -> None:
    def of(train: TaskSet, test: TaskSet | None = None) -> str:
        sets: dict[Split, TaskSet] = {"train": train, "val": shared(), "test": test or shared()}
        return of_sets(sets).whole

    data = shared()
    other_rows = {"a": torch.tensor([0, 1, 2]), "b": data.rows["b"]}
    changed = [
        of(shared()),
        of(TaskSet(data.inputs + 1, data.targets, data.rows)),  # type: ignore[operator, arg-type]
        of(TaskSet(data.inputs, {**data.targets, "a": data.targets["a"] + 1}, data.rows)),
        of(TaskSet(data.inputs, data.targets, other_rows)),
        of(data.select(["b", "a"])),
        of(
            TaskSet(
                data.inputs,
                {"c": data.targets["a"], "b": data.targets["b"]},
                {"c": data.rows["a"], "b": data.rows["b"]},
            )
        ),
        of(apart()),
        of(shared(), apart()),
    ]
    assert len(set(changed)) == len(changed)
    assert of(shared()) == changed[0]


def test_weights_alone_in_float64_are_narrowed_too() -> None:
    rows = {"a": torch.arange(3)}
    weights = {"a": torch.ones(3, dtype=torch.float64)}
    narrowed = TaskSet(torch.zeros(3, 2), {"a": torch.zeros(3, 1)}, rows, weights).without_float64()
    assert narrowed.weights is not None
    assert narrowed.weights["a"].dtype == torch.float32
