"""MetaOptNet and Meta-Baseline against scikit-learn, their equations and finite differences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import Tensor

import lightning_meta as lm
from lightning_meta.errors import UserError
from lightning_meta.nn import MLP
from tests.meta.oracles import KINDS, episodes, roughen, task

VECTORS = KINDS["mlp"].spec


def made(method: Callable[..., lm.MetricLearner], **options: float) -> lm.MetricLearner:
    torch.manual_seed(3)
    module = method(MLP(6, (8, 5)), **{"episodes": VECTORS, **options}).double()
    roughen(module.backbone)
    return module


@pytest.mark.parametrize("shots", [1, 15], ids=["as in testing", "as in the paper's training"])
def test_its_head_is_the_ridge_regression_of_scikit_learn(shots: int) -> None:
    module = made(lm.MetaOptNet, penalty=0.7, scale=3.0)
    support, query = task(episodes(VECTORS, shots=shots), 0)
    features, of_queries = (module.backbone(part.x).detach().numpy() for part in (support, query))
    peer = Ridge(alpha=0.7, fit_intercept=False, tol=1e-12).fit(features, np.eye(3)[support.y])
    found = module.predict(module.adapt(support, 3), query.x).detach().numpy()
    np.testing.assert_allclose(found, 3 * peer.predict(of_queries), rtol=1e-9, atol=1e-9)


def test_meta_baseline_is_the_scaled_cosine_with_class_means() -> None:
    module = made(lm.MetaBaseline, scale=7.0)
    support, query = task(episodes(VECTORS, shots=3), 0)
    features, of_queries = (module.backbone(part.x).detach().numpy() for part in (support, query))
    means = np.stack([features[support.y == n].mean(0) for n in range(3)])
    lengths = np.linalg.norm(of_queries, axis=1)[:, None] * np.linalg.norm(means, axis=1)
    found = module.predict(module.adapt(support, 3), query.x).detach().numpy()
    np.testing.assert_allclose(found, 7 * (of_queries @ means.T) / lengths, rtol=1e-12)


@pytest.mark.parametrize("method", [lm.MetaOptNet, lm.MetaBaseline])
def test_gradients_are_those_of_finite_differences(method: Callable[..., lm.MetricLearner]) -> None:
    """The scale and all weights of the embedding are tested at once."""
    module, batch = made(method), episodes(VECTORS, shots=2)
    names, parameters = zip(*module.named_parameters(), strict=True)

    def loss() -> Tensor:
        return module.meta_batch_loss(batch).loss.mean()

    gradients = torch.autograd.grad(loss(), parameters)
    assert gradients[names.index("scale")] != 0
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


@pytest.mark.parametrize(("method", "option"), [(lm.MetaOptNet, "penalty"), (lm.MetaBaseline, "scale")])
def test_what_must_be_positive_is_refused(method: Callable[..., lm.MetricLearner], option: str) -> None:
    with pytest.raises(UserError, match=f"{option}: a positive number is needed"):
        method(MLP(6, (5,)), **{option: 0.0})
