"""Backbones taken apart by depth."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_meta.errors import UserError
from lightning_meta.nn import MLP, Conv4
from lightning_meta.nn.stages import MeanOverPositions, check_depth, stages_of


class Own(nn.Module):
    """A user's network that says what its stages are."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(3, 2)

    def stages(self) -> tuple[nn.Module, ...]:
        return self.first, nn.Sequential(nn.ReLU(), self.second)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


@pytest.mark.parametrize(
    ("network", "shape", "count"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU()), (2, 2), 3),
        (Own(), (4,), 2),
        (MLP(4, (3, 3, 2)), (4,), 3),
        (Conv4(width=2), (1, 16, 16), 4),
        (Conv4(width=2, spatial="mean"), (1, 16, 16), 4),
    ],
)
def test_what_a_network_does_is_one_stage_after_the_other(
    network: nn.Module, shape: tuple[int, ...], count: int
) -> None:
    stages = stages_of(network)
    assert len(stages) == count
    x = torch.rand(5, *shape)
    h = x
    for stage in stages:
        h = stage(h)
    assert torch.equal(h, network(x))


def test_a_network_that_cannot_be_taken_apart_says_what_to_do() -> None:
    for network in (nn.Linear(3, 2), nn.ModuleList()):
        with pytest.raises(
            UserError, match=f"backbone: {type(network).__name__} cannot be .* method stages()"
        ) as raised:
            stages_of(network)
        assert "\n" not in str(raised.value)


def test_depths_from_nothing_to_all() -> None:
    network = MLP(4, (3, 3))
    for depth in range(3):
        check_depth("shared_depth", depth, network, network.stages())
    for depth in (-1, 3):
        with pytest.raises(UserError, match=f"^shared_depth: MLP has 2 stages, so a number from 0 to 2; got {depth}$"):
            check_depth("shared_depth", depth, network, network.stages())


def test_the_mean_over_positions() -> None:
    x = torch.arange(24.0).view(1, 2, 3, 4)
    assert MeanOverPositions()(x).tolist() == [[5.5, 17.5]]
