"""A repeated step, in torch and in an exported program."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_meta.functional.repetition import repeated


class Doubling(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        def step(state: tuple[Tensor, dict[str, Tensor]]) -> tuple[Tensor, dict[str, Tensor]]:
            total, moments = state
            return total + x, {"twice": 2 * moments["twice"]}

        total, moments = repeated(step, self.count, (torch.zeros_like(x), {"twice": torch.ones_like(x)}))
        return total + moments["twice"]


@pytest.mark.parametrize("count", [0, 1, 5])
def test_the_step_is_applied_as_often(count: int) -> None:
    x = torch.tensor([1.0, -2.0])
    assert torch.equal(Doubling(count)(x), count * x + 2.0**count)


@pytest.mark.slow
@pytest.mark.parametrize("count", [0, 1, 5, 500])
def test_an_exported_program_holds_it_once(count: int) -> None:
    shapes: Any = {"x": {0: torch.export.Dim("n", min=1, max=100)}}
    program = torch.export.export(Doubling(count), (torch.ones(3),), dynamic_shapes=shapes, strict=False)
    assert len(program.graph.nodes) < 20
    x = torch.tensor([1.0, -2.0, 0.5, 4.0])
    if count < 100:
        assert torch.equal(program.module()(x), count * x + 2.0**count)
