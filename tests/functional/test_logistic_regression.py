"""Logistic regression on a support set, against scikit-learn in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.func import vmap
from torch.nn.functional import normalize

from lightning_meta.functional import logistic_regression


def support(ways: int, shots: int, views: int, features: int, apart: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features of length 1 about class means that lie `apart`, in units of the spread within a class."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    labels = torch.arange(ways).repeat_interleave(shots)
    x = (apart * normal(ways, features))[labels] + normal(len(labels), features)
    x, labels = x.repeat(views, 1), labels.repeat(views)
    order = torch.randperm(len(x), generator=generator)
    return normalize(x + 0.3 * normal(*x.shape), dim=-1)[order], labels[order]


def fitted(x: Tensor, y: Tensor) -> LogisticRegression:
    return LogisticRegression(C=1, tol=1e-14, max_iter=100_000).fit(x.numpy(), y.numpy())


def gradient(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor) -> float:
    """The largest entry of the loss's gradient, which is 0 at the optimum alone, as the loss is convex."""
    weight, bias = weight.clone().requires_grad_(), bias.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(x @ weight.T + bias, y, reduction="sum") + weight.square().sum() / 2
    return max(float(g.abs().max()) for g in torch.autograd.grad(loss, [weight, bias]))


CASES = {
    "one example a class": support(5, 1, 1, 64, 1),
    "five views of it": support(5, 1, 5, 640, 1),
    "five shots, five views": support(5, 5, 5, 640, 1),
    "as many, in fewer features": support(5, 5, 5, 16, 1),
    "classes that overlap": support(5, 5, 5, 64, 0.1),
    "classes far apart": support(5, 5, 5, 64, 100),
    "20 ways": support(20, 5, 1, 64, 1),
    "many shots": support(3, 100, 1, 64, 1),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_scikit_learn(name: str) -> None:
    x, y = CASES[name]
    weight, bias = logistic_regression(x, y, int(y.max()) + 1)
    oracle = fitted(x, y)
    np.testing.assert_allclose(weight.numpy(), oracle.coef_, atol=1e-6)
    np.testing.assert_allclose((bias - bias.mean()).numpy(), oracle.intercept_ - oracle.intercept_.mean(), atol=1e-6)
    probabilities = (x @ weight.T + bias).softmax(-1)
    np.testing.assert_allclose(probabilities.numpy(), oracle.predict_proba(x.numpy()), atol=1e-6)
    assert gradient(x, y, weight, bias) < 1e-7


def test_two_ways_are_the_multinomial_problem() -> None:
    """scikit-learn fits one w = w_1 - w_0 there; |W|^2 is half of its square, which is another C."""
    x, y = support(2, 3, 5, 8, 1)
    weight, bias = logistic_regression(x, y, 2)
    oracle = LogisticRegression(C=2, tol=1e-14, max_iter=100_000).fit(x.numpy(), y.numpy())
    np.testing.assert_allclose((weight[1] - weight[0]).numpy(), oracle.coef_[0], atol=1e-6)
    np.testing.assert_allclose(float(bias[1] - bias[0]), oracle.intercept_[0], atol=1e-6)


@pytest.mark.parametrize("shots", [(1, 1, 1), (3, 1, 2)], ids=str)
@pytest.mark.parametrize("kind", ["zero", "equal"])
def test_features_that_say_nothing_leave_the_classes_shares(kind: str, shots: tuple[int, ...]) -> None:
    y = torch.arange(3).repeat_interleave(torch.tensor(shots))
    x = torch.zeros(len(y), 4, dtype=torch.float64) if kind == "zero" else torch.full((len(y), 4), 0.5).double()
    weight, bias = logistic_regression(x, y, 3)
    assert float(weight.abs().max()) < 1e-9
    torch.testing.assert_close((x @ weight.T + bias).softmax(-1)[0], torch.tensor(shots).double() / len(y))


def test_a_zero_vector_among_others() -> None:
    x, y = support(5, 2, 1, 16, 1)
    x[3] = 0
    weight, bias = logistic_regression(x, y, 5)
    np.testing.assert_allclose(weight.numpy(), fitted(x, y).coef_, atol=1e-6)
    assert gradient(x, y, weight, bias) < 1e-7


@pytest.mark.parametrize("name", CASES)
def test_float32_and_half_precision(name: str) -> None:
    x, y = CASES[name]
    ways = int(y.max()) + 1
    exact = logistic_regression(x, y, ways)
    single = logistic_regression(x.float(), y, ways)
    probabilities = [(x @ weight.double().T + bias.double()).softmax(-1) for weight, bias in (exact, single)]
    torch.testing.assert_close(probabilities[1], probabilities[0], rtol=0, atol=1e-5)
    half = logistic_regression(x.bfloat16(), y, ways)
    assert half[0].dtype == torch.float32
    torch.testing.assert_close(half, logistic_regression(x.bfloat16().float(), y, ways), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_vmap_is_the_loop(dtype: torch.dtype) -> None:
    tasks = [support(5, 2, 5, 32, apart, seed) for seed, apart in enumerate((0.1, 1, 100))]
    x, y = torch.stack([x for x, _ in tasks]).to(dtype), torch.stack([y for _, y in tasks])
    together = vmap(lambda x, y: logistic_regression(x, y, 5))(x, y)
    for i in range(len(tasks)):
        weight, bias = logistic_regression(x[i], y[i], 5)
        tolerance = 1e-9 if dtype == torch.float64 else 1e-4
        torch.testing.assert_close(together[0][i], weight, rtol=0, atol=tolerance)
        torch.testing.assert_close(together[1][i], bias, rtol=0, atol=tolerance)


def test_the_order_of_examples_and_of_classes_does_not_matter() -> None:
    x, y = CASES["five shots, five views"]
    weight, bias = logistic_regression(x, y, 5)
    turned = logistic_regression(x.flip(0), 4 - y.flip(0), 5)
    torch.testing.assert_close(turned[0].flip(0), weight, rtol=0, atol=1e-9)
    torch.testing.assert_close(turned[1].flip(0), bias, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("spread", [0.0, 1e-12, 1e-8, 1e-6, 1e-4])
def test_features_that_are_almost_equal_give_a_finite_optimum(dtype: torch.dtype, spread: float) -> None:
    """An untrained network has such features; rounding errors soon exceed the residuals."""
    for seed in range(20):
        x, y = support(3, 2, 2, 8, 1, seed)
        x = normalize(torch.ones(8).double() + spread * x, dim=-1)
        weight, bias = (part.double() for part in logistic_regression(x.to(dtype), y, 3))
        assert gradient(x.to(dtype).double(), y, weight, bias) < (1e-7 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("features", [2, 8])
@pytest.mark.parametrize("ways", [2, 5])
def test_features_in_a_plane_give_a_finite_optimum(features: int, ways: int) -> None:
    """Fewer dimensions than examples: conjugate gradients are done early, and what is left is rounding."""
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        y = torch.arange(ways).repeat_interleave(4)
        draws = (torch.rand(shape, generator=generator).double() for shape in ((len(y), 2), (2, features)))
        x = normalize(torch.matmul(*draws), dim=-1)
        assert gradient(x, y, *logistic_regression(x, y, ways)) < 1e-7


def test_many_examples_take_the_products_with_features() -> None:
    """Hundreds of images of a folder: probabilities are still those of scikit-learn."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(4).repeat_interleave(100)
    features = torch.randn(4, 16, generator=generator, dtype=torch.float64)[labels]
    features = normalize(features + torch.randn(400, 16, generator=generator, dtype=torch.float64), dim=-1)
    weight, bias = logistic_regression(features, labels, 4)
    reference = LogisticRegression(tol=1e-12, max_iter=10_000).fit(features.numpy(), labels.numpy())
    probabilities = (features @ weight.T + bias).softmax(-1)
    assert (probabilities - torch.from_numpy(reference.predict_proba(features.numpy()))).abs().max() < 1e-4
