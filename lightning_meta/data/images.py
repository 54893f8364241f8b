"""A user's image files as tensors, decoded as the training images of an `ImageFolder` are."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lightning_meta.data.image_files import decode, folders_in, image_files_in, images_of, refuse_odd_name
from lightning_meta.errors import UserError

MOST_FOLDERS = 100_000  # a link to / reaches more


def read_images(files: str | Path | Iterable[str | Path], input_shape: Sequence[int], invert: bool = False) -> Tensor:
    """Read image files, turned upright and resized to a square.

    Args:
        files: M files in any order; or one place, all of whose `image_files` are read.
        input_shape: `(channels, size, size)`, 1 or 3 channels, such as `model.spec.input_shape`.
        invert: Whether dark becomes light: for dark strokes on white, where training had light ones on black.

    Returns:
        `(M, channels, size, size)` uint8.

    Raises:
        UserError: A file is no image, or the shape is not that of square images.
    """
    if len(input_shape) != 3 or input_shape[0] not in (1, 3) or input_shape[1] != input_shape[2]:
        raise UserError(f"the model takes inputs of shape {tuple(input_shape)}, which are no square grey or RGB images")
    channels, size, _ = input_shape
    files = image_files([files]) if isinstance(files, str | Path) else files
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as threads:
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        images = list(threads.map(lambda file: decode(Path(file), size, channels, invert), files))
    return torch.from_numpy(np.stack(images)) if images else torch.empty(0, channels, size, size, dtype=torch.uint8)


def read_labelled(folder: str | Path, input_shape: Sequence[int], invert: bool = False) -> tuple[Tensor, list[str]]:
    """Read a support set: a folder that holds a folder of images for each class.

    Args:
        folder: `folder/<class>/*`, as `labelled_files` reads it.
        input_shape: `(channels, size, size)`, such as `model.spec.input_shape`.
        invert: Whether dark becomes light.

    Returns:
        `(M, channels, size, size)` uint8, and the M names of their classes.

    Raises:
        UserError: There is no such folder, fewer than two classes, a class without images, or a file is no image.
    """
    files, labels = labelled_files(folder)
    return read_images(files, input_shape, invert), labels


def labelled_files(folder: str | Path) -> tuple[list[Path], list[str]]:
    """The images of a folder that holds a folder for each class.

    Args:
        folder: `folder/<class>/*`; hidden files and those without the suffix of an image are passed over.

    Returns:
        M files, class by class, and the M names of their classes.

    Raises:
        UserError: There is no such folder, fewer than two classes, or a class without images.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"{root}: there is no such folder")
    classes = folders_in(root)
    if len(classes) < 2:
        raise UserError(f"{root}: found {len(classes)} class folders; a folder for each class, two at least, is needed")
    found = [(file, name.name) for name in classes for file in images_of(name)]
    return [file for file, _ in found], [name for _, name in found]


def image_files(places: Sequence[str | Path]) -> list[Path]:
    """Image files: those that are named, and those in folders and the folders below them.

    Args:
        places: Files and folders.

    Returns:
        The files, each once, sorted by path.

    Raises:
        UserError: A place is not there, there is no image in any, or a name is not in UTF-8.
    """
    found: list[Path] = []
    for place in map(Path, places):
        refuse_odd_name(place)
        if place.is_dir():
            found += _below(place)
        elif place.is_file():
            found.append(place)
        else:
            raise UserError(f"{place}: there is no such file or folder")
    if not found:
        raise UserError(f"{', '.join(map(str, places))}: found no images")
    return sorted(set(found), key=Path.as_posix)


def _below(folder: Path) -> list[Path]:
    """The images in a folder and below it; each folder is read once, by however many links it is reached."""
    waiting, seen, images = [folder], set[tuple[int, int]](), list[Path]()
    while waiting:
        folder = waiting.pop()
        try:
            state = folder.stat()
        except OSError as error:
            raise UserError(f"{folder}: the folder cannot be read ({error.strerror})") from error
        if (state.st_dev, state.st_ino) in seen:
            continue
        seen.add((state.st_dev, state.st_ino))
        if len(seen) > MOST_FOLDERS:
            raise UserError(f"{folder}: there are more than {MOST_FOLDERS:,} folders; does a link lead out of yours?")
        images += image_files_in(folder)
        waiting += reversed(folders_in(folder))
    return images
