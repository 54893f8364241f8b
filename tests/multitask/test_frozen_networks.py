"""Frozen backbones, or frozen layers of them, in every method that copies or changes the backbone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from lightning_meta.errors import UserError
from lightning_meta.multitask import CGC, MTAN, PLE, Conditioned, CrossStitch, Independent, MixtureOfExperts, MultiHead
from lightning_meta.multitask.base import MultiTaskModule
from lightning_meta.nn import MLP, Frozen
from lightning_meta.weightings import CAGrad, GradNorm, PCGrad
from tests.multitask.toys import data, train

COPYING = [MixtureOfExperts, CGC, PLE, CrossStitch, Independent, partial(MultiHead, shared_depth=0)]


def network(frozen: int = 2) -> nn.Sequential:
    """Three layers, of which the first ones are frozen."""
    torch.manual_seed(7)
    layers = [nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU()), nn.Linear(6, 6), nn.Linear(6, 8)]
    for layer in layers[:frozen]:
        layer.requires_grad_(False)
    return nn.Sequential(*layers)


def copies(module: nn.Module, like: Tensor) -> list[nn.Parameter]:
    return [p for p in module.parameters() if p.shape == like.shape]


@pytest.mark.parametrize("frozen", [1, 3])
@pytest.mark.parametrize("method", COPYING)
def test_every_copy_of_a_frozen_layer_has_its_weights(method: Callable[..., MultiTaskModule], frozen: int) -> None:
    given = network(frozen)
    first, last = (given.get_parameter(f"{name}.weight").detach().clone().double() for name in ("0.0", "2"))
    module = train(method, data(), 2, backbone=given)
    of_first = copies(module, first)
    assert len(of_first) > 1
    assert all(torch.equal(p, first) and not p.requires_grad for p in of_first)
    assert all(p.requires_grad != torch.equal(p, last) for p in copies(module, last))


@pytest.mark.parametrize("part", ["weight", "bias"])
def test_every_copy_of_a_frozen_parameter_is_that_parameter(part: str) -> None:
    given = network(0)
    frozen = given.get_parameter(f"1.{part}").requires_grad_(False)
    values = frozen.detach().clone().double()
    module = train(MixtureOfExperts, data(), 2, backbone=given)
    stored = [p for p in module.parameters() if not p.requires_grad]
    assert len(stored) > 1
    assert all(torch.equal(p, values) for p in stored)


def test_what_mtan_adds_is_trained() -> None:
    module = train(MTAN, data(), 2, backbone=network(3))
    assert not any(p.requires_grad for p in module.backbone.parameters())
    assert all(p.requires_grad for name, p in module.named_parameters() if not name.startswith("backbone."))


@pytest.mark.parametrize("at", [0, 1])
def test_nothing_is_concatenated_before_a_frozen_layer(at: int) -> None:
    for given in (network(at + 1), nn.Sequential(*(Frozen(layer) for layer in network(0)))):
        with pytest.raises(UserError, match=f"at {at}: the first layer of .* is frozen, .* set enters to film"):
            train(Conditioned, data(), 1, backbone=given, at=[at])
    given = network(3)
    before = {name: p.detach().clone().double() for name, p in given.named_parameters()}
    film = train(Conditioned, data(), 2, backbone=given, at=[1], enters="film")
    assert all(torch.equal(p, before[name]) for name, p in film.backbone.named_parameters())
    behind = train(Conditioned, data(), 2, backbone=network(3), at=[3])
    assert not any(p.requires_grad for p in behind.backbone.parameters())


@pytest.mark.parametrize("weighting", [PCGrad, CAGrad, GradNorm])
def test_an_aggregator_without_trained_shared_parameters_warns(
    weighting: Callable[[], object], caplog: pytest.LogCaptureFixture
) -> None:
    train(MultiHead, data(), 1, backbone=MLP(4, (6,)), weighting=weighting())
    assert "all of them are frozen" not in caplog.text
    train(MultiHead, data(), 1, backbone=network(3), weighting=weighting())
    assert "combines gradients of shared parameters, and all of them are frozen" in caplog.text
