"""Reptile against its equation, with torch's own optimisers in the inner loop."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from lightning_meta import InnerSGD
from lightning_meta.meta import Reptile
from lightning_meta.nn.stateless import Tensors
from tests.meta.oracles import KINDS, episodes, forward, gradient, loss_of, relative_error, roughen, task


def reptile(**options: Any) -> Reptile:
    torch.manual_seed(3)
    module = Reptile(KINDS["mlp"].backbone(), episodes=KINDS["mlp"].spec, **options)
    roughen(module)
    return module.double()


def test_reptile_of_one_step_follows_the_support_gradient() -> None:
    module = reptile(inner_optimizer=InnerSGD(), inner_batch_size=None, inner_lr=0.3, inner_steps=1)
    batch = episodes(module.spec)
    outcome = module.meta_batch_loss(batch)
    parameters: Tensors = dict(module.network.named_parameters())
    losses, outputs = [], []
    for t in range(2):
        support, query = task(batch, t)
        losses.append(loss_of(module.spec, forward(module.network, parameters, support.x)[0], support.y))
        outputs.append(loss_of(module.spec, module.predict(module.adapt(support, 3), query.x), query.y))
    expected = 0.3 * gradient(torch.stack(losses).mean(), module)
    assert relative_error(gradient(outcome.loss.mean(), module), expected) < 1e-12
    torch.testing.assert_close(outcome.loss, torch.stack(outputs), rtol=1e-12, atol=1e-12)  # the query loss is reported


@pytest.mark.parametrize("strategy", ["vmap", "loop"])
def test_reptile_moves_towards_what_torchs_adam_finds(strategy: Any) -> None:
    module = reptile(inner_batch_size=None, inner_lr=0.01, inner_steps=5, strategy=strategy)
    batch = episodes(module.spec)
    start = nn.utils.parameters_to_vector(module.network.parameters()).detach()
    ends = []
    for t in range(2):
        support, _ = task(batch, t)
        network = copy.deepcopy(module.network)
        adam = torch.optim.Adam(network.parameters(), 0.01, betas=(0.0, 0.999))
        for _ in range(5):
            adam.zero_grad()
            loss_of(module.spec, network(support.x), support.y).backward()
            adam.step()
        ends.append(nn.utils.parameters_to_vector(network.parameters()).detach())
    expected = start - torch.stack(ends).mean(0)
    assert relative_error(gradient(module.meta_batch_loss(batch).loss.mean(), module), expected) < 1e-10


def test_a_step_of_sgd_moves_a_share_of_the_way() -> None:
    """θ + ε (φ - θ), with φ by the module's own mini-batches."""
    module = reptile(inner_batch_size=2, inner_lr=0.01, inner_steps=4)
    batch = episodes(module.spec)
    start = {name: p.detach().clone() for name, p in module.network.named_parameters()}
    ends = [module.adapt(task(batch, t)[0], 3) for t in range(2)]
    optimizer = torch.optim.SGD(module.network.parameters(), lr=0.3)
    module.meta_batch_loss(batch).loss.mean().backward()
    optimizer.step()
    for name, p in module.network.named_parameters():
        there = torch.stack([end[name].detach() for end in ends]).mean(0)
        torch.testing.assert_close(p.detach(), start[name] + 0.3 * (there - start[name]), rtol=1e-12, atol=1e-12)


def test_query_examples_train_nothing() -> None:
    gradients = []
    for shift in (0.0, 5.0):
        module = reptile(inner_lr=0.01, inner_steps=3)
        batch = episodes(module.spec)
        batch.query.x.add_(shift)
        gradients.append(gradient(module.meta_batch_loss(batch).loss.mean(), module))
    assert relative_error(*gradients) == 0
