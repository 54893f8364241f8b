"""A source whose files are decoded once and then read from the cache."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

from lightning_meta.batches import Split
from lightning_meta.data.cache import load_or_build
from lightning_meta.data.pool import Pool
from lightning_meta.data.source import Source

T = TypeVar("T")


def progress(items: Iterable[T], what: str, total: int | None = None) -> Iterable[T]:
    """A progress bar on stderr: only on a terminal, and only for what takes more than a second."""
    return tqdm(items, desc=f"decoding {what}", total=total, unit="", delay=1, leave=False, disable=None)


class DecodedSource(Source):
    """What the sources that read files share: decode into the cache, load from the cache.

    A subclass says what decides the result (`_key`) and how to get it (`_decode`).
    """

    _fingerprint: str | None = None

    @abstractmethod
    def _key(self) -> str:
        """All that decides what `_decode` returns, in words."""

    @abstractmethod
    def _decode(self) -> dict[Split, Pool]:
        """Find, verify and decode the files."""

    def prepare(self) -> None:
        """Download and decode into the cache what is not there yet; runs in one process per machine."""
        self.pools()

    def pools(self) -> dict[Split, Pool]:
        """The pools of the splits, memory-mapped from the cache."""
        cached = load_or_build(type(self).__name__.lower(), self._key(), self._decode)
        self._fingerprint = cached.fingerprint
        return cached.pools

    def fingerprint(self) -> str:
        """The sha256 of the decoded examples in canonical order."""
        if self._fingerprint is None:
            self.pools()
        assert self._fingerprint is not None
        return self._fingerprint
