"""CIFAR-FS and FC100: two few-shot splits of the 100 classes of CIFAR-100."""

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

# The SHA-256 of superclass, class and images, class by class in alphabetical order, images sorted by their hash.
CONTENT = "ceb1680246a70fe066aa553ae9e94015f0ac8edb18e7ac50e59c6acc4ad243eb"

# Upper limits, in bytes, for one member of the archive, the largest of which has 155 MB (225 MB if pickled by Python
# 3), and for the whole unpacked archive.
_MAX_BYTES, _MAX_UNPACKED = 256 * 2**20, 384 * 2**20


class CifarClass(NamedTuple):
    """A class of CIFAR-100.

    Attributes:
        superclass: Name of its superclass, one of 20.
        images: Images `(600, 3072)`, uint8, sorted by their hash.
        official_test: Mask `(600,)`, bool, of the images from the official test file.
    """

    superclass: str
    images: np.ndarray
    official_test: np.ndarray


class _Cifar100(DecodedSource):
    """CIFAR-100 from the official archive, with the train and test files merged: 600 images per class.

    Args:
        url: URL from which to download the archive.
    """

    def __init__(self, url: str = URL) -> None:
        self.url = url

    @abstractmethod
    def _split(self, superclass: dict[str, str]) -> dict[Split, list[str]]:
        """Return the classes of each split, given the superclass of every class."""

    def pools(self) -> dict[Split, Pool]:
        """Return the pools of the splits, whose groups are the superclasses."""
        return self._pools(f"{type(self).__name__} of the official archive", self._decode)

    def _decode(self) -> dict[Split, Pool]:
        classes = read_official(OfficialFile(ARCHIVE, self.url), read_cifar100)
        names = self._split({name: c.superclass for name, c in classes.items()})
        return {split: _pool(names[split], classes) for split in SPLITS}


class CIFARFS(_Cifar100):
    """CIFAR-FS (Bertinetto et al. 2019): 64, 16 and 20 classes of CIFAR-100, divided at random.

    There are 600 colour images of 32x32 pixels per class; the group of a class is its superclass. The archive is read
    from `$LIGHTNING_META_DATA/cifar-100-python.tar.gz`, or downloaded from its authors (161 MB). Within a class the
    images are sorted by their hash: the order of rows in the file has no effect, and the first n images are
    effectively a random sample.

    At a glance:
        - Classes: 64 / 16 / 20.
        - Examples: 600.
        - From: its authors, or `LIGHTNING_META_DATA`.

    Args:
        url: URL from which to download the archive.
    """

    def _split(self, superclass: dict[str, str]) -> dict[Split, list[str]]:
        return class_list("cifar_fs")


class FC100(_Cifar100):
    """FC100 (Oreshkin et al. 2018): CIFAR-100 divided by superclass: 12, 4 and 4 superclasses.

    The splits have 60, 20 and 20 classes; test classes are farther from training classes than in CIFAR-FS. There are
    600 colour images of 32x32 pixels per class; the group of a class is its superclass. The archive is read from
    `$LIGHTNING_META_DATA/cifar-100-python.tar.gz`, or downloaded from its authors (161 MB).

    At a glance:
        - Classes: 60 / 20 / 20.
        - Examples: 600.
        - From: its authors, or `LIGHTNING_META_DATA`.

    Args:
        url: URL from which to download the archive.
    """

    def _split(self, superclass: dict[str, str]) -> dict[Split, list[str]]:
        splits = class_list("fc100")
        return {s: [name for name, parent in superclass.items() if parent in splits[s]] for s in SPLITS}


def read_cifar100(path: Path) -> dict[str, CifarClass]:
    """Read the 100 classes of the archive.

    Args:
        path: Path of the archive.

    Returns:
        Classes by name, in alphabetical order.

    Raises:
        WrongContentError: The archive does not hold the official images.
    """
    members: dict[str, Any] = {}
    unpacked = gzip.open(path)  # noqa: SIM115 - closed below, with the archive
    limited: Any = Limited(unpacked, _MAX_UNPACKED)  # has the methods of a file that tarfile calls
    with unpacked, tarfile.open(fileobj=limited, mode="r:") as archive:  # members are read, never extracted
        for member in progress(archive, "decoding CIFAR-100", total=len(IMAGES) + 1):
            if member.size > _MAX_BYTES:
                raise WrongContentError(f"its member {member.name} has {member.size} bytes, too many for CIFAR-100")
            stream = archive.extractfile(member) if member.isreg() else None  # a link could only repeat a member
            if stream is not None:
                name = member.name.rpartition("/")[2]
                if name in (*IMAGES, "meta"):
                    members[name] = restricted_pickle.load(io.BytesIO(stream.read()))
    if missing := {*IMAGES, "meta"} - members.keys():
        raise WrongContentError(f"it has no member {' and no member '.join(sorted(missing))}")
    classes = _classes(members)
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
            raise WrongContentError("its images are not an array")
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
            test = rows >= IMAGES["train"]  # breaks ties between identical images
            rows = rows[np.lexsort((test, np.array([hashlib.sha256(images[row].data).hexdigest() for row in rows])))]
            if len(rows) != PER_CLASS:
                raise WrongContentError(f"it has {len(rows)} images of class {name}, expected {PER_CLASS}")
            classes[name] = CifarClass(superclasses[int(coarse[rows[0]])], images[rows], rows >= IMAGES["train"])
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise WrongContentError(f"it is not laid out like CIFAR-100 ({type(error).__name__}: {error})") from error
    return classes


def _integers(labels: Any) -> np.ndarray:
    """Convert labels to an array; nested lists are refused, as a few shared by reference expand without limit."""
    if not isinstance(labels, np.ndarray) and not (isinstance(labels, list) and all(type(n) is int for n in labels)):
        raise WrongContentError("its labels are not a list of whole numbers")
    return np.asarray(labels, np.int64)


def _text(name: bytes | str) -> str:
    return name.decode() if isinstance(name, bytes) else name


def _pool(names: list[str], classes: dict[str, CifarClass]) -> Pool:
    x = torch.from_numpy(np.concatenate([classes[name].images for name in names])).reshape(-1, 3, 32, 32)
    sizes = torch.tensor([len(classes[name].images) for name in names])
    return Pool(x, sizes, tuple(names), tuple(classes[name].superclass for name in names))
