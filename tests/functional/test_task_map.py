"""The task map: both strategies give the same numbers."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch.func import grad
from torch.nn import functional as F

from lightning_meta.batches import Examples
from lightning_meta.functional.task_map import TaskMap, task_map

STRATEGIES: list[Literal["vmap", "loop"]] = ["vmap", "loop"]


def tasks(count: int) -> tuple[Examples, Examples]:
    g = torch.Generator().manual_seed(0)

    def examples(size: int) -> Examples:
        return Examples(torch.randn(count, size, 3, generator=g), torch.randn(count, size, generator=g))

    return examples(4), examples(6)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_results_are_those_of_each_task_in_order(strategy: Literal["vmap", "loop"]) -> None:
    support, query = tasks(5)
    weights = torch.tensor([1.0, -2.0, 0.5], requires_grad=True)

    def one_task(support: Examples, query: Examples) -> dict[str, Any]:
        assert support.x.shape == (4, 3)
        adapted = weights - 0.1 * grad(lambda w: (support.x @ w - support.y).square().mean())(weights)
        errors = query.x @ adapted - query.y
        return {"loss": errors.square().mean(), "both": (errors, support.y)}

    found = task_map(one_task, TaskMap(strategy), support, query)
    for t in range(5):
        alone = one_task(Examples(support.x[t], support.y[t]), Examples(query.x[t], query.y[t]))
        torch.testing.assert_close({"loss": found["loss"][t], "both": tuple(b[t] for b in found["both"])}, alone)
    (gradient,) = torch.autograd.grad(found["loss"].mean(), weights)
    # By hand: with A the support's Gram matrix, d(adapted)/d(weights) = I - 0.1 * 2/4 * A.
    expected = torch.zeros(3)
    for t in range(5):
        x, y, q, z = support.x[t], support.y[t], query.x[t], query.y[t]
        adapted = (weights - 0.05 * x.T @ (x @ weights - y)).detach()
        expected += (torch.eye(3) - 0.05 * x.T @ x) @ (2 / 6 * q.T @ (q @ adapted - z)) / 5
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_random_layers_draw_differently_in_each_task(strategy: Literal["vmap", "loop"]) -> None:
    def draw(x: Tensor) -> Tensor:
        return F.dropout(x, 0.5)

    torch.manual_seed(0)
    first = task_map(draw, TaskMap(strategy), torch.ones(3, 64))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[1], first[2])
    torch.manual_seed(0)
    assert torch.equal(task_map(draw, TaskMap(strategy), torch.ones(3, 64)), first)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_task_keeps_its_dimension(strategy: Literal["vmap", "loop"]) -> None:
    x = torch.randn(1, 4)
    assert torch.equal(task_map(lambda x: x + 1, TaskMap(strategy), x), x + 1)
