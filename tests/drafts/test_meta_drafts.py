"""Methods of a few lines on the seams for meta-learners: each against its equations, and by the inherited tests."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from lightning_meta import InnerSGD
from lightning_meta.meta import GradientBasedLearner, MetaModule
from lightning_meta.nn import MLP, Conv4
from lightning_meta.nn.stateless import Tensors
from lightning_meta.testing import MetaModuleTests
from tests.drafts.anil import ANIL
from tests.drafts.matching_net import MatchingNet
from tests.drafts.reptile import Reptile
from tests.meta.oracles import IMAGES, KINDS, episodes, forward, gradient, loss_of, relative_error, roughen, task


def conv4() -> Conv4:
    return Conv4(width=4, blocks=2)


class TestANIL(MetaModuleTests):
    def make(self) -> MetaModule:
        return ANIL(conv4(), inner_lr=0.1, inner_steps=2, batch_norm="inductive")


class TestReptile(MetaModuleTests):
    def make(self) -> MetaModule:
        return Reptile(MLP(256, (8,)), inner_batch_size=4, inner_lr=0.001, inner_steps=4)


class TestMatchingNet(MetaModuleTests):
    def make(self) -> MetaModule:
        return MatchingNet(conv4())


class StillBody(GradientBasedLearner):
    """MAML whose inner rate is 0 for the body."""

    def rates(self, step: int) -> Tensors:
        rate = torch.tensor(self.inner_lr, dtype=torch.float64)
        return {name: rate * name.startswith("head") for name in self.adapted()}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_norm": "inductive"},
        {"recompute": True},
        {"inner_batch_size": 4},
        {"inner_steps": 0},
        {"first_order": True},
    ],
    ids=str,
)
def test_anil_is_maml_with_an_inner_rate_of_zero_for_the_body(options: dict[str, Any]) -> None:
    options = {"inner_lr": 0.5, "inner_steps": 3, "episodes": IMAGES, **options}
    anil, still = (method(KINDS["smooth"].backbone(), **options).double() for method in (ANIL, StillBody))
    roughen(anil)
    still.load_state_dict(anil.state_dict())
    batch = episodes(IMAGES)
    found, expected = (module.meta_batch_loss(batch).loss.mean() for module in (anil, still))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert relative_error(gradient(found, anil), gradient(expected, still)) < 1e-12


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


def ready(method: type[MetaModule]) -> Any:
    return method(MLP(6, (8, 5)), episodes=KINDS["mlp"].spec).double()


def test_matching_net_is_its_equation() -> None:
    module, batch = ready(MatchingNet), episodes(KINDS["mlp"].spec)
    support, query = task(batch, 0)
    keys, features = module.backbone(support.x), module.backbone(query.x)
    expected = torch.zeros(len(features), 3, dtype=torch.float64)
    for i, f in enumerate(features):
        cosines = [torch.dot(f, k) / (f.norm() * k.norm()) for k in keys]
        total = sum(c.exp() for c in cosines)
        for cosine, label in zip(cosines, support.y.tolist(), strict=True):
            expected[i, label] += cosine.exp() / total
    found = module.predict(module.adapt(support, 3), query.x).softmax(-1)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
