"""Conversion of a user's NumPy arrays and numbers."""

from __future__ import annotations

from collections import OrderedDict
from copy import copy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LONGEST = np.dtype(np.float64).itemsize


def tensor_of(array: NDArray[Any]) -> Tensor:
    """Convert an array of numbers in any byte order and layout to a tensor.

    The tensor shares the memory of the array where torch can. Torch takes no reversed arrays, no other byte order than
    that of the machine and no numbers longer than float64, and warns of arrays that cannot be written to.

    >>> tensor_of(np.array([1, 2], ">f4")[::-1])
    tensor([2., 1.])

    Raises:
        TypeError: The array holds other values than numbers.
    """
    dtype = array.dtype.newbyteorder("=")
    if dtype.kind == "f" and dtype.itemsize > LONGEST:
        dtype = np.dtype(np.float64)
    array = array.astype(dtype, copy=False)
    fields = any(stride % array.itemsize for stride in array.strides)  # of records, whose other fields are skipped
    if fields or not array.flags.writeable or min(array.strides, default=0) < 0:
        array = array.copy()
    return torch.from_numpy(array)


def plain_numbers(value: Any) -> Any:
    """Replace the numbers of NumPy in dictionaries, lists and tuples by those of Python; containers are copied.

    >>> plain_numbers({"lr": np.float64(0.1), "betas": (np.float32(0.5), 1)})
    {'lr': 0.1, 'betas': (0.5, 1)}
    """
    if isinstance(value, np.generic):
        return value.item()
    if type(value) in (dict, OrderedDict):
        copied = copy(value)  # an OrderedDict with its attributes: state dicts of torch keep versions of modules in one
        copied.update((key, plain_numbers(part)) for key, part in value.items())
        return copied
    if type(value) in (list, tuple):
        return type(value)(map(plain_numbers, value))
    return value
