"""Heads, and draws that leave the global stream alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_meta.nn.heads import make_head, seeded


def test_a_head_is_linear_by_default() -> None:
    (layer,) = make_head(5, 3).children()
    assert isinstance(layer, nn.Linear)
    assert (layer.in_features, layer.out_features) == (5, 3)


def test_hidden_layers_come_before_with_relu_and_dropout() -> None:
    layers = list(make_head(5, 3, (7, 2), 0.25).children())
    assert [type(layer) for layer in layers] == [nn.Linear, nn.ReLU, nn.Dropout] * 2 + [nn.Linear]
    widths = [(layer.in_features, layer.out_features) for layer in layers if isinstance(layer, nn.Linear)]
    assert widths == [(5, 7), (7, 2), (2, 3)]
    assert {layer.p for layer in layers if isinstance(layer, nn.Dropout)} == {0.25}
    assert not any(isinstance(layer, nn.Dropout) for layer in make_head(5, 3, (7,)).children())


def test_the_same_seed_makes_the_same_head_whatever_was_drawn_before() -> None:
    made: list[torch.Tensor] = []
    for seed in (1, 1, 2):
        torch.rand(seed + len(made))
        with seeded(seed):
            made.append(torch.cat([p.detach().flatten() for p in make_head(4, 2).parameters()]))
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_the_global_stream_goes_on_as_if_nothing_had_been_drawn() -> None:
    before = torch.get_rng_state()
    with seeded(5):
        torch.rand(10)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(ZeroDivisionError), seeded(5):
        torch.rand(int(1 / 0))
    assert torch.equal(torch.get_rng_state(), before)
