"""What identifies examples: sha256 of all that a data set holds, recorded with results and compared on resume."""

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

_CHUNK = 2**22  # bytes that two hashes take one after the other, while they are still in the processor's cache


class Hashes(NamedTuple):
    """The sha256 of examples.

    Attributes:
        whole: Of all splits, one after the other.
        splits: Of each split alone; empty where they are not needed.
    """

    whole: str
    splits: dict[Split, str]


class HashedParts(NamedTuple):
    """Hashes together with what they are of.

    Attributes:
        parts: The pools or sets of the splits.
        hashes: Of these objects.
    """

    parts: Mapping[Split, Pool] | Mapping[Split, TaskSet]
    hashes: Hashes

    def of(self, parts: Mapping[Split, Pool] | Mapping[Split, TaskSet]) -> Hashes | None:
        """The hashes, where these are the very objects; None where a subclass of a source made others of them."""
        same = parts.keys() == self.parts.keys() and all(parts[split] is self.parts[split] for split in parts)
        return self.hashes if same else None


def of_pools(pools: Mapping[Split, Pool]) -> Hashes:
    """Hash class names, groups, sizes, examples and targets, split by split in the order they lie; the whole alone."""
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
    """Hash names, inputs, targets and rows, split by split and task by task in their order; read in one pass."""
    whole, splits = hashlib.sha256(), dict[Split, str]()
    for split in (split for split in SPLITS if split in sets):
        alone = None if not splits else hashlib.sha256()  # up to its end the first split is all that there is
        for content in _contents(split, sets[split]):
            for start in range(0, len(content), _CHUNK):
                for sha in (whole,) if alone is None else (whole, alone):
                    sha.update(content[start : start + _CHUNK])
        splits[split] = (alone or whole).hexdigest()
    return Hashes(whole.hexdigest(), splits)


def _contents(split: Split, data: TaskSet) -> Iterator[Any]:
    inputs = data.inputs.items() if isinstance(data.inputs, dict) else [(split, data.inputs)]
    of_tasks = [(name, values[name]) for name in data.names for values in (data.targets, data.rows)]
    for name, values in (*inputs, *of_tasks):
        yield json.dumps([name, str(values.dtype), list(values.shape)]).encode()
        yield bytes_of(values)


def of_weights(named: Iterable[tuple[str, Tensor]]) -> str:
    """The sha256 of tensors by name: their dtypes, shapes and values."""
    sha = hashlib.sha256()
    for name, tensor in named:
        sha.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        sha.update(bytes_of(tensor.detach()))
    return sha.hexdigest()


def bytes_of(values: Tensor) -> Any:
    """The bytes of a tensor, as a buffer over its own memory where it lies in one piece on the CPU."""
    return values.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
