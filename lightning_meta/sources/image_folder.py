"""A source for the user's own images, with one folder per class."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from lightning_meta.batches import SPLITS, Split
from lightning_meta.checks import whole
from lightning_meta.data.image_files import ImageFilesSource, Listing, folders_in, image_files_in, images_of
from lightning_meta.data.pool import Pool
from lightning_meta.errors import UserError
from lightning_meta.sources.class_lists import refuse_shared
from lightning_meta.sources.division import divided, divided_classes, enough_classes

OTHER_FOLDER = "; or use another folder of images here: classes that are new to a few-shot model are learned by predict"


class ImageFolder(ImageFilesSource):
    """Images in folders named by class: `root/train|val|test/<class>/*`, or `root/<class>/*`.

    For few-shot learning, the folders of the first layout state which class is in which split. In the second layout the
    classes are divided at random; the division depends only on `seed` and the names of the classes, so it is the same
    on every machine.

    Files with the usual suffixes of images are read in the order of their names; hidden files, other files and folders
    inside a class are skipped. A warning names photographs in formats that are not supported, such as HEIC. Images are
    rotated according to their EXIF orientation and resized to a square without keeping their proportions (Lanczos,
    antialiased); transparent pixels are shown on white, and only the first frame of an animation is read. Symbolic
    links are followed.

    At a glance:
        - Classes: yours.
        - Examples: yours.
        - Tasks: each group of `root/<group>/<class>/*`.
        - Held out: a share of each class.
        - From: your folder, `root/train|val|test/<class>/*` or `root/<class>/*`.

    Args:
        root: Folder of the images.
        image_size: Height and width of the images in pixels.
        channels: Number of channels: 3 for colour, 1 for grey.
        fractions: Shares of train, val and test, > 0, with sum 1: shares of the classes, or for multi-task learning of
            the images of each class. Used only if the folder has no splits; each split gets at least one.
        least_classes: Smallest number of classes per split, which has priority over the fractions; set it to the number
            of ways of the tasks. Used only if the folder has no splits.
        seed: Seed of the division into train, val and test.
    """

    def __init__(
        self,
        root: str | Path,
        image_size: int = 84,
        channels: Literal[1, 3] = 3,
        fractions: tuple[float, float, float] = (0.6, 0.15, 0.25),
        seed: int = 0,
        least_classes: int = 1,
    ) -> None:
        self._setup(root, image_size, channels)
        whole(1, least_classes=least_classes)
        if len(fractions) != 3 or min(fractions) <= 0 or not math.isclose(sum(fractions), 1, abs_tol=1e-6):
            raise UserError(
                f"ImageFolder fractions={list(fractions)}: expected three positive numbers that add up to 1"
            )
        self.fractions = fractions
        self.seed = seed
        self.least_classes = least_classes

    def held_out(self) -> dict[Split, Pool]:
        """Return every class in each split: `root/train|val|test/<class>/*` with the same classes, or `root/<class>/*`.

        In the first layout the folders state which image is in which split; in the second the images of each class are
        divided, depending only on `fractions`, `seed` and the names of the files. A folder that holds folders and no
        images is a group of classes, and thus a task: `root/<group>/<class>/*`, or `root/train/<group>/<class>/*` etc.

        Raises:
            UserError: A class has no image in some split, or fewer than three images to divide.
        """
        return self._held_out_of(self._held_out_listing())

    def prepare_held_out(self) -> None:
        """As `prepare`, for `held_out`."""
        listing = self._held_out_listing()
        self._warn_of_unread(listing)
        self._held_out_of(listing)

    def _held_out_of(self, listing: Listing) -> dict[Split, Pool]:
        key = self._key_of(listing)
        return self._held_out(f"examples divided; {key}", lambda: self._decode(listing, key))

    def _held_out_listing(self) -> Listing:
        self._check_root()
        if any(folders_in(self.root / split) for split in SPLITS):
            classes = {split: _classes(self.root / split) for split in SPLITS}
            for split, other in ((a, b) for a in SPLITS for b in SPLITS):
                if missing := sorted(classes[split].keys() - classes[other].keys()):
                    raise UserError(
                        f"{self.root / other}: there is no class {missing[0]!r}, which {split} has; "
                        f"tasks need every class in train, val and test"
                    )
            return {split: {name: images_of(f) for name, f in sorted(classes[split].items())} for split in SPLITS}
        listing: Listing = {split: {} for split in SPLITS}
        for name, folder in sorted(_classes(self.root).items()):
            files = {file.name: file for file in images_of(folder)}
            if len(files) < len(SPLITS):
                raise UserError(f"{folder}: found {len(files)} images; train, val and test need at least one each")
            split_of = divided(set(files), self.fractions, self.seed, least=1)
            for split in SPLITS:
                listing[split][name] = [file for file_name, file in files.items() if split_of[file_name] == split]
        if not listing["train"]:
            raise UserError(f"{self.root}: found no class folders")
        return listing

    def _check_root(self) -> None:
        if not self.root.is_dir():
            option = "--data.source.root"
            raise UserError(f"ImageFolder root={self.root}: there is no such folder; name yours with {option} FOLDER")

    def _listing(self) -> Listing:
        self._check_root()
        if any(folders_in(self.root / split) for split in SPLITS):
            folders = {split: {f.name: f for f in folders_in(self.root / split)} for split in SPLITS}
            self._check_division(folders)
        else:
            folders = self._divide(folders_in(self.root))
        return {
            split: {name: images_of(folder) for name, folder in classes.items()} for split, classes in folders.items()
        }

    def _check_division(self, folders: dict[Split, dict[str, Path]]) -> None:
        for split in SPLITS:
            if not folders[split]:
                raise UserError(
                    f"{self.root / split}: there are no class folders here; train, val and test need at "
                    f"least one each, or none of the three folders should exist"
                )
        refuse_shared(folders, str(self.root), "move each class into one of them")

    def more_classes(self, needs: Mapping[Split, tuple[int, int]]) -> str:
        """Return advice for a message: a `least_classes` with which every split has enough, or a smaller way."""
        tasks = ", ".join(f"{ways} of {examples} images in {split}" for split, (ways, examples) in needs.items())
        if any(folders_in(self.root / split) for split in SPLITS):
            return f"by folders in {self.root}/train, val and test: tasks need {tasks}"
        count = len(folders_in(self.root))
        if (least := enough_classes(count, self.fractions, self.least_classes, needs)) is not None:
            return f"with least_classes={least} of ImageFolder: tasks need {tasks}, and there are {count} classes"
        fewer = count // 3
        ways = f"; or set least_classes of ImageFolder and the ways of tasks to {fewer}" if fewer > 1 else ""
        return f"by more class folders: tasks need {tasks}, and there are {count}{ways}"

    def _divide(self, folders: Sequence[Path]) -> dict[Split, dict[str, Path]]:
        if len(folders) < 3:
            raise UserError(
                f"{self.root}: found {len(folders)} class folders, but train, val and test need at least one each, and "
                "as many as the ways of a task for few-shot learning; root is the folder that contains a folder "
                f"of images for each class{OTHER_FOLDER}"
            )
        least, most = self.least_classes, len(folders) // 3
        if least > most:
            fewer = f", or set least_classes and the ways of tasks to {most}" if most > 1 else ""
            raise UserError(
                f"ImageFolder least_classes={least}: {least} classes each for train, val and test are {3 * least}, but "
                f"{self.root} has {len(folders)} class folders; add some{fewer}{OTHER_FOLDER}"
            )
        by_name = {folder.name: folder for folder in folders}
        parts = divided_classes(by_name, self.fractions, least, self.seed)
        return {split: {name: by_name[name] for name in names} for split, names in parts.items()}


def _classes(root: Path) -> dict[str, Path]:
    """Return the folders of the classes of all groups by name, which is `class` or `group/class`."""
    classes: dict[str, Path] = {}
    for folder in folders_in(root):
        inside = [] if image_files_in(folder) else folders_in(folder)
        classes |= {f"{folder.name}/{f.name}": f for f in inside} if inside else {folder.name: folder}
    return classes
