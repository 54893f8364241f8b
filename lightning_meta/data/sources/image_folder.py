"""A user's own images: a folder a class."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from lightning_meta.batches import SPLITS, Split
from lightning_meta.data.sources.class_lists import refuse_shared
from lightning_meta.data.sources.image_files import ImageFilesSource, Listing
from lightning_meta.errors import UserError

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


class ImageFolder(ImageFilesSource):
    """Images in folders named by class: `root/train|val|test/<class>/*`, or `root/<class>/*`.

    In the first layout the folders say which class is in which split. In the second the classes are divided
    here: at random, but the same on every machine, and by `seed` and the names of the classes alone.

    Files with the usual suffixes of images are read in the order of their names, hidden files and others are
    passed over, and so are folders inside a class. Images are turned as their EXIF orientation says, resized
    to a square without keeping their proportions (Lanczos, antialiased), and an alpha channel is dropped; of
    an animation the first frame is read. Symbolic links are followed.

    Args:
        root: The folder.
        image_size: Height and width of the images in pixels.
        channels: 3 for colour, 1 for grey.
        fractions: Which part of the classes goes to train, val and test, where the folder does not say; each
            gets one class at least.
        seed: Draws another division into train, val and test.
    """

    def __init__(
        self,
        root: str | Path,
        image_size: int = 84,
        channels: Literal[1, 3] = 3,
        fractions: tuple[float, float, float] = (0.6, 0.15, 0.25),
        seed: int = 0,
    ) -> None:
        self._setup(root, image_size, channels)
        if len(fractions) != 3 or min(fractions) <= 0 or not math.isclose(sum(fractions), 1, abs_tol=1e-6):
            raise UserError(
                f"ImageFolder fractions={list(fractions)}: expected three positive numbers that add up to 1"
            )
        self.fractions = fractions
        self.seed = seed

    def _listing(self) -> Listing:
        if not self.root.is_dir():
            raise UserError(f"ImageFolder root={self.root}: there is no such folder")
        if any(_folders(self.root / split) for split in SPLITS):
            folders = {split: {f.name: f for f in _folders(self.root / split)} for split in SPLITS}
            self._check_division(folders)
        else:
            folders = self._divide(_folders(self.root))
        return {
            split: {name: _images(folder) for name, folder in classes.items()} for split, classes in folders.items()
        }

    def _check_division(self, folders: dict[Split, dict[str, Path]]) -> None:
        for split in SPLITS:
            if not folders[split]:
                raise UserError(
                    f"{self.root / split}: there are no class folders here; train, val and test need one "
                    f"each at least, or none of the three folders should exist"
                )
        refuse_shared(folders, str(self.root), "move each class into one of them")

    def _divide(self, folders: Sequence[Path]) -> dict[Split, dict[str, Path]]:
        if len(folders) < 3:
            raise UserError(
                f"{self.root}: found {len(folders)} class folders; train, val and test need one each at least"
            )
        # A hash and not a random generator: the same on any release of any library.
        drawn = sorted(folders, key=lambda f: hashlib.sha256(f"{self.seed}/{f.name}".encode()).digest())
        val = max(1, min(round(self.fractions[1] * len(drawn)), len(drawn) - 2))
        test = max(1, min(round(self.fractions[2] * len(drawn)), len(drawn) - 1 - val))
        parts: dict[Split, Sequence[Path]] = {
            "train": drawn[val + test :],
            "val": drawn[:val],
            "test": drawn[val : val + test],
        }
        return {split: {f.name: f for f in sorted(parts[split])} for split in SPLITS}


def _folders(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return sorted(f for f in root.iterdir() if f.is_dir() and not f.name.startswith("."))


def _images(folder: Path) -> list[Path]:
    files = (f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and not f.name.startswith("."))
    if found := sorted(f for f in files if not f.is_dir()):
        return found
    raise UserError(f"{folder}: this class has no images ({', '.join(sorted(SUFFIXES))}); add some or remove it")
