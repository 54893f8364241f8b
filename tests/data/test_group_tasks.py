"""Groups of classes as tasks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_meta.batches import SPLITS, Split
from lightning_meta.data.group_tasks import tasks_of_groups
from lightning_meta.data.pool import Pool
from lightning_meta.errors import UserError
from lightning_meta.tasks import Classification

NAMES, GROUPS = ("x", "p", "y", "z", "q"), ("a", "b", "a", "a", "b")


def pool(sizes: tuple[int, ...], names: tuple[str, ...] = NAMES, groups: tuple[str, ...] = GROUPS) -> Pool:
    """Example i of class c is 10 c + i."""
    x = torch.cat([10 * c + torch.arange(n) for c, n in enumerate(sizes)])
    return Pool(x[:, None], torch.tensor(sizes), names, groups)


def pools(**given: Pool) -> dict[Split, Pool]:
    return {split: given.get(split, pool((2, 3, 1, 4, 2))) for split in SPLITS}


def test_each_group_is_a_task_of_telling_its_classes_apart() -> None:
    tasks, sets = tasks_of_groups(pools(test=pool((1, 1, 0, 2, 1))))
    assert list(tasks) == ["a", "b"]
    assert all(isinstance(task, Classification) for task in tasks.values())
    assert {name: task.outputs for name, task in tasks.items()} == {"a": 3, "b": 2}
    assert {split: data.counts for split, data in sets.items()} == {
        "train": {"a": 7, "b": 5},
        "val": {"a": 7, "b": 5},
        "test": {"a": 3, "b": 2},
    }


def test_labels_count_the_classes_of_a_group_and_keep_their_examples() -> None:
    _, sets = tasks_of_groups(pools(val=pool((1, 1, 0, 2, 1))))
    members = {"a": [0, 2, 3], "b": [1, 4]}
    for data in sets.values():
        assert isinstance(data.inputs, Tensor)
        for name, classes in members.items():
            found = data.inputs[data.rows[name]][:, 0] // 10
            assert found.tolist() == [classes[label] for label in data.targets[name].tolist()]
        assert not data.overlapping


def test_classes_without_a_group_are_one_task() -> None:
    tasks, _ = tasks_of_groups({split: pool((1,) * 5, groups=("",) * 5) for split in SPLITS})
    assert {name: task.outputs for name, task in tasks.items()} == {"all": 5}


@pytest.mark.parametrize(
    "other", [pool((1,) * 5, names=("x", "p", "y", "z", "other")), pool((1,) * 5, groups=("a", "b", "a", "b", "b"))]
)
def test_splits_of_other_classes_are_refused(other: Pool) -> None:
    for split in ("val", "test"):
        with pytest.raises(UserError, match=f"source: the {split} split holds other classes than the train split"):
            tasks_of_groups(pools(**{split: other}))


def test_a_group_of_one_class_is_refused() -> None:
    single = pool((1,) * 5, groups=("a", "b", "a", "a", "c"))
    with pytest.raises(UserError, match="task 'b' has the single class 'p'; there is nothing to tell apart"):
        tasks_of_groups(pools(train=single, val=single, test=single))
