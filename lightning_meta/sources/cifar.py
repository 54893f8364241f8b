"""CIFAR-FS and FC100: the 100 classes of CIFAR-100, split for few-shot learning in two ways."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from abc import abstractmethod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from lightning_meta.batches import SPLITS, Split
from lightning_meta.data.decoded import DecodedSource, progress
from lightning_meta.data.files import Limited, OfficialFile, WrongContentError, read_official
from lightning_meta.data.pool import Pool
from lightning_meta.sources import restricted_pickle
from lightning_meta.sources.class_lists import class_list

ARCHIVE = "cifar-100-python.tar.gz"
URL = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"

IMAGES = {"train": 50000, "test": 10000}
PER_CLASS = 600

# The sha256 of superclass, class and images, class by class in alphabetical order, images in canonical order.
CONTENT = "ceb1680246a70fe066aa553ae9e94015f0ac8edb18e7ac50e59c6acc4ad243eb"

# Of one member of the archive, of which the largest has 155 MB, or 225 as pickled by Python 3; and of all of them.
_MAX_BYTES, _MAX_UNPACKED = 256 * 2**20, 384 * 2**20


class CifarClass(NamedTuple):
    """A class of CIFAR-100.

    Attributes:
        superclass: One of 20.
        images: `(600, 3072)` uint8, ordered by their hash.
        official_test: `(600,)` bool, whether each image is from the test file.
    """

    superclass: str
    images: np.ndarray
    official_test: np.ndarray


class _Cifar100(DecodedSource):
    """The official archive, train and test files taken together: 600 images of each class.

    Args:
        url: Where to download the archive from.
    """

    def __init__(self, url: str = URL) -> None:
        self.url = url

    @abstractmethod
    def _split(self, superclass: dict[str, str]) -> dict[Split, list[str]]:
        """The classes of each split, given the superclass of every class."""

    def _key(self) -> str:
        return f"{type(self).__name__} of the official archive"

    def _decode(self) -> dict[Split, Pool]:
        classes = read_official(OfficialFile(ARCHIVE, self.url), read_cifar100)
        names = self._split({name: c.superclass for name, c in classes.items()})
        return {split: _pool(names[split], classes) for split in SPLITS}


class CIFARFS(_Cifar100):
    """CIFAR-FS (Bertinetto et al. 2019): 64, 16 and 20 classes of CIFAR-100, divided at random.

    Images are 32x32 in colour, 600 a class; the group of a class is its superclass. Found as
    `$LIGHTNING_META_DATA/cifar-100-python.tar.gz`, or downloaded from its authors (161 MB). Within a class
    the images are ordered by their hash, so that the order of rows in the file does not matter and the first
    n are as good as drawn at random.

    At a glance:
        - Classes: 64 / 16 / 20.
        - Examples: 600.
        - From: its authors, or `LIGHTNING_META_DATA`.

    Args:
        url: Where to download the archive from.
    """

    def _split(self, superclass: dict[str, str]) -> dict[Split, list[str]]:
        return class_list("cifar_fs")


class FC100(_Cifar100):
    """FC100 (Oreshkin et al. 2018): CIFAR-100 divided by superclass: 12, 4 and 4 superclasses.

    That is 60, 20 and 20 classes, and test classes are farther from training classes than in CIFAR-FS. Images
    are 32x32 in colour, 600 a class; the group of a class is its superclass. Found as
    `$LIGHTNING_META_DATA/cifar-100-python.tar.gz`, or downloaded from its authors (161 MB).

    At a glance:
        - Classes: 60 / 20 / 20.
        - Examples: 600.
        - From: its authors, or `LIGHTNING_META_DATA`.

    Args:
        url: Where to download the archive from.
    """

    def _split(self, superclass: dict[str, str]) -> dict[Split, list[str]]:
        splits = class_list("fc100")
        return {s: [name for name, of in superclass.items() if of in splits[s]] for s in SPLITS}


def read_cifar100(path: Path) -> dict[str, CifarClass]:
    """The 100 classes of the archive in alphabetical order.

    Raises:
        WrongContentError: It does not hold the official images.
    """
    found: dict[str, Any] = {}
    unpacked = gzip.open(path)  # noqa: SIM115 - closed below, with the archive
    limited: Any = Limited(unpacked, _MAX_UNPACKED)  # as much of a file as tarfile needs
    with unpacked, tarfile.open(fileobj=limited, mode="r:") as archive:  # members are read, never extracted
        for member in progress(archive, "decoding CIFAR-100", total=len(IMAGES) + 1):
            if member.size > _MAX_BYTES:
                raise WrongContentError(f"its member {member.name} has {member.size} bytes, too many for CIFAR-100")
            stream = archive.extractfile(member) if member.isreg() else None  # links lead to no more than is here
            if stream is not None:
                name = member.name.rpartition("/")[2]
                if name in (*IMAGES, "meta"):
                    found[name] = restricted_pickle.load(io.BytesIO(stream.read()))
    if missing := {*IMAGES, "meta"} - found.keys():
        raise WrongContentError(f"it has no member {' and no member '.join(sorted(missing))}")
    classes = _classes(found)
    sha = hashlib.sha256()
    for name, c in classes.items():
        sha.update(f"{c.superclass}/{name}".encode())
        sha.update(c.images.data)
    if sha.hexdigest() != CONTENT:
        raise WrongContentError(f"its images are not the official ones (their sha256 is {sha.hexdigest()})")
    return classes


def _classes(members: dict[str, Any]) -> dict[str, CifarClass]:
    """Sort the images of all members by class, and within a class by their hash."""
    try:
        fields = {member: {_text(k): v for k, v in content.items()} for member, content in members.items()}
        if not all(isinstance(fields[member]["data"], np.ndarray) for member in IMAGES):
            raise WrongContentError("its images are no array")
        images = np.concatenate([fields[member]["data"] for member in IMAGES])
        fine, coarse = (
            np.concatenate([_integers(fields[member][kind]) for member in IMAGES])
            for kind in ("fine_labels", "coarse_labels")
        )
        names, superclasses = (
            [_text(name) for name in fields["meta"][kind]] for kind in ("fine_label_names", "coarse_label_names")
        )
        if images.dtype != np.uint8 or images.shape != (sum(IMAGES.values()), 3 * 32 * 32):
            raise WrongContentError(f"it has images {images.shape} of {images.dtype}, expected (60000, 3072) of uint8")
        classes = {}
        for name in sorted(names):
            rows = np.flatnonzero(fine == names.index(name))
            test = rows >= IMAGES["train"]  # decides between equal images
            rows = rows[np.lexsort((test, np.array([hashlib.sha256(images[row].data).hexdigest() for row in rows])))]
            if len(rows) != PER_CLASS:
                raise WrongContentError(f"it has {len(rows)} images of class {name}, expected {PER_CLASS}")
            classes[name] = CifarClass(superclasses[int(coarse[rows[0]])], images[rows], rows >= IMAGES["train"])
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise WrongContentError(f"it is not laid out like CIFAR-100 ({type(error).__name__}: {error})") from error
    return classes


def _integers(labels: Any) -> np.ndarray:
    """Labels as an array; lists within lists, of which a few repeated by reference have no end, are none."""
    if not isinstance(labels, np.ndarray) and not (isinstance(labels, list) and all(type(n) is int for n in labels)):
        raise WrongContentError("its labels are no list of whole numbers")
    return np.asarray(labels, np.int64)


def _text(name: bytes | str) -> str:
    return name.decode() if isinstance(name, bytes) else name


def _pool(names: list[str], classes: dict[str, CifarClass]) -> Pool:
    x = torch.from_numpy(np.concatenate([classes[name].images for name in names])).reshape(-1, 3, 32, 32)
    sizes = torch.tensor([len(classes[name].images) for name in names])
    return Pool(x, sizes, tuple(names), tuple(classes[name].superclass for name in names))
