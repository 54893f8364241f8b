"""mini-ImageNet: 100 classes of ImageNet with 600 images each."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from reprlib import repr

from lightning_meta.batches import SPLITS, Split
from lightning_meta.data.files import data_folder
from lightning_meta.data.image_files import ImageFilesSource, Listing
from lightning_meta.errors import UserError, reason_of
from lightning_meta.reading import read_text
from lightning_meta.sources.class_lists import class_list

LISTS_URL = "https://github.com/twitter-research/meta-learning-lstm/tree/master/data/miniImagenet"
PER_CLASS = 600


class MiniImageNet(ImageFilesSource):
    """mini-ImageNet in the split of Ravi and Larochelle (2017): 64, 16 and 20 classes, 600 images each.

    ImageNet's licence forbids redistribution, so you must provide the images as `root/images/*.jpg`, with the names of
    the published lists `train.csv`, `val.csv` and `test.csv`. The lists are read from `root`, or as
    `mini_imagenet_<split>.csv` from `$LIGHTNING_META_DATA/splits`. The name of a class is its WordNet ID.

    At a glance:
        - Classes: 64 / 16 / 20.
        - Examples: 600.
        - From: your copy of the images.

    Args:
        root: Folder that contains the folder `images`.
        image_size: Height and width in pixels to which images are resized, with antialiasing (Lanczos).
    """

    def __init__(self, root: str | Path, image_size: int = 84) -> None:
        self._setup(root, image_size, channels=3)

    def _listing(self) -> Listing:
        if not (self.root / "images").is_dir():
            raise UserError(
                f"MiniImageNet root={self.root}: it has no folder 'images'; put the 60,000 images "
                f"there (they are part of ImageNet, image-net.org, and cannot be downloaded automatically)"
            )
        listing = {split: self._read_list(split) for split in SPLITS}
        files = [file for classes in listing.values() for of_class in classes.values() for file in of_class]
        try:
            present = {file.name for file in (self.root / "images").iterdir()}
        except OSError as error:
            raise UserError(f"{self.root / 'images'}: the folder cannot be read ({error.strerror})") from error
        if missing := [file for file in files if file.name not in present]:
            raise UserError(
                f"{missing[0]}: this image is missing ({len(missing)} of {len(files)} are missing); copy them "
                f"from ImageNet (image-net.org) with the names in the lists of {LISTS_URL}"
            )
        return listing

    def _read_list(self, split: Split) -> dict[str, list[Path]]:
        """Return the files of each class of a split, in the published order of classes."""
        path = self._list_path(split)
        classes: dict[str, list[Path]] = {name: [] for name in class_list("mini_imagenet")[split]}
        try:
            rows = list(csv.DictReader(io.StringIO(read_text(path), newline="")))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            cause = reason_of(error)
            raise UserError(
                f"{path}: not a list of images ({cause}); get the published one from {LISTS_URL}"
            ) from error
        for row in rows:
            name, file = row.get("label"), row.get("filename")
            if name not in classes or not file or Path(file).name != file:
                raise UserError(f"{path}: unexpected row {repr(row)}; get the published list from {LISTS_URL}")
            classes[name].append(self.root / "images" / file)
        for name, files in classes.items():
            if len(set(files)) != PER_CLASS:
                raise UserError(
                    f"{path}: class {name} has {len(set(files))} images, expected {PER_CLASS}; get the "
                    f"published list from {LISTS_URL}"
                )
        return classes

    def _list_path(self, split: Split) -> Path:
        candidates = [self.root / f"{split}.csv"]
        if (folder := data_folder()) is not None:
            candidates.append(folder / "splits" / f"mini_imagenet_{split}.csv")
        for path in candidates:
            if path.is_file():
                return path
        raise UserError(f"{candidates[0]}: the list of images is missing; get it from {LISTS_URL}")
