"""CAVIA against its equations in plain autograd."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

import lightning_meta as lm
from lightning_meta.batches import Examples
from lightning_meta.errors import UserError
from lightning_meta.nn import MLP
from lightning_meta.tasks import EpisodeSpec
from tests.meta.oracles import episodes, roughen, task

SPEC = EpisodeSpec("regression", (2,), 2)


def made(**options: Any) -> lm.CAVIA:
    torch.manual_seed(3)
    module = lm.CAVIA(MLP(5, (8, 6)), context_size=3, inner_lr=0.5, episodes=SPEC, **options).double()
    roughen(module.backbone)
    roughen(module.head)
    return module


def loss_by_hand(module: lm.CAVIA, support: Examples, query: Examples, steps: int) -> Tensor:
    def loss(context: Tensor, examples: Examples) -> Tensor:
        x = torch.cat([examples.x, context.repeat(len(examples.x), 1)], 1)
        return (module.head(module.backbone(x)) - examples.y).square().mean()

    context = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    for _ in range(steps):
        (slope,) = torch.autograd.grad(loss(context, support), context, create_graph=not module.first_order)
        context = context - 0.5 * slope
    return loss(context, query)


@pytest.mark.parametrize(("steps", "first_order"), [(1, False), (3, False), (2, True)])
def test_the_loss_and_its_gradient_are_those_of_the_equations(steps: int, first_order: bool) -> None:
    module, batch = made(inner_steps=steps, first_order=first_order), episodes(SPEC, shots=4)
    losses = module.meta_batch_loss(batch).loss
    expected = torch.stack([loss_by_hand(module, *task(batch, t), steps) for t in range(2)])
    torch.testing.assert_close(losses, expected)
    parameters = dict(module.named_parameters())
    gradients = dict(zip(parameters, torch.autograd.grad(losses.mean(), list(parameters.values())), strict=True))
    assert not gradients.pop("context.values").any()
    del parameters["context.values"]
    wanted = torch.autograd.grad(expected.mean(), list(parameters.values()))
    for found, right in zip(gradients.values(), wanted, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-8, atol=1e-12)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_a_task_starts_at_a_context_of_0_however_long_the_training() -> None:
    data = lm.EpisodicDataModule(lm.sources.Sinusoid(), shots=5, queries=5, meta_batch_size=4, val_tasks=2)
    module = lm.CAVIA(
        MLP(4, (8,)), context_size=3, optimizer=lambda parameters: torch.optim.AdamW(parameters, weight_decay=0.1)
    )
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    L.Trainer(accelerator="cpu", max_steps=3, limit_val_batches=0, num_sanity_val_steps=0, **quiet).fit(module, data)  # type: ignore[arg-type]
    assert torch.equal(module.context.values, torch.zeros(3))
    support = Examples(torch.linspace(-1, 1, 5).unsqueeze(1), torch.ones(5, 1))
    adapted = module.eval().adapt(support, 0)
    moved = [name for name, p in module.network.named_parameters() if not torch.equal(adapted[name], p)]
    assert moved == ["context.values"]


def test_a_backbone_without_inputs_for_the_context_is_refused_by_the_option() -> None:
    with pytest.raises(UserError, match=r"context_size = 3 numbers to the 2 of an example, .* must take 5 inputs"):
        lm.CAVIA(MLP(2, (8,)), context_size=3, episodes=SPEC)
