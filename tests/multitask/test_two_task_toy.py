"""The two-task toy problem: where its losses come from, and which methods reach its Pareto front."""

from __future__ import annotations

import math

import pytest
import torch

from tests.multitask import two_task_toy
from tests.multitask.two_task_toy import NEAR, SETTINGS, descend, excess, gradients, losses


def test_losses_and_gradients_are_those_of_the_formula() -> None:
    sizes = SETTINGS["Navon et al."].sizes
    for x1, x2 in ((-8.5, 7.5), (2.0, 1.0), (9.0, -1.0), (-3.0, -8.0)):
        first = math.log(max(abs(0.5 * (-x1 - 7) - math.tanh(-x2)), 5e-6)) + 6
        second = math.log(max(abs(0.5 * (-x1 + 3) + math.tanh(-x2) + 2), 5e-6)) + 6
        bowls = [((-x1 + side) ** 2 + 0.1 * (-x2 - 8) ** 2) / 10 - 20 for side in (7, -7)]
        upper, lower = max(math.tanh(0.5 * x2), 0), max(math.tanh(-0.5 * x2), 0)
        wanted = [0.1 * (upper * first + lower * bowls[0]), upper * second + lower * bowls[1]]
        x = torch.tensor([x1, x2], dtype=torch.float64)
        assert losses(x, sizes).tolist() == pytest.approx(wanted, rel=1e-6)
        jacobian = torch.autograd.functional.jacobian(lambda x: losses(x, sizes), x)
        value, rows = gradients(x.unsqueeze(0), sizes)
        assert value[0].tolist() == pytest.approx(wanted, rel=1e-6)
        torch.testing.assert_close(rows[0], jacobian)


def test_the_front_lies_between_the_minima() -> None:
    points = torch.tensor([[-7.0, -8.0], [0.0, -8.3], [7.0, -8.35], [0.0, -5.0], [8.0, -8.3], [5.0, 3.9]])
    assert (excess(points) <= NEAR).tolist() == [True, True, True, False, False, False]


@pytest.mark.slow
def test_the_sum_stays_where_mgda_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    limit, fails = 40_000, 2
    monkeypatch.setattr(two_task_toy, "STEPS", limit)
    starts, sizes = SETTINGS["Navon et al."]
    ends, steps = descend([*(("Adam", start) for start in starts), ("MGDA", starts[fails])], sizes)
    arrived = (excess(ends) <= NEAR).tolist()
    assert arrived == [*(i != fails for i in range(len(starts))), True]
    assert [step == limit for step in steps] == [not there for there in arrived]
