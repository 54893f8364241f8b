"""`strategy: ddp` on one card: NCCL with one rank, and two ranks over gloo, train as one process does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.gpu.card import on_card
from tests.gpu.ddp_driver import GRAPHS, NAMES
from tests.meta.oracles import relative_error
from tests.ranks import run_driver

Ranks = list[dict[str, Any]]
BOUNDS = {"64-true": 1e-12, "32-true": 1e-4}
CASES = [  # in CI, the CPU in one precision: its processes take long to start
    pytest.param("cpu", "64-true", id="cpu-64", marks=pytest.mark.slow),
    *(pytest.param("cuda", precision, id=f"cuda-{precision[:2]}", marks=on_card) for precision in BOUNDS),
]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Ranks]:
    """The records of each rank of a run; every run is made once."""
    made: dict[str, Ranks] = {}

    def run(mode: str, where: str, precision: str) -> Ranks:
        case = f"{mode}_{where}_{precision}"
        if case not in made:
            folder = tmp_path_factory.mktemp(case)
            run_driver("tests.gpu.ddp_driver", folder, case, gpus=where == "cuda")
            made[case] = [torch.load(file, weights_only=False) for file in sorted(folder.glob("rank_*.pt"))]
        return made[case]

    return run


def weights(state: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor.double().flatten() for tensor in state.values()])


@pytest.mark.parametrize(("where", "precision"), CASES)
def test_two_ranks_that_share_a_device_train_as_one_process(where: str, precision: str, ran: Any) -> None:
    (one,), two = ran("one", where, precision), ran("gloo", where, precision)
    assert len(two) == 2
    for name in (*NAMES, "multi_head"):
        for rank in two:
            error = relative_error(weights(rank[name]["state"]), weights(one[name]["state"]))
            assert error < BOUNDS[precision], f"{name}: {error:.1e}"
    for name in NAMES:
        for rank in two:
            assert (rank[name]["backend"], rank[name]["world"]) == ("gloo", 2)
            assert rank[name]["device"].startswith(where)
            assert rank[name]["test"]["test/tasks"] == 9
            assert rank[name]["test"]["test/loss"] == pytest.approx(one[name]["test"]["test/loss"], rel=1e-3)


@pytest.mark.parametrize(("where", "precision"), CASES)
def test_ranks_that_play_graphs_train_as_one_process_that_does_not(where: str, precision: str, ran: Any) -> None:
    (one,), two = ran("one", where, precision), ran("gloo", where, precision)
    for name in GRAPHS:
        for rank in (one, *two):
            assert rank[name]["replays"] > 2, name
            error = relative_error(weights(rank[name]["state"]), weights(one[name.removesuffix("_graph")]["state"]))
            assert error < BOUNDS[precision], f"{name}: {error:.1e}"


@pytest.mark.parametrize(("where", "precision"), CASES[1:])
def test_one_rank_of_nccl_trains_as_one_process(where: str, precision: str, ran: Any) -> None:
    (one,), (alone,) = ran("one", where, precision), ran("nccl", where, precision)
    for name in (*NAMES, "multi_head"):
        error = relative_error(weights(alone[name]["state"]), weights(one[name]["state"]))
        assert error < BOUNDS[precision], f"{name}: {error:.1e}"
    for name in NAMES:
        assert (alone[name]["backend"], alone[name]["world"]) == ("nccl", 1)
