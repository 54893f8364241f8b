"""Shapes of the ready-made networks, and what a network that does not fit is told."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from lightning_meta.errors import UserError
from lightning_meta.nn import MLP, ChannelNormalized, Conv4, LeNet, ResNet12, TaskBatchNorm
from lightning_meta.nn.features import as_input, output_size

CASES: list[tuple[nn.Module, tuple[int, ...], int]] = [
    # The sizes that the papers give: 64 for Omniglot, 1600 and 800 for mini-ImageNet.
    (Conv4(), (1, 28, 28), 64),
    (Conv4(downsample="stride", spatial="mean"), (1, 28, 28), 64),
    (Conv4(downsample="stride"), (1, 28, 28), 64 * 2 * 2),
    (Conv4(3), (3, 32, 32), 64 * 2 * 2),
    (Conv4(3, downsample="stride"), (3, 32, 32), 64 * 2 * 2),
    (Conv4(3), (3, 84, 84), 1600),
    (Conv4(3, width=32), (3, 84, 84), 800),
    (Conv4(3, downsample="stride", width=8), (3, 84, 84), 8 * 6 * 6),
    (Conv4(blocks=2, width=5), (1, 28, 28), 5 * 7 * 7),
    (Conv4(3, width=(2, 3, 4, 6)), (3, 32, 32), 6 * 2 * 2),
    (Conv4(3, width=5, halvings=2), (3, 84, 84), 5 * 21 * 21),
    (Conv4(3, downsample="stride", width=5, halvings=1), (3, 32, 32), 5 * 16 * 16),
    (Conv4(width=5, blocks=2, halvings=0), (1, 16, 16), 5 * 16 * 16),
    (ResNet12(widths=(4, 5, 6, 7)), (3, 32, 32), 7),
    (ResNet12(1, widths=(4, 8)), (1, 28, 28), 8),
    (ResNet12(widths=(4, 5, 6, 7), dropout=0.1, drop_block=2), (3, 32, 32), 7),
    (ResNet12(widths=(4, 5, 6, 7), dropout=0.1, drop_block=5), (3, 84, 84), 7),
    (ChannelNormalized(Conv4(3, width=5), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)), (3, 32, 32), 5 * 2 * 2),
    (MLP(), (1,), 40),
    (MLP(12, (7, 3)), (3, 2, 2), 3),
    (LeNet(), (1, 28, 28), 50),
    (LeNet(3, 32, 84), (3, 32, 32), 84),
    (LeNet(1, 16, 5), (1, 16, 16), 5),
    (LeNet(1, 37), (1, 37, 37), 50),
]


@pytest.mark.parametrize(("network", "shape", "features"), CASES)
def test_features_of_the_documented_size(network: nn.Module, shape: tuple[int, ...], features: int) -> None:
    assert network(torch.rand(3, *shape)).shape == (3, features)
    assert output_size(network, shape) == features


def test_a_block_rectified_after_its_max_pool_is_the_papers_bit_by_bit() -> None:
    torch.manual_seed(0)
    ours = Conv4(width=8)
    blocks = [list(block.children()) for block in ours.blocks]
    papers = nn.Sequential(
        *(nn.Sequential(conv, norm, nn.ReLU(), nn.MaxPool2d(2)) for conv, norm, *_ in blocks), nn.Flatten()
    )
    x = torch.randn(6, 1, 28, 28)
    assert torch.equal(ours(x), papers(x))
    weights, toward = list(ours.parameters()), torch.randn(6, 8)
    gradients = [torch.autograd.grad((network(x) * toward).sum(), weights) for network in (ours, papers)]
    for own, expected in zip(*gradients, strict=True):
        assert torch.equal(own, expected)


@pytest.mark.parametrize(("network", "shape", "features"), CASES)
@pytest.mark.parametrize("training", [False, True])
def test_the_stages_one_after_the_other_are_the_network(
    network: Any, shape: tuple[int, ...], features: int, training: bool
) -> None:
    network = copy.deepcopy(network).train(training)
    stages = network.stages()
    assert len(stages) > 1
    x = torch.rand(3, *shape)
    torch.manual_seed(1)  # of dropout
    expected = network(x)
    torch.manual_seed(1)
    assert torch.equal(nn.Sequential(*stages)(x), expected)
    # Every parameter is in one of them, and is that of the network.
    held = [id(p) for stage in stages for p in stage.parameters()]
    assert sorted(held) == sorted(id(p) for p in network.parameters())


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_sizes_of_the_papers() -> None:
    # Four convolutions with biases and four normalisations; MetaOptNet counts 12.4 million in its ResNet-12.
    assert parameters(Conv4()) == (9 * 64 + 64) + 3 * (9 * 64 * 64 + 64) + 4 * 2 * 64
    # Two convolutions of 10 and 20 maps of 5x5, and 50 units on 20 maps of 4x4.
    assert parameters(LeNet()) == (25 * 10 + 10) + (25 * 10 * 20 + 20) + (320 * 50 + 50)
    assert 12.4e6 < parameters(ResNet12()) < 12.5e6
    assert sum(isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) for m in ResNet12().modules()) == 12


def test_finding_the_output_size_changes_nothing() -> None:
    network = nn.Sequential(Conv4(width=4), nn.Dropout(0.5)).train()
    before = {name: t.clone() for name, t in network.state_dict().items()}
    state = torch.get_rng_state()
    output_size(network, (1, 28, 28))
    assert network.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())
    assert {m.statistics for m in network.modules() if isinstance(m, TaskBatchNorm)} == {None}


@pytest.mark.parametrize(
    ("network", "shape", "says"),
    [
        (Conv4(1), (3, 28, 28), ["backbone: Conv4", "(3, 28, 28)", "in_channels"]),
        (Conv4(1), (1, 8, 8), ["backbone: Conv4", "(1, 8, 8)", "image size"]),
        (
            Conv4(3),
            (32, 32, 3),
            ["backbone: Conv4", "(32, 32, 3)", "channels of the data seem to come last", "permute"],
        ),
        (LeNet(1, 28), (1, 32, 32), ["backbone: LeNet", "(1, 32, 32)", "image size"]),
        (MLP(4), (5,), ["backbone: MLP", "(5,)", "set its in_features to 5"]),
        (Conv4(1), (5,), ["backbone: Conv4", "(5,)", "choose a network of vectors"]),
        (nn.GRU(4, 2), (7, 3), ["backbone: GRU", "(7, 3)", "set its sizes to fit the data"]),
        (nn.Linear(3, 2), (7, 3), ["backbone: Linear", "(7, 2)", "flatten its output"]),
        (nn.Sequential(nn.Conv2d(1, 4, 3)), (1, 8, 8), ["backbone: Sequential", "(4, 6, 6)", "flatten or average"]),
        (nn.Embedding(3, 4), (5,), ["backbone: Embedding", "(5,)"]),
    ],
)
def test_a_network_that_does_not_fit_is_one_clear_line(network: Any, shape: tuple[int, ...], says: list[str]) -> None:
    with pytest.raises(UserError) as raised:
        output_size(network, shape)
    message = str(raised.value)
    assert "\n" not in message
    assert [part for part in says if part not in message] == []
    of_images = [word for word in ("channels", "image", "map") if word in message]
    assert len(shape) == 3 or not of_images  # no advice on images for a table


@pytest.mark.parametrize("halvings", [5, -1])
def test_more_halvings_than_blocks_are_refused(halvings: int) -> None:
    with pytest.raises(UserError, match="halvings: "):
        Conv4(halvings=halvings)


def test_images_too_small_for_lenet_are_refused() -> None:
    with pytest.raises(UserError, match="image_size: LeNet needs images of at least 16 pixels, got 15"):
        LeNet(image_size=15)


def test_images_become_numbers_from_0_to_1() -> None:
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3)
    torch.testing.assert_close(as_input(images, torch.float64)[0, 0, 0], torch.tensor([0, 0.2, 1]).double())
    real = torch.tensor([-3.0, 300.0])
    assert torch.equal(as_input(real, torch.float64), real.double())
