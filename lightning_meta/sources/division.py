"""Dividing classes between the splits (few-shot learning), or the examples of every class (multi-task learning)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence

import torch

from lightning_meta.batches import SPLITS, Split
from lightning_meta.data.pool import Pool


def merged(pools: Mapping[Split, Pool]) -> Pool:
    """All classes of disjoint splits in one pool, in the order of their names."""
    parts = [pools[split] for split in SPLITS]
    names = [name for part in parts for name in part.names]
    groups = [group for part in parts for group in part.groups]
    together = Pool(torch.cat([p.x for p in parts]), torch.cat([p.sizes for p in parts]), tuple(names), tuple(groups))
    return together.select(sorted(range(len(names)), key=names.__getitem__))


def divide(pool: Pool, members: Mapping[Split, Sequence[int]]) -> dict[Split, Pool]:
    """Of every class the same examples: number `m` of each class goes to the split that names `m`.

    Args:
        pool: Classes that have all the members.
        members: Numbers within the class, by split.
    """
    pools: dict[Split, Pool] = {}
    for split in SPLITS:
        rows = (pool.starts.unsqueeze(1) + torch.tensor(members[split])).flatten()
        sizes = torch.full_like(pool.sizes, len(members[split]))
        pools[split] = Pool(pool.x[rows], sizes, pool.names, pool.groups)
    return pools


def class_counts(count: int, fractions: Sequence[float], least: int) -> dict[Split, int]:
    """How many of so many classes each split gets: the fractions, and `least` whatever they are.

    Args:
        count: Three times `least` or more.
        fractions: Of train, val and test.
        least: Classes of each split at least.
    """
    val = max(least, min(_rounded(fractions[1] * count), count - 2 * least))
    test = max(least, min(_rounded(fractions[2] * count), count - least - val))
    return {"train": count - val - test, "val": val, "test": test}


def enough_classes(
    count: int, fractions: Sequence[float], least: int, needs: Mapping[Split, tuple[int, int]]
) -> int | None:
    """The smallest number above `least` of classes of each split at least that gives all splits enough.

    Args:
        count: How many classes there are.
        fractions: Of train, val and test.
        least: What does not give them enough.
        needs: Classes of a task, and examples of each, by split.
    """
    for more in range(least + 1, count // 3 + 1):
        if all(size >= needs[split][0] for split, size in class_counts(count, fractions, more).items()):
            return more
    return None


def divided_classes(names: Iterable[str], fractions: Sequence[float], least: int, seed: int) -> dict[Split, list[str]]:
    """Classes for train, val and test, in the order of their names; their hash decides, and nothing else.

    Args:
        names: Of three times `least` classes or more.
        fractions: Of train, val and test.
        least: Classes of each split at least.
        seed: Draws another division.
    """
    # A hash and not a random generator: the same on any release of any library.
    drawn = sorted(names, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())
    sizes = class_counts(len(drawn), fractions, least)
    val, both = sizes["val"], sizes["val"] + sizes["test"]
    return {"train": sorted(drawn[both:]), "val": sorted(drawn[:val]), "test": sorted(drawn[val:both])}


def _rounded(number: float) -> int:
    """To the nearest, halves up: 15 % of 30 classes are 5, where `round` makes 4 of 4.5."""
    return math.floor(number + 0.5 + 1e-9)


def divided(units: set[str], fractions: Sequence[float], seed: int, least: int = 0) -> dict[str, Split]:
    """The split of each unit, such as a row or a group of rows, by its hash; one unit at least is for training.

    Args:
        units: What is divided; neither their order nor anything else decides.
        fractions: Of train, val and test.
        seed: Draws another division.
        least: How many val and test get at least; there are more units than twice as many.
    """
    drawn = sorted(units, key=lambda unit: hashlib.sha256(f"{seed}/{unit}".encode()).digest())
    val, test = (max(least, round(fraction * len(drawn))) for fraction in fractions[1:])
    train = max(1, len(drawn) - val - test)
    return {u: "train" if i < train else "val" if i < train + val else "test" for i, u in enumerate(drawn)}
