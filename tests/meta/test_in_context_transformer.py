"""The in-context transformer against torch's encoder layers on the whole masked sequence."""

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
from lightning_meta.nn import MLP, Conv4
from lightning_meta.tasks import EpisodeSpec
from tests.meta.oracles import episodes, relative_error, roughen, task

SPECS = {"classes": EpisodeSpec("classification", (6,), 3), "numbers": EpisodeSpec("regression", (6,), 2)}


def made(spec: EpisodeSpec, **options: Any) -> lm.InContextTransformer:
    torch.manual_seed(3)
    few: dict[str, Any] = {"width": 12, "layers": 3, "heads": 3, "hidden": 5, "least_deviation": 0.2, "episodes": spec}
    module = lm.InContextTransformer(MLP(6, (7,)), **{**few, **options}).double()
    roughen(module)
    return module


def by_hand(module: lm.InContextTransformer, support: Examples, x: Tensor) -> Tensor:
    """The sequence of support and query tokens through torch's layers, under a mask."""
    shots, count, spec = len(support.x), len(support.x) + len(x), module.spec
    y = torch.eye(spec.outputs, dtype=torch.float64)[support.y] if spec.task == "classification" else support.y
    targets = torch.cat([y, torch.zeros(len(x), spec.outputs, dtype=torch.float64)])
    z = module.embed(torch.cat([module.backbone(torch.cat([support.x, x])), targets], 1))
    hidden = torch.ones(count, count, dtype=torch.bool)  # from attention
    hidden[:, :shots] = False
    options: dict[str, Any] = {"dropout": 0.0, "norm_first": True, "batch_first": True, "dtype": torch.float64}
    for block in module.blocks:
        assert isinstance(block.mlp, nn.Sequential)
        parts = {"norm1": block.norm, "norm2": block.norm_of_mlp, "linear1": block.mlp[0], "linear2": block.mlp[2]}
        parts["self_attn.out_proj"] = block.output
        weights = {f"{name}.{k}": p for name, part in parts.items() for k, p in part.named_parameters()}  # type: ignore[union-attr]
        for kind in ("weight", "bias"):
            projections = [getattr(part, kind) for part in (block.query, block.key, block.value)]
            weights[f"self_attn.in_proj_{kind}"] = torch.cat(projections)
        layer = nn.TransformerEncoderLayer(12, 3, 5, **options)
        z = torch.func.functional_call(layer, weights, (z[None],), {"src_mask": hidden})[0]
    outputs: Tensor = module.head(module.norm(z[shots:]))
    if spec.task == "classification":
        return outputs
    mean, rho = outputs.chunk(2, -1)
    return torch.cat([mean, 0.2 + 0.8 * F.softplus(rho)], 1)


@pytest.mark.parametrize("kind", SPECS)
def test_the_loss_and_its_gradient_are_those_of_the_masked_sequence(kind: str) -> None:
    spec = SPECS[kind]
    module, batch = made(spec), episodes(spec, shots=4, queries=5)
    outcome, losses = module.meta_batch_loss(batch), []
    for t in range(2):
        support, query = task(batch, t)
        outputs = by_hand(module, support, query.x)
        assert relative_error(outcome.outputs[t], outputs) < 1e-10
        if kind == "classes":
            losses.append(F.cross_entropy(outputs, query.y))
        else:
            mean, deviation = outputs.chunk(2, -1)
            losses.append(-torch.distributions.Normal(mean, deviation).log_prob(query.y).sum(-1).mean())
    hand, parameters = torch.stack(losses), list(module.parameters())
    assert relative_error(outcome.loss, hand) < 1e-10
    found, wanted = (torch.autograd.grad(loss.mean(), parameters) for loss in (outcome.loss, hand))
    assert relative_error(*(torch.cat([g.flatten() for g in each]) for each in (found, wanted))) < 1e-9


@pytest.mark.parametrize("kind", SPECS)
def test_predictions_depend_neither_on_other_queries_nor_on_the_order_of_the_support_set(kind: str) -> None:
    module = made(SPECS[kind])
    support, query = task(episodes(SPECS[kind], shots=5, queries=4), 0)
    ways = 3 if kind == "classes" else 0
    outputs = module.predict(module.adapt(support, ways), query.x)
    order = torch.randperm(len(support.x), generator=torch.Generator().manual_seed(0))
    turned = Examples(support.x[order], support.y[order])
    torch.testing.assert_close(module.predict(module.adapt(turned, ways), query.x), outputs)
    torch.testing.assert_close(module.predict(module.adapt(support, ways), query.x[2:3]), outputs[2:3])
    other = Examples(support.x, support.y.roll(1, 0))
    assert (module.predict(module.adapt(other, ways), query.x) - outputs).abs().max() > 1e-3
    one = Examples(support.x[:1], support.y[:1])
    assert module.predict(module.adapt(one, ways), query.x).isfinite().all()
    assert not module.transductive


def test_images_are_embedded_by_a_network_with_batch_statistics() -> None:
    spec = EpisodeSpec("classification", (1, 8, 8), 3)
    module = lm.InContextTransformer(Conv4(1, 4, blocks=2), width=8, heads=2, layers=1, episodes=spec)
    outcome = module.train().meta_batch_loss(episodes(spec, dtype=torch.float32))
    assert outcome.loss.isfinite().all()
    assert any(name.endswith("running_mean") for name in outcome.buffers)


def test_predictions_of_stored_tasks_are_in_the_units_of_the_targets() -> None:
    spec = EpisodeSpec("regression", (6,), 2, target_mean=(50.0, -3.0), target_scale=(9.0, 0.1))
    module, (support, query) = made(spec), task(episodes(SPECS["numbers"]), 0)
    scale = torch.tensor([9.0, 0.1], dtype=torch.float64)
    outputs = module.predict(module.adapt(support, 0), query.x)
    found = module.task.readable(outputs)
    torch.testing.assert_close(found[:, :2], outputs[:, :2] * scale + torch.tensor([50.0, -3.0]))
    torch.testing.assert_close(found[:, 2:], outputs[:, 2:] * scale)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: made(SPECS["classes"], heads=5), "heads: a divisor of the width 12 is needed, got 5"),
        (lambda: made(SPECS["classes"], layers=0), "layers: "),
        (lambda: made(SPECS["classes"], least_deviation=1.0), "least_deviation: "),
        (
            lambda: made(SPECS["classes"]).check_ways(5),
            "ways: this InContextTransformer was trained with 3 ways and supports no other number, got 5",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(make: Any, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)) as error:
        make()
    assert "\n" not in str(error.value)
