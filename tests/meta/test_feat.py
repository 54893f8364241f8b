"""FEAT against attention written out one example at a time, and its gradient against plain autograd."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import lightning_meta as lm
from lightning_meta.batches import Examples
from lightning_meta.errors import UserError
from lightning_meta.nn import MLP
from lightning_meta.tasks import EpisodeSpec
from tests.meta.oracles import episodes, roughen, task

SPEC = EpisodeSpec("classification", (6,), 3)


def made(**options: object) -> lm.FEAT:
    torch.manual_seed(3)
    module = lm.FEAT(MLP(6, (8, 5)), temperature=3.0, episodes=SPEC, **options).double()  # type: ignore[arg-type]
    roughen(module)
    return module


def adapted_by_hand(module: lm.FEAT, rows: list[Tensor]) -> list[Tensor]:
    """The rows of a set, each adapted to the whole set."""
    queries, keys, values = ([part.weight @ x for x in rows] for part in (module.query, module.key, module.value))
    after = []
    for x, q in zip(rows, queries, strict=True):
        weights = torch.stack([q @ k / math.sqrt(len(q)) for k in keys]).exp()
        attended = sum(w * v for w, v in zip(weights / weights.sum(), values, strict=True))
        y = x + module.output.weight @ attended + module.output.bias
        y = (y - y.mean()) / (y.var(correction=0) + module.norm.eps).sqrt()
        after.append(y * module.norm.weight + module.norm.bias)
    return after


def loss_by_hand(module: lm.FEAT, support: Examples, query: Examples) -> Tensor:
    """Sections 4.2 and 4.3 of Ye et al., as in their code."""
    z_s, z_q = module.backbone(support.x), module.backbone(query.x)
    prototypes = adapted_by_hand(module, [z_s[support.y == n].mean(0) for n in range(3)])

    def entropy(x: Tensor, y: Tensor, centres: list[Tensor], temperature: float) -> Tensor:
        logits = torch.stack([-(x - c).square().sum(-1) / temperature for c in centres], -1)
        return F.cross_entropy(logits, y)

    x, y = torch.cat([z_s, z_q]), torch.cat([support.y, query.y])
    centres = [torch.stack(adapted_by_hand(module, list(x[y == n]))).mean(0) for n in range(3)]
    contrast = entropy(x, y, centres, module.contrast_temperature)
    return entropy(z_q, query.y, prototypes, 3.0) + module.contrast * contrast


def test_the_loss_and_its_gradient_are_those_of_the_equations() -> None:
    module, batch = made(contrast=0.4, contrast_temperature=5.0), episodes(SPEC, shots=2)
    batch = batch._replace(query=Examples(batch.query.x.flip(1), batch.query.y.flip(1)))  # labels in any order
    parameters = list(module.parameters())
    losses = module.meta_batch_loss(batch).loss
    expected = torch.stack([loss_by_hand(module, *task(batch, t)) for t in range(2)])
    torch.testing.assert_close(losses, expected, rtol=1e-9, atol=1e-10)
    for found, wanted in zip(
        torch.autograd.grad(losses.mean(), parameters), torch.autograd.grad(expected.mean(), parameters), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-10)


def test_without_what_attention_adds_it_is_a_prototypical_network_of_normalised_prototypes() -> None:
    module = made(contrast=0.0)
    with torch.no_grad():
        for p in (*module.output.parameters(), module.norm.bias):
            p.zero_()
        module.norm.weight.fill_(1)
    support, query = task(episodes(SPEC), 0)
    means = torch.stack([module.backbone(support.x[support.y == n]).mean(0) for n in range(3)])
    normalised = (means - means.mean(-1, keepdim=True)) / (means.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    expected = -torch.cdist(module.backbone(query.x), normalised).square() / 3
    torch.testing.assert_close(module.predict(module.adapt(support, 3), query.x), expected, rtol=1e-9, atol=1e-9)


def test_a_prediction_depends_on_the_other_classes_but_not_on_other_queries_or_the_order() -> None:
    module = made()
    support, query = task(episodes(SPEC, shots=2), 0)
    outputs = module.predict(module.adapt(support, 3), query.x)
    assert not module.transductive
    torch.testing.assert_close(module.predict(module.adapt(support, 3), query.x[:1]), outputs[:1])
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    turned = Examples(support.x[order], support.y[order])
    torch.testing.assert_close(module.predict(module.adapt(turned, 3), query.x), outputs)
    two = support.y < 2
    fewer = module.predict(module.adapt(Examples(support.x[two], support.y[two]), 2), query.x)
    assert (fewer - outputs[:, :2]).abs().max() > 1e-3


def test_a_negative_weight_of_the_contrastive_term_is_refused() -> None:
    with pytest.raises(UserError, match="contrast: a number of at least 0 is needed"):
        lm.FEAT(MLP(6, (5,)), contrast=-0.1)
