"""Reading of a user's image files as tensors, decoded like the training images of an `ImageFolder`."""

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

from lightning_meta.data.image_files import (
    Faults,
    decode_or_note,
    folders_in,
    image_files_in,
    images_of,
    named_unread,
    refuse,
    refuse_odd_name,
    unread_files_in,
    warn_of_unread,
)
from lightning_meta.errors import UserError

MOST_FOLDERS = 100_000  # a symbolic link to / leads to more


def read_images(files: str | Path | Iterable[str | Path], input_shape: Sequence[int], invert: bool = False) -> Tensor:
    """Read image files, rotate them upright and resize them to a square.

    Args:
        files: M files in any order; or a single file or folder, whose `image_files` are read.
        input_shape: Shape of the images, `(channels, size, size)` with 1 or 3 channels, such as
            `model.spec.input_shape`.
        invert: Whether to invert brightness, for example for dark strokes on white if training had light strokes on
            black.

    Returns:
        Images `(M, channels, size, size)`, uint8.

    Raises:
        UserError: A file is not an image, or the shape is not that of square images.
    """
    if len(input_shape) != 3 or input_shape[0] not in (1, 3) or input_shape[1] != input_shape[2]:
        raise UserError(f"the model takes inputs of shape {tuple(input_shape)}, not square grey or RGB images")
    channels, size, _ = input_shape
    files = image_files([files]) if isinstance(files, str | Path) else files
    faults: Faults = []
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as threads:
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        decoded = threads.map(lambda file: decode_or_note(faults, Path(file), size, channels, invert), files)
        images = [image for image in decoded if image is not None]
    refuse(faults)
    return torch.from_numpy(np.stack(images)) if images else torch.empty(0, channels, size, size, dtype=torch.uint8)


def labelled_files(folder: str | Path) -> tuple[list[Path], list[str]]:
    """List the images in a folder with a folder for each class.

    Args:
        folder: Folder of the classes, `folder/<class>/*`; hidden files and those without the suffix of an image are
            skipped. A warning names photographs in formats that are not supported, such as HEIC.

    Returns:
        M files, sorted by class, and the M names of their classes.

    Raises:
        UserError: The folder does not exist or has fewer than two classes, or a class has no images.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"{root}: there is no such folder")
    classes = folders_in(root)
    if len(classes) < 2:
        raise UserError(f"{root}: found {len(classes)} class folders; expected at least two, one for each class")
    labelled = [(file, class_folder.name) for class_folder in classes for file in images_of(class_folder)]
    warn_of_unread(classes)
    return [file for file, _ in labelled], [name for _, name in labelled]


def image_files(places: Sequence[str | Path]) -> list[Path]:
    """List image files: those that are named, and those in the named folders and their subfolders.

    A warning names photographs in these folders whose formats are not supported, such as HEIC.

    Args:
        places: Files and folders.

    Returns:
        Files without duplicates, sorted by path.

    Raises:
        UserError: A file or folder does not exist, there are no images, or a name is not in UTF-8.
    """
    files, folders = list[Path](), list[Path]()
    for place in map(Path, places):
        refuse_odd_name(place)
        if place.is_dir():
            images, inside = _below(place)
            files, folders = files + images, folders + inside
        elif place.is_file():
            files.append(place)
        else:
            raise UserError(f"{place}: there is no such file or folder")
    if not files:
        unread = sorted({file for folder in folders for file in unread_files_in(folder)})
        which = f" that can be read; {named_unread(unread)}" if unread else ""
        raise UserError(f"{', '.join(map(str, places))}: found no images{which}")
    warn_of_unread(set(folders))
    return sorted(set(files), key=Path.as_posix)


def _below(folder: Path) -> tuple[list[Path], list[Path]]:
    """List the images in a folder and its subfolders, and these folders.

    Each folder is read once, even if several links lead to it.
    """
    waiting, seen, images, folders = [folder], set[tuple[int, int]](), list[Path](), list[Path]()
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
            raise UserError(
                f"{folder}: there are more than {MOST_FOLDERS:,} folders; check for a link to a folder outside"
            )
        images += image_files_in(folder)
        folders.append(folder)
        waiting += reversed(folders_in(folder))
    return images, folders
