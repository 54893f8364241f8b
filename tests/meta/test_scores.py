"""Scores over tasks: the mean and interval of the textbook, and every task counted once."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from lightning_meta.meta.scores import TaskScores, mean_and_interval

SCORES = st.lists(st.floats(0, 1, width=32), min_size=2, max_size=50)


@given(values=SCORES)
def test_mean_and_interval_are_those_of_scipy(values: list[float]) -> None:
    mean, half_width = mean_and_interval(torch.tensor(values))
    reference = np.asarray(values, np.float64)
    assert mean == pytest.approx(reference.mean(), abs=1e-12)
    low, high = stats.t.interval(0.95, len(values) - 1, reference.mean(), max(stats.sem(reference), 1e-300))
    assert half_width == pytest.approx((high - low) / 2, abs=1e-12)


@pytest.mark.parametrize("tasks", [5, 600])
def test_the_interval_covers_the_mean_of_few_tasks_too(tasks: int) -> None:
    draws = np.random.default_rng(0).normal(0.6, 0.1, (4_000, tasks))
    found = [mean_and_interval(torch.from_numpy(row)) for row in draws]
    covered = sum(abs(mean - 0.6) <= half_width for mean, half_width in found)
    assert stats.binomtest(covered, 4_000, 0.95).pvalue > 1e-4


def test_equal_scores_have_the_interval_of_one_example_that_is_otherwise() -> None:
    equal, other = torch.full((4,), 0.56), torch.tensor([0.56, 0.56, 0.56, 0.58])
    assert mean_and_interval(equal)[1] == pytest.approx(0)
    assert mean_and_interval(equal, 1 / 50)[1] == pytest.approx(mean_and_interval(other)[1], rel=1e-5)
    assert mean_and_interval(other, 1 / 50) == pytest.approx(mean_and_interval(other), rel=1e-5)


def test_the_interval_covers_the_mean_95_times_in_100() -> None:
    draws = np.random.default_rng(0).beta(4, 2, (2_000, 600))
    covered = 0
    for row in draws:
        mean, half_width = mean_and_interval(torch.from_numpy(row))
        covered += abs(mean - 4 / 6) <= half_width
    assert stats.binomtest(covered, 2_000, 0.95).pvalue > 1e-4


def test_small_numbers_of_32_bits_are_not_lost_in_the_mean() -> None:
    values = torch.full((100_000,), 0.1, dtype=torch.float32)
    assert mean_and_interval(values)[0] == pytest.approx(float(np.float32(0.1)), rel=1e-12)


def test_one_task_has_a_mean_and_no_interval() -> None:
    mean, half_width = mean_and_interval(torch.tensor([0.25]))
    assert mean == 0.25
    assert math.isnan(half_width)


def record(scores: TaskScores, numbers: list[int], loss: float | None = None) -> None:
    """Tasks whose every figure follows from their number."""
    tasks = torch.tensor(numbers)
    values = tasks.double() if loss is None else torch.full((len(numbers),), loss)
    table = torch.stack([tasks / 10, tasks / 100], dim=1)
    outputs = tasks.view(-1, 1, 1).expand(-1, 3, 2).float()
    scores.update(tasks, values, table, outputs, tasks.view(-1, 1).expand(-1, 3))


def test_the_table_is_in_the_order_of_the_tasks() -> None:
    scores = TaskScores(keep_outputs=True)
    for numbers in ([4, 5], [0, 1], [3], [2]):
        record(scores, numbers)
    table = scores.compute()
    order = torch.arange(6)
    assert torch.equal(table.tasks, order)
    assert torch.equal(table.loss, order.double())
    assert torch.equal(table.scores, torch.stack([order.double() / 10, order.double() / 100], 1)), (
        "0.1, not 0.1000000015"
    )
    assert torch.equal(table.outputs[:, 0, 0], order.float())
    assert torch.equal(table.targets[:, 0], order)


def test_a_task_that_was_seen_twice_counts_once() -> None:
    scores = TaskScores()
    record(scores, [0, 1, 2])
    record(scores, [0], loss=100.0)
    record(scores, [2, 3])
    table = scores.compute()
    assert table.tasks.tolist() == [0, 1, 2, 3]
    assert table.loss.tolist() == [0, 1, 2, 3], "the first record stands"
    assert mean_and_interval(table.loss)[0] == 1.5


@given(numbers=st.lists(st.integers(0, 30), min_size=1, max_size=40), size=st.integers(1, 7))
def test_any_batches_give_the_table_of_the_distinct_tasks(numbers: list[int], size: int) -> None:
    scores = TaskScores(keep_outputs=True)
    for first in range(0, len(numbers), size):
        record(scores, numbers[first : first + size])
    table = scores.compute()
    assert table.tasks.tolist() == sorted(set(numbers))
    assert torch.equal(table.outputs[:, 0, 0].long(), table.tasks)


def kept(keep_outputs: bool) -> tuple[Tensor, Tensor]:
    scores = TaskScores(keep_outputs)
    record(scores, [0, 1])
    record(scores, [2])
    table = scores.compute()
    return table.outputs, table.targets


def test_outputs_are_kept_where_asked_for_and_not_else() -> None:
    assert [tuple(t.shape) for t in kept(True)] == [(3, 3, 2), (3, 3)]
    assert [t.numel() for t in kept(False)] == [0, 0]


def test_a_table_of_one_task_is_still_a_table() -> None:
    scores = TaskScores(keep_outputs=True)
    scores.update(torch.tensor([7]), torch.tensor([0.5]), torch.tensor([[0.25]]), torch.ones(1, 1, 1), torch.ones(1, 1))
    table = scores.compute()
    shapes = [tuple(t.shape) for t in (table.tasks, table.loss, table.scores, table.outputs, table.targets)]
    assert shapes == [(1,), (1,), (1, 1), (1, 1, 1), (1, 1)]


def test_a_new_epoch_starts_empty() -> None:
    scores = TaskScores()
    record(scores, [0, 1, 2])
    scores.compute()
    scores.reset()
    record(scores, [5])
    assert scores.compute().tasks.tolist() == [5]


def test_the_median_survives_tasks_that_diverged() -> None:
    scores = TaskScores()
    errors = torch.tensor([[0.1], [0.2], [math.nan], [0.3], [math.inf]])
    scores.update(torch.arange(5), errors[:, 0], errors, torch.zeros(5, 2, 1), torch.zeros(5, 2, 1))
    summary = scores.compute().summary("mse")
    assert math.isnan(summary["mse"])
    assert summary["mse_median"] == pytest.approx(0.3)


@pytest.mark.parametrize("tasks", [1, 2, 5, 40])
def test_the_median_is_that_of_numpy(tasks: int) -> None:
    scores = TaskScores()
    errors = torch.rand(tasks, 1, generator=torch.Generator().manual_seed(tasks), dtype=torch.float64)
    scores.update(torch.arange(tasks), errors[:, 0], errors, torch.zeros(tasks, 2, 1), torch.zeros(tasks, 2, 1))
    assert scores.compute().summary("mse")["mse_median"] == pytest.approx(np.median(errors.numpy()), rel=1e-12)
