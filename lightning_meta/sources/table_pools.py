"""Base of the sources for few-shot learning that read tables; a large table is encoded once, into the cache."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, cast

from lightning_meta.batches import SPLITS, Split
from lightning_meta.building import build
from lightning_meta.data.hashes import of_pools
from lightning_meta.data.pool import Pool
from lightning_meta.data.source import Source
from lightning_meta.describing import describe
from lightning_meta.sources.table_cache import Encoded, is_cached, read_or_encode
from lightning_meta.sources.table_features import Features


class _Stored(NamedTuple):
    pools: dict[Split, Pool]
    features: Features
    fingerprint: str


class TablePools(Source):
    """Base of the sources whose pools are the rows of tables.

    A subclass implements `_files`, `_read_pools` and `_learn_features`. Its public attributes are its options.
    """

    @abstractmethod
    def _files(self) -> Sequence[Path]:
        """Return the files that hold the table."""

    @abstractmethod
    def _read_pools(self) -> dict[Split, Pool]:
        """Read the files and return the pools."""

    @abstractmethod
    def _learn_features(self) -> Features:
        """Read the files and return how their columns are converted to inputs."""

    def prepare(self) -> None:
        """Read and encode large files into the cache, unless they are there; runs in one process per machine."""
        _ = self._stored

    def pools(self) -> dict[Split, Pool]:
        """Return pools with inputs `(n, D)`, float32, and for regression targets `(n, outputs)`, float64.

        They are sorted by the name of the class or task.
        """
        return self._read_pools() if self._stored is None else dict(self._stored.pools)

    def fingerprint(self) -> str:
        """Return the SHA-256 of all examples in the pools."""
        return of_pools(self.pools()).whole if self._stored is None else self._stored.fingerprint

    @property
    def input_names(self) -> list[str]:
        """Names of the D inputs, each a column or `column=text`."""
        return [name for feature in self._features for name in feature.inputs]

    @cached_property
    def _features(self) -> Features:
        return self._learn_features() if self._stored is None else self._stored.features

    @cached_property
    def _stored(self) -> _Stored | None:
        """The pools in the cache; None if the files are small or a subclass of a user may read them in another way."""
        if not is_cached(self, self._files()):
            return None
        tensors, about = read_or_encode(self._files, self, self._encoded)
        pools = {
            split: Pool(
                tensors[f"{split}.x"],
                tensors[f"{split}.sizes"],
                tuple(about["names"][split]),
                tuple("" for _ in about["names"][split]),
                y=tensors.get(f"{split}.y"),
            )
            for split in SPLITS
        }
        return _Stored(pools, cast(Features, build(about["features"])), about["fingerprint"])

    def _encoded(self) -> Encoded:
        fresh = copy(self)  # its columns are freed at the end, before the result is written
        fresh.__dict__["_stored"] = None
        pools = fresh.pools()
        tensors = {f"{split}.{name}": getattr(pools[split], name) for split in SPLITS for name in ("x", "sizes", "y")}
        about = {
            "names": {split: pools[split].names for split in SPLITS},
            "features": describe(fresh._features),
            "fingerprint": of_pools(pools).whole,
        }
        return Encoded({name: tensor for name, tensor in tensors.items() if tensor is not None}, about)
