"""The draws of `random_bits` in int64 tensors of torch: on any device, under `vmap`, without waiting for the device.

The same words give the same bits as there.
"""

from __future__ import annotations

import torch
from torch import Tensor

# splitmix64's constants, as signed integers of the same 64 bits.
GAMMA, _MIX_1, _MIX_2 = (c - (1 << 64) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def fold(key: int, *words: Tensor) -> Tensor:
    """Extend a key by further words, like `random_bits.fold`.

    Args:
        key: Key of the previous words, a signed integer of 64 bits.
        *words: Further words, int64; they broadcast.

    Returns:
        Keys, of the broadcast shape of the words.
    """
    folded: Tensor | int = key
    for word in words:
        folded = mix(mix(word + GAMMA) + folded + GAMMA)
    assert isinstance(folded, Tensor)
    return folded


def bits(keys: Tensor, count: int) -> Tensor:
    """`count` numbers of 64 random bits for each key: `(..., count)` int64, as `random_bits.bits` gives."""
    positions = torch.arange(1, count + 1, device=keys.device)
    return mix(keys.unsqueeze(-1) + positions * GAMMA)


def unit(random: Tensor) -> Tensor:
    """float32 numbers in [0, 1) from 64 random bits each: multiples of 2^-24, which float32 holds exactly."""
    return shifted(random, 40).float() * 2.0**-24


def below(random: Tensor, count: int) -> Tensor:
    """Integers in [0, count) from 64 random bits each, for a count far below 2^31."""
    return (shifted(random, 33) * count) >> 31


def mix(z: Tensor) -> Tensor:
    """The finaliser of splitmix64: every bit of the result depends on every bit of `z` (any shape, int64)."""
    z = (z ^ shifted(z, 30)) * _MIX_1
    z = (z ^ shifted(z, 27)) * _MIX_2
    return z ^ shifted(z, 31)


def shifted(z: Tensor, places: int) -> Tensor:
    """Logical right shift, which fills with zeros; torch's own shift repeats the sign."""
    return (z >> places) & ((1 << (64 - places)) - 1)
