"""Networks of the same architecture that start from other values."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_meta.building import build
from lightning_meta.describing import Described
from lightning_meta.nn import MLP, ChannelNormalized, Conv4, Frozen, LeNet, ResNet12, TaskBatchNorm, per_task
from lightning_meta.nn.fresh import fresh


class Around(Described, nn.Module):
    """A user's network around another one."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Normalised(Described, nn.Module):
    """A user's network with torch's own normalisation."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


NETWORKS = {
    "mlp": (MLP(4, (5, 3)), (4,)),
    "conv4": (Conv4(width=3, blocks=2), (1, 8, 8)),
    "lenet": (LeNet(image_size=16), (1, 16, 16)),
    "resnet12": (ResNet12(1, (2, 3)), (1, 8, 8)),
    "sequential": (nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.BatchNorm1d(5)), (4,)),
    "configured": (build({"class_path": "torch.nn.Linear", "init_args": {"in_features": 4, "out_features": 2}}), (4,)),
    "around a described one": (Around(MLP(4, (5, 3))), (4,)),
    "around another": (Around(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3))), (4,)),
    "converted": (per_task(Normalised()), (4,)),
}
EACH = pytest.mark.parametrize(("network", "shape"), NETWORKS.values(), ids=NETWORKS)


def weights(network: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


@EACH
def test_a_fresh_network_is_like_the_old_one_and_starts_elsewhere(network: nn.Module, shape: tuple[int, ...]) -> None:
    state = {name: t.clone() for name, t in network.state_dict().items()}
    stream = torch.get_rng_state()
    made, again, other = fresh(network, 1), fresh(network, 1), fresh(network, 2)
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(torch.equal(t, state[name]) for name, t in network.state_dict().items())
    assert type(made) is type(network)
    assert {n: t.shape for n, t in made.state_dict().items()} == {n: t.shape for n, t in state.items()}
    assert [type(m) for m in made.modules()] == [type(m) for m in network.modules()]
    assert torch.equal(weights(made), weights(again))
    for one, two in ((made, network), (made, other)):
        for (name, p), q in zip(one.named_parameters(), two.parameters(), strict=True):
            drawn = p.dim() > 1
            assert not (drawn and torch.equal(p, q)), name
    assert not {id(p) for p in made.parameters()} & {id(p) for p in network.parameters()}
    assert made.eval()(torch.rand(2, *shape)).shape == network.eval()(torch.rand(2, *shape)).shape


@EACH
def test_it_keeps_the_precision(network: nn.Module, shape: tuple[int, ...]) -> None:
    made = fresh(copy.deepcopy(network).double(), 1)
    assert {p.dtype for p in made.parameters()} == {torch.float64}


def test_values_learned_before_are_left_behind() -> None:
    network = MLP(4, (5,))
    for parameter in network.parameters():
        parameter.data.fill_(9)
    assert not (weights(fresh(network, 0)) == 9).any()
    for module in fresh(per_task(Normalised()), 0).modules():
        assert not isinstance(module, nn.BatchNorm1d)
    assert any(isinstance(m, TaskBatchNorm) for m in fresh(per_task(Normalised()), 0).modules())


FROZEN_WITHIN = {
    "with a layer": lambda part: nn.Sequential(part, nn.Linear(48, 2)),
    "normalised": lambda part: ChannelNormalized(part, [0.5], [0.2]),
    "of no known arguments": lambda part: Around(nn.Sequential(part)),
    "alone": lambda part: part,
}


@pytest.mark.parametrize("around", FROZEN_WITHIN.values(), ids=FROZEN_WITHIN)
def test_what_is_frozen_within_it_keeps_its_weights_and_statistics(around: Any) -> None:
    network = around(Frozen(Conv4(1, width=3, blocks=2))).double()
    for tensor in network.state_dict().values():
        tensor.fill_(9)
    made = fresh(network, 1)
    state = {name: t for name, t in made.state_dict().items() if "num_batches" not in name}
    of_layer = [name for name in state if name.startswith("1.")]
    assert len(state) - len(of_layer) > 10
    for name, tensor in state.items():
        assert bool((tensor == 9).all()) == (name not in of_layer), name
    assert [p.requires_grad for p in made.parameters()] == [p.requires_grad for p in network.parameters()]
