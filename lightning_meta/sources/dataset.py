"""Any map-style dataset of `(x, y)` pairs as a source, in Python."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lightning_meta.batches import SPLITS, Split
from lightning_meta.data.hashes import of_pools
from lightning_meta.data.image_files import refuse_deep
from lightning_meta.data.pool import Pool
from lightning_meta.data.source import Source
from lightning_meta.errors import UserError
from lightning_meta.sources.class_lists import refuse_shared


class MapDataset(Protocol):
    """What can be counted and indexed: a `torch.utils.data.Dataset`, a list of pairs."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class FromDataset(Source):
    """Three datasets of `(x, y)` pairs, one a split, read into memory when first asked for.

    `x` is a tensor or an array, taken as it is (images: channels first), or a PIL image, which becomes
    uint8 `(channels, height, width)`; all of one shape. `y` is an integer. A label means the same class in
    all three datasets. In few-shot learning one that occurs in two of them is an error, as it would leak from
    training into test; multi-task learning asks for the same labels in all three.

    At a glance:
        - Classes: yours.
        - Examples: yours.
        - From: any map-style `(x, y)` data sets, in Python.

    Example:
        >>> pairs = lambda labels: [(torch.zeros(3), y) for y in labels for _ in range(2)]
        >>> FromDataset(pairs([0, 1]), pairs([2]), pairs([3, 4])).pools()["test"].names
        ('3', '4')

    Args:
        train: The dataset of the training classes.
        val: The dataset of the validation classes.
        test: The dataset of the test classes.
        names: The name of class 0, 1, ...; by default a class is called by its number.
        separate_labels: Each dataset numbers its own classes from 0, so label 0 of `train` and label 0 of
            `test` are different classes; they are then called `train/0` and `test/0`. Not with `names`.
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
            if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
                raise UserError(
                    f"FromDataset {split}: {type(dataset).__name__} has no length or no index; expected a "
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
        """The pools of the splits, read once."""
        pools = self._everything
        mend = "give it to one split, or set separate_labels=True if the labels mean different classes"
        refuse_shared({split: pools[split].names for split in SPLITS}, "FromDataset", mend)
        return pools

    def held_out(self) -> dict[Split, Pool]:
        """The same pools where all three datasets hold the same classes: one task, without a group.

        Raises:
            UserError: A dataset lacks a class that another one has.
        """
        pools = self._everything
        for split, other in ((a, b) for a in SPLITS for b in SPLITS):
            if alone := sorted(set(pools[split].names) - set(pools[other].names)):
                raise UserError(
                    f"FromDataset {other}: there is no class {alone[0]!r}, which {split} has; "
                    f"a task needs every class in train, val and test"
                )
        return pools

    def fingerprint(self) -> str:
        """The sha256 of all examples and class names."""
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
        for i in range(len(dataset)):  # by index: a dataset need not stop iterating at its end
            x, y = self._pair(dataset[i], f"{split}[{i}]")
            if xs and (x.shape, x.dtype) != (xs[0].shape, xs[0].dtype):
                raise UserError(
                    f"{split}[{i}]: x is {tuple(x.shape)} of {x.dtype}, but {split}[0] is "
                    f"{tuple(xs[0].shape)} of {xs[0].dtype}; all examples must be alike"
                )
            xs.append(x)
            ys.append(y)
        if not xs:
            raise UserError(f"FromDataset: the {split} dataset is empty")
        labels = sorted(set(ys))
        index = {label: i for i, label in enumerate(labels)}
        return Pool.from_examples(torch.stack(xs), [index[y] for y in ys], [self._name(y, split) for y in labels])

    def _pair(self, item: Any, where: str) -> tuple[Tensor, int]:
        try:
            x, y = item
        except (TypeError, ValueError):
            raise UserError(f"{where}: expected a pair (x, y), got {type(item).__name__}") from None
        try:
            if isinstance(y, bool):
                raise TypeError
            label = operator.index(y)  # an int, a numpy integer, or an integer tensor of one element
        except (TypeError, RuntimeError):
            shown = y if isinstance(y, (str, float)) else type(y).__name__
            raise UserError(f"{where}: the label is {shown!r}, expected an integer") from None
        if self._names is not None and not 0 <= label < len(self._names):
            raise UserError(f"{where}: label {label} is out of range, {len(self._names)} names were given")
        return _tensor(x, where), label

    def _name(self, label: int, split: Split) -> str:
        if self._names is not None:
            return self._names[label]
        return f"{split}/{label}" if self._separate else str(label)


def _tensor(x: Any, where: str) -> Tensor:
    if isinstance(x, Tensor):
        return x.detach().cpu()
    if isinstance(x, Image.Image):
        refuse_deep(x, where)
        mode = x.mode if x.mode in ("L", "RGB") else "L" if x.mode in ("1", "LA") else "RGB"
        return torch.from_numpy(np.atleast_3d(np.array(x.convert(mode))).transpose(2, 0, 1).copy())
    array = np.array(x)
    if array.dtype.kind not in "uifb":
        raise UserError(f"{where}: x is a {type(x).__name__}, expected a tensor, an array or a PIL image")
    return torch.from_numpy(array)
