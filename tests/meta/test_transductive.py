"""Transductive methods against their equations, written once more in NumPy, one example at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
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
from lightning_meta.meta.alpha_tim import loss_gradient
from lightning_meta.meta.laplacian_shot import bound_updates, nearest_neighbours
from lightning_meta.meta.pt_map import balanced, power_transform, transport_and_means
from lightning_meta.meta.tim import informative_weights
from lightning_meta.nn import MLP
from lightning_meta.tasks import EpisodeSpec
from tests.meta.oracles import episodes, roughen, task

SPEC = EpisodeSpec("classification", (6,), 3, 10)
ITERATED = [lm.TIM, partial(lm.AlphaTIM, steps=50, step_size=0.01), lm.BDCSPN, lm.LaplacianShot]
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
    """For this reason PT-MAP is worse on unbalanced queries."""
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


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_sixty_steps_of_tim_do_not_amplify_rounding_even_of_features_that_are_alike(
    dtype: torch.dtype, bound: float
) -> None:
    """Later, the updates overshoot, and the order of the queries matters."""
    torch.manual_seed(0)
    centres, classes = 1 + 0.3 * torch.rand(4, 1, 64), torch.arange(4)
    features = (F.normalize((centres + 0.2 * torch.rand(4, n, 64)).flatten(0, 1), dim=-1).to(dtype) for n in (3, 5))
    support, query = features
    assert (support @ support.T).min() > 0.9
    members, order = F.one_hot(classes.repeat_interleave(3)), torch.randperm(len(query))

    def probabilities(query: Tensor) -> Tensor:
        weights = informative_weights(support, members, query, 60, 15.0, 0.1, 0.1)
        return (-15 / 2 * torch.cdist(query, weights).square()).softmax(-1)

    found = probabilities(query)
    assert found.max() - found.min() > 0.05  # it has left the start
    assert (probabilities(query[order]) - found[order]).abs().max() < bound


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


# α-TIM


def alpha_tim_loss(
    w: Tensor, support: Tensor, y: Tensor, query: Tensor, alpha: float, tau: float, lam: float, mu: float
) -> Tensor:
    """The loss of section 4 of Veilleux et al."""

    def entropy(p: Tensor) -> Tensor:
        return -(p * p.log()).sum(-1) if alpha == 1 else (1 - (p**alpha).sum(-1)) / (alpha - 1)

    logits = [-tau / 2 * (part.unsqueeze(1) - w).square().sum(-1) for part in (support, query)]
    p = logits[1].softmax(-1)
    return lam * F.cross_entropy(logits[0], y) - entropy(p.mean(0)) + mu * entropy(p).mean()


@pytest.mark.parametrize(("shots", "alpha"), [(1, 5.0), (5, 2.0), (2, 0.6), (1, 1.0)])
def test_alpha_tim_is_adam_on_the_loss_of_veilleux_2021(shots: int, alpha: float) -> None:
    options = {"temperature": 9.0, "support_weight": 0.3, "entropy_weight": 0.7}
    module = made(lm.AlphaTIM, steps=40, step_size=0.01, alpha=alpha, **options)
    support, query = one_task(shots)
    z_s, z_q = (F.normalize(module.backbone(part.x).detach(), dim=-1) for part in (support, query))
    w = torch.stack([z_s[support.y == n].mean(0) for n in range(3)]).requires_grad_()
    optimizer = torch.optim.Adam([w], lr=0.01)
    for _ in range(40):
        optimizer.zero_grad()
        alpha_tim_loss(w, z_s, support.y, z_q, alpha, *options.values()).backward()
        optimizer.step()
    expected = -4.5 * (z_q.unsqueeze(1) - w).square().sum(-1)
    found = module.predict(module.adapt(support, 3), query.x)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-5)  # Adam magnifies gradients that are nearly 0


def test_alpha_tim_is_tim_as_alpha_approaches_1() -> None:
    """The gradient of α-TIM has a limit, which vanishes at the point to which TIM's alternation converges."""
    generator = torch.Generator().manual_seed(1)
    z = F.normalize(torch.randn(20, 6, generator=generator, dtype=torch.float64), dim=-1)
    support, members, query = z[:4], torch.eye(4, dtype=torch.float64), z[4:]
    settings = support, members, query
    limit = loss_gradient(z[:4], *settings, 1.0, 15.0, 0.1, 0.1)
    for apart in (1e-3, -1e-3):
        near = loss_gradient(z[:4], *settings, 1 + apart, 15.0, 0.1, 0.1)
        assert 0 < (near - limit).abs().max() < 20 * abs(apart) * limit.abs().max()
    start, end = (
        loss_gradient(informative_weights(*settings, n, 15.0, 0.1, 0.1), *settings, 1.0, 15.0, 0.1, 0.1).norm()
        for n in (0, 2000)
    )
    assert end < 0.02 * start


def test_alpha_tim_keeps_more_of_an_imbalance_than_tim() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(8, dtype=torch.float64)[:4]
    y = torch.tensor([0] * 26 + [1, 1, 2, 2, 3, 3])
    query = centres[y] + 0.35 * torch.randn(32, 8, generator=generator, dtype=torch.float64)
    support = Examples(centres, torch.arange(4))
    shares = {}
    for method in (lm.TIM, lm.AlphaTIM):
        options: dict[str, Any] = {} if method is lm.TIM else {"steps": 200, "step_size": 0.01}
        module = method(torch.nn.Identity(), episodes=EpisodeSpec("classification", (8,), 4, 10), **options)
        shares[method] = float((module.predict(module.adapt(support, 4), query).argmax(-1) == 0).double().mean())
    assert shares[lm.TIM] < shares[lm.AlphaTIM] <= 26 / 32 + 1e-9


