"""The cache of large tables: a file is read and encoded once, and later runs memory-map the result.

One safetensors file in the folder of the cache holds what a source has made of one table with its options. It is used
only if the content of the table and all else that determines the encoding are the same, and checked against a hash.
Processes that encode at the same time each write a temporary file, and the last rename wins. If the cache cannot be
written, a warning is logged, and the table is encoded in every run.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import lightning_meta
from lightning_meta.batches import SPLITS, Split
from lightning_meta.data.hashes import of_weights
from lightning_meta.data.task_set import TaskSet
from lightning_meta.describing import describe
from lightning_meta.errors import UserError
from lightning_meta.sources.table_messages import Message, noting
from lightning_meta.specifications import unknown_parts

_log = logging.getLogger(__name__)

FORMAT = 4  # part of every key; increase it when the encoding of tables or the layout of the files changes
LEAST = 2**23  # bytes of a table that is cached; a smaller one is read in less than a second
LIBRARIES = ("pyarrow", "numpy", "torch")  # those whose releases may change the last digits of statistics


class Encoded(NamedTuple):
    """The tables and tasks that a source has read.

    Attributes:
        tensors: Tensors by name, contiguous, without shared memory.
        about: All other results by name, as plain data for JSON.
    """

    tensors: dict[str, Tensor]
    about: dict[str, Any]


def is_cached(source: object, files: Sequence[Path]) -> bool:
    """Whether a source keeps its table in the cache.

    It does if reading the files takes long. A subclass of a user does not, because it may read them in another way.
    """
    if not type(source).__module__.startswith(f"{lightning_meta.__name__}."):
        return False
    return sum(file.stat().st_size for file in files if file.is_file()) >= LEAST


def read_or_encode(files_of: Callable[[], Sequence[Path]], source: object, encode: Callable[[], Encoded]) -> Encoded:
    """Read an encoded table from the cache; encode and store it first if it is missing, outdated or damaged.

    Messages of the first reading are logged again.

    Args:
        files_of: Function that returns the files of the table.
        source: Source whose public attributes are the options of reading and encoding.
        encode: Function that reads and encodes the table.

    Raises:
        UserError: The table cannot be read, or changed while it was read.
    """
    import pyarrow  # here, as only large tables need these

    from lightning_meta.data.cache import cache_folder

    options = describe({name: value for name, value in vars(source).items() if not name.startswith("_")})
    if list(unknown_parts(options)):  # the key would not tell two values apart
        return encode()
    files, key = files_of(), _key(options)
    states = _states(files)
    name = f"{type(source).__name__.lower()}-{_sha(key, [str(file.resolve()) for file in files])[:16]}"
    path, key = cache_folder() / "tables" / f"{name}.safetensors", key + _contents(files)
    stored = _read(path, key)
    if stored is not None:
        encoded, messages = stored
        for message in messages:
            logging.getLogger(message.logger).log(message.level, "%s", message.text)
        return encoded
    with noting() as messages:
        encoded = encode()
    pyarrow.default_memory_pool().release_unused()  # Arrow keeps what it has freed, nearly 1 GB for a million rows
    if _states(files_of()) != states:  # the result must not be stored under the hash of the earlier content
        raise UserError(f"{files[0]}: the table changed while it was read; wait until it is complete and run again")
    _write(path, key, encoded, messages, files)
    stored = _read(path, key)  # memory-mapped, so that processes share it
    return encoded if stored is None else stored[0]


def tensors_of(sets: Mapping[Split, TaskSet]) -> dict[str, Tensor]:
    """Return the tensors of task sets by name, for `Encoded`."""
    tensors: dict[str, Tensor] = {}
    for split, data in sets.items():
        assert isinstance(data.inputs, Tensor)
        tensors[f"{split}.inputs"] = data.inputs
        for kind, by_task in (("targets", data.targets), ("rows", data.rows), ("weights", data.weights or {})):
            tensors |= {f"{split}.{kind}.{i}": _separate(values) for i, values in enumerate(by_task.values())}
    return tensors


def sets_of(tensors: Mapping[str, Tensor], names: Sequence[str]) -> dict[Split, TaskSet]:
    """Return the task sets of `tensors_of`.

    Args:
        tensors: Result of `tensors_of`.
        names: Names of the tasks, in order.
    """

    def by_task(split: Split, kind: str) -> dict[str, Tensor]:
        return {name: tensors[f"{split}.{kind}.{i}"] for i, name in enumerate(names)}

    weighted = "train.weights.0" in tensors
    return {
        split: TaskSet(
            tensors[f"{split}.inputs"],
            by_task(split, "targets"),
            by_task(split, "rows"),
            by_task(split, "weights") if weighted else None,
        )
        for split in SPLITS
    }


def _separate(values: Tensor) -> Tensor:
    """Return a contiguous tensor that is not a part of a larger one, which safetensors refuses."""
    values = values.contiguous()
    return values if values.untyped_storage().nbytes() == values.nbytes else values.clone()


def _states(files: Sequence[Path]) -> list[tuple[int, int, int]]:
    try:
        states = [file.stat() for file in files]
    except OSError as error:
        raise UserError(f"{error.filename}: the table cannot be read ({error.strerror})") from error
    return [(state.st_ino, state.st_size, state.st_mtime_ns) for state in states]


def _key(options: Any) -> str:
    """Return a text with everything that determines the encoded table, except for its content."""
    about = {
        "format": FORMAT,
        "options": options,
        "versions": [lightning_meta.__version__, *map(version, LIBRARIES)],
        # The order in which torch adds numbers, and so the last digits of means, depend on these.
        "arithmetic": [torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()],
    }
    return json.dumps(about)


def _contents(files: Sequence[Path]) -> str:
    """Return a text with the name and the hash of each file."""
    hashes = []
    try:
        for path in files:
            with path.open("rb") as file:
                hashes.append([path.name, hashlib.file_digest(file, "sha256").hexdigest()])
    except OSError as error:
        raise UserError(f"{error.filename}: the table cannot be read ({error.strerror})") from error
    return json.dumps(hashes)


def _write(path: Path, key: str, encoded: Encoded, messages: Sequence[Message], files: Sequence[Path]) -> None:
    from safetensors.torch import save_file

    from lightning_meta.data.cache import replacing

    about = json.dumps({"about": encoded.about, "messages": messages})
    header = {"key": key, "about": about, "sha256": _sha(key, about, of_weights(sorted(encoded.tensors.items())))}
    try:
        with replacing(path, files) as temporary:
            save_file(encoded.tensors, temporary, metadata=header)
    except UserError as error:
        _log.warning("%s; without it, every run reads and encodes the table", error)
    else:
        _log.info("the encoded table is stored in %s (%.0f MB) for further runs", path, path.stat().st_size / 1e6)


def _read(path: Path, key: str) -> tuple[Encoded, list[Message]] | None:
    """Read and check the memory-mapped tensors; None if the file is missing, outdated or damaged."""
    from lightning_meta.data.cache import OTHER_CONTENT, read_cached

    def checked(tensors: dict[str, Tensor], header: dict[str, str]) -> tuple[Encoded, list[Message]] | None:
        if header["key"] != key:  # the table has changed
            return None
        if header["sha256"] != _sha(key, header["about"], of_weights(sorted(tensors.items()))):
            raise ValueError(OTHER_CONTENT)
        content = json.loads(header["about"])
        return Encoded(tensors, content["about"]), [Message(*message) for message in content["messages"]]

    return read_cached(path, checked)


def _sha(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
