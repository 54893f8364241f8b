"""Meta-gradients of MAML are those of learn2learn's (a peer, built as its users must; not a dependency)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_meta.batches import Episode
from lightning_meta.meta import MAML
from lightning_meta.nn import MLP
from tests.integrations.peer import l2l
from tests.meta.oracles import (
    IMAGES,
    KINDS,
    episodes,
    gradient,
    loss_of,
    relative_error,
    roughen,
    task,
)

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def convolutions() -> nn.Module:
    """Torch's own batch normalisation, without the running statistics, which learn2learn's clones would share."""
    layers: list[nn.Module] = []
    for channels in (2, 8):
        norm = nn.BatchNorm2d(8, track_running_stats=False)
        layers += [nn.Conv2d(channels, 8, 3, padding=1), norm, nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten())


NETWORKS = {"MLP": lambda: MLP(6, (32, 32)), "conv + BN": convolutions}
SPECS = {"MLP": KINDS["mlp"].spec, "conv + BN": IMAGES}


def theirs(network: nn.Module, batch: Episode, steps: int, rate: float, first_order: bool, spec: Any) -> Tensor:
    """The meta-gradient by learn2learn's documented loop."""
    learner = l2l.algorithms.MAML(network, lr=rate, first_order=first_order)
    losses = []
    for t in range(len(batch.tasks)):
        support, query = task(batch, t)
        clone = learner.clone()
        for _ in range(steps):
            clone.adapt(loss_of(spec, clone(support.x), support.y))
        losses.append(loss_of(spec, clone(query.x), query.y))
    return gradient(torch.stack(losses).mean(), learner)


@pytest.fixture(scope="module")
def measured() -> Iterator[list[str]]:
    rows: list[str] = []
    yield rows
    print("\nnetwork   order  steps  precision  strategy  relative error", *rows, sep="\n")


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("strategy", ["vmap", "loop"])
@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("first_order", [False, True], ids=["second order", "first order"])
@pytest.mark.parametrize("name", NETWORKS)
def test_meta_gradients_equal(
    name: str, first_order: bool, steps: int, strategy: Any, dtype: torch.dtype, measured: list[str]
) -> None:
    spec, rate = SPECS[name], 0.1
    peer = nn.Sequential()
    peer.add_module("backbone", NETWORKS[name]())
    ours = MAML(NETWORKS[name](), rate, steps, first_order=first_order, strategy=strategy, episodes=spec).to(dtype)
    roughen(ours)
    head = ours.network.get_submodule("head")
    assert isinstance(head, nn.Linear)
    peer.add_module("head", nn.Linear(head.in_features, head.out_features))
    peer.to(dtype).load_state_dict(dict(ours.network.named_parameters()))

    batch = episodes(spec, tasks=4, dtype=dtype)
    found = gradient(ours.meta_batch_loss(batch).loss.mean(), ours)
    error = relative_error(found, theirs(peer, batch, steps, rate, first_order, spec))
    order, precision = 1 if first_order else 2, str(dtype).removeprefix("torch.")
    measured.append(f"{name:10}{order:<7}{steps:<7}{precision:11}{strategy:10}{error:.1e}")
    assert error < TOLERANCE[dtype]