# BD-CSPN and LaplacianShot


def prototypes_of_numpy(z_s: Array, y: Array, z_q: Array, epsilon: float, over_classes: bool) -> Array:
    """Section 3 of Liu et al. with all queries, or as the code of Ziko et al. has it; queries are shifted already."""

    def cosine(a: Array, b: Array) -> float:
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    p = [z_s[y == n].mean(0) for n in range(3)]
    labels = [int(np.argmax([cosine(x, p_n) for p_n in p])) for x in z_q]
    rows = []
    for n in range(3):
        members = [*z_s[y == n], *(x for x, label in zip(z_q, labels, strict=True) if label == n)]
        if over_classes:
            w = [softmax(np.array([epsilon * cosine(x, p_n) for p_n in p]))[n] / len(members) for x in members]
        else:
            w = list(softmax(np.array([epsilon * cosine(x, p[n]) for x in members])))
        rows.append(sum(w_i * x for w_i, x in zip(w, members, strict=True)))
    return np.stack(rows)


@pytest.mark.parametrize("shots", [1, 4])
@pytest.mark.parametrize("method", [lm.BDCSPN, lm.LaplacianShot])
def test_bd_cspn_and_laplacian_shot_are_those_of_their_papers(method: Callable[..., Any], shots: int) -> None:
    module = made(method, scale=7.0)
    support, query = one_task(shots)
    centre = 0.0
    if method is lm.LaplacianShot:
        module.centre.fill_(0.3)
        centre = 0.3
    z_s, z_q = (F.normalize(module.backbone(part.x).detach() - centre, dim=-1).numpy() for part in (support, query))
    z_q = z_q + z_s.mean(0) - z_q.mean(0)
    p = prototypes_of_numpy(z_s, support.y.numpy(), z_q, 7.0, method is lm.LaplacianShot)
    if method is lm.BDCSPN:
        lengths = np.linalg.norm(z_q, axis=1, keepdims=True) * np.linalg.norm(p, axis=1)
        expected = 7.0 * z_q @ p.T / lengths
    else:  # algorithm 1 of Ziko et al.
        a = np.array([[((x - p_n) ** 2).sum() for p_n in p] for x in z_q])
        near = [np.argsort(((x - z_q) ** 2).sum(1))[1:3] for x in z_q]
        assignments = [softmax(-a_j) for a_j in a]
        for _ in range(20):
            assignments = [softmax(-a_j + 0.7 * sum(assignments[k] for k in j)) for a_j, j in zip(a, near, strict=True)]
        expected = np.log(np.stack(assignments))
    found = module.predict(module.adapt(support, 3), query.x)
    found = found if method is lm.BDCSPN else found.log_softmax(-1)
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-6, atol=1e-8)


def test_bound_updates_lower_the_laplacian_objective() -> None:
    """Minus the agreement of neighbours, and with the entropy that the bound adds; w is positive definite here."""
    generator = torch.Generator().manual_seed(2)
    near = nearest_neighbours(torch.randn(30, 6, generator=generator, dtype=torch.float64), 3)
    assert near.sum(1).eq(3).all()
    assert near.diagonal().eq(0).all()
    affinity = near + near.T
    affinity = affinity + affinity.sum(1).diag()
    distances = torch.rand(30, 4, generator=generator, dtype=torch.float64)

    def objective(steps: int) -> float:
        y = bound_updates(distances, affinity, 0.4, steps).softmax(-1)
        agreement = (affinity * (y @ y.T)).sum()
        return float((y * distances).sum() - 0.4 / 2 * agreement - torch.special.entr(y).sum())

    values = [objective(steps) for steps in (0, 1, 3, 20)]
    assert values == sorted(values, reverse=True)
    assert values[0] - values[-1] > 1


@pytest.mark.parametrize("method", [lm.BDCSPN, lm.LaplacianShot])
def test_one_query_alone_would_be_shifted_to_the_mean_and_is_refused(method: Callable[..., Any]) -> None:
    module = made(method)
    support, query = one_task(2)
    state = module.adapt(support, 3)
    torch.testing.assert_close(module.predict(state, query.x[:1]), module.predict(state, query.x[1:2]))
    predictor = module.predictor(support.x, support.y)
    with pytest.raises(UserError, match=r"shifts them to the mean of the support set: .* give it more"):
        predictor(query.x[:1])
    assert len(predictor(query.x)) == len(query.x)


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


@pytest.mark.parametrize("method", [lm.SoftKMeans, lm.PTMAP, *ITERATED])
def test_they_say_that_they_use_the_query_set(method: Callable[..., Any]) -> None:
    module = made(method)
    support, query = one_task(2)
    assert module.transductive
    predictor = module.predictor(support.x, support.y)
    assert predictor.depends_on_company
    among, fewer = predictor.outputs(query.x)[:3], predictor.outputs(query.x[:3])
    assert (among - fewer).abs().max() > 1e-3


@pytest.mark.parametrize("method", [lm.PTMAP, *ITERATED])
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
    [
        (lm.SoftKMeans, "temperature"),
        (lm.PTMAP, "rate"),
        (lm.PTMAP, "power"),
        (lm.TIM, "support_weight"),
        (lm.AlphaTIM, "alpha"),
        (lm.BDCSPN, "scale"),
        (lm.LaplacianShot, "scale"),
    ],
)
def test_what_must_be_positive_is_refused(method: Callable[..., Any], option: str) -> None:
    with pytest.raises(UserError, match=f"{option}: a positive number is needed"):
        method(MLP(6, (5,)), **{option: 0.0})
