"""Arrays in a stranger's `predictions.npz`, of which each is compressed and says itself how large it is."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from math import prod
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from lightning_meta.run.regular import check_regular

RATIO, SLACK = 100, 2**28  # what the file may inflate to: so many times its size, and 256 MiB more
HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read_arrays(file: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Read arrays of plain values.

    Args:
        file: What `numpy.savez_compressed` wrote.
        names: The arrays.

    Raises:
        KeyError: The first array that is missing.
        UserError: The path is no ordinary file.
        ValueError: The file would inflate, or an array is not as large as it says, or holds objects.
    """
    size = check_regular(file)
    with zipfile.ZipFile(file) as archive:
        if (inflated := sum(member.file_size for member in archive.infolist())) > RATIO * size + SLACK:
            raise ValueError(f"it would inflate from {size:,} bytes to {inflated / 1e9:,.1f} GB")
        wanted, members = list(names), set(archive.namelist())
        if missing := [name for name in wanted if f"{name}.npy" not in members]:
            raise KeyError(missing[0])
        return {name: _read(archive, f"{name}.npy") for name in wanted}


def _read(archive: zipfile.ZipFile, member: str) -> np.ndarray:
    with archive.open(member) as stream:
        version = npy.read_magic(stream)
        if version not in HEADERS:
            raise ValueError(f"{member} is of another version of numpy's format")
        shape, _, dtype = HEADERS[version](stream)
        claimed, held = prod(shape) * dtype.itemsize, archive.getinfo(member).file_size - stream.tell()
        if dtype.hasobject:
            raise ValueError(f"{member} holds objects")
        if claimed != held or min(shape, default=0) < 0:
            raise ValueError(f"{member} says that it has {claimed:,} bytes, and has {held:,}")
    with archive.open(member) as stream:  # numpy would allocate what the header says before it reads
        array: np.ndarray = npy.read_array(stream, allow_pickle=False)
        return array
