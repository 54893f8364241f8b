"""Losses and meta-gradients of GBML are those of learn2learn's, of the network's weights and of the transforms'."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_meta import InnerSGD
from lightning_meta.errors import UserError
from lightning_meta.integrations.learn2learn import GBML
from lightning_meta.nn import MLP, Conv4
from lightning_meta.tasks import EpisodeSpec
from lightning_meta.testing import MetaModuleTests
from tests.integrations.peer import l2l
from tests.meta.oracles import (
    IMAGES,
    KINDS,
    Snapshot,
    episodes,
    gradient,
    loss_of,
    relative_error,
    roughen,
    smooth_convolutions,
    task,
)

TRANSFORMS = ["meta_sgd", "kronecker", "meta_curvature", "linear"]


class TestMetaSGD(MetaModuleTests):
    def make(self) -> GBML:
        return GBML(Conv4(width=4, blocks=2), "meta_sgd", inner_lr=0.1, inner_steps=2)


class TestKronecker(MetaModuleTests):
    def make(self) -> GBML:
        return GBML(MLP(256, (8,)), "kronecker", inner_lr=0.1, inner_steps=2)


class TestAdaptedTransforms(MetaModuleTests):
    def make(self) -> GBML:
        return GBML(Conv4(width=4, blocks=2), "meta_curvature", adapt_transform=True, inner_lr=0.1, inner_steps=3)


def convolutions() -> nn.Module:
    """A network without running statistics, which learn2learn's clones would share."""
    return smooth_convolutions(lambda channels: nn.BatchNorm2d(channels, track_running_stats=False))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], EpisodeSpec]] = {
    "MLP": (KINDS["mlp"].backbone, KINDS["mlp"].spec),
    "conv + BN": (convolutions, IMAGES),
}


def pair(name: str, transform: Any, **options: Any) -> tuple[GBML, Any]:
    """A GBML of each, with the same weights, away from their start."""
    torch.manual_seed(0)
    make, spec = NETWORKS[name]
    ours = GBML(make(), transform, inner_lr=0.1, episodes=spec, **options)
    roughen(ours.network)
    with torch.no_grad():
        for p in ours.transforms.parameters():
            p.add_(0.05 * torch.randn_like(p))
    ours.double()
    network = nn.Sequential()
    network.add_module("backbone", make())
    network.add_module("head", copy.deepcopy(ours.network.get_submodule("head")))
    network.double().load_state_dict(dict(ours.network.named_parameters()))
    pieces = iter(copy.deepcopy(ours.transforms))
    learner = l2l.algorithms.GBML(
        network,
        lambda p: next(pieces),
        lr=0.1,
        first_order=options.get("first_order", False),
        adapt_transform=options.get("adapt_transform", False),
    )
    return ours, learner


def theirs(learner: Any, batch: Any, steps: int, spec: EpisodeSpec) -> tuple[Tensor, Tensor]:
    """Query losses and predictions by learn2learn's documented loop."""
    losses, outputs = [], []
    for t in range(len(batch.tasks)):
        support, query = task(batch, t)
        clone = learner.clone()
        for _ in range(steps):
            clone.adapt(loss_of(spec, clone(support.x), support.y))
        outputs.append(clone(query.x))
        losses.append(loss_of(spec, outputs[-1], query.y))
    return torch.stack(losses), torch.stack(outputs)


@pytest.fixture(scope="module")
def worst() -> Any:
    errors: dict[str, float] = {}
    yield errors
    print("\nlargest relative error", *(f"{name:29}{error:.1e}" for name, error in errors.items()), sep="\n")


@pytest.mark.parametrize("strategy", ["vmap", "loop"])
@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("order", ["second order", "first order", "transforms adapted"])
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", NETWORKS)
def test_losses_and_meta_gradients_are_theirs(
    name: str, transform: str, order: str, steps: int, strategy: str, worst: dict[str, float]
) -> None:
    options = {"first_order": order == "first order", "adapt_transform": order == "transforms adapted"}
    ours, learner = pair(name, transform, inner_steps=steps, strategy=strategy, **options)
    batch = episodes(ours.spec, tasks=3)
    losses, outputs = theirs(learner, batch, steps, ours.spec)
    found = ours.meta_batch_loss(batch)
    of_weights = sum(p.numel() for p in ours.network.parameters())
    gradients = zip(
        gradient(found.loss.mean(), ours).tensor_split([of_weights]),
        gradient(losses.mean(), learner).tensor_split([of_weights]),
        strict=True,
    )
    with torch.inference_mode():
        predicted = ours.eval().predict_step(batch, 0)
    pairs = [(found.loss, losses), (found.outputs, outputs), (predicted, outputs), *gradients]
    error = max(relative_error(mine, expected) for mine, expected in pairs)
    worst[f"{name}, {order}"] = max(error, worst.get(f"{name}, {order}", 0))
    assert error < 1e-10


@pytest.mark.parametrize("strategy", ["vmap", "loop"])
def test_tasks_adapt_copies_of_the_transforms_from_the_second_step_on(strategy: str) -> None:
    batch = episodes(IMAGES)
    for steps in (1, 2):
        still, adapting = (
            pair("conv + BN", "kronecker", inner_steps=steps, strategy=strategy, adapt_transform=adapt)[0]
            for adapt in (False, True)
        )
        before = Snapshot(adapting)
        found = gradient(adapting.meta_batch_loss(batch).loss.mean(), adapting)
        before.assert_unchanged()
        again = gradient(adapting.meta_batch_loss(batch).loss.mean(), adapting)
        assert torch.equal(found, again)  # the next episodes start from ψ_0 again
        apart = relative_error(found, gradient(still.meta_batch_loss(batch).loss.mean(), still))
        assert apart < 1e-12 if steps == 1 else apart > 1e-6


def test_only_plain_descent_adapts_transforms_and_a_part_of_the_network_may_be_adapted() -> None:
    with pytest.raises(UserError, match=r"adapt_transform: .* leave inner_optimizer out"):
        GBML(MLP(6, (4,)), adapt_transform=True, inner_optimizer=InnerSGD(0.9))
    for adapt in (False, True):
        ours, _ = pair("MLP", "meta_sgd", adapt_transform=adapt, inner_parameters="head", inner_steps=2)
        support, _ = task(episodes(ours.spec), 0)
        state = ours.adapt(support, 3)
        moved = {name for name, p in ours.network.named_parameters() if not torch.equal(p, state[name])}
        assert moved == {"head.weight", "head.bias"}


def test_first_order_is_refused_where_learn2learn_fails() -> None:
    with pytest.raises(UserError, match=r"adapt_transform: .* first_order leaves out"):
        GBML(MLP(6, (4,)), adapt_transform=True, first_order=True)
    ours, learner = pair("MLP", "meta_sgd", adapt_transform=True)
    support, _ = task(episodes(ours.spec), 0)
    clone = learner.clone(first_order=True)
    clone.adapt(loss_of(ours.spec, clone(support.x), support.y))
    with pytest.raises(UnboundLocalError):  # of gradients that a freed graph could not give
        clone.adapt(loss_of(ours.spec, clone(support.x), support.y))
