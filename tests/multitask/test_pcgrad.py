"""PCGrad against its algorithm, written plainly, and against TorchJD's; the orders that it draws."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_meta.functional import random_bits
from lightning_meta.tasks import Regression, Task
from lightning_meta.weightings import PCGrad


def made(tasks: int, seed: int = 0) -> PCGrad:
    torch.manual_seed(seed)
    weighting = PCGrad()
    named: dict[str, Task] = {f"t{i}": Regression() for i in range(tasks)}
    weighting.configure(named)
    return weighting


def gradients(tasks: int, seed: int) -> Tensor:
    """Gradients of ten parameters; with many tasks, most conflict with another one."""
    return torch.randn(tasks, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def orders_of(weighting: PCGrad, tasks: int) -> Tensor:
    """The random orders of the next step."""
    keys = random_bits.key(weighting.key, weighting.step, torch.arange(tasks))
    return random_bits.choose(keys, tasks, tasks)


def algorithm_1(rows: Tensor, orders: Tensor) -> Tensor:
    """Algorithm 1 of the paper, on the gradients themselves."""
    total = torch.zeros_like(rows[0])
    for i, row in enumerate(rows):
        projected = row.clone()
        for j in orders[i].tolist():
            if j != i and projected @ rows[j] < 0:
                projected -= (projected @ rows[j]) / rows[j].norm() ** 2 * rows[j]
        total += projected
    return total


def stepped(weighting: PCGrad, rows: Tensor) -> Tensor:
    present = rows.abs().sum(1) > 0
    return weighting.direction(rows, torch.ones(len(rows)) * present, present)


@pytest.mark.parametrize("tasks", [1, 2, 3, 8])
def test_it_is_algorithm_1(tasks: int) -> None:
    weighting = made(tasks)
    for seed in range(20):
        rows = gradients(tasks, seed)
        if seed % 4 == 3:
            rows[seed % tasks] = 0  # an absent task
        expected = algorithm_1(rows, orders_of(weighting, tasks))
        torch.testing.assert_close(stepped(weighting, rows), expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(weighting.applied @ rows, expected, rtol=1e-12, atol=1e-12)


def test_parity_with_torchjd(monkeypatch: pytest.MonkeyPatch) -> None:
    torchjd = pytest.importorskip("torchjd.aggregation")
    weighting, theirs = made(5), torchjd.PCGrad()
    for seed in range(20):
        rows, orders = gradients(5, seed), iter(orders_of(weighting, 5))
        monkeypatch.setattr(torch, "randperm", _next(orders))
        expected = theirs(rows)
        monkeypatch.undo()
        torch.testing.assert_close(stepped(weighting, rows), expected, rtol=1e-12, atol=1e-12)


def _next(orders: Iterator[Tensor]) -> Any:
    return lambda count: next(orders)


def test_without_conflict_it_is_the_sum() -> None:
    rows = gradients(4, 0).abs()
    weighting = made(4)
    assert torch.equal(stepped(weighting, rows), torch.ones(4, dtype=torch.float64) @ rows)
    assert weighting.applied.tolist() == [1, 1, 1, 1]


def test_two_tasks_that_conflict_end_at_right_angles() -> None:
    rows = torch.tensor([[1.0, 0.0], [-1.0, 1.0]])
    direction = stepped(made(2), rows)  # (1/2, 1/2) and (0, 1)
    torch.testing.assert_close(direction, torch.tensor([0.5, 1.5]))


@pytest.mark.parametrize("power", range(0, 40, 5))
def test_gradients_of_very_different_sizes_are_projected_as_in_float64(power: int) -> None:
    for seed in range(5):
        rows = gradients(4, seed).float()
        rows[1] *= 10.0**-power
        rows[2] = 0
        expected = stepped(made(4), rows.double())
        torch.testing.assert_close(stepped(made(4), rows).double(), expected, rtol=1e-5, atol=1e-5)
    rows = torch.tensor([[0.1], [-1.0]]).expand(2, 1000) * torch.tensor([[1.0], [10.0**-power]])
    torch.testing.assert_close(stepped(made(2), rows), torch.zeros(1000), rtol=0, atol=1e-6)


def test_weights_that_half_precision_cannot_hold() -> None:
    rows = torch.tensor([[1.0, 0.0], [-1e-6, 1e-6]])
    direction = stepped(made(2), rows.half())
    torch.testing.assert_close(direction.float(), torch.tensor([0.5, 0.5]), rtol=1e-2, atol=1e-2)


def test_orders_change_with_the_step_and_leave_the_generator() -> None:
    weighting, again = made(6), made(6)
    rows = gradients(6, 1)
    state = torch.get_rng_state()
    first = [orders_of(weighting, 6) if not stepped(weighting, rows).isnan().any() else None for _ in range(3)]
    assert torch.equal(torch.get_rng_state(), state)
    assert first[0] is not None
    assert first[1] is not None
    assert not torch.equal(first[0], first[1])
    stepped(again, rows)
    resumed = made(6, seed=1)
    assert not torch.equal(resumed.key, again.key)
    resumed.load_state_dict(again.state_dict())
    assert torch.equal(stepped(resumed, rows), stepped(again, rows))


def test_all_orders_are_equally_likely() -> None:
    weighting = made(3)
    counts: dict[tuple[int, ...], int] = {}
    for _ in range(1200):
        for order in orders_of(weighting, 3).tolist():
            counts[tuple(order)] = counts.get(tuple(order), 0) + 1
        weighting.step += 1
    assert len(counts) == 6
    expected = 3600 / 6
    assert sum((n - expected) ** 2 / expected for n in counts.values()) < 20.5  # chi-square, p = 0.001
