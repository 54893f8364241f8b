"""Dividing the examples of every class between the splits, for multi-task learning."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

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
