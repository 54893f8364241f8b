"""Unpickling that can make numbers, strings, containers and numpy arrays, and nothing else."""

from __future__ import annotations

import io
import pickle
import pickletools
from typing import IO, Any

import numpy as np


def _latin1(text: str, encoding: str) -> bytes:
    """What `_codecs.encode` does in a pickle that holds bytes under protocol 2."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"the encoding {encoding!r} is not allowed")
    return text.encode("latin1")


_RECONSTRUCT = np.empty(0).__reduce__()[0]  # numpy 2 has moved it, and the pickle may be of either numpy

_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _latin1,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which a data file has no use for") from None


def _refuse_far_notes(file: IO[bytes]) -> None:
    """Refuse numbered notes far beyond those that there can be: Python makes room for all below, 34 GB by 7 bytes."""
    start = file.tell()
    size = file.seek(0, io.SEEK_END) - start
    file.seek(start)
    for opcode, argument, _ in pickletools.genops(file):
        noted = opcode.name in ("PUT", "BINPUT", "LONG_BINPUT")
        if noted and isinstance(argument, int) and argument > size:  # each takes a byte at least
            raise pickle.UnpicklingError(f"it has a note of number {argument} in {size} bytes")
    file.seek(start)


def load(file: IO[bytes]) -> Any:
    """Unpickle arrays and plain data of a file that can be read twice; Python 2's strings become bytes.

    Raises:
        pickle.UnpicklingError: The pickle is damaged, or asks for anything else; none of its code has run.
    """
    try:
        _refuse_far_notes(file)
        return _Unpickler(file, encoding="bytes").load()
    except (pickle.UnpicklingError, OSError, EOFError):
        raise
    except Exception as error:  # a damaged pickle can make any of the allowed objects complain
        raise pickle.UnpicklingError(f"{type(error).__name__}: {error}") from error
