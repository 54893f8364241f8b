"""Cosines, conflicts and affinities against scikit-learn, differences and the papers' equations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics.pairwise import cosine_similarity
from torch.func import grad

from lightning_meta.functional.gradient_conflict import (
    conflict_share,
    gradient_cosines,
    gradient_norms,
    inter_task_affinity,
    norm_shares,
)


@pytest.mark.parametrize(("tasks", "size"), [(2, 3), (7, 300_000), (50, 1000)])
def test_cosines_and_norms_are_those_of_scikit_learn_and_numpy(tasks: int, size: int) -> None:
    gradients = torch.randn(tasks, size)
    exact = gradients.double().numpy()
    np.testing.assert_allclose(gradient_cosines(gradients).numpy(), cosine_similarity(exact), atol=1e-13)
    np.testing.assert_allclose(gradient_norms(gradients).numpy(), np.linalg.norm(exact, axis=1), rtol=1e-13)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_float32_gradients_neither_vanish_nor_overflow(scale: float) -> None:
    gradients = torch.tensor([[3.0, 4.0], [4.0, 3.0]]) * scale
    assert gradient_cosines(gradients)[0, 1].item() == pytest.approx(0.96)
    assert gradient_norms(gradients)[0].item() == pytest.approx(5 * scale)


def test_a_zero_gradient_has_no_direction_and_its_pairs_do_not_count() -> None:
    gradients = torch.tensor([[1.0, 0.0], [0.0, 0.0], [-1.0, 0.1], [1.0, 1.0]])
    cosines = gradient_cosines(gradients)
    assert cosines[1].isnan().all()
    assert cosines[:, 1].isnan().all()
    assert cosines.isnan().sum() == 7
    assert conflict_share(cosines).item() == pytest.approx(2 / 3)  # 0-2 and 2-3, not 0-3
    assert conflict_share(cosines[:2, :2]).isnan()
    assert norm_shares(gradient_norms(gradients))[1] == 0
    assert norm_shares(torch.zeros(2)).isnan().all()


@given(st.integers(2, 9), st.integers(1, 20), st.integers(0, 2**31))
def test_conflicts_are_counted_once_a_pair(tasks: int, size: int, seed: int) -> None:
    gradients = torch.randn(tasks, size, generator=torch.Generator().manual_seed(seed))
    pairs = [(gradients[i] @ gradients[j]).item() < 0 for i in range(tasks) for j in range(i)]
    cosines = gradient_cosines(gradients)
    assert conflict_share(cosines).item() == pytest.approx(sum(pairs) / len(pairs))
    scaled = gradient_cosines(gradients * torch.rand(tasks, 1).add(0.1))
    torch.testing.assert_close(scaled, cosines, atol=1e-6, rtol=0)
    assert cosines.abs().max() <= 1


def test_affinity_of_a_small_step_is_the_inner_product_of_gradients() -> None:
    """Z_{i→j} = η g_i · g_j / L_j to first order, g by central differences."""
    torch.set_default_dtype(torch.float64)
    try:
        targets, theta, rate, h = torch.randn(3, 4), torch.randn(4), 1e-6, 1e-5

        def loss(theta: torch.Tensor, j: int) -> torch.Tensor:
            return (theta.sin() - targets[j]).square().sum() + 0.1

        basis = torch.eye(4) * h
        differences = torch.stack(
            [torch.stack([loss(theta + e, j) - loss(theta - e, j) for e in basis]) / (2 * h) for j in range(3)]
        )
        exact = torch.stack([grad(loss)(theta, j) for j in range(3)])
        torch.testing.assert_close(gradient_cosines(exact), gradient_cosines(differences), atol=1e-8, rtol=0)
        before = torch.stack([loss(theta, j) for j in range(3)])
        after = torch.stack([torch.stack([loss(theta - rate * g, j) for j in range(3)]) for g in exact])
        found = inter_task_affinity(before, after) / rate
        torch.testing.assert_close(found, differences @ differences.T / before, rtol=1e-4, atol=1e-3)
    finally:
        torch.set_default_dtype(torch.float32)


def test_affinity_has_a_row_for_the_task_that_steps() -> None:
    found = inter_task_affinity(torch.tensor([1.0, 2.0, 0.0]), torch.tensor([[0.5, 3.0, 0.0], [1.0, 1.0, 1.0]]))
    torch.testing.assert_close(found[:, :2], torch.tensor([[0.5, -0.5], [0.0, 0.5]], dtype=torch.float64))
    assert found[:, 2].isnan().all()  # of a loss of 0 no share can be taken
