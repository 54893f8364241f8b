"""The same draws as `random_bits`, in tensors of any device and under `vmap`."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from torch.func import vmap

from lightning_meta.functional import random_bits, tensor_bits
from tests.devices.pretend import accelerator

UNLIKELY = 1e-6  # seeds are fixed, so tests do not flicker
WORDS = torch.randint(-(2**63), 2**63 - 1, (1000,), generator=torch.Generator().manual_seed(0))


def test_keys_and_bits_are_those_of_random_bits() -> None:
    numbers = torch.arange(-3, 5)
    for key in (0, -1, 2**63 - 1, -(2**63)):
        keys = tensor_bits.fold(key, WORDS[:, None], numbers)
        assert torch.equal(keys, random_bits.fold(key, WORDS[:, None], numbers))
    assert torch.equal(tensor_bits.bits(WORDS, 7), random_bits.bits(WORDS, 7))
    mixed = random_bits.mix(WORDS.numpy().view("uint64").copy())
    assert (tensor_bits.mix(WORDS).numpy().view("uint64") == mixed).all()


def test_they_are_the_same_under_vmap_and_on_an_accelerator() -> None:
    def draw(key: torch.Tensor) -> torch.Tensor:
        return tensor_bits.unit(tensor_bits.bits(key, 3))

    expected = draw(WORDS)
    assert torch.equal(vmap(draw)(WORDS), expected)
    with accelerator() as device:
        assert torch.equal(draw(WORDS.to(device)).cpu(), expected)


def test_units_and_integers_are_spread_evenly_within_their_bounds() -> None:
    random = tensor_bits.bits(torch.arange(10_000), 10).flatten()
    units, whole = tensor_bits.unit(random), tensor_bits.below(random, 9)
    assert 0 <= float(units.min()) < float(units.max()) < 1
    counts = [torch.histc(units, 50, 0, 1), torch.bincount(whole)]
    assert len(counts[1]) == 9
    for count in counts:
        assert stats.chisquare(count.double().numpy()).pvalue > UNLIKELY


@pytest.mark.parametrize(("word", "value"), [(-1, 1 - 2**-24), (0, 0.0), (1 << 40, 2**-24), (-(2**63), 0.5)])
def test_a_unit_is_the_upper_24_bits(word: int, value: float) -> None:
    assert float(tensor_bits.unit(torch.tensor(word))) == value
    assert int(tensor_bits.below(torch.tensor(word), 9)) == int(9 * value)
