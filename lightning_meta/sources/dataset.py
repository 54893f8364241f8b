"""A source made in Python from map-style datasets of `(x, y)` pairs."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lightning_meta.arrays import tensor_of
from lightning_meta.batches import SPLITS, Split
from lightning_meta.data.hashes import of_pools
from lightning_meta.data.image_files import on_white, refuse_deep
from lightning_meta.data.pool import Pool
from lightning_meta.data.source import Source
from lightning_meta.errors import UserError
from lightning_meta.sources.class_lists import refuse_shared


class MapDataset(Protocol):
    """Object with a length and an index, such as a `torch.utils.data.Dataset` or a list of pairs."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class FromDataset(Source):
    """Three datasets of `(x, y)` pairs, one per split, read into memory when they are first used.

    `x` is a tensor or an array, which is used as it is (images: channels first), or a PIL image, which is converted to
    uint8 `(channels, height, width)`, transparent pixels on white; all have the same shape. `y` is an integer. A label
    means the same class in all three datasets. In few-shot learning, a label that occurs in two of them is an error, as
    the class would leak from training into test; multi-task learning requires the same labels in all three.

    At a glance:
        - Classes: yours.
        - Examples: yours.
        - From: any map-style `(x, y)` data sets, in Python.

    Example:
        >>> pairs = lambda labels: [(torch.zeros(3), y) for y in labels for _ in range(2)]
        >>> FromDataset(pairs([0, 1]), pairs([2]), pairs([3, 4])).pools()["test"].names
        ('3', '4')

    Args:
        train: Dataset of the training split.
        val: Dataset of the validation split.
        test: Dataset of the test split.
        names: Names of class 0, 1, ...; by default the name of a class is its number.
        separate_labels: Whether each dataset numbers its own classes from 0, so that label 0 of `train` and label 0 of
            `test` are different classes, named `train/0` and `test/0`; cannot be combined with `names`.
    """

    def __init__(
        self,
        train: MapDataset,
        val: MapDataset,
        test: MapDataset,
        names: Sequence[str] | None = None,
        separate_labels: bool = False,
    ) -> None:
        for split, dataset in zip(SPLITS, (train, val, test), strict=True):
            indexed = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
            if not indexed or isinstance(dataset, Mapping):
                raise UserError(
                    f"FromDataset {split}: {type(dataset).__name__} has no length or no index by number; expected a "
                    f"map-style dataset"
                )
        if names is not None and separate_labels:
            raise UserError("FromDataset: names and separate_labels cannot both be given")
        if names is not None and len(set(names)) != len(names):
            raise UserError("FromDataset names: a name occurs twice; every class needs its own")
        self._datasets: dict[Split, MapDataset] = {"train": train, "val": val, "test": test}
        self._names = names
        self._separate = separate_labels

    def pools(self) -> dict[Split, Pool]:
        """Return the pool of each split; the datasets are read once.

        Raises:
            UserError: A class is in two datasets.
        """
        pools = self._everything
        fix = "give it to one split, or set separate_labels=True if the labels mean different classes"
        refuse_shared({split: pools[split].names for split in SPLITS}, "FromDataset", fix)
        return pools

    def held_out(self) -> dict[Split, Pool]:
        """Return the same pools, if all three datasets hold the same classes; they are one task, without a group.

        Raises:
            UserError: A dataset lacks a class that another one has.
        """
        pools = self._everything
        for split, other in ((a, b) for a in SPLITS for b in SPLITS):
            if missing := sorted(set(pools[split].names) - set(pools[other].names)):
                raise UserError(
                    f"FromDataset {other}: there is no class {missing[0]!r}, which {split} has; "
                    f"a task needs every class in train, val and test"
                )
        return pools

    def fingerprint(self) -> str:
        """Return the SHA-256 of all examples and class names."""
        return self._hash

    @cached_property
    def _hash(self) -> str:
        return of_pools(self._everything).whole

    @cached_property
    def _everything(self) -> dict[Split, Pool]:
        return {split: self._read(split) for split in SPLITS}

    def _read(self, split: Split) -> Pool:
        dataset = self._datasets[split]
        xs: list[Tensor] = []
        ys: list[int] = []
        for i in range(len(dataset)):  # by index, as iteration over a dataset may not end at its length
            x, y = self._pair(dataset[i], f"{split}[{i}]")
            if xs and (x.shape, x.dtype) != (xs[0].shape, xs[0].dtype):
                raise UserError(
                    f"{split}[{i}]: x is {tuple(x.shape)} of {x.dtype}, but {split}[0] is "
                    f"{tuple(xs[0].shape)} of {xs[0].dtype}; all examples must have the same shape and dtype"
                )
            xs.append(x)
            ys.append(y)
        if not xs:
            raise UserError(f"FromDataset: the {split} dataset is empty")
        labels = sorted(set(ys))
        index = {label: i for i, label in enumerate(labels)}
        return Pool.from_examples(torch.stack(xs), [index[y] for y in ys], [self._name(y, split) for y in labels])

    def _pair(self, item: Any, where: str) -> tuple[Tensor, int]:
        if isinstance(item, Mapping):  # its keys would be taken for the pair
            keys = ", ".join(map(repr, item))
            raise UserError(
                f"{where}: expected a pair (x, y), got a row with the keys {keys}; give a dataset of pairs, such as "
                "[(row['image'], row['label']) for row in rows]"
            )
        try:
            x, y = item
        except (TypeError, ValueError):
            raise UserError(f"{where}: expected a pair (x, y), got {_kind(item)}") from None
        try:
            if isinstance(y, bool):
                raise TypeError
            label = operator.index(y)  # an int, a numpy integer, or an integer tensor of one element
        except (TypeError, RuntimeError):
            shown = y if isinstance(y, (str, float)) else type(y).__name__
            raise UserError(f"{where}: the label is {shown!r}, expected an integer") from None
        if self._names is not None and not 0 <= label < len(self._names):
            raise UserError(f"{where}: label {label} is out of range, {len(self._names)} names were given")
        return _checked(_tensor(x, where), where), label

    def _name(self, label: int, split: Split) -> str:
        if self._names is not None:
            return self._names[label]
        return f"{split}/{label}" if self._separate else str(label)


def _kind(item: Any) -> str:
    length = f" of {len(item)}" if isinstance(item, tuple | list) else ""
    return f"{type(item).__name__}{length}"


def _checked(x: Tensor, where: str) -> Tensor:
    if x.layout != torch.strided or x.is_complex():
        kind = "complex" if x.is_complex() else "sparse"
        raise UserError(f"{where}: x is a {kind} tensor, expected a dense one of real numbers")
    if not x.dim():
        raise UserError(f"{where}: x is a single number, expected at least one dimension, such as (1,)")
    return x


def _tensor(x: Any, where: str) -> Tensor:
    if isinstance(x, Tensor):
        return x.detach().cpu()
    if isinstance(x, Image.Image):
        refuse_deep(x, where)
        mode = x.mode if x.mode in ("L", "RGB") else "L" if x.mode in ("1", "LA") else "RGB"
        return torch.from_numpy(np.atleast_3d(np.array(on_white(x, mode))).transpose(2, 0, 1).copy())
    array = np.array(x)
    if array.dtype.kind not in "uifb":
        raise UserError(f"{where}: x is a {type(x).__name__}, expected a tensor, an array or a PIL image")
    return tensor_of(array)
