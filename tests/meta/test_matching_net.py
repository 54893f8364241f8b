"""MatchingNet against its equation and finite differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_meta.batches import Examples
from lightning_meta.errors import UserError
from lightning_meta.meta import MatchingNet, ProtoNet
from lightning_meta.nn import MLP
from tests.meta.oracles import KINDS, episodes, roughen, task

VECTORS = KINDS["mlp"].spec


def matching_net(**options: Any) -> MatchingNet:
    torch.manual_seed(3)
    module = MatchingNet(MLP(6, (8, 5)), **{"episodes": VECTORS, **options}).double()
    roughen(module.backbone)
    return module


@pytest.mark.parametrize("temperature", [1.0, 0.1])
@pytest.mark.parametrize("shots", [1, 3])
def test_it_is_its_equation(shots: int, temperature: float) -> None:
    module, batch = matching_net(temperature=temperature), episodes(VECTORS, shots=shots)
    support, query = task(batch, 0)
    keys, features = module.backbone(support.x), module.backbone(query.x)
    expected = torch.zeros(len(features), 3, dtype=torch.float64)
    for i, f in enumerate(features):
        cosines = [torch.dot(f, k) / (f.norm() * k.norm()) / temperature for k in keys]
        total = sum(c.exp() for c in cosines)
        for cosine, label in zip(cosines, support.y.tolist(), strict=True):
            expected[i, label] += cosine.exp() / total
    found = module.predict(module.adapt(support, 3), query.x)
    torch.testing.assert_close(found.exp(), expected, rtol=1e-12, atol=1e-12)


def test_with_one_example_a_class_it_is_protonet_with_cosines() -> None:
    module, batch = matching_net(temperature=0.2), episodes(VECTORS, shots=1)
    protonet = ProtoNet(module.backbone, distance="cosine", temperature=0.2, episodes=VECTORS)
    found, expected = (m.meta_batch_loss(batch).loss.mean() for m in (module, protonet))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_its_gradient_is_that_of_finite_differences() -> None:
    module, batch = matching_net(temperature=0.5), episodes(VECTORS, shots=2)
    parameters = list(module.parameters())

    def loss() -> Tensor:
        return module.meta_batch_loss(batch).loss.mean()

    gradients = torch.autograd.grad(loss(), parameters)
    torch.manual_seed(5)
    for _ in range(3):
        directions = [torch.randn_like(p) for p in parameters]
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                for p, d in zip(parameters, directions, strict=True):
                    p.add_(sign * 1e-6 * d)
                values.append(loss())
                for p, d in zip(parameters, directions, strict=True):
                    p.sub_(sign * 1e-6 * d)
        found = torch.stack([(g * d).sum() for g, d in zip(gradients, directions, strict=True)]).sum()
        torch.testing.assert_close(found, (values[0] - values[1]) / 2e-6, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_small_temperature_leaves_loss_and_gradient_finite(dtype: torch.dtype) -> None:
    module = matching_net(temperature=1e-3).to(dtype)
    batch = episodes(VECTORS, shots=2)
    support, query = task(batch, 0)
    support, query = (Examples(e.x.to(dtype), e.y) for e in (support, query))
    loss = module.task_loss(support, query, 3).loss
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in module.parameters() if p.grad is not None)


def test_a_temperature_is_positive() -> None:
    with pytest.raises(UserError, match="temperature"):
        MatchingNet(MLP(6, (5,)), temperature=0.0)
