"""Base of the sources whose files are decoded once and then read from the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from tqdm import tqdm

from lightning_meta.batches import Split
from lightning_meta.data.cache import Cached, load_or_build
from lightning_meta.data.group_tasks import hashes_of_groups
from lightning_meta.data.hashes import HashedParts, Hashes, of_pools
from lightning_meta.data.pool import Pool
from lightning_meta.data.source import Source

T = TypeVar("T")


def progress(items: Iterable[T], what: str, total: int | None = None) -> Iterable[T]:
    """Show a progress bar on stderr; only on a terminal, and only after one second.

    Args:
        items: Items to iterate over.
        what: Label of the bar.
        total: Number of items; by default the length of `items`.
    """
    shown: Iterable[T] = tqdm(items, desc=what, total=total, unit="", delay=1, leave=False, disable=None)
    return shown


class DecodedSource(Source):
    """Base of the sources that read files: decodes them into the cache and loads them from it.

    A subclass implements `pools` by `_pools`.
    """

    _pool_hashes: HashedParts | None = None
    _opened: Mapping[str, Cached] = {}  # pools already read, by key

    def prepare(self) -> None:
        """Download and decode into the cache what is not there yet; runs in one process per machine."""
        self.pools()

    def prepare_held_out(self) -> None:
        """As `prepare`, for `held_out`."""
        self.held_out()

    def _pools(self, key: str, decode: Callable[[], Mapping[Split, Pool]]) -> dict[Split, Pool]:
        """The pools of the splits, memory-mapped from the cache; read and checked once, however often they are used.

        Args:
            key: Text that contains everything on which the pools depend.
            decode: Function that finds, verifies and decodes the files.
        """
        cached = self._open(key, decode, of_pools)
        self._pool_hashes = HashedParts(cached.pools, cached.hashes)
        return dict(cached.pools)

    def fingerprint(self) -> str:
        """The sha256 of the decoded examples of `pools` in canonical order.

        Raises:
            UserError: There are no such pools, as in a folder that serves multi-task learning alone.
        """
        pools = self.pools()
        known = self._pool_hashes and self._pool_hashes.of(pools)
        return (known or of_pools(pools)).whole

    def _held_out(self, key: str, decode: Callable[[], Mapping[Split, Pool]]) -> dict[Split, Pool]:
        """The pools of `held_out`, in a cache file of their own, so that dividing them copies nothing."""
        cached = self._open(key, decode, hashes_of_groups)
        self.task_hashes = HashedParts(cached.pools, cached.hashes)
        return dict(cached.pools)

    def _open(
        self,
        key: str,
        decode: Callable[[], Mapping[Split, Pool]],
        hashes: Callable[[Mapping[Split, Pool]], Hashes],
    ) -> Cached:
        if key not in self._opened:
            self._opened = {**self._opened, key: load_or_build(type(self).__name__.lower(), key, decode, hashes)}
        return self._opened[key]
