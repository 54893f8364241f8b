"""Proto-MAML starts as ProtoNet, serves any way, and its meta-gradient passes through the start of the head."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_meta.meta import ProtoMAML, ProtoNet
from lightning_meta.tasks import EpisodeSpec
from tests.meta.oracles import IMAGES, KINDS, episodes, forward, gradient, loss_of, relative_error, roughen, task


def proto_maml(**options: Any) -> ProtoMAML:
    torch.manual_seed(3)
    module = ProtoMAML(KINDS["smooth"].backbone(), **{"inner_lr": 0.1, "episodes": IMAGES, **options}).double()
    roughen(module)
    return module


@pytest.mark.parametrize("batch_norm", ["transductive", "inductive"])
@pytest.mark.parametrize("ways", [3, 5])
def test_before_the_first_step_it_is_a_prototypical_network(batch_norm: Any, ways: int) -> None:
    """The same holds for a number of ways other than that of training."""
    module = proto_maml(batch_norm=batch_norm, test_inner_steps=0).eval()
    metric = ProtoNet(module.backbone, batch_norm=batch_norm, episodes=IMAGES).eval()
    support, query = task(episodes(EpisodeSpec("classification", (2, 8, 8), ways)), 0)
    found, expected = (m.predict(m.adapt(support, ways), query.x) for m in (module, metric))
    assert found.shape == (len(query.y), ways)
    torch.testing.assert_close(found.log_softmax(-1), expected.log_softmax(-1), rtol=1e-10, atol=1e-10)


def by_equation(module: ProtoMAML, steps: int) -> Tensor:
    """The mean query loss by plain autograd, prototypes by a loop over classes."""
    batch, losses = episodes(IMAGES), []
    for t in range(len(batch.tasks)):
        support, query = task(batch, t)
        phi: dict[str, Tensor] = dict(module.backbone.named_parameters())
        features = forward(module.backbone, phi, support.x)[0]
        c = torch.stack([features[support.y == n].mean(0) for n in range(3)])
        # Copies: an inner gradient is that of φ, and does not pass through the start of the head.
        phi = {
            **{f"backbone.{name}": p.clone() for name, p in phi.items()},
            "head.weight": 2 * c,
            "head.bias": -(c * c).sum(1),
        }
        for _ in range(steps):
            loss = loss_of(IMAGES, forward(module.network, phi, support.x)[0], support.y)
            gradients = torch.autograd.grad(loss, list(phi.values()), create_graph=not module.first_order)
            moved = zip(phi.items(), gradients, strict=True)
            phi = {n: p - module.inner_lr * (g.detach() if module.first_order else g) for (n, p), g in moved}
        losses.append(loss_of(IMAGES, forward(module.network, phi, query.x)[0], query.y))
    return torch.stack(losses).mean()


def trained_gradient(loss: Tensor, module: ProtoMAML) -> Tensor:
    return gradient(loss, module.backbone)


@pytest.mark.parametrize("options", [{}, {"first_order": True}, {"recompute": True}, {"strategy": "loop"}], ids=str)
def test_the_meta_gradient_is_that_of_the_equations(options: dict[str, Any]) -> None:
    module = proto_maml(inner_steps=2, **options)
    found, expected = module.meta_batch_loss(episodes(IMAGES)).loss.mean(), by_equation(module, 2)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert relative_error(trained_gradient(found, module), trained_gradient(expected, module)) < 1e-10


def test_the_meta_gradient_is_that_of_finite_differences() -> None:
    """The gradient includes that through the initial head, which a constant head would not have."""
    module, batch, h = proto_maml(inner_steps=1), episodes(IMAGES), 1e-5
    parameters = list(module.backbone.parameters())
    gradients = torch.autograd.grad(module.meta_batch_loss(batch).loss.mean(), parameters)
    towards = [torch.randn_like(p) for p in parameters]

    def moved(by: float) -> Tensor:
        with torch.no_grad():
            for p, d in zip(parameters, towards, strict=True):
                p.add_(by * d)
            return module.meta_batch_loss(batch).loss.mean()

    slope = (moved(h) - moved(-2 * h)) / (2 * h)
    found = torch.stack([(g * d).sum() for g, d in zip(gradients, towards, strict=True)]).sum()
    torch.testing.assert_close(found, slope, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("part", ["head", "backbone"])
def test_a_part_alone_is_adapted(part: str) -> None:
    module = proto_maml(inner_parameters=part, inner_steps=2)
    support, _ = task(episodes(IMAGES), 0)
    start, phi = module.start(support, 3), module.adapt(support, 3)
    moved = {name.split(".")[0] for name, p in start.items() if not torch.equal(phi[name], p)}
    assert moved == {part}
    assert trained_gradient(module.meta_batch_loss(episodes(IMAGES)).loss.mean(), module).abs().sum() > 0


def test_a_frozen_network_adapts_to_tasks_still() -> None:
    module = proto_maml(test_inner_steps=1).eval()
    support, query = task(episodes(IMAGES), 0)
    expected = module.predict(module.adapt(support, 3), query.x)
    module.freeze()
    torch.testing.assert_close(module.predict(module.adapt(support, 3), query.x), expected)
