"""Every weighting, and every aggregator of torchjd, on two ranks as on one process: `pytest -s -m slow` prints it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.multitask.weightings_driver import MADE
from tests.ranks import run_driver

pytestmark = pytest.mark.slow
States = dict[str, dict[str, Tensor]]


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> list[States]:
    """The states of the weightings in one process and on two ranks."""
    found = []
    for world in (1, 2):
        folder = tmp_path_factory.mktemp(f"world{world}")
        run_driver("tests.multitask.weightings_driver", folder, world)
        found += [torch.load(folder / f"rank_{rank}.pt", weights_only=True) for rank in range(world)]
    return found


@pytest.mark.parametrize("name", MADE)
def test_two_ranks_train_as_one_process(states: list[States], name: str) -> None:
    one, *ranks = (state[name] for state in states)
    pairs = [(rank[key].double(), tensor.double()) for rank in ranks for key, tensor in one.items() if tensor.numel()]
    apart = max(float((found - expected).abs().max()) for found, expected in pairs)
    print(f"\n| {name} | {apart:.0e} |")
    assert apart < (1e-6 if name == "torchjd NashMTL" else 1e-12)  # its solver stops early, and may stop elsewhere
