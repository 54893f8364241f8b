"""Finds the official file of a data set, or downloads it, and has its content verified.

A file is verified by what it decodes to (counts and a hash in canonical order), not by the hash of its bytes,
so an archive that was packed anew passes and a damaged one does not.
"""

from __future__ import annotations

import gzip
import lzma
import os
import pickle
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pooch

from lightning_meta.data.cache import cache_folder, replacing
from lightning_meta.errors import UserError

T = TypeVar("T")

RETRIES = 3  # after the first attempt; pooch waits 1, 2, 3 seconds in between

# All that reading a truncated or altered archive may raise.
_DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    NotImplementedError,  # zipfile: a compression method or encryption it does not know
    RuntimeError,  # zipfile: a member that asks for a password; tarfile: links in a circle
    KeyError,  # tarfile: a link to nowhere
    ValueError,  # tarfile: a header of no numbers
    MemoryError,
    pickle.UnpicklingError,
)


class WrongContentError(Exception):
    """A file can be read, but does not hold what it should: the message says what is wrong."""


@dataclass(frozen=True)
class OfficialFile:
    """A file as its authors publish it.

    Attributes:
        path: Where it lies below `$LIGHTNING_META_DATA`, and below the folder of downloads.
        url: Where its authors publish it.
    """

    path: str
    url: str


class Limited:
    """A decompressed stream that ends in an error, and not in a full memory, where it is longer than expected.

    Args:
        stream: To read from.
        most: How many bytes it may hold.
    """

    def __init__(self, stream: gzip.GzipFile, most: int) -> None:
        self._stream, self._most = stream, most

    def read(self, size: int = -1) -> bytes:
        """As of a file."""
        left = self._most - self._stream.tell()
        if left <= 0 and size:
            raise WrongContentError(f"it unpacks to more than {self._most:,} bytes")
        return self._stream.read(left if size < 0 else min(size, left))

    def seek(self, offset: int, whence: int = 0) -> int:
        """As of a file; not beyond the limit, since to seek is to unpack."""
        if whence or offset > self._most:
            raise WrongContentError(f"it unpacks to more than {self._most:,} bytes")
        return self._stream.seek(offset)

    def tell(self) -> int:
        """As of a file."""
        return self._stream.tell()


def data_folder() -> Path | None:
    """`$LIGHTNING_META_DATA`, the user's folder of data sets, or None where it is not set.

    Raises:
        UserError: It is set to something that is not a folder.
    """
    given = os.environ.get("LIGHTNING_META_DATA")
    if not given:
        return None
    folder = Path(given).expanduser()
    if not folder.is_dir():
        raise UserError(f"LIGHTNING_META_DATA={given}: there is no such folder; mend or unset the variable")
    return folder


def read_official(file: OfficialFile, read: Callable[[Path], T]) -> T:
    """Find a file in the data folder or among the downloads, else download it, and read it.

    Args:
        file: What to look for.
        read: Decodes the file at a path and raises `WrongContentError` where it is not what it should be.

    Returns:
        What `read` returned.

    Raises:
        UserError: The file is damaged, is another file, or cannot be downloaded. A download that fails the
            check is removed.
    """
    folder = data_folder()
    if folder is not None and (path := folder / file.path).exists():
        mend = f"delete it, or put the official file from {file.url} in its place"
        return _checked(path, str(path), read, mend)
    path = cache_folder() / "downloads" / file.path
    if path.exists():
        return _read_downloaded(file, path, read)
    with replacing(path) as temporary:
        _download(file, temporary)
        return _checked(temporary, file.url, read, "nothing was kept; try again later, or report it to the authors")


def _read_downloaded(file: OfficialFile, path: Path, read: Callable[[Path], T]) -> T:
    """Read an earlier download, which passed the check then; remove it where it has been damaged since."""
    try:
        return _checked(path, str(path), read, f"it was removed: run again to download it from {file.url}")
    except UserError:
        path.unlink(missing_ok=True)
        raise


def _checked(path: Path, shown: str, read: Callable[[Path], T], mend: str) -> T:
    if not path.is_file():  # to open a pipe is to wait
        raise UserError(f"{shown}: this is not a regular file; {mend}")
    try:
        return read(path)
    except WrongContentError as error:
        raise UserError(f"{shown}: {error}; {mend}") from error
    except _DAMAGED as error:
        problem = f"the file is damaged, truncated or unreadable ({_line(error)})"
        raise UserError(f"{shown}: {problem}; {mend}") from error


def _download(file: OfficialFile, target: Path) -> None:
    downloads = pooch.create(
        path=target.parent,
        base_url="",
        registry={target.name: None},
        urls={target.name: file.url},
        retry_if_failed=RETRIES,
    )
    try:
        downloads.fetch(target.name, downloader=pooch.HTTPDownloader(progressbar=True))
    except (OSError, ValueError) as error:  # requests' errors are OSErrors; ValueError: no such protocol
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's errors have a number, and `replacing` explains them
        raise UserError(
            f"{file.url}: the download failed {RETRIES + 1} times ({_line(error)}); try again, "
            f"or get the file by other means and put it at $LIGHTNING_META_DATA/{file.path}"
        ) from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
