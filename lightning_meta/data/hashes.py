"""Hashes (sha256) of all examples of a data set, recorded with results and compared on resume."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_meta.batches import SPLITS, Split
from lightning_meta.data.pool import Pool
from lightning_meta.data.task_set import TaskSet

_CHUNK = 2**22  # bytes passed to both hashes in turn, few enough to stay in the processor's cache


class Hashes(NamedTuple):
    """The sha256 of examples.

    Attributes:
        whole: Hash of all splits, in order.
        splits: Hash of each split; empty if not needed.
    """

    whole: str
    splits: dict[Split, str]


class HashedParts(NamedTuple):
    """Hashes and the objects that were hashed.

    Attributes:
        parts: Pools or task sets of the splits.
        hashes: Hashes of `parts`.
    """

    parts: Mapping[Split, Pool] | Mapping[Split, TaskSet]
    hashes: Hashes

    def of(self, parts: Mapping[Split, Pool] | Mapping[Split, TaskSet]) -> Hashes | None:
        """Return the hashes if `parts` are the hashed objects; None if a subclass of a source has replaced them."""
        same = parts.keys() == self.parts.keys() and all(parts[split] is self.parts[split] for split in parts)
        return self.hashes if same else None


def of_pools(pools: Mapping[Split, Pool]) -> Hashes:
    """Hash class names, groups, sizes, examples and targets of all splits in order, without hashes per split."""
    whole = hashlib.sha256()
    for split in SPLITS:
        pool = pools[split]
        layout = [split, pool.names, pool.groups, pool.sizes.tolist(), str(pool.x.dtype), list(pool.x.shape)]
        if pool.y is not None:
            layout += [str(pool.y.dtype), list(pool.y.shape)]
        whole.update(json.dumps(layout).encode())
        whole.update(bytes_of(pool.x))
        if pool.y is not None:
            whole.update(bytes_of(pool.y))
    return Hashes(whole.hexdigest(), {})


def of_sets(sets: Mapping[Split, TaskSet]) -> Hashes:
    """Hash names, inputs, targets and rows by split and task, in order and in one pass over the data."""
    whole, splits = hashlib.sha256(), dict[Split, str]()
    for split in (split for split in SPLITS if split in sets):
        separate = None if not splits else hashlib.sha256()  # the hash of the first split is that of the whole so far
        for content in _contents(split, sets[split]):
            for start in range(0, len(content), _CHUNK):
                for sha in (whole,) if separate is None else (whole, separate):
                    sha.update(content[start : start + _CHUNK])
        splits[split] = (separate or whole).hexdigest()
    return Hashes(whole.hexdigest(), splits)


def _contents(split: Split, data: TaskSet) -> Iterator[Any]:
    inputs = data.inputs.items() if isinstance(data.inputs, dict) else [(split, data.inputs)]
    by_task = [(name, values[name]) for name in data.names for values in (data.targets, data.rows)]
    for name, values in (*inputs, *by_task):
        yield json.dumps([name, str(values.dtype), list(values.shape)]).encode()
        yield bytes_of(values)


def of_weights(named: Iterable[tuple[str, Tensor]]) -> str:
    """Return the sha256 of the names, dtypes, shapes and values of tensors."""
    sha = hashlib.sha256()
    for name, tensor in named:
        sha.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        sha.update(bytes_of(tensor.detach()))
    return sha.hexdigest()


def bytes_of(values: Tensor) -> Any:
    """Return the bytes of a tensor as a buffer, without a copy if it is contiguous and on the CPU."""
    return values.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
