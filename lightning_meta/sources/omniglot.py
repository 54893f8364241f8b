"""Omniglot: 1,623 handwritten characters of 50 alphabets, each drawn by 20 people."""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageChops

from lightning_meta.batches import SPLITS, Split
from lightning_meta.data.decoded import DecodedSource, progress
from lightning_meta.data.files import OfficialFile, WrongContentError, read_official
from lightning_meta.data.pool import Pool
from lightning_meta.errors import UserError
from lightning_meta.sources.class_lists import class_list
from lightning_meta.sources.division import divide, merged

URL = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/"

# Number of characters of each archive, and the SHA-256 of their names and 105x105 bits in sorted order.
ARCHIVES = {
    "images_background": (964, "ca515b464151c077515b6f09a684e8385b53c92aa88ee3a5b1f9ca89fc9f3f4b"),
    "images_evaluation": (659, "fbb21f23dd40b1aa9cf6f02c3ef6f9348f82cbdb348f648b4aff2f426cfd4509"),
}
DRAWERS = 20
SIDE = 105

# Splits for multi-task learning: drawers 1 to 14, 15 and 16, and 17 to 20 of every alphabet (here counted from 0).
DRAWERS_OF: dict[Split, range] = {"train": range(0, 14), "val": range(14, 16), "test": range(16, 20)}

# All validation alphabets of Vinyals' split are in Lake's background set, so both splits use them.
VALIDATION_ALPHABETS = ("Armenian", "Bengali", "Early_Aramaic", "Hebrew", "Mkhedruli_(Georgian)")

_DRAWING = re.compile(r"\w+/(?P<name>[^/]+/character\d\d)/\d{4}_(?P<drawer>\d\d)\.png")
_MAX_BYTES = 65536  # upper limit for one PNG file, unpacked; the official ones have about 500 bytes


