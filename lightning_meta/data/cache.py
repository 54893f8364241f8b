"""The cache of decoded examples: a data set is decoded once, then memory-mapped.

One safetensors file holds the pools of one data set decoded under one key: its options and, for a custom folder, the
state of its files. The file is written under a temporary name and renamed, so that no process reads a partial file;
processes that build it at the same time each write a temporary file, and the last rename wins. The content is checked
against the hash in the header, and a damaged file is rebuilt.

A file that no process has opened for `UNUSED` days is removed when another one is written beside it, because data that
change, or are read with other options, leave files that nothing reads again. A process that has mapped the file can
still use it: on Linux and macOS its content stays until it is closed, and Windows refuses to remove it. Over NFS, a
process on another machine that has mapped a file for so long would lose it.

The folder is `$LIGHTNING_META_CACHE`, or the platform's cache folder. A folder that cannot be written is an error and
not a warning, because otherwise every process of every run would decode the data set again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import pooch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lightning_meta.batches import SPLITS, Split
from lightning_meta.data.hashes import Hashes, of_pools
from lightning_meta.data.pool import Pool
from lightning_meta.errors import UserError
from lightning_meta.staging import STAGED, remove_orphans, staging

_log = logging.getLogger(__name__)

FORMAT = 1  # part of every key; increment it when the layout of the files changes

UNUSED = 60  # days

OTHER_CONTENT = "its content differs from its hash"

Content = TypeVar("Content")

_ENTRY = re.compile(r"([a-z0-9_]+-[0-9a-f]{16}|[0-9a-f]{32})\.safetensors")
# Only temporary names of this module, safetensors and pooch, since the folder may contain a user's files.
_TEMPORARY = re.compile(rf"\..+{STAGED}|\.tmp[A-Za-z0-9]{{6}}|tmp[a-z0-9_]{{8}}")


class Cached(NamedTuple):
    """The memory-mapped pools of a data set, and their hashes, which were checked when the file was read."""

    pools: dict[Split, Pool]
    hashes: Hashes


def cache_folder() -> Path:
    """Return the path `$LIGHTNING_META_CACHE`, or the platform's cache folder if it is not set."""
    folder = os.environ.get("LIGHTNING_META_CACHE")
    return Path(folder).expanduser() if folder else Path(pooch.os_cache("lightning_meta")).expanduser()


def load_or_build(
    name: str,
    key: str,
    build: Callable[[], Mapping[Split, Pool]],
    hashes: Callable[[Mapping[Split, Pool]], Hashes] = of_pools,
) -> Cached:
    """Read the pools of a data set from the cache; decode and store them first if they are missing or damaged.

    Args:
        name: Name of the data set, part of the file name.
        key: Text with everything that determines the result of `build`; each key has a separate file.
        build: Function that decodes the data set.
        hashes: Function that hashes the whole content of the pools, with which the file is checked. A caller that needs
            hashes of another layout, such as that of tasks, passes it here to hash the examples only once.

    Returns:
        The pools and their hashes.

    Raises:
        UserError: The cache folder cannot be written.
    """
    key = f"format {FORMAT}; {key}"
    path = cache_folder() / "decoded" / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"
    checked = partial(_checked, key, hashes)
    cached = read_cached(path, checked)
    if cached is None:
        pools = build()
        with replacing(path) as temporary:
            _write(temporary, key, pools, hashes(pools))
        cached = read_cached(path, checked)
    if cached is None:
        raise UserError(f"{path}: cannot be read back after it was written; check the disk")
    return cached


