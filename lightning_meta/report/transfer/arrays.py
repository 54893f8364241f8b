"""Read plain arrays from an untrusted `.npz` file, in bounded memory."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable
from functools import reduce
from operator import mul
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from lightning_meta.errors import UserError
from lightning_meta.reading import open_regular

HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
RATIO, SLACK = 100, 2**28  # the arrays may take at most 100 times the size of the file plus 256 MiB


def read_arrays(file: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Read arrays of a `.npz` file by name; code in the file is never run.

    Args:
        file: File written by `numpy.savez` or `savez_compressed`.
        names: Names of the arrays to read.

    Returns:
        The arrays by name.

    Raises:
        UserError: The file is damaged, too large, or contains more than plain arrays.
        KeyError: An array is missing; the argument is its name.
        FileNotFoundError: The file does not exist.
    """
    try:
        with open_regular(file) as stream, zipfile.ZipFile(stream) as archive:
            members = {info.filename: info for info in archive.infolist()}
            requested = {name: members.get(f"{name}.npy") for name in names}
            if missing := [name for name, info in requested.items() if info is None]:
                raise KeyError(missing[0])
            infos = {name: info for name, info in requested.items() if info is not None}
            size, inflated = os.fstat(stream.fileno()).st_size, sum(info.file_size for info in infos.values())
            if inflated > RATIO * size + SLACK:
                raise ValueError(f"it would inflate from {size:,} bytes to {inflated / 1e9:,.1f} GB")
            return {name: _read(archive, info) for name, info in infos.items()}
    except (FileNotFoundError, KeyError, UserError):
        raise
    except Exception as error:  # NumPy parses headers and zipfile inflates data: both raise many types of errors
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{file} is damaged, or holds more than plain arrays: {reason}") from error


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """Read an array after checking that its header claims as many bytes as there are."""
    # Other compression methods can expand a few bytes until the memory is full.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{info.filename} is compressed by a method that NumPy does not use")
    with archive.open(info) as member:  # NumPy allocates the size in the header before it reads
        version = npy.read_magic(member)
        if version not in HEADERS:
            raise ValueError(f"{info.filename} has an unsupported version of NumPy's format")
        shape, _, dtype = HEADERS[version](member)
        elements = reduce(mul, shape, 1)
        claimed, held = elements * dtype.itemsize, info.file_size - member.tell()
        if dtype.hasobject:
            raise ValueError(f"{info.filename} holds objects")
        if elements and not dtype.itemsize:  # any number of these takes no bytes in the file
            raise ValueError(f"{info.filename} has elements of no size")
        if claimed != held or min(shape, default=0) < 0:
            raise ValueError(f"{info.filename} says that it has {claimed:,} bytes, and has {held:,}")
    with archive.open(info) as member:
        array: np.ndarray = npy.read_array(member, allow_pickle=False)
    return array
