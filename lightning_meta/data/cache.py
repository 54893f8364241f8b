"""The cache of decoded examples: a data set is decoded once, then memory-mapped.

One safetensors file holds the pools of one data set as it was decoded under one key (the options and, for
a user's own folder, the state of its files). It is written to a temporary name and renamed, so that nobody
ever sees half a file: processes that build it at the same time each write their own, and the last rename
wins. What is read is compared with the hash in its header; a damaged file is built again, never used.

The folder is `$LIGHTNING_META_CACHE`, or the platform's own cache folder. A folder that cannot be written is
an error and not a warning, because decoding anew in every process of every run would be slow in silence.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pooch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lightning_meta.batches import SPLITS, Split
from lightning_meta.data.hashes import Hashes, of_pools
from lightning_meta.data.pool import Pool
from lightning_meta.errors import UserError
from lightning_meta.staging import STAGED, remove_orphans, staging

_log = logging.getLogger(__name__)

FORMAT = 1  # part of every key: raise it when the layout of the files below changes

# The temporary names used here, by safetensors and by pooch, and no others: the folder may hold a user's files.
_TEMPORARY = re.compile(rf"\..+{STAGED}|\.tmp[A-Za-z0-9]{{6}}|tmp[a-z0-9_]{{8}}")


class Cached(NamedTuple):
    """The pools of a data set, memory-mapped, and the hashes that they were compared with when they were read."""

    pools: dict[Split, Pool]
    hashes: Hashes


def cache_folder() -> Path:
    """`$LIGHTNING_META_CACHE`, or the platform's folder for caches."""
    given = os.environ.get("LIGHTNING_META_CACHE")
    return Path(given).expanduser() if given else Path(pooch.os_cache("lightning_meta")).expanduser()


def load_or_build(
    name: str,
    key: str,
    build: Callable[[], Mapping[Split, Pool]],
    hashes: Callable[[Mapping[Split, Pool]], Hashes] = of_pools,
) -> Cached:
    """Read the pools from the cache; decode and store them first where they are missing or damaged.

    Args:
        name: The data set, for the file's name.
        key: All that decides what `build` returns, in words; another key is another file.
        build: Decodes the data set.
        hashes: Hashes all that the pools hold. The file is checked by it, so that whoever needs the hashes of another
            layout, such as that of tasks, need not hash the same examples again.

    Raises:
        UserError: The cache folder cannot be written.
    """
    key = f"format {FORMAT}; {key}"
    path = cache_folder() / "decoded" / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"
    cached = _read(path, key, hashes)
    if cached is None:
        pools = build()
        with replacing(path) as temporary:
            _write(temporary, key, pools, hashes(pools))
        cached = _read(path, key, hashes)
    if cached is None:
        raise UserError(f"{path}: cannot be read back after it was written; is the disk sound?")
    return cached


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to: renamed to `path` at the end, removed after an error.

    Raises:
        UserError: The file cannot be written: a read-only folder or a full disk.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_orphans(path.parent, _TEMPORARY)
        with staging(path) as temporary:
            temporary.touch()  # who may read it is what the umask says: pooch and safetensors make private files
            mode = temporary.stat().st_mode
            temporary.unlink()
            yield temporary
            temporary.chmod(mode)
    except (OSError, SafetensorError) as error:  # safetensors wraps what the system says
        raise UserError(
            f"cannot write {path.name} to the cache folder {path.parent} ({error}); "
            f"make it writable, make room, or set LIGHTNING_META_CACHE to another folder"
        ) from error


def _write(path: Path, key: str, pools: Mapping[Split, Pool], hashes: Hashes) -> None:
    tensors = {f"{split}.x": pools[split].x.contiguous() for split in SPLITS}
    tensors |= {f"{split}.sizes": pools[split].sizes.contiguous() for split in SPLITS}
    classes = {split: {"names": pools[split].names, "groups": pools[split].groups} for split in SPLITS}
    header = {"key": key, "classes": json.dumps(classes), "sha256": hashes.whole}
    if hashes.splits:  # those of tasks, which know the names of groups alone
        header["splits"] = json.dumps(hashes.splits)
        header["classes_sha256"] = hashlib.sha256(header["classes"].encode()).hexdigest()
    save_file(tensors, path, metadata=header)


def _read(path: Path, key: str, hashes: Callable[[Mapping[Split, Pool]], Hashes]) -> Cached | None:
    """The pools, memory-mapped; None where there is no file, or one that is not what its header says."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata()
            classes = json.loads(header["classes"])
            pools = {
                split: Pool(
                    x=file.get_tensor(f"{split}.x"),
                    sizes=file.get_tensor(f"{split}.sizes"),
                    names=tuple(classes[split]["names"]),
                    groups=tuple(classes[split]["groups"]),
                )
                for split in SPLITS
            }
        if header["key"] != key:
            raise ValueError("it was made for other options")
        found = hashes(pools)
        if found.splits and not {"splits", "classes_sha256"} <= header.keys():
            return None  # an older version hashed another layout, or no names of classes
        if found.splits and header["classes_sha256"] != hashlib.sha256(header["classes"].encode()).hexdigest():
            raise ValueError("its names of classes differ from their hash")
        if found != Hashes(header["sha256"], json.loads(header.get("splits", "{}"))):
            raise ValueError("its content differs from its hash")
    except FileNotFoundError:
        return None
    except Exception as error:  # a damaged file can break any step of the above
        _log.warning("the cache file %s is damaged (%s) and is built again", path, error)
        return None
    return Cached(pools, found)
