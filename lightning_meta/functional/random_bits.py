"""Stateless random draws: a number is a pure function of its key and its position.

A key is made from any integers (seed, split, meta-batch, task); a stream of 64 random bits per position follows by
the splitmix64 generator (Steele, Lea and Flood, OOPSLA 2014, figure 13), in wrapping arithmetic. There is no state to
save, share or synchronise: workers, ranks and resumed runs draw the same numbers. All is drawn on the CPU, wherever
the examples lie: by NumPy, which has unsigned integers, and costs a third of what torch does for small tensors.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Words = npt.NDArray[np.uint64]

# splitmix64's constants: the golden ratio, and Stafford's mix number 13.
_GAMMA, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_GAMMA_64, _MIX_1_64, _MIX_2_64 = np.uint64(_GAMMA), np.uint64(_MIX_1), np.uint64(_MIX_2)
_27, _30, _31 = np.uint64(27), np.uint64(30), np.uint64(31)
_2_64 = 1 << 64

# Bits that hold the number itself in a draw without repeats, whatever the sizes drawn beside it; 40 stay random.
_NUMBER_BITS = 24


def mix(z: Words) -> Words:
    """The finaliser of splitmix64, in place: every bit of the result depends on every bit of `z` (any shape)."""
    shifted = z >> _30
    z ^= shifted
    z *= _MIX_1_64
    z ^= np.right_shift(z, _27, out=shifted)
    z *= _MIX_2_64
    z ^= np.right_shift(z, _31, out=shifted)
    return z


def key(*words: Tensor | int) -> Tensor:
    """Fold integers into one int64 key; words broadcast, and their order matters.

    Args:
        *words: Integers or int64 tensors, e.g. a seed, the number of the split, task numbers `(T,)`.

    Returns:
        Keys, of the broadcast shape of the words.
    """
    return fold(0, *words)


def fold(folded: Tensor | int, *words: Tensor | int) -> Tensor:
    """Extend a key by further words: `fold(key(a), b)` is `key(a, b)`.

    Args:
        folded: Key of the previous words.
        *words: Further words, as for `key`.

    Returns:
        Keys, of the broadcast shape of all.
    """
    result: Any = _unsigned(folded)
    for word in words:
        result = _step(_step(_unsigned(word)) + result)
    return torch.tensor(_signed(result)) if isinstance(result, int) else _tensor(result)


def _step(word: Words | int) -> Words | int:
    """One step of splitmix64. Integers stay integers, which costs a tenth of what small arrays cost."""
    if not isinstance(word, int):
        return mix(word + _GAMMA_64)
    z = (word + _GAMMA) % _2_64
    z = (z ^ z >> 30) * _MIX_1 % _2_64
    z = (z ^ z >> 27) * _MIX_2 % _2_64
    return z ^ z >> 31


def _unsigned(word: Tensor | int) -> Words | int:
    if isinstance(word, Tensor) and word.ndim:
        return word.to("cpu", torch.int64).numpy().view(np.uint64)
    return int(word) % _2_64


def _signed(z: int) -> int:
    """The signed integer of the same 64 bits."""
    return (z + (1 << 63)) % _2_64 - (1 << 63)


def _tensor(z: Words) -> Tensor:
    return torch.from_numpy(z.view(np.int64))


def name_key(name: str) -> int:
    """A task's name as a number, so that its draws do not depend on which other tasks there are."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)


def bits(keys: Tensor, count: int) -> Tensor:
    """`count` numbers of 64 random bits for each key: `(..., count)` int64."""
    return _tensor(_bits(keys, count))


def _bits(keys: Tensor, count: int) -> Words:
    positions = np.arange(1, count + 1, dtype=np.uint64)
    positions *= _GAMMA_64
    return mix(_unsigned(keys.unsqueeze(-1)) + positions)


def uniform(keys: Tensor, count: int) -> Tensor:
    """`count` float64 numbers in [0, 1) for each key: `(..., count)`, multiples of 2^-53."""
    return torch.from_numpy((_bits(keys, count) >> np.uint64(11)) * 2.0**-53)


def integers(keys: Tensor, low: int, high: int) -> Tensor:
    """One integer in [low, high] for each key, both ends included: int64 of the shape of `keys`."""
    return low + (uniform(keys, 1)[..., 0] * (high - low + 1)).to(torch.int64)


def choose(keys: Tensor, count: int, sizes: Tensor | int, at_most: bool = False) -> Tensor:
    """Draw `count` different numbers out of `0, ..., size - 1` for each key, in random order.

    The numbers with the smallest random bits win. The low bits hold the number itself, so there are no ties and the
    order does not depend on how a sort treats them.

    Args:
        keys: Keys `(...)` int64.
        count: Number of draws, at most the smallest size.
        sizes: Number of values to draw from; an integer, or one for each key, `(...)` int64.
        at_most: Whether `count` may exceed a key's size; its valid numbers then come first, and the rest is arbitrary.

    Returns:
        The drawn numbers, `(..., count)` int64.
    """
    smallest, largest = (int(sizes.min()), int(sizes.max())) if isinstance(sizes, Tensor) else (sizes, sizes)
    if not 0 <= count <= (largest if at_most else smallest):
        raise ValueError(f"cannot draw {count} different numbers out of {smallest}")
    mask = (1 << max(largest.bit_length(), _NUMBER_BITS)) - 1
    numbers = np.arange(largest, dtype=np.uint64)
    words = _bits(keys, largest)
    words &= np.uint64(_2_64 - 1 - mask)
    words |= numbers
    ranks = _tensor(words)
    if isinstance(sizes, Tensor) and smallest < largest:
        ranks.masked_fill_(_tensor(numbers) >= sizes.unsqueeze(-1), torch.iinfo(torch.int64).max)
    if count == largest:  # all of them: NumPy sorts many short rows in a tenth of the time
        return torch.from_numpy(np.sort(ranks.numpy(), axis=-1)) & mask
    return ranks.topk(count, dim=-1, largest=False, sorted=True).values & mask
