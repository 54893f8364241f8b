"""Soft k-means, PT-MAP and TIM against their equations, written once more in NumPy, one example at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize, root
from torch import Tensor
from torch.func import vmap
from torch.nn import functional as F

import lightning_meta as lm
from lightning_meta.batches import Examples
from lightning_meta.errors import UserError
from lightning_meta.functional.span import in_their_span
from lightning_meta.meta.pt_map import balanced, power_transform, transport_and_means
from lightning_meta.meta.tim import informative_weights
from lightning_meta.nn import MLP
from lightning_meta.tasks import EpisodeSpec
from tests.meta.oracles import episodes, roughen, task

SPEC = EpisodeSpec("classification", (6,), 3, 10)
Array = np.ndarray[Any, np.dtype[np.float64]]


def made(method: Callable[..., Any], **options: Any) -> Any:
    torch.manual_seed(3)
    module = method(MLP(6, (8, 5)), **{"episodes": SPEC, **options}).double()
    roughen(module.backbone)
    return module


def one_task(shots: int, queries: int = 7) -> tuple[Examples, Examples]:
    return task(episodes(SPEC, shots=shots, queries=queries), 0)


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max())
    weights: Array = e / e.sum()
    return weights


# Soft k-means


@pytest.mark.parametrize(("shots", "steps", "temperature"), [(1, 1, 1.0), (3, 1, 1.0), (2, 3, 0.2)])
def test_soft_k_means_is_equation_3_of_ren_2018(shots: int, steps: int, temperature: float) -> None:
    module = made(lm.SoftKMeans, steps=steps, temperature=temperature)
    support, query = one_task(shots)
    h, unlabelled = (module.backbone(part.x).detach().numpy() for part in (support, query))
    y = support.y.numpy()
    p = np.stack([np.mean([x for x, label in zip(h, y, strict=True) if label == c], axis=0) for c in range(3)])
    for _ in range(steps):
        z = [softmax(-np.array([((x - p_c) ** 2).sum() for p_c in p]) / temperature) for x in unlabelled]
        refined = []
        for c in range(3):
            total = sum(x * (label == c) for x, label in zip(h, y, strict=True))
            total = total + sum(x * z_j[c] for x, z_j in zip(unlabelled, z, strict=True))
            refined.append(total / (shots + sum(z_j[c] for z_j in z)))
        p = np.stack(refined)
    expected = [[-((x - p_c) ** 2).sum() / temperature for p_c in p] for x in unlabelled]
    found = module.predict(module.adapt(support, 3), query.x).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-10)


def test_training_goes_through_the_refinement_as_finite_differences_do() -> None:
    module, batch = made(lm.SoftKMeans, steps=2, temperature=0.7), episodes(SPEC, shots=2)
    parameters = list(module.parameters())

    def loss() -> Tensor:
        mean: Tensor = module.meta_batch_loss(batch).loss.mean()
        return mean

    gradients = torch.autograd.grad(loss(), parameters)
    torch.manual_seed(5)
    directions = [torch.randn_like(p) for p in parameters]
    values = []
    for sign in (1, -2, 1):
        values.append(loss().detach())
        with torch.no_grad():
            for p, d in zip(parameters, directions, strict=True):
                p.add_(d, alpha=sign * 1e-6)
    found = torch.stack([(g * d).sum() for g, d in zip(gradients, directions, strict=True)]).sum()
    torch.testing.assert_close(found, (values[1] - values[2]) / 2e-6, rtol=1e-6, atol=1e-9)


# PT-MAP


def plan_of_scipy(cost: Array, lam: float) -> Array:
    """The optimal plan by the dual problem, in potentials of the classes."""
    m, ways = cost.shape

    def plan(beta: Array) -> Array:
        return np.stack([softmax(row) for row in beta - lam * cost])

    def dual(beta: Array) -> float:
        return float(sum(np.logaddexp.reduce(row) for row in beta - lam * cost) - m / ways * beta.sum())

    def gradient(beta: Array) -> Array:
        return np.asarray(plan(beta).sum(0) - m / ways)

    found = minimize(dual, np.zeros(ways), jac=gradient, method="BFGS", options={"gtol": 1e-9, "maxiter": 1000})
    polished = root(lambda beta: np.append(gradient(beta)[:-1], beta.sum()), found.x - found.x.mean(), tol=1e-14)
    best: Array = min((plan(polished.x), plan(found.x)), key=lambda p: abs(p.sum(0) - m / ways).max())
    assert abs(best.sum(0) - m / ways).max() < 1e-7
    return best


def map_of_numpy(support: Array, y: Array, query: Array, steps: int, alpha: float, lam: float) -> Array:
    """Algorithm 1 of Hu et al."""
    ways = int(y.max()) + 1
    c = np.stack([support[y == j].mean(0) for j in range(ways)])
    for step in range(steps + 1):
        plan = plan_of_scipy(np.array([[((f - c_j) ** 2).sum() for c_j in c] for f in query]), lam)
        for j in range(ways if step < steps else 0):
            total, weight = support[y == j].sum(0), float((y == j).sum())
            for f, p in zip(query, plan[:, j], strict=True):
                total, weight = total + p * f, weight + p
            c[j] = c[j] + alpha * (total / weight - c[j])
    return plan


@pytest.mark.parametrize(("shots", "queries", "steps"), [(1, 9, 20), (5, 4, 20), (2, 6, 3), (1, 5, 0)])
def test_pt_map_is_algorithm_1_of_hu_2021(shots: int, queries: int, steps: int) -> None:
    module = made(lm.PTMAP, steps=steps)
    support, query = one_task(shots, queries)

    def of_numpy(x: Tensor) -> Array:
        f = np.sqrt(np.maximum(module.backbone(x).detach().numpy(), 0) + 1e-6)
        f = f / np.linalg.norm(f, axis=1, keepdims=True)
        f = f - f.mean(0)
        unit: Array = f / np.linalg.norm(f, axis=1, keepdims=True)
        return unit

    expected = map_of_numpy(of_numpy(support.x), support.y.numpy(), of_numpy(query.x), steps, 0.2, 10.0)
    found = module.predict(module.adapt(support, 3), query.x).exp().detach().numpy() - 1e-6
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-12)
    np.testing.assert_allclose(found, expected, atol=1e-7)


def test_the_plan_gives_every_class_as_many_queries_even_where_they_are_of_one() -> None:
    """Which is why it loses where they are not balanced."""
    generator = torch.Generator().manual_seed(0)
    support = F.normalize(torch.eye(8, dtype=torch.float64)[:4], dim=-1)
    noise = 0.1 * torch.randn(20, 8, generator=generator, dtype=torch.float64)
    query = F.normalize(support[[0]] + noise, dim=-1)
    plan = transport_and_means(support, torch.eye(4), query, 20, 0.2, 10.0)
    torch.testing.assert_close(plan.sum(0), torch.full((4,), 5.0, dtype=torch.float64), atol=1e-3, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("ways", "queries"), [(5, 75), (20, 300), (3, 10)])
def test_the_plan_is_balanced_however_far_apart_classes_are(dtype: torch.dtype, ways: int, queries: int) -> None:
    """Scores of features of length 1 are between -4 λ and 0."""
    generator = torch.Generator().manual_seed(0)
    for largest in (1.0, 40.0):
        scores = -largest * torch.rand(60, queries, ways, generator=generator, dtype=dtype)
        scores[:30, :, 0] = 0  # half of the tasks have queries that are all of one class
        potentials = vmap(balanced)(scores, scores.new_zeros(60, ways))
        columns = (scores + potentials.unsqueeze(1)).softmax(-1).sum(1)
        torch.testing.assert_close(columns, torch.full_like(columns, queries / ways), atol=1e-4, rtol=0)


def test_one_query_alone_would_get_equal_probabilities_and_is_refused() -> None:
    module = made(lm.PTMAP)
    support, query = one_task(2)
    alone = module.predict(module.adapt(support, 3), query.x[:1]).softmax(-1)
    torch.testing.assert_close(alone, torch.full((1, 3), 1 / 3, dtype=torch.float64))
    predictor = module.predictor(support.x, support.y)
    with pytest.raises(UserError, match=r"PTMAP predicts all examples together .* give it more"):
        predictor(query.x[:1])
    assert len(predictor(query.x)) == len(query.x)


def test_the_power_transform_makes_negative_features_nothing() -> None:
    found = power_transform(torch.tensor([[4.0, -9.0, 9.0], [0.0, 0.0, 0.0]]), 0.5)
    torch.testing.assert_close(found[0], torch.tensor([2.0, 0.0, 3.0]) / 13**0.5, atol=1e-3, rtol=0)
    torch.testing.assert_close(found[1], torch.full((3,), 3**-0.5))


# TIM


def tim_of_numpy(z_s: Array, y: Array, z_q: Array, steps: int, tau: float, lam: float, alpha: float) -> Array:
    """Propositions 1 and 2 of Boudiaf et al., sum by sum."""
    ways = int(y.max()) + 1
    w = np.stack([z_s[y == k].mean(0) for k in range(ways)])

    def predictions(z: Array) -> Array:
        return np.stack([softmax(np.array([-tau / 2 * ((w_k - x) ** 2).sum() for w_k in w])) for x in z])

    for _ in range(steps):
        p_s, p_q = predictions(z_s), predictions(z_q)
        q = p_q ** (1 + alpha) / np.sqrt((p_q ** (1 + alpha)).sum(0))
        q = q / q.sum(1, keepdims=True)
        new = np.zeros_like(w)
        for k in range(ways):
            top, bottom = np.zeros(w.shape[1]), 0.0
            for x, label, p in zip(z_s, y, p_s[:, k], strict=True):
                top += lam / (1 + alpha) / len(z_s) * ((label == k) * x + p * (w[k] - x))
                bottom += lam / (1 + alpha) / len(z_s) * (label == k)
            for x, q_i, p in zip(z_q, q[:, k], p_q[:, k], strict=True):
                top += (q_i * x + p * (w[k] - x)) / len(z_q)
                bottom += q_i / len(z_q)
            new[k] = top / bottom
        w = new
    return w


@pytest.mark.parametrize(("shots", "steps"), [(1, 30), (5, 12), (2, 0)])
def test_tim_is_the_alternating_method_of_boudiaf_2020(shots: int, steps: int) -> None:
    module = made(lm.TIM, steps=steps, temperature=9.0, support_weight=0.3, entropy_weight=0.2)
    support, query = one_task(shots)
    z_s, z_q = (F.normalize(module.backbone(part.x).detach(), dim=-1).numpy() for part in (support, query))
    w = tim_of_numpy(z_s, support.y.numpy(), z_q, steps, 9.0, 0.3, 0.2)
    expected = [[-4.5 * ((x - w_k) ** 2).sum() for w_k in w] for x in z_q]
    found = module.predict(module.adapt(support, 3), query.x).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-9)


def test_tim_lowers_the_loss_that_it_is_named_for() -> None:
    """Equation 3: the support set's cross-entropy less the mutual information of queries and their classes."""
    generator = torch.Generator().manual_seed(1)
    z = F.normalize(
        torch.eye(6, dtype=torch.float64)[:4].repeat(9, 1)
        + 0.3 * torch.randn(36, 6, generator=generator, dtype=torch.float64),
        dim=-1,
    )
    support, members, query = z[:4], torch.eye(4, dtype=torch.float64), z[4:]

    def loss(steps: int) -> float:
        w = informative_weights(support, members, query, steps, 15.0, 0.1, 0.1)
        logits = [-7.5 * torch.cdist(part, w) ** 2 for part in (support, query)]
        p = logits[1].softmax(-1)
        marginal, conditional = (torch.special.entr(x).sum(-1).mean() for x in (p.mean(0, keepdim=True), p))
        return float(0.1 * F.cross_entropy(logits[0], members.argmax(-1)) - marginal + 0.1 * conditional)

    losses = [loss(steps) for steps in (0, 2, 10, 150)]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] - losses[-1] > 0.02


