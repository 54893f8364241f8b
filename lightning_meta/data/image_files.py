"""Listing, checking and decoding of image files, shared by the sources that read a user's folder of images."""

from __future__ import annotations

import hashlib
import logging
import os
import warnings
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError, features

from lightning_meta.batches import SPLITS, Split
from lightning_meta.data.decoded import DecodedSource, progress
from lightning_meta.data.pool import Pool
from lightning_meta.errors import UserError, some_of
from lightning_meta.reading import no_file, open_regular

_log = logging.getLogger(__name__)

Listing = dict[Split, dict[str, list[Path]]]
"""Files of each class by split, in the order of the pool."""
Faults = list[tuple[Path, UserError]]
"""Files that cannot be decoded, and their errors."""
NAMED = 5  # faulty files that an error names

_AVIF = "avif" in features.modules and features.check("avif")  # Pillow 11.3 or newer, if built with libavif
SUFFIXES = frozenset(
    {".apng", ".bmp", ".dib", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm", ".pgm", ".png", ".pnm", ".ppm"}
    | {".tif", ".tiff", ".webp", *([".avif"] if _AVIF else [])}
)
"""Suffixes of the files that are read, in lower case."""
UNREAD = frozenset(
    {".avif", ".heic", ".heif", ".hif", ".j2k", ".jp2", ".jxl", ".psd", ".tga"}
    | {".3fr", ".arw", ".cr2", ".cr3", ".dng", ".erf", ".iiq", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2"}
    | {".rwl", ".sr2", ".srf", ".srw", ".x3f"}
).difference(SUFFIXES)
"""Suffixes of photographs whose formats are not supported; such files are reported and not read."""
# Pillow selects a reader by the content, not the suffix, and some of its other readers start programs.
FORMATS = ("BMP", "DIB", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP", *(["AVIF"] if _AVIF else []))


class ImageFilesSource(DecodedSource):
    """Images in the files of a folder; a subclass lists the files of each class and split.

    Images are rotated according to their EXIF orientation and resized to a square without keeping their proportions
    (Lanczos, antialiased), and transparent pixels are shown on white. Symbolic links are followed. The key of the cache
    includes the folder and the names, sizes and modification times of its files: a folder that changes is decoded
    again.
    """

    root: Path
    image_size: int
    channels: int
    _warned = False

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
        """List the files.

        Raises:
            UserError: Files or folders are missing.
        """

    def prepare(self) -> None:
        """Decode the files into the cache, after a warning of images whose formats are not supported."""
        listing = self._listing()
        self._warn_of_unread(listing)
        self._pools_of(listing)

    def pools(self) -> dict[Split, Pool]:
        """Return the pools of the splits, decoded again if the folder has changed."""
        return self._pools_of(self._listing())

    def _pools_of(self, listing: Listing) -> dict[Split, Pool]:
        key = self._key_of(listing)
        return self._pools(key, lambda: self._decode(listing, key))

    def _warn_of_unread(self, listing: Listing) -> None:
        """Warn, once per source, of files beside those of a listing."""
        if not self._warned:
            self._warned = True
            classes = [files for of_split in listing.values() for files in of_split.values()]
            warn_of_unread({file.parent for files in classes for file in files})

    def example_names(self, split: Split) -> Mapping[str, Sequence[str]]:
        """Return the names of the files of each class."""
        return {name: [file.name for file in files] for name, files in self._listing()[split].items()}

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
        return f"{self.channels} channels, {self.image_size} pixels, lanczos, on white, files {sha.hexdigest()}"

    def _decode(self, listing: Listing, key: str) -> dict[Split, Pool]:
        """Decode the files of a listing, whose `_key_of` was `key` before."""
        faults: Faults = []
        pools = {split: self._pool(listing[split], split, faults) for split in SPLITS}
        refuse(faults)
        if self._key_of(listing) != key:  # the pools must not be cached under the key of the earlier files
            raise UserError(f"{self.root}: files changed while they were read; wait until all are there and run again")
        return pools

    def _pool(self, classes: dict[str, list[Path]], split: Split, faults: Faults) -> Pool:
        files = [file for of_class in classes.values() for file in of_class]
        x = np.empty((len(files), self.channels, self.image_size, self.image_size), np.uint8)
        # Pillow releases the GIL, so threads decode in parallel. Its warning of a decompression bomb becomes an error.
        with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as threads:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            decoded = threads.map(lambda file: decode_or_note(faults, file, self.image_size, self.channels), files)
            for i, image in enumerate(progress(decoded, f"decoding the {split} images", total=len(files))):
                if image is not None:
                    x[i] = image
        sizes = torch.tensor([len(of_class) for of_class in classes.values()], dtype=torch.int64)
        groups = tuple(name.rpartition("/")[0] for name in classes)
        return Pool(torch.from_numpy(x), sizes, tuple(classes), groups)


def folders_in(root: Path) -> list[Path]:
    """Return the folders directly in a folder, without hidden ones, sorted by name; none if `root` does not exist."""
    if not root.is_dir():
        return []
    return sorted(f for f in _entries(root) if f.is_dir())


def image_files_in(folder: Path) -> list[Path]:
    """Return the files directly in a folder that have the suffix of an image, without hidden ones, sorted by name."""
    return sorted(f for f in _entries(folder) if f.suffix.lower() in SUFFIXES and not f.is_dir())


def unread_files_in(folder: Path) -> list[Path]:
    """Return the images directly in a folder whose formats are not supported, without hidden ones, sorted by name."""
    return sorted(f for f in _entries(folder) if f.suffix.lower() in UNREAD and not f.is_dir())


def named_unread(files: Sequence[Path]) -> str:
    """Count and name images whose formats are not supported, for a message; with the remedy."""
    count = "1 file has a format that is" if len(files) == 1 else f"{len(files)} files have formats that are"
    suffixes = ", ".join(sorted({file.suffix.lower() for file in files}))
    remedy = "convert it" if len(files) == 1 else "convert them"
    return f"{count} not supported ({suffixes}): {some_of(map(str, files), NAMED)}; {remedy} to JPEG"


def warn_of_unread(folders: Iterable[Path]) -> None:
    """Log one warning that counts and names the images in some folders whose formats are not supported."""
    if unread := [file for folder in sorted(folders) for file in unread_files_in(folder)]:
        _log.warning("left out: %s", named_unread(unread))


def _entries(folder: Path) -> list[Path]:
    """Return the files and folders in a folder, without hidden ones."""
    try:
        entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(f"{folder}: the folder cannot be read ({error.strerror})") from error
    for entry in entries:
        refuse_odd_name(entry)
    return entries


def refuse_odd_name(path: Path) -> None:
    """Check that a name can be written into tables, which are in UTF-8.

    Raises:
        UserError: The name is not in UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UserError(f"{path}: the name is not in UTF-8; rename it") from None


def images_of(folder: Path) -> list[Path]:
    """Return the image files of a class.

    Raises:
        UserError: There are no images.
    """
    if images := image_files_in(folder):
        return images
    if unread := unread_files_in(folder):
        raise UserError(f"{folder}: this class has no images that can be read; {named_unread(unread)}")
    raise UserError(f"{folder}: this class has no images ({', '.join(sorted(SUFFIXES))}); add some or remove it")


def refuse_deep(image: Image.Image, where: str) -> None:
    """Check that an image has at most 8 bits per channel; Pillow would clip larger values to white silently.

    Args:
        image: Opened image.
        where: Name of the image, at the beginning of the message.

    Raises:
        UserError: The image has more than 8 bits per channel.
    """
    if image.mode[0] in "IF":
        raise UserError(f"{where}: pixels of mode {image.mode}; convert the image to 8 bits a channel")


def on_white(image: Image.Image, mode: str) -> Image.Image:
    """Convert an image, with transparent pixels shown on white; without any, alpha is dropped.

    Dropping alpha would show the colour below transparent pixels, which is usually black and can hide a whole drawing.

    Args:
        image: Opened image.
        mode: `L` or `RGB`.
    """
    if image.has_transparency_data:
        with_alpha = image.convert("RGBA")
        if with_alpha.getchannel("A").getextrema() != (255, 255):
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), with_alpha)
    return image if image.mode == mode else image.convert(mode)


def decode_or_note(faults: Faults, path: Path, size: int, channels: int, invert: bool = False) -> np.ndarray | None:
    """Return the result of `decode`; None if the file cannot be decoded, which is added to `faults`."""
    try:
        return decode(path, size, channels, invert)
    except UserError as error:
        faults.append((path, error))
        return None


def refuse(faults: Faults) -> None:
    """Raise the error of the first file, which also names some of the others.

    Raises:
        UserError: There are faults.
    """
    if not faults:
        return
    (path, first), *others = sorted(faults, key=lambda fault: fault[0].as_posix())  # threads note them in any order
    if not path.exists():  # a similar name is looked for once, and not for each of many missing files
        first = UserError(no_file(path))
    if not others:
        raise first
    files = "1 more file has such a fault" if len(others) == 1 else f"{len(others)} more files have such faults"
    raise UserError(f"{first}; {files}: {some_of((str(path) for path, _ in others), NAMED - 1)}") from first


def decode(path: Path, size: int, channels: int, invert: bool = False) -> np.ndarray:
    """Decode an image file.

    Args:
        path: Path of the file.
        size: Height and width in pixels to which the image is resized.
        channels: Number of channels: 3 for colour, 1 for grey.
        invert: Whether to invert brightness.

    Returns:
        Image `(channels, size, size)`, uint8.

    Raises:
        UserError: The file is missing, empty, truncated, not an image or too large to be safe, or has over 8 bits per
            channel.
    """
    if not path.exists():
        raise UserError(f"there is no file {path}")
    if not path.is_file():  # reading a named pipe would block
        raise UserError(f"{path}: this is not a regular file; remove it")
    try:
        with open_regular(path) as file, Image.open(file, formats=FORMATS) as image:
            refuse_deep(image, str(path))
            # Both steps would copy an upright image of the right mode, which takes a third of the time for photographs.
            ImageOps.exif_transpose(image, in_place=True)
            upright = on_white(image, "L" if channels == 1 else "RGB")
            if invert:  # before resizing, as in `Omniglot`; afterwards some pixels would be rounded differently
                upright = ImageOps.invert(upright)
            # `draft` and `reducing_gap` would be faster, but change pixels, and with them the results of stored models.
            resized = upright.resize((size, size), Image.Resampling.LANCZOS)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: the image is too large to be safe ({error}); shrink or remove it") from error
    except UserError:
        raise
    except Exception as error:  # Pillow raises errors of other libraries, such as struct.error for a damaged EXIF tag
        unknown = isinstance(error, UnidentifiedImageError)  # whose message has the number of the open file
        cause = "its content is of no known format" if unknown else str(error) or type(error).__name__
        if path.suffix.lower() in UNREAD:
            raise UserError(f"{path}: {path.suffix} files are not supported; convert it to JPEG") from error
        problem = "is empty" if path.exists() and not path.stat().st_size else f"cannot be read as an image ({cause})"
        raise UserError(f"{path}: the file {problem}; repair or remove it") from error
    return np.asarray(resized).reshape(size, size, channels).transpose(2, 0, 1)