class Omniglot(DecodedSource):
    """Omniglot (Lake, Salakhutdinov and Tenenbaum, Science 350, 2015), ink 255 on a background of 0.

    A class is a character, named `Alphabet/characterNN`; its group is the alphabet. Its 20 examples are in the order of
    the drawers, 1 to 20, so that example d of every character of an alphabet is drawn by the same person.

    The drawings (105x105, black and white) are resized with antialiasing (Lanczos), so images are grey. The reference
    code of MAML also requests this filter, but for 1-bit images Pillow uses the nearest neighbour instead, as in the
    code of prototypical networks: their images are black and white.

    The archives are read from `$LIGHTNING_META_DATA/omniglot/`, or downloaded from the authors' repository (15 MB).

    At a glance:
        - Classes: 1028 / 172 / 423 (Vinyals), times 4 with rotations.
        - Examples: 20.
        - Tasks: 50 alphabets.
        - Held out: 2 and 4 of 20 drawers.
        - From: its authors, or `LIGHTNING_META_DATA`.

    Args:
        split: Division of the characters. `vinyals`: 1028, 172 and 423 for train, val and test, as in matching networks
            (Vinyals et al. 2016) and the papers that followed. `lake`: the division by the authors of the data set: the
            659 evaluation characters are for test; of the 964 background characters, 792 are for train, and the 172 of
            five alphabets for val, the same as in `vinyals`.
        image_size: Height and width of the images in pixels, from 1 to 105.
        url: URL of the folder from which to download the two archives.
    """

    def __init__(self, split: Literal["vinyals", "lake"] = "vinyals", image_size: int = 28, url: str = URL) -> None:
        if split not in ("vinyals", "lake"):
            raise UserError(f"Omniglot split={split!r}: expected 'vinyals' or 'lake'")
        if not 1 <= image_size <= SIDE:
            raise UserError(f"Omniglot image_size={image_size}: expected 1 to {SIDE}, the size of the drawings")
        self.split = split
        self.image_size = image_size
        self.url = url

    def held_out(self) -> dict[Split, Pool]:
        """Return all 1,623 characters of 50 alphabets in each split, drawn by different people.

        The drawings of drawers 1 to 14 of every character are for train, those of 15 and 16 for val, and those of 17 to
        20 for test. The drawers of an alphabet are the same for all its characters; the archive does not state whether
        a person drew several alphabets. The option `split` has no effect here.

        Returns:
            Pools with 14, 2 and 4 examples per class, with classes sorted by name; the groups are the alphabets.
        """
        key = f"omniglot, drawers held out, {self.image_size} pixels, lanczos"
        return self._held_out(key, lambda: divide(merged(self.pools()), DRAWERS_OF))

    def pools(self) -> dict[Split, Pool]:
        """Return the pools of the splits, whose groups are the alphabets."""
        return self._pools(f"omniglot, split {self.split}, {self.image_size} pixels, lanczos", self._decode)

    def _decode(self) -> dict[Split, Pool]:
        background, evaluation = (self._read_official(archive) for archive in ARCHIVES)
        classes = class_list("omniglot_vinyals") if self.split == "vinyals" else _lake(background, evaluation)
        drawings = background | evaluation
        return {split: _pool(classes[split], drawings) for split in SPLITS}

    def _read_official(self, archive: str) -> dict[str, list[np.ndarray]]:
        file = OfficialFile(f"omniglot/{archive}.zip", f"{self.url.rstrip('/')}/{archive}.zip")
        return read_official(file, lambda path: self._read(path, archive))

    def _read(self, path: Path, archive: str) -> dict[str, list[np.ndarray]]:
        """Read the 20 drawings of each character and resize them; the hash is of the drawings at full size."""
        characters, expected = ARCHIVES[archive]
        sha = hashlib.sha256()
        drawings: dict[str, list[np.ndarray]] = {}
        with zipfile.ZipFile(path) as zipped:  # members are read, never extracted, so their paths cannot do harm
            members = sorted(
                filter(None, (_DRAWING.fullmatch(name) for name in zipped.namelist())),
                key=lambda match: match.string,
            )
            if len(members) != characters * DRAWERS:
                raise WrongContentError(f"it has {len(members)} drawings, expected {characters * DRAWERS}")
            for member in progress(members, f"decoding {archive}"):
                drawing = _open(zipped, member.string)
                sha.update(f"{member['name']}/{member['drawer']}".encode() + drawing.tobytes())
                grey = ImageChops.invert(drawing.convert("L"))  # in the files, ink is black on white
                resized = grey.resize((self.image_size, self.image_size), Image.Resampling.LANCZOS)
                drawings.setdefault(member["name"], []).append(np.asarray(resized))
        if sha.hexdigest() != expected:
            raise WrongContentError(f"its drawings are not the official ones (their sha256 is {sha.hexdigest()})")
        return drawings


def _open(zipped: zipfile.ZipFile, member: str) -> Image.Image:
    """Read a drawing; its size is checked before pixels are decoded, so that a small file cannot exhaust the memory."""
    info = zipped.getinfo(member)
    if info.file_size > _MAX_BYTES:
        raise WrongContentError(f"{member} is too large for a drawing")
    # With other methods, a few bytes can expand so far that they exhaust the memory.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise WrongContentError(f"{member} is not compressed like the official file")
    with zipped.open(member) as stream:
        content = stream.read(_MAX_BYTES)  # a limit, as the size in the header may be wrong
    try:
        image = Image.open(io.BytesIO(content), formats=["PNG"])
        if image.size != (SIDE, SIDE) or image.mode != "1":
            raise WrongContentError(
                f"{member} has {image.size[0]}x{image.size[1]} pixels of mode {image.mode}, "
                f"expected {SIDE}x{SIDE} of mode 1"
            )
        image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # all that Pillow raises
        raise WrongContentError(f"{member} is not a readable image ({error})") from error
    return image


def _pool(names: Sequence[str], drawings: Mapping[str, list[np.ndarray]]) -> Pool:
    x = torch.from_numpy(np.stack([drawing for name in names for drawing in drawings[name]])).unsqueeze(1)
    sizes = torch.tensor([len(drawings[name]) for name in names])
    return Pool(x, sizes, tuple(names), tuple(name.split("/")[0] for name in names))


def _lake(background: Iterable[str], evaluation: Iterable[str]) -> dict[Split, list[str]]:
    classes: dict[Split, list[str]] = {"train": [], "val": [], "test": list(evaluation)}
    for name in background:
        classes["val" if name.split("/")[0] in VALIDATION_ALPHABETS else "train"].append(name)
    return classes