@contextlib.contextmanager
def replacing(path: Path, like: Sequence[Path] = ()) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which is renamed to `path` at the end, or removed after an error.

    Args:
        path: File to be written.
        like: Files whose content is copied into it; its permissions are at most those of these files.

    Raises:
        UserError: The file cannot be written: a read-only folder or a full disk.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_orphans(path.parent, _TEMPORARY)
        _remove_unused(path.parent)
        with staging(path) as temporary:
            temporary.touch()  # permissions by the umask, since pooch and safetensors create private files
            mode = stat.S_IMODE(temporary.stat().st_mode)
            for file in like:
                mode &= stat.S_IMODE(file.stat().st_mode) | 0o600
            temporary.unlink()
            yield temporary
            temporary.chmod(mode)
    except (OSError, SafetensorError) as error:  # safetensors wraps errors of the operating system
        raise UserError(
            f"cannot write {path.name} to the cache folder {path.parent} ({error}); "
            f"make it writable, make room, or set LIGHTNING_META_CACHE to another folder"
        ) from error


def read_cached(path: Path, checked: Callable[[dict[str, Tensor], dict[str, str]], Content | None]) -> Content | None:
    """Read a file of the cache, memory-mapped, and log a warning if it is damaged.

    Args:
        path: The file.
        checked: Function that checks the tensors and the header of the file, and returns what they hold. It may raise
            any error if they are damaged, and returns None if they are outdated.

    Returns:
        The result of `checked`; None if the file is missing, outdated or damaged, so that it has to be written again.
    """
    try:
        with safe_open(path, framework="pt") as file:
            _mark_used(path)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is not a dictionary
            return checked(tensors, file.metadata())
    except FileNotFoundError:
        return None
    except Exception as error:  # a damaged file can make any step above fail
        _log.warning("the cache file %s is damaged (%s) and is built again", path, error)
        return None


def _mark_used(path: Path) -> None:
    """Set the time of the last access of a file that was opened: many file systems do not, or once a day."""
    with contextlib.suppress(OSError):  # a cache of another user
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))


def _remove_unused(folder: Path) -> None:
    """Remove the files of the cache that were not used for a long time, and no others."""
    for file in folder.iterdir():
        if _ENTRY.fullmatch(file.name):
            with contextlib.suppress(OSError):  # removed by another process, or mapped by one on Windows
                state = file.stat()
                ours = state.st_uid == getattr(os, "getuid", lambda: 0)()  # of others, the last use is not known
                if ours and time.time() - max(state.st_atime, state.st_mtime) > UNUSED * 24 * 3600:
                    file.unlink()
                    _log.info("%s was not used for %d days and is removed", file, UNUSED)


def _write(path: Path, key: str, pools: Mapping[Split, Pool], hashes: Hashes) -> None:
    tensors = {f"{split}.x": pools[split].x.contiguous() for split in SPLITS}
    tensors |= {f"{split}.sizes": pools[split].sizes.contiguous() for split in SPLITS}
    classes = {split: {"names": pools[split].names, "groups": pools[split].groups} for split in SPLITS}
    header = {"key": key, "classes": json.dumps(classes), "sha256": hashes.whole}
    if hashes.splits:  # hashes of tasks, which do not cover the names of classes
        header["splits"] = json.dumps(hashes.splits)
        header["classes_sha256"] = hashlib.sha256(header["classes"].encode()).hexdigest()
    save_file(tensors, path, metadata=header)


def _checked(
    key: str, hashes: Callable[[Mapping[Split, Pool]], Hashes], tensors: Mapping[str, Tensor], header: dict[str, str]
) -> Cached | None:
    """Check the pools of a file; None if it is outdated."""
    classes = json.loads(header["classes"])
    pools = {
        split: Pool(
            x=tensors[f"{split}.x"],
            sizes=tensors[f"{split}.sizes"],
            names=tuple(classes[split]["names"]),
            groups=tuple(classes[split]["groups"]),
        )
        for split in SPLITS
    }
    if header["key"] != key:
        raise ValueError("it was made for other options")
    actual = hashes(pools)
    if actual.splits and not {"splits", "classes_sha256"} <= header.keys():
        return None  # written by a version that hashed another layout, or no class names
    if actual.splits and header["classes_sha256"] != hashlib.sha256(header["classes"].encode()).hexdigest():
        raise ValueError("its names of classes differ from their hash")
    if actual != Hashes(header["sha256"], json.loads(header.get("splits", "{}"))):
        raise ValueError(OTHER_CONTENT)
    return Cached(pools, actual)
