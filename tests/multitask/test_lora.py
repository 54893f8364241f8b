"""LoRA against merged weights, its start, and finite differences."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_meta.errors import UserError
from lightning_meta.multitask import LoRA, MultiHead
from lightning_meta.nn import MLP, Conv4, Frozen
from lightning_meta.tasks import Classification, Regression, TasksSpec
from lightning_meta.weightings import CAGrad
from tests.multitask.test_modules import made
from tests.multitask.toys import backbone, data, train

ROWS = {"b": torch.tensor([3, 0]), "a": torch.tensor([1, 3, 4])}


def of_shape(*shape: int) -> TasksSpec:
    return TasksSpec({"a": Regression(1), "b": Classification(3)}, dict.fromkeys("ab", shape))


def draw(module: Any) -> None:
    """Replace the updates, which start at 0, by random values."""
    generator = torch.Generator().manual_seed(2)
    for parameter in module.updates.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)


def transformer() -> nn.Module:
    return nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0), nn.Flatten())


NETWORKS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (backbone, (4,)),
    "convolutions": (lambda: Conv4(2, width=4, blocks=2), (2, 8, 8)),
    "reflected, strided, no bias": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3, 2, 1, padding_mode="reflect", bias=False), nn.Flatten()),
        (2, 8, 8),
    ),
    "tokens": (transformer, (5, 8)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_merged_weights_give_the_same_outputs(name: str) -> None:
    network, shape = NETWORKS[name]
    module = made(LoRA, of_shape(*shape), backbone=network(), rank=2, alpha=3.0).eval()
    draw(module)
    x = torch.randn(5, *shape, dtype=torch.float64)
    found = module(x, ROWS)
    for task, i in ROWS.items():
        k, merged = module.names.index(task), copy.deepcopy(module.backbone)
        with torch.no_grad():
            for layer, update in zip(module.layers, module.updates[k], strict=True):
                merged.get_submodule(layer).weight += 3 / 2 * update.merged()
            features: Tensor = merged(x[i])
        torch.testing.assert_close(found[task], module.heads[k](features), rtol=1e-10, atol=1e-10)
    assert not any(m._forward_hooks for m in module.modules())


def test_it_starts_as_multi_head_does() -> None:
    spec, x = of_shape(2, 8, 8), torch.randn(5, 2, 8, 8, dtype=torch.float64)
    rows = {"a": torch.tensor([0, 1]), "b": torch.tensor([2, 3, 4])}
    torch.manual_seed(0)
    network = Conv4(2, width=4, blocks=2)
    ours = made(LoRA, spec, backbone=copy.deepcopy(network))
    other = made(MultiHead, spec, backbone=copy.deepcopy(network))
    for mode in (True, False):
        found, expected = ours.train(mode)(x, rows), other.train(mode)(x, rows)
        for name in rows:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-12, atol=1e-12)


def test_gradients_are_those_of_finite_differences() -> None:
    module = made(LoRA, of_shape(2, 8, 8), backbone=Conv4(2, width=2, blocks=1), rank=1).eval()
    draw(module)
    x = torch.randn(5, 2, 8, 8, dtype=torch.float64)
    parameters = [*module.updates.parameters()]

    def outputs(*_: Tensor) -> tuple[Tensor, ...]:
        return tuple(module(x, ROWS).values())

    assert torch.autograd.gradcheck(outputs, parameters)


def test_what_is_shared_is_the_backbone_and_cagrad_combines_it() -> None:
    module: Any = train(LoRA, data(), 3, weighting=CAGrad())
    assert [id(p) for p in module.shared_parameters()] == [id(p) for p in module.backbone.parameters()]
    assert all(bool(update.up.any()) for of in module.updates for update in of)
    assert not any(m._forward_hooks for m in module.modules())  # nor those of its backward passes


@pytest.mark.filterwarnings("ignore:Found .* in eval mode")
def test_over_a_frozen_network_updates_and_heads_learn() -> None:
    network = backbone()
    before = copy.deepcopy(network)
    module: Any = train(LoRA, data(), 5, backbone=Frozen(network))
    assert not module.shared_parameters()
    for one, other in zip(module.backbone.parameters(), before.parameters(), strict=True):
        assert torch.equal(one, other.double())
    assert all(bool(update.up.any()) for of in module.updates for update in of)


class Turned(nn.Module):
    """Inputs are in the second dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.linear(x.transpose(0, 1)).mean(0)
        return features


@pytest.mark.parametrize(
    ("network", "shape", "message"),
    [
        (nn.Sequential(nn.Flatten()), (4,), "calls no torch.nn.Linear or torch.nn.Conv2d"),
        (nn.Sequential(nn.Conv2d(2, 2, 3, groups=2), nn.Flatten()), (2, 8, 8), "without groups"),
        (Turned(), (5, 8), "linear of Turned is called with 5 rows for 7 inputs"),
    ],
)
def test_a_backbone_that_cannot_be_updated_is_refused(network: nn.Module, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        made(LoRA, of_shape(*shape), backbone=network)


def test_ranks_and_scales_that_are_none_are_refused() -> None:
    with pytest.raises(UserError, match="rank: at least 1 is needed, got 0"):
        LoRA(MLP(4, (8,)), rank=0)
    with pytest.raises(UserError, match="alpha: "):
        LoRA(MLP(4, (8,)), alpha=0.0)
