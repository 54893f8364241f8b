"""Meta-gradients of Meta-SGD, of weights and rates, are those of learn2learn's (a peer; not a dependency)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_meta.meta import MetaSGD
from lightning_meta.nn import MLP
from tests.integrations.peer import l2l
from tests.meta.oracles import KINDS, episodes, gradient, loss_of, relative_error, roughen, task


@pytest.mark.parametrize("steps", [1, 3])
def test_meta_gradients_equal(steps: int) -> None:
    spec = KINDS["mlp"].spec
    ours = MetaSGD(MLP(6, (32, 32)), 0.1, steps, episodes=spec).double()
    roughen(ours)
    peer = nn.Sequential()
    peer.add_module("backbone", MLP(6, (32, 32)))
    peer.add_module("head", nn.Linear(32, 3))
    peer.double().load_state_dict(dict(ours.network.named_parameters()))
    learner = l2l.algorithms.MetaSGD(peer, lr=0.1)
    with torch.no_grad():
        for theirs, rate in zip(learner.lrs, ours.alpha.values(), strict=True):
            theirs.data = rate.detach().clone()  # it makes float32 ones
    batch, losses = episodes(spec, tasks=4), []
    for t in range(len(batch.tasks)):
        support, query = task(batch, t)
        clone = learner.clone()
        for _ in range(steps):
            clone.adapt(loss_of(spec, clone(support.x), support.y))
        losses.append(loss_of(spec, clone(query.x), query.y))
    expected, found = torch.stack(losses).mean(), ours.meta_batch_loss(batch).loss.mean()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    loss_gradients = torch.autograd.grad(expected, [*peer.parameters(), *learner.lrs])
    assert relative_error(gradient(found, ours), torch.cat([g.flatten() for g in loss_gradients])) < 1e-10
