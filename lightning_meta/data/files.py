"""Finding or downloading the official file of a data set, and verifying its content.

A file is verified by its decoded content (counts, and a hash in canonical order), not by the hash of its bytes, so that
an archive that was repacked passes and a damaged one does not.
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
from lightning_meta.errors import UserError, reason_of

T = TypeVar("T")

RETRIES = 3  # retries after the first attempt; pooch waits 1, 2 and 3 seconds in between

# Exceptions that reading a truncated or altered archive may raise.
_DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    NotImplementedError,  # zipfile: an unknown compression method or encryption
    RuntimeError,  # zipfile: a member with a password; tarfile: circular links
    KeyError,  # tarfile: a link without a target
    ValueError,  # tarfile: a header without numbers
    MemoryError,
    pickle.UnpicklingError,
)


class WrongContentError(Exception):
    """A file can be read, but its content is wrong; the message says what is wrong."""


@dataclass(frozen=True)
class OfficialFile:
    """A file published by the authors of a data set.

    Attributes:
        path: Path below `$LIGHTNING_META_DATA`, and below the folder of downloads.
        url: URL at which the authors publish the file.
    """

    path: str
    url: str


class Limited:
    """A decompressed stream with a size limit, so that a small file cannot expand until it exhausts the memory.

    Args:
        stream: Stream to read from.
        most: Largest number of bytes it may unpack to.
    """

    def __init__(self, stream: gzip.GzipFile, most: int) -> None:
        self._stream, self._most = stream, most

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` bytes, or all that are left if it is negative.

        Raises:
            WrongContentError: The stream is at the limit and has more bytes.
        """
        left = self._most - self._stream.tell()
        if left <= 0 and size and self._stream.read(1):
            raise WrongContentError(f"it unpacks to more than {self._most:,} bytes")
        return self._stream.read(left if size < 0 else min(size, left))

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move to a position from the start; decompressed streams seek by unpacking, so it must be within the limit.

        Raises:
            WrongContentError: The position is beyond the limit, or is not relative to the start.
        """
        if whence or offset > self._most:
            raise WrongContentError(f"it unpacks to more than {self._most:,} bytes")
        return self._stream.seek(offset)

    def tell(self) -> int:
        """Return the position in the unpacked stream."""
        return self._stream.tell()


def data_folder() -> Path | None:
    """Return `$LIGHTNING_META_DATA`, the user's folder of data sets, or None if it is not set.

    Raises:
        UserError: The variable is set to something that is not a folder.
    """
    value = os.environ.get("LIGHTNING_META_DATA")
    if not value:
        return None
    folder = Path(value).expanduser()
    if not folder.is_dir():
        raise UserError(f"LIGHTNING_META_DATA={value}: there is no such folder; correct or unset the variable")
    return folder


def read_official(file: OfficialFile, read: Callable[[Path], T]) -> T:
    """Find a file in the data folder or among the downloads, or otherwise download it, and read it.

    Args:
        file: File to look for.
        read: Function that decodes the file at a path, and raises `WrongContentError` if its content is wrong.

    Returns:
        Result of `read`.

    Raises:
        UserError: The file is damaged, is another file, or cannot be downloaded. A download that fails the check is
            removed.
    """
    folder = data_folder()
    if folder is not None and (path := folder / file.path).exists():
        fix = f"delete it, or put the official file from {file.url} in its place"
        return _checked(path, str(path), read, fix)
    path = cache_folder() / "downloads" / file.path
    if path.exists():
        return _read_downloaded(file, path, read)
    with replacing(path) as temporary:
        _download(file, temporary)
        return _checked(temporary, file.url, read, "nothing was kept; try again later, or report it to the authors")


def _read_downloaded(file: OfficialFile, path: Path, read: Callable[[Path], T]) -> T:
    """Read an earlier download; remove it if it has been damaged since it passed the check."""
    try:
        return _checked(path, str(path), read, f"it was removed: run again to download it from {file.url}")
    except UserError:
        path.unlink(missing_ok=True)
        raise


def _checked(path: Path, shown: str, read: Callable[[Path], T], fix: str) -> T:
    if not path.is_file():  # opening a named pipe would block
        raise UserError(f"{shown}: this is not a regular file; {fix}")
    try:
        return read(path)
    except WrongContentError as error:
        raise UserError(f"{shown}: {error}; {fix}") from error
    except _DAMAGED as error:
        problem = f"the file is damaged, truncated or unreadable ({reason_of(error)})"
        raise UserError(f"{shown}: {problem}; {fix}") from error


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
    except (OSError, ValueError) as error:  # errors of requests are OSErrors; ValueError means an unknown protocol
        if isinstance(error, OSError) and error.errno is not None:
            raise  # an error of the disk, which has an error number and is explained by `replacing`
        raise UserError(
            f"{file.url}: the download failed {RETRIES + 1} times ({reason_of(error)}); try again, "
            f"or get the file by other means and put it at $LIGHTNING_META_DATA/{file.path}"
        ) from error
