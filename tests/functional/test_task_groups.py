"""Groups of tasks against every partition there is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_meta.errors import UserError
from lightning_meta.functional import task_groups as module
from lightning_meta.functional.task_groups import group_gains, task_groups

Partition = list[list[int]]


def partitions(tasks: int) -> Iterator[Partition]:
    """All partitions of the tasks, each once."""
    if tasks == 0:
        yield []
        return
    for smaller in partitions(tasks - 1):
        for i in range(len(smaller)):
            yield [*smaller[:i], [*smaller[i], tasks - 1], *smaller[i + 1 :]]
        yield [*smaller, [tasks - 1]]


def predicted(z: Tensor, partition: Partition) -> float:
    """The sum over tasks of the mean affinity of the others of the group, as the docstring has it."""
    total = 0.0
    for group in partition:
        for j in group:
            others = [float(z[i, j]) for i in group if i != j]
            total += sum(others) / len(others) if others else 0.0
    return total


def affinities(tasks: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(tasks, tasks, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 7), st.integers(1, 8), st.integers(0, 2**31), st.sampled_from([-0.5, 0.0, 0.5]))
def test_no_partition_into_so_many_groups_is_predicted_to_gain_more(
    tasks: int, groups: int, seed: int, shift: float
) -> None:
    z = affinities(tasks, seed, shift)
    found = task_groups(z, groups)
    assert found.exact
    assert sorted(t for group in found.groups for t in group) == list(range(tasks))
    assert len(found.groups) <= groups
    best = max(predicted(z, partition) for partition in partitions(tasks) if len(partition) <= groups)
    assert found.gain == pytest.approx(best, abs=1e-12)
    assert predicted(z, [list(g) for g in found.groups]) == pytest.approx(best, abs=1e-12)


def test_gains_are_those_of_each_task_and_the_diagonal_does_not_count() -> None:
    z = torch.tensor([[9.0, 0.3, -0.1], [0.2, 9.0, -0.2], [-0.1, 0.1, float("nan")]])
    torch.testing.assert_close(group_gains(z, [(0, 1), (2,)]), torch.tensor([0.2, 0.3, 0.0], dtype=torch.float64))
    torch.testing.assert_close(group_gains(z, [(0, 1, 2)]), torch.tensor([0.05, 0.2, -0.15], dtype=torch.float64))
    assert task_groups(z, 2).groups == ((0, 1), (2,))
    assert task_groups(z, 1).groups == ((0, 1, 2),)


def test_tasks_that_harm_all_others_stay_alone_where_there_are_groups_enough() -> None:
    assert task_groups(-torch.ones(4, 4), 9).groups == ((0,), (1,), (2,), (3,))
    assert task_groups(torch.ones(4, 4), 9).gain == 4


@pytest.mark.parametrize("groups", [2, 3, 4])
def test_the_search_for_many_tasks_finds_nearly_the_best(groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shares = []
    for seed in range(20):
        z = affinities(8, seed)
        best = task_groups(z, groups)
        with monkeypatch.context() as patched:
            patched.setattr(module, "EXACT", 1)
            found = task_groups(z, groups)
        assert not found.exact
        assert found.gain <= best.gain + 1e-12
        assert len(found.groups) <= groups
        shares.append(found.gain / best.gain)
    assert sum(shares) / len(shares) > 0.93


def test_planted_groups_of_many_tasks_are_found() -> None:
    """Sixty tasks in five groups, under noise as large as the difference."""
    of = torch.randperm(60, generator=torch.Generator().manual_seed(0)) % 5
    z = (of[:, None] == of).double() + affinities(60, 1, -0.5)
    found = task_groups(z, 5)
    planted = sorted(tuple((of == group).nonzero().flatten().tolist()) for group in range(5))
    assert list(found.groups) == planted


@pytest.mark.parametrize(
    ("affinity", "groups", "message"),
    [
        (torch.ones(2, 3), 2, r"affinity: a matrix \(T, T\) of two tasks or more is needed, got \(2, 3\)"),
        (torch.ones(1, 1), 2, r"got \(1, 1\)"),
        (torch.ones(3, 3), 0, "groups: at least 1 is needed, got 0"),
        (torch.ones(3, 3), 2.0, "groups: a whole number"),
        (torch.tensor([[0.0, float("nan")], [0.0, 0.0]]), 2, "of task 0 onto task 1 is nan; two tasks that were never"),
    ],
)
def test_what_is_no_affinity_is_refused(affinity: Tensor, groups: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        task_groups(affinity, groups)
