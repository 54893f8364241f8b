"""Plain arrays from a `.npz` file that a stranger may have made, in bounded memory."""

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
RATIO, SLACK = 100, 2**28  # what the arrays may inflate to: so many times the file's size, and 256 MiB more


def read_arrays(file: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Arrays of a `.npz` file by name; code in it is never run.

    Args:
        file: As `numpy.savez` or `savez_compressed` writes it.
        names: Those to read.

    Raises:
        UserError: It is damaged, too large, or holds more than plain arrays.
        KeyError: There is no array of a name, its argument.
        FileNotFoundError: There is no such file.
    """
    try:
        with open_regular(file) as stream, zipfile.ZipFile(stream) as archive:
            members = {info.filename: info for info in archive.infolist()}
            wanted = {name: members.get(f"{name}.npy") for name in names}
            if missing := [name for name, info in wanted.items() if info is None]:
                raise KeyError(missing[0])
            found = {name: info for name, info in wanted.items() if info is not None}
            size, inflated = os.fstat(stream.fileno()).st_size, sum(info.file_size for info in found.values())
            if inflated > RATIO * size + SLACK:
                raise ValueError(f"it would inflate from {size:,} bytes to {inflated / 1e9:,.1f} GB")
            return {name: _read(archive, info) for name, info in found.items()}
    except (FileNotFoundError, KeyError, UserError):
        raise
    except Exception as error:  # numpy evaluates headers, zipfile inflates: they raise much
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{file} is damaged, or holds more than plain arrays: {said}") from error


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # of others a few bytes fill the memory
        raise ValueError(f"{info.filename} is compressed in another way than numpy does it")
    with archive.open(info) as member:  # numpy allocates what the header says before it reads
        version = npy.read_magic(member)
        if version not in HEADERS:
            raise ValueError(f"{info.filename} is of another version of numpy's format")
        shape, _, dtype = HEADERS[version](member)
        elements = reduce(mul, shape, 1)
        claimed, held = elements * dtype.itemsize, info.file_size - member.tell()
        if dtype.hasobject:
            raise ValueError(f"{info.filename} holds objects")
        if elements and not dtype.itemsize:  # any number of these takes no byte
            raise ValueError(f"{info.filename} has elements of no size")
        if claimed != held or min(shape, default=0) < 0:
            raise ValueError(f"{info.filename} says that it has {claimed:,} bytes, and has {held:,}")
    with archive.open(info) as member:
        array: np.ndarray = npy.read_array(member, allow_pickle=False)
    return array
