"""Checks of a checkpoint file that bound the memory and time of `torch.load` by the size of the file."""

from __future__ import annotations

import pickle
import struct
import zipfile
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import torch

from lightning_meta.errors import UserError
from lightning_meta.reading import check_regular
from lightning_meta.run.checksums import is_verified, remember, state_of
from lightning_meta.run.outline import HostileError, RefusedError, check_outline
from lightning_meta.specifications import holds_tensors

LARGEST_PICKLE = 2**28  # bytes of plain data; tensors are in separate records
_END = struct.Struct("<4s4H2LH")  # end of a zip archive without a comment


def check_before_torch(path: str | PathLike[str]) -> None:
    """Refuse a file for which `torch.load` would block or allocate more memory than the file has data.

    Args:
        path: A file that passed `damage`. `torch.save` writes a zip archive with a pickle and one record per storage.

    Raises:
        UserError: The file is refused; the message says why.
    """
    size = check_regular(path)
    try:
        state = state_of(path)
        if is_verified("outline", state):
            return
        _check_archive(path, size)
        remember("outline", state)
    except RefusedError as error:
        raise UserError(f"{path} is refused: {error}") from error
    except HostileError as error:
        raise UserError(f"{path} is not a checkpoint, or is damaged: {error}") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than tensors and plain data, and is refused because unpickling runs code"
        ) from error
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError, ValueError, MemoryError) as error:
        raise UserError(f"{path} is not a checkpoint, or is damaged") from error


def _check_archive(path: str | PathLike[str], size: int) -> None:
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        with Path(path).open("rb") as file:
            file.seek(size - _END.size)
            mark, *_, start, comment = _END.unpack(file.read(_END.size))
    if mark != b"PK\5\6" or comment or start not in (archive.start_dir, 2**32 - 1):
        raise HostileError("its table of contents is not where it says")  # torch would read a different one
    names = [record.filename.lower() for record in records]  # torch ignores the case of names
    if len(set(names)) < len(names):
        raise RefusedError("two of its records have the same name")
    reader: Any = torch._C.PyTorchFileReader(fspath(path))
    if reader.has_record("constants.pkl"):
        raise pickle.UnpicklingError("a program of TorchScript")
    if reader.get_record_size("data.pkl") > LARGEST_PICKLE:
        raise RefusedError(f"its plain data are more than {LARGEST_PICKLE / 2**20:.0f} MiB")
    check_outline(reader.get_record("data.pkl"), lambda key: int(reader.get_record_size(f"data/{key}")))


def check_contents(checkpoint: Any, path: str | PathLike[str]) -> None:
    """Check that loaded data is a checkpoint of Lightning and this package.

    Args:
        checkpoint: The result of `torch.load`.
        path: Path of the file, for the error.

    Raises:
        UserError: There is no state dict, or it is not a mapping from names to weights.
    """
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UserError(f"{path} is not a Lightning checkpoint: it has no `state_dict`")
    weights, stored = checkpoint["state_dict"], checkpoint.get("lightning_meta")
    versions = getattr(weights, "_metadata", {})  # versions of modules by name, which `load_state_dict` reads
    has_versions = isinstance(versions, dict) and all(isinstance(version, dict) for version in versions.values())
    has_names = isinstance(weights, dict) and all(isinstance(name, str) for name in weights)
    try:
        is_sound = has_names and has_versions and (stored is None or _is_description(stored))
    except UserError as error:  # it is too large to look at
        raise UserError(f"{path}: {error}") from error
    if not is_sound:
        raise UserError(f"{path} is not a checkpoint of lightning_meta, or is damaged")


def _is_description(stored: Any) -> bool:
    """Whether an entry `lightning_meta` is plain data; its arguments are checked where they are used."""
    return isinstance(stored, dict) and not holds_tensors(stored) and isinstance(stored.get("init_args", {}), dict)
