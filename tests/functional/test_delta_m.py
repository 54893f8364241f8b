"""Δm against its definition, computed by hand."""

from __future__ import annotations

import pytest
import torch

from lightning_meta.errors import UserError
from lightning_meta.functional.delta_m import delta_m


def test_the_definition_by_hand() -> None:
    # (0.55 − 0.5) / 0.5 = 10 %, (0.6 − 0.8) / 0.8 = −25 %
    found = delta_m(torch.tensor([0.55, 0.6]).double(), torch.tensor([0.5, 0.8]).double())
    assert found.relative.item() == pytest.approx((0.1 - 0.25) / 2)
    assert found.absolute.item() == pytest.approx((0.05 - 0.2) / 2)
    assert found.excluded.item() == 0


def test_an_error_that_falls_is_an_improvement() -> None:
    # Maninis et al. write (−1)^l: an error of 2 instead of 4 is 50 % better, accuracy 0.4 instead of 0.5 is 20 % worse.
    points = torch.tensor([False, True])
    found = delta_m(torch.tensor([2.0, 0.4]), torch.tensor([4.0, 0.5]), higher_is_better=points)
    assert found.relative.item() == pytest.approx((0.5 - 0.2) / 2)
    assert found.absolute.item() == pytest.approx((2.0 - 0.1) / 2)
    assert delta_m(torch.tensor([2.0]), torch.tensor([4.0]), higher_is_better=False).relative.item() == 0.5


@pytest.mark.parametrize("baseline", [0.0, 0.001, -0.3])
def test_a_baseline_near_zero_or_negative_is_left_out_and_counted(baseline: float) -> None:
    found = delta_m(torch.tensor([0.2, 0.6]).double(), torch.tensor([baseline, 0.5]).double())
    assert found.relative.item() == pytest.approx(0.2)
    assert found.excluded.item() == 1
    assert found.absolute.item() == pytest.approx((0.2 - baseline + 0.1) / 2)


def test_nothing_left_is_nan() -> None:
    found = delta_m(torch.tensor([0.2]), torch.tensor([-1.0]))
    assert found.relative.isnan()
    assert found.excluded.item() == 1


def test_leading_dimensions_and_the_order_of_tasks() -> None:
    metrics, baseline = torch.rand(3, 7).double(), torch.rand(7).double()
    order = torch.randperm(7)
    many, shuffled = delta_m(metrics, baseline), delta_m(metrics[:, order], baseline[order])
    assert many.relative.shape == (3,)
    torch.testing.assert_close(many.relative, shuffled.relative)
    for row, value in zip(metrics, many.relative, strict=True):
        torch.testing.assert_close(delta_m(row, baseline).relative, value)


def test_mistakes() -> None:
    with pytest.raises(UserError, match="same number"):
        delta_m(torch.rand(3), torch.rand(4))
    with pytest.raises(UserError, match="floor"):
        delta_m(torch.rand(3), torch.rand(3), floor=0)
