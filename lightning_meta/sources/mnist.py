"""MNIST's four files, found and verified: what MultiMNIST is made of."""

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

# Per file: how many images or labels it holds, and the sha256 of its bytes, unpacked.
FILES = {
    "train-images-idx3-ubyte": (60000, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
    "train-labels-idx1-ubyte": (60000, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
    "t10k-images-idx3-ubyte": (10000, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
    "t10k-labels-idx1-ubyte": (10000, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
}


class Digits(NamedTuple):
    """Handwritten digits.

    Attributes:
        images: `(n, 28, 28)` uint8, ink 255 on 0.
        labels: `(n,)` int64, 0 to 9.
    """

    images: Tensor
    labels: Tensor


def read_mnist(url: str = URL) -> tuple[Digits, Digits]:
    """MNIST's 60,000 training and 10,000 test images (LeCun et al. 1998), in the order of the files.

    Found in `$LIGHTNING_META_DATA/mnist/`, or downloaded (12 MB).

    Args:
        url: The folder to download the four files from.

    Raises:
        UserError: A file is damaged, is another file, or cannot be downloaded.
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
    """The bytes after the header, verified; never more than the official file holds are unpacked."""
    count, expected = FILES[name]
    header, size = (16, count * SIDE**2) if "images" in name else (8, count)
    with gzip.open(path) as file:
        content = file.read(header + size + 1)
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise WrongContentError(f"its content is not the official one (its sha256 is {found})")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=header).copy())
