"""Unpickling restricted to numbers, strings, containers and NumPy arrays."""

from __future__ import annotations

import io
import pickle
import pickletools
from typing import IO, Any

import numpy as np


def _latin1(text: str, encoding: str) -> bytes:
    """Replace `_codecs.encode`, which pickles of protocol 2 call to restore bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"the encoding {encoding!r} is not allowed")
    return text.encode("latin1")


_RECONSTRUCT = np.empty(0).__reduce__()[0]  # NumPy 2 moved it; a pickle may name either place

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
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, which a data file does not need") from None


def _refuse_far_notes(file: IO[bytes]) -> None:
    """Refuse memo indices larger than the file allows.

    Python allocates memory for all smaller indices, so that 7 bytes can allocate 34 GB.
    """
    start = file.tell()
    size = file.seek(0, io.SEEK_END) - start
    file.seek(start)
    for opcode, argument, _ in pickletools.genops(file):
        stores = opcode.name in ("PUT", "BINPUT", "LONG_BINPUT")
        if stores and isinstance(argument, int) and argument > size:  # every memo entry takes at least one byte
            raise pickle.UnpicklingError(f"it has the memo index {argument} in {size} bytes")
    file.seek(start)


def load(file: IO[bytes]) -> Any:
    """Unpickle arrays and plain data; strings of Python 2 become bytes.

    Args:
        file: Pickle in a seekable file, which is read twice.

    Raises:
        pickle.UnpicklingError: The pickle is damaged, or refers to any other object; none of its code is run.
    """
    try:
        _refuse_far_notes(file)
        return _Unpickler(file, encoding="bytes").load()
    except (pickle.UnpicklingError, OSError, EOFError):
        raise
    except Exception as error:  # a damaged pickle can make any of the allowed objects raise
        raise pickle.UnpicklingError(f"{type(error).__name__}: {error}") from error
