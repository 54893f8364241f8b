"""Reading and verification of the four files of MNIST, from which MultiMNIST is made."""

from __future__ import annotations

import gzip
import hashlib
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_meta.data.files import OfficialFile, WrongContentError, read_official

URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"

SIDE = 28

# Number of images or labels of each file, and the SHA-256 of its unpacked bytes.
FILES = {
    "train-images-idx3-ubyte": (60000, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
    "train-labels-idx1-ubyte": (60000, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
    "t10k-images-idx3-ubyte": (10000, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
    "t10k-labels-idx1-ubyte": (10000, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
}


class Digits(NamedTuple):
    """Handwritten digits.

    Attributes:
        images: Images `(n, 28, 28)`, uint8, with ink 255 on a background of 0.
        labels: Labels `(n,)`, int64, from 0 to 9.
    """

    images: Tensor
    labels: Tensor


def read_mnist(url: str = URL) -> tuple[Digits, Digits]:
    """Read the 60,000 training and 10,000 test images of MNIST (LeCun et al. 1998), in the order of the files.

    The files are read from `$LIGHTNING_META_DATA/mnist/`, or downloaded (12 MB).

    Args:
        url: URL of the folder from which to download the four files.

    Returns:
        Training and test digits.

    Raises:
        UserError: A file is damaged, is not the official file, or cannot be downloaded.
    """
    content = {
        name: read_official(OfficialFile(f"mnist/{name}.gz", f"{url.rstrip('/')}/{name}.gz"), partial(_read, name))
        for name in FILES
    }
    train, test = (
        Digits(content[f"{part}-images-idx3-ubyte"].view(-1, SIDE, SIDE), content[f"{part}-labels-idx1-ubyte"].long())
        for part in ("train", "t10k")
    )
    return train, test


def _read(name: str, path: Path) -> Tensor:
    """Return the bytes after the header, verified; at most one byte more than the official file holds is unpacked."""
    count, expected = FILES[name]
    header, size = (16, count * SIDE**2) if "images" in name else (8, count)
    with gzip.open(path) as file:
        content = file.read(header + size + 1)  # with one more byte, a longer file has another hash
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != expected:
        raise WrongContentError(f"its content is not the official one (its sha256 is {sha256})")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=header).copy())
