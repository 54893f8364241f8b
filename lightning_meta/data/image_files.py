"""What the sources that read a user's folder of images share: list it, check it, decode it."""

from __future__ import annotations

import hashlib
import os
import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from lightning_meta.batches import SPLITS, Split
from lightning_meta.data.decoded import DecodedSource, progress
from lightning_meta.data.pool import Pool
from lightning_meta.errors import UserError
from lightning_meta.reading import open_regular

Listing = dict[Split, dict[str, list[Path]]]
"""The files of each class of each split, in the order of the pool."""


SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
# Pillow looks at the content, not at the suffix, and some of its other readers start programs.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


class ImageFilesSource(DecodedSource):
    """Images in files of a folder: a subclass lists which file is of which class and split.

    Images are turned as their EXIF orientation says, resized to a square without keeping their proportions
    (Lanczos, antialiased), and an alpha channel is dropped. Symbolic links are followed. The cache is bound
    to the folder and to the names, sizes and times of its files: a folder that changes is decoded anew.
    """

    root: Path
    image_size: int
    channels: int
    _keyed: str

    def _setup(self, root: str | Path, image_size: int, channels: int) -> None:
        name = type(self).__name__
        if image_size < 1:
            raise UserError(f"{name} image_size={image_size}: expected at least 1 pixel")
        if channels not in (1, 3):
            raise UserError(f"{name} channels={channels}: expected 1 (grey) or 3 (colour)")
        self.root = Path(root).expanduser()
        refuse_odd_name(self.root)
        self.image_size = image_size
        self.channels = channels

    @abstractmethod
    def _listing(self) -> Listing:
        """List the files, and complain about what is missing."""

    def example_names(self, split: Split) -> Mapping[str, Sequence[str]]:
        """By class, the names of its files."""
        return {name: [file.name for file in files] for name, files in self._listing()[split].items()}

    def _key(self) -> str:
        return self._key_of(self._listing())

    def _key_of(self, listing: Listing) -> str:
        sha = hashlib.sha256(os.fsencode(self.root.resolve()))
        for split, classes in listing.items():
            for name, files in classes.items():
                for file in files:
                    try:
                        state = file.stat()
                    except OSError as error:
                        raise UserError(f"{file}: the file cannot be read ({error.strerror})") from error
                    sha.update(repr((split, name, file.name, state.st_size, state.st_mtime_ns)).encode())
        self._keyed = f"{self.channels} channels, {self.image_size} pixels, lanczos, files {sha.hexdigest()}"
        return self._keyed

    def _decode(self) -> dict[Split, Pool]:
        return self._pools_of(self._listing())

    def _pools_of(self, listing: Listing) -> dict[Split, Pool]:
        before = self._keyed
        pools = {split: self._pool(listing[split], split) for split in SPLITS}
        if self._key_of(listing) != before:  # what was read now must not be kept for what the files were then
            raise UserError(f"{self.root}: files changed while they were read; wait until all are there and run again")
        return pools

    def _pool(self, classes: dict[str, list[Path]], split: Split) -> Pool:
        files = [file for of_class in classes.values() for file in of_class]
        x = np.empty((len(files), self.channels, self.image_size, self.image_size), np.uint8)
        # Pillow releases the GIL, so threads decode in parallel. A bomb's warning is an error in all of them.
        with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as threads:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            decoded = threads.map(lambda file: decode(file, self.image_size, self.channels), files)
            for i, image in enumerate(progress(decoded, f"decoding the {split} images", total=len(files))):
                x[i] = image
        sizes = torch.tensor([len(of_class) for of_class in classes.values()], dtype=torch.int64)
        groups = tuple(name.rpartition("/")[0] for name in classes)
        return Pool(torch.from_numpy(x), sizes, tuple(classes), groups)


def folders_in(root: Path) -> list[Path]:
    """The folders right in a folder, hidden ones left out, by name; none where there is no such folder."""
    if not root.is_dir():
        return []
    return sorted(f for f in _entries(root) if f.is_dir())


def image_files_in(folder: Path) -> list[Path]:
    """The files right in a folder that have the suffix of an image, hidden ones left out, by name."""
    return sorted(f for f in _entries(folder) if f.suffix.lower() in SUFFIXES and not f.is_dir())


def _entries(folder: Path) -> list[Path]:
    """What lies in a folder, hidden ones left out."""
    try:
        entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(f"{folder}: the folder cannot be read ({error.strerror})") from error
    for entry in entries:
        refuse_odd_name(entry)
    return entries


def refuse_odd_name(path: Path) -> None:
    """Refuse a name that no table can hold.

    Raises:
        UserError: It is not in UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UserError(f"{path}: the name is not in UTF-8; rename it") from None


def images_of(folder: Path) -> list[Path]:
    """The images of a class.

    Raises:
        UserError: There are none.
    """
    if found := image_files_in(folder):
        return found
    raise UserError(f"{folder}: this class has no images ({', '.join(sorted(SUFFIXES))}); add some or remove it")


def refuse_deep(image: Image.Image, where: str) -> None:
    """Refuse more than 8 bits a channel, which Pillow would clip to white without a word."""
    if image.mode[0] in "IF":
        raise UserError(f"{where}: pixels of mode {image.mode}; convert the image to 8 bits a channel")


def decode(path: Path, size: int, channels: int, invert: bool = False) -> np.ndarray:
    """One image file as uint8 `(channels, size, size)`, light and dark exchanged where that is asked for.

    Raises:
        UserError: The file is empty, truncated, no image, too large to be safe, or has more than 8 bits.
    """
    if path.exists() and not path.is_file():  # to read from a pipe is to wait
        raise UserError(f"{path}: this is not a regular file; remove it")
    try:
        with open_regular(path) as file, Image.open(file, formats=FORMATS) as image:
            refuse_deep(image, str(path))
            upright = ImageOps.exif_transpose(image).convert("L" if channels == 1 else "RGB")
        if invert:  # before it is resized, as `Omniglot` does it: afterwards some pixels are rounded the other way
            upright = ImageOps.invert(upright)
        resized = upright.resize((size, size), Image.Resampling.LANCZOS)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: the image is too large to be safe ({error}); shrink or remove it") from error
    except UserError:
        raise
    except Exception as error:  # Pillow's readers raise whatever their parts do, as struct.error for a damaged EXIF tag
        why = str(error) or type(error).__name__
        what = "is empty" if path.exists() and not path.stat().st_size else f"cannot be read as an image ({why})"
        raise UserError(f"{path}: the file {what}; mend or remove it") from error
    return np.asarray(resized).reshape(size, size, channels).transpose(2, 0, 1)
