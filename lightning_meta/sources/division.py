"""Dividing classes between the splits (few-shot learning), or the examples of every class (multi-task learning)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence

import torch

from lightning_meta.batches import SPLITS, Split
from lightning_meta.data.pool import Pool


def merged(pools: Mapping[Split, Pool]) -> Pool:
    """Join the classes of disjoint splits in one pool, sorted by name."""
    parts = [pools[split] for split in SPLITS]
    names = [name for part in parts for name in part.names]
    groups = [group for part in parts for group in part.groups]
    joined = Pool(torch.cat([p.x for p in parts]), torch.cat([p.sizes for p in parts]), tuple(names), tuple(groups))
    return joined.select(sorted(range(len(names)), key=names.__getitem__))


def divide(pool: Pool, members: Mapping[Split, Sequence[int]]) -> dict[Split, Pool]:
    """Divide the examples of every class between the splits, in the same way for all classes.

    Args:
        pool: Pool whose classes all have the examples named in `members`.
        members: Numbers of the examples within their class, by split.
    """
    pools: dict[Split, Pool] = {}
    for split in SPLITS:
        rows = (pool.starts.unsqueeze(1) + torch.tensor(members[split])).flatten()
        sizes = torch.full_like(pool.sizes, len(members[split]))
        pools[split] = Pool(pool.x[rows], sizes, pool.names, pool.groups)
    return pools


def class_counts(count: int, fractions: Sequence[float], least: int) -> dict[Split, int]:
    """Return the number of classes of each split.

    Args:
        count: Total number of classes, at least 3 * `least`.
        fractions: Shares of train, val and test.
        least: Smallest number of classes per split; it has priority over the fractions.

    >>> class_counts(30, (0.6, 0.15, 0.25), least=1)
    {'train': 17, 'val': 5, 'test': 8}
    """
    val = max(least, min(_rounded(fractions[1] * count), count - 2 * least))
    test = max(least, min(_rounded(fractions[2] * count), count - least - val))
    return {"train": count - val - test, "val": val, "test": test}


def enough_classes(
    count: int, fractions: Sequence[float], least: int, needs: Mapping[Split, tuple[int, int]]
) -> int | None:
    """Return the smallest `least` that changes `class_counts` and gives every split enough classes; None if none does.

    A division with the same counts is the same division, which may lack classes of enough examples.

    Args:
        count: Total number of classes.
        fractions: Shares of train, val and test.
        least: Current value, which is too small.
        needs: Number of classes per task, and of examples per class, by split.
    """
    current = class_counts(count, fractions, least)
    for more in range(least + 1, count // 3 + 1):
        counts = class_counts(count, fractions, more)
        if counts != current and all(size >= needs[split][0] for split, size in counts.items()):
            return more
    return None


def divided_classes(names: Iterable[str], fractions: Sequence[float], least: int, seed: int) -> dict[Split, list[str]]:
    """Divide classes among train, val and test by the hashes of their names; each split is sorted by name.

    Args:
        names: Names of at least 3 * `least` classes.
        fractions: Shares of train, val and test.
        least: Smallest number of classes per split.
        seed: Seed of the division.
    """
    # Hashes, because random generators may change between releases of a library.
    shuffled = sorted(names, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())
    sizes = class_counts(len(shuffled), fractions, least)
    val, both = sizes["val"], sizes["val"] + sizes["test"]
    return {"train": sorted(shuffled[both:]), "val": sorted(shuffled[:val]), "test": sorted(shuffled[val:both])}


def _rounded(number: float) -> int:
    """Round to the nearest whole number, halves up: 15 % of 30 classes are 5, while `round` turns 4.5 into 4."""
    return math.floor(number + 0.5 + 1e-9)


def divided(units: set[str], fractions: Sequence[float], seed: int, least: int = 0) -> dict[str, Split]:
    """Assign each unit, such as a row or a group of rows, to a split by its hash; train gets at least one.

    Args:
        units: Units to divide; the result depends only on their names.
        fractions: Shares of train, val and test.
        seed: Seed of the division.
        least: Smallest number of units of val and of test; more than 2 * `least` units are required.
    """
    shuffled = sorted(units, key=lambda unit: hashlib.sha256(f"{seed}/{unit}".encode()).digest())
    val, test = (max(least, round(fraction * len(shuffled))) for fraction in fractions[1:])
    train = max(1, len(shuffled) - val - test)
    return {u: "train" if i < train else "val" if i < train + val else "test" for i, u in enumerate(shuffled)}
