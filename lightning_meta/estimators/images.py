"""Images given to a scikit-learn estimator: lists of files, or 4-D arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from io import IOBase
from numbers import Number
from os import PathLike
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lightning_meta.arrays import tensor_of
from lightning_meta.data.images import read_images
from lightning_meta.errors import UserError
from lightning_meta.nn.features import IMAGE_DIMS


def are_images(X: Any) -> bool:
    """Whether inputs are images: a list, tuple, array or column of files, or an array of four dimensions."""
    if isinstance(X, str | PathLike):
        raise UserError(f"X: expected a list of files, such as [{str(X)!r}], or an array; got one text")
    if isinstance(X, Iterator):
        raise UserError(f"X: expected a list of files, or an array; got a {type(X).__name__}; give list(X)")
    dims = getattr(X, "ndim", None)
    if dims == 2 and hasattr(X, "columns") and X.shape[1] == 1 and _all_paths(X.iloc[:, 0].tolist()):
        name = X.columns[0]
        raise UserError(f"X: a table with one column of text; if it names files, give the column: X[{name!r}]")
    if dims == IMAGE_DIMS + 1:
        if not len(X):
            raise UserError("X: the array holds no images; at least one is needed")
        return True
    if dims == IMAGE_DIMS:
        raise UserError("X: an array of three dimensions is neither features nor images; images are (M, C, H, W)")
    if dims == 2 and isinstance(X, np.ndarray) and X.shape[1] == 1 and _all_paths(X[:, 0].tolist()):
        raise UserError("X: an array of one column of text; if it names files, give them as X[:, 0]")
    if isinstance(X, list | tuple) and not X:
        raise UserError("X: the list is empty; expected files, such as a list by glob, or an array")
    if isinstance(X, list | tuple) and isinstance(X[0], Image.Image):
        raise UserError("X: a list of images of Pillow; give their files, or an array (M, channels, height, width)")
    if isinstance(X, list | tuple) and getattr(X[0], "ndim", None) == IMAGE_DIMS:
        raise UserError("X: a list of arrays; give one array (M, channels, height, width): numpy.stack(X)")
    first = X if dims is None or dims == 1 else ()
    first = first.tolist() if hasattr(first, "tolist") else first  # arrays and columns of a DataFrame
    return isinstance(first, Sequence) and _are_files(first)


def _are_files(X: Sequence[Any]) -> bool:
    """Whether a sequence holds the paths of files, which is so if one of its elements is a path.

    Raises:
        UserError: Some elements are paths and others are not, or an element is the content of a file.
    """
    paths = [isinstance(one, str | PathLike) for one in X]
    of_files = any(paths)
    for number, (one, is_path) in enumerate(zip(X, paths, strict=True)):
        in_memory = isinstance(one, bytes | bytearray | memoryview | IOBase)
        if in_memory or (of_files and not is_path):
            what = repr(one) if one is None or isinstance(one, Number) else f"of type {type(one).__name__}"
            give = "; images in memory are given as an array (M, channels, height, width)" if in_memory else ""
            raise UserError(f"X: element {number} is {what}; expected the path of a file{give}")
    return of_files


def parts_of(X: Any, size: int) -> Iterator[Any]:
    """Yield consecutive parts of a list of files, or of an array, with at most `size` examples each."""
    examples = X if getattr(X, "ndim", 1) > 1 else list(X)  # slices of a column of pandas may go by its labels
    for start in range(0, len(examples), size):
        yield examples[start : start + size]


def _all_paths(X: Any) -> bool:
    return len(X) > 0 and all(isinstance(one, str | PathLike) for one in X)


def as_images(X: Any, shape: Sequence[int | None]) -> Tensor:
    """Return images `(M, C, H, W)`, uint8 or float32.

    Args:
        X: M files, or an array `(M, C, H, W)`.
        shape: `(C, size, size)`: the shape to which image files are decoded.

    Raises:
        UserError: A file is not an image, channels come last, or the dtype or a value is not that of an image.
    """
    if getattr(X, "ndim", None) != IMAGE_DIMS + 1:
        return read_images(list(X), [int(n or 0) for n in shape])
    array = np.array(X)  # copied, because joblib passes read-only arrays
    if array.dtype.kind not in "biuf":
        raise UserError(f"X: images are uint8 in [0, 255] or real in [0, 1], got {array.dtype}; X.astype('uint8')")
    images = tensor_of(array)
    if images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        raise UserError(f"X: images of shape {tuple(images.shape)}; channels come first: X.transpose(0, 3, 1, 2)")
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise UserError(f"X: images are uint8 in [0, 255] or real in [0, 1], got {images.dtype}; X.astype('uint8')")
    if not bool(torch.isfinite(images).all()):
        raise UserError("X: the images contain NaN or infinity; correct them or leave them out")
    return images.float()