# What they share


def test_in_their_span_features_have_the_same_inner_products_in_fewer_dimensions() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 9, 40, generator=generator, dtype=torch.float64)
    x[:, 5] = x[:, 2]  # also where they are linearly dependent
    support, query = vmap(in_their_span)(x[:, :4], x[:, 4:])
    found = torch.cat([support, query], dim=1)
    assert found.shape == (3, 9, 9)
    torch.testing.assert_close(found @ found.mT, x @ x.mT, rtol=1e-12, atol=1e-12)
    assert in_their_span(x[0, :4, :6], x[0, 4:, :6])[1].shape == (5, 6)


@pytest.mark.parametrize("method", [lm.SoftKMeans, lm.PTMAP, lm.TIM])
def test_they_say_that_they_use_the_query_set(method: Callable[..., Any]) -> None:
    module = made(method)
    support, query = one_task(2)
    assert module.transductive
    predictor = module.predictor(support.x, support.y)
    assert predictor.depends_on_company
    among, fewer = predictor.outputs(query.x)[:3], predictor.outputs(query.x[:3])
    assert (among - fewer).abs().max() > 1e-3


@pytest.mark.parametrize("method", [lm.PTMAP, lm.TIM])
def test_they_are_batched_over_tasks(method: Callable[..., Any]) -> None:
    """A pure function of features: `vmap` over tasks gives what one task after the other does."""
    module = made(method)
    batch = episodes(SPEC, tasks=3)

    def logits(support: Examples, x: Tensor) -> Tensor:
        outputs: Tensor = module.predict(module.adapt(support, 3), x)
        return outputs

    together = vmap(logits)(batch.support, batch.query.x)
    for t in range(3):
        support, query = task(batch, t)
        torch.testing.assert_close(together[t], logits(support, query.x), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("method", "option"),
    [(lm.SoftKMeans, "temperature"), (lm.PTMAP, "rate"), (lm.PTMAP, "power"), (lm.TIM, "support_weight")],
)
def test_what_must_be_positive_is_refused(method: Callable[..., Any], option: str) -> None:
    with pytest.raises(UserError, match=f"{option}: a positive number is needed"):
        method(MLP(6, (5,)), **{option: 0.0})
