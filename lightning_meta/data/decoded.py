"""A source whose files are decoded once and then read from the cache."""

from __future__ import annotations

from abc import abstractmethod
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
    """A progress bar on stderr: only on a terminal, and only for what takes more than a second.

    Args:
        items: What is gone through.
        what: What is done, as the bar says it.
        total: How many; by default the length of `items`.
    """
    shown: Iterable[T] = tqdm(items, desc=what, total=total, unit="", delay=1, leave=False, disable=None)
    return shown


class DecodedSource(Source):
    """What the sources that read files share: decode into the cache, load from the cache.

    A subclass says what decides the result (`_key`) and how to get it (`_decode`).
    """

    _pool_hashes: HashedParts | None = None
    _opened: Mapping[str, Cached] = {}  # by key: what this source has read so far

    @abstractmethod
    def _key(self) -> str:
        """All that decides what `_decode` returns, in words."""

    @abstractmethod
    def _decode(self) -> dict[Split, Pool]:
        """Find, verify and decode the files."""

    def prepare(self) -> None:
        """Download and decode into the cache what is not there yet; runs in one process per machine."""
        self.pools()

    def prepare_held_out(self) -> None:
        """As `prepare`, for `held_out`."""
        self.held_out()

    def pools(self) -> dict[Split, Pool]:
        """The pools of the splits, memory-mapped from the cache; read and checked once, however often they are used."""
        cached = self._open(self._key(), self._decode, of_pools)
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
        """The pools of `held_out`, cached apart from the others: nothing is copied to divide them."""
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
