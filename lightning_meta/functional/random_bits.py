"""Stateless random draws on tensors: a number is a pure function of its key and its position.

A key is made from any integers (seed, split, meta-batch, task); a stream of 64 random bits per position follows by
the splitmix64 generator (Steele, Lea and Flood, OOPSLA 2014, figure 13), in wrapping int64 arithmetic. There is no
state to save, share or synchronise: workers, ranks and resumed runs draw the same numbers.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

# splitmix64's constants as signed 64-bit integers: the golden ratio, and Stafford's mix number 13.
_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)
_UNSIGNED_1, _UNSIGNED_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_27, _30, _31 = np.uint64(27), np.uint64(30), np.uint64(31)

# Bits that hold the number itself in a draw without repeats, whatever the sizes drawn beside it; 40 stay random.
_NUMBER_BITS = 24


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Logical shift: torch shifts signed integers arithmetically, so the copied sign bits are cleared."""
    return (z >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def mix(z: Tensor) -> Tensor:
    """The finaliser of splitmix64: every bit of the result depends on every bit of `z` (int64, any shape)."""
    # In place, as this is what drawing an episode costs; NumPy has unsigned integers and a third of torch's overhead.
    if z.device.type == "cpu" and z.ndim:
        u = z.numpy().view(np.uint64)
        u = (u >> _30) ^ u
        u *= _UNSIGNED_1
        u ^= u >> _27
        u *= _UNSIGNED_2
        u ^= u >> _31
        return torch.from_numpy(u.view(np.int64))
    z = _shift_right(z, 30).bitwise_xor_(z).mul_(_MIX_1)
    z = z.bitwise_xor_(_shift_right(z, 27)).mul_(_MIX_2)
    return z.bitwise_xor_(_shift_right(z, 31))


def key(*words: Tensor | int) -> Tensor:
    """Fold integers into one int64 key; words broadcast, and their order matters.

    Args:
        *words: Integers or int64 tensors, e.g. a seed, the number of the split, task numbers `(T,)`.

    Returns:
        Keys, of the broadcast shape of the words.
    """
    return fold(0, *words)


def fold(folded: Tensor | int, *words: Tensor | int) -> Tensor:
    """Go on with a key: `fold(key(a), b)` is `key(a, b)`.

    Args:
        folded: The key of the words before.
        *words: Further words, as for `key`.

    Returns:
        Keys, of the broadcast shape of all.
    """
    for word in words:
        folded = _mixed(_mixed(word) + folded)
    return folded if isinstance(folded, Tensor) else torch.tensor(folded)


def _mixed(word: Tensor | int) -> Tensor | int:
    """One step of splitmix64. Integers stay integers, which costs a hundredth of what small tensors cost."""
    if isinstance(word, Tensor):
        return mix(word.to(torch.int64) + _GAMMA)
    z = (int(word) + _GAMMA) % (1 << 64)
    z = (z ^ z >> 30) * _MIX_1 % (1 << 64)
    z = (z ^ z >> 27) * _MIX_2 % (1 << 64)
    return _signed(z ^ z >> 31)


def _signed(z: int) -> int:
    """The signed integer of the same 64 bits."""
    return (z + (1 << 63)) % (1 << 64) - (1 << 63)


def name_key(name: str) -> int:
    """A task's name as a number, so that its draws do not depend on which other tasks there are."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)


def bits(keys: Tensor, count: int) -> Tensor:
    """`count` numbers of 64 random bits for each key: `(..., count)` int64."""
    positions = torch.arange(1, count + 1, dtype=torch.int64, device=keys.device)
    return mix(positions.mul_(_GAMMA) + keys.unsqueeze(-1))


def uniform(keys: Tensor, count: int) -> Tensor:
    """`count` float64 numbers in [0, 1) for each key: `(..., count)`, multiples of 2^-53."""
    return _shift_right(bits(keys, count), 11).to(torch.float64) * 2.0**-53


def integers(keys: Tensor, low: int, high: int) -> Tensor:
    """One integer in [low, high] for each key, both ends included: int64 of the shape of `keys`."""
    return low + (uniform(keys, 1)[..., 0] * (high - low + 1)).to(torch.int64)


def choose(keys: Tensor, count: int, sizes: Tensor | int) -> Tensor:
    """Draw `count` different numbers out of `0, ..., size - 1` for each key, in random order.

    The numbers with the smallest random bits win. The low bits hold the number itself, so there are no ties and the
    order does not depend on the device's sorting.

    Args:
        keys: `(...)` int64.
        count: How many to draw, at most the smallest size.
        sizes: How many there are to draw from; an integer, or one for each key, `(...)` int64.

    Returns:
        `(..., count)` int64.
    """
    smallest, largest = torch.stack(sizes.aminmax()).tolist() if isinstance(sizes, Tensor) else (sizes, sizes)
    if not 0 <= count <= smallest:
        raise ValueError(f"cannot draw {count} different numbers out of {smallest}")
    mask = (1 << max(largest.bit_length(), _NUMBER_BITS)) - 1
    numbers = torch.arange(largest, dtype=torch.int64, device=keys.device)
    ranks = bits(keys, largest).bitwise_and_(~mask).bitwise_or_(numbers)
    if isinstance(sizes, Tensor):
        ranks.masked_fill_(numbers >= sizes.unsqueeze(-1), torch.iinfo(torch.int64).max)
    return ranks.topk(count, dim=-1, largest=False, sorted=True).values & mask
