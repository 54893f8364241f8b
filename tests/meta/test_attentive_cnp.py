"""The attentive conditional neural process against torch's own multi-head attention, and its gradient."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lightning_meta as lm
from lightning_meta.batches import Examples
from lightning_meta.errors import UserError
from lightning_meta.functional.attention import attention
from lightning_meta.nn import MLP
from lightning_meta.tasks import EpisodeSpec
from tests.meta.oracles import episodes, relative_error, roughen, task

SPEC = EpisodeSpec("regression", (2,), 2)


def made(**options: Any) -> lm.AttentiveCNP:
    torch.manual_seed(3)
    few: dict[str, Any] = {"heads": 3, "decoder": (5,), "least_deviation": 0.2, "episodes": SPEC}
    module = lm.AttentiveCNP(MLP(4, (7, 6)), **{**few, **options}).double()
    roughen(module)
    return module


def by_hand(module: lm.AttentiveCNP, support: Examples, x: Tensor) -> tuple[Tensor, Tensor]:
    """Figure 2 of the paper, with torch's attention."""
    peer = nn.MultiheadAttention(6, 3, bias=False, batch_first=True, dtype=torch.float64)
    weights = {
        "in_proj_weight": torch.cat([module.query.weight, module.key.weight, module.value.weight]),
        "out_proj.weight": module.output.weight,
    }
    values = module.last(module.backbone(torch.cat([support.x, support.y], 1)))
    queries, keys = module.embedding(x), module.embedding(support.x)
    r, _ = torch.func.functional_call(peer, weights, (queries[None], keys[None], values[None]))
    mean, rho = module.decoder(torch.cat([r[0], x], 1)).chunk(2, -1)
    return mean, 0.2 + 0.8 * F.softplus(rho)


def test_the_loss_and_its_gradient_are_those_of_the_equations() -> None:
    module, batch = made(), episodes(SPEC, shots=4, queries=5)
    outcome, losses = module.meta_batch_loss(batch), []
    for t in range(2):
        support, query = task(batch, t)
        mean, deviation = by_hand(module, support, torch.cat([support.x, query.x]))
        y = torch.cat([support.y, query.y])
        losses.append(-torch.distributions.Normal(mean, deviation).log_prob(y).sum(-1).mean())
        assert relative_error(outcome.outputs[t], torch.cat([mean, deviation], 1)[4:]) < 1e-10
    hand, parameters = torch.stack(losses), list(module.parameters())
    assert relative_error(outcome.loss, hand) < 1e-10
    found, wanted = (torch.autograd.grad(loss.mean(), parameters) for loss in (outcome.loss, hand))
    assert relative_error(*(torch.cat([g.flatten() for g in each]) for each in (found, wanted))) < 1e-9


def test_predictions_depend_neither_on_other_queries_nor_on_the_order_of_the_support_set() -> None:
    module = made()
    support, query = task(episodes(SPEC, shots=5, queries=4), 0)
    outputs = module.predict(module.adapt(support, 0), query.x)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(0))
    turned = Examples(support.x[order], support.y[order])
    torch.testing.assert_close(module.predict(module.adapt(turned, 0), query.x), outputs)
    torch.testing.assert_close(module.predict(module.adapt(support, 0), query.x[2:3]), outputs[2:3])
    one = module.adapt(Examples(support.x[:1], support.y[:1]), 0)
    assert module.predict(one, query.x).isfinite().all()
    assert not module.transductive


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_attention_is_that_of_torch(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(n, 6, generator=g, dtype=torch.float64).to(dtype) for n in (4, 7, 7))
    found = attention(q, k, v, heads=2)
    heads = [x.double().unflatten(-1, (2, 3)).transpose(0, 1) for x in (q, k, v)]
    expected = F.scaled_dot_product_attention(*heads).transpose(0, 1).flatten(1)
    assert found.dtype == dtype
    assert relative_error(found, expected) < (1e-12 if dtype == torch.float64 else 1e-2)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: made(heads=4), "heads: a divisor of the backbone's 6 features is needed, got 4"),
        (lambda: made(heads=0), "heads: "),
        (
            lambda: made(episodes=EpisodeSpec("classification", (2,), 2)),
            "AttentiveCNP predicts real targets; for classification use ProtoNet",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(make: Any, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)) as error:
        make()
    assert "\n" not in str(error.value)
