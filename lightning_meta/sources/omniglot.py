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

# Per archive: how many characters it holds, and the sha256 of their names and 105x105 bits in sorted order.
ARCHIVES = {
    "images_background": (964, "ca515b464151c077515b6f09a684e8385b53c92aa88ee3a5b1f9ca89fc9f3f4b"),
    "images_evaluation": (659, "fbb21f23dd40b1aa9cf6f02c3ef6f9348f82cbdb348f648b4aff2f426cfd4509"),
}
DRAWERS = 20
SIDE = 105

# Whose drawings are for multi-task learning's splits: drawers 1 to 14, 15 and 16, 17 to 20 of every alphabet.
DRAWERS_OF: dict[Split, range] = {"train": range(0, 14), "val": range(14, 16), "test": range(16, 20)}

# The validation alphabets of Vinyals' split all lie in Lake's background set, so both splits share them.
VALIDATION_ALPHABETS = ("Armenian", "Bengali", "Early_Aramaic", "Hebrew", "Mkhedruli_(Georgian)")

_DRAWING = re.compile(r"\w+/(?P<name>[^/]+/character\d\d)/\d{4}_(?P<drawer>\d\d)\.png")
_MAX_BYTES = 65536  # of one PNG; they have about 500


class Omniglot(DecodedSource):
    """Omniglot (Lake, Salakhutdinov and Tenenbaum, Science 350, 2015), ink 255 on a background of 0.

    A class is a character, named `Alphabet/characterNN`; its group is the alphabet. Its 20 examples are in
    the order of the drawers, 1 to 20, so example d of every character of an alphabet is by the same hand.

    The drawings (105x105, black and white) are resized with antialiasing (Lanczos). The reference code of
    MAML asks Pillow for that filter too, but on 1-bit images Pillow falls back to the nearest pixel, as it
    does for the prototypical networks: their images came out black and white, these are grey.

    Found in `$LIGHTNING_META_DATA/omniglot/`, or downloaded from the authors' repository (15 MB).

    At a glance:
        - Classes: 1028 / 172 / 423 (Vinyals), times 4 with rotations.
        - Examples: 20.
        - Tasks: 50 alphabets.
        - Held out: 2 and 4 of 20 drawers.
        - From: its authors, or `LIGHTNING_META_DATA`.

    Args:
        split: `vinyals`: 1028, 172 and 423 characters for train, val and test, as in matching networks
            (Vinyals et al. 2016) and the papers that followed. `lake`: the authors' own division: the 964
            background characters are for training (792, and as val the 172 of five alphabets, the same as
            in `vinyals`), the 659 evaluation characters for test.
        image_size: Height and width of the images in pixels, 1 to 105.
        url: The folder to download the two zips from.
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
        """All 1,623 characters of 50 alphabets in each split, by other hands.

        Of every character the drawings of drawers 1 to 14 are for train, of 15 and 16 for val, of 17 to 20 for test. An
        alphabet's drawers are the same for all its characters; whether a person drew several alphabets the archive does
        not say. The option `split` makes no difference here.

        Returns:
            Pools with 14, 2 and 4 examples a class; classes by name, groups are alphabets.
        """
        key = f"omniglot, drawers held out, {self.image_size} pixels, lanczos"
        return self._held_out(key, lambda: divide(merged(self.pools()), DRAWERS_OF))

    def _key(self) -> str:
        return f"omniglot, split {self.split}, {self.image_size} pixels, lanczos"

    def _decode(self) -> dict[Split, Pool]:
        background, evaluation = (self._read_official(archive) for archive in ARCHIVES)
        classes = class_list("omniglot_vinyals") if self.split == "vinyals" else _lake(background, evaluation)
        drawings = background | evaluation
        return {split: _pool(classes[split], drawings) for split in SPLITS}

    def _read_official(self, archive: str) -> dict[str, list[np.ndarray]]:
        file = OfficialFile(f"omniglot/{archive}.zip", f"{self.url.rstrip('/')}/{archive}.zip")
        return read_official(file, lambda path: self._read(path, archive))

    def _read(self, path: Path, archive: str) -> dict[str, list[np.ndarray]]:
        """The 20 drawings of each character, resized; verified before that, at full size."""
        characters, expected = ARCHIVES[archive]
        sha = hashlib.sha256()
        drawings: dict[str, list[np.ndarray]] = {}
        with zipfile.ZipFile(path) as zipped:  # members are read, never extracted: their paths can do no harm
            members = sorted(
                filter(None, (_DRAWING.fullmatch(name) for name in zipped.namelist())),
                key=lambda match: match.string,
            )
            if len(members) != characters * DRAWERS:
                raise WrongContentError(f"it has {len(members)} drawings, expected {characters * DRAWERS}")
            for member in progress(members, f"decoding {archive}"):
                drawing = _open(zipped, member.string)
                sha.update(f"{member['name']}/{member['drawer']}".encode() + drawing.tobytes())
                grey = ImageChops.invert(drawing.convert("L"))  # paper is white in the files, ink black
                resized = grey.resize((self.image_size, self.image_size), Image.Resampling.LANCZOS)
                drawings.setdefault(member["name"], []).append(np.asarray(resized))
        if sha.hexdigest() != expected:
            raise WrongContentError(f"its drawings are not the official ones (their sha256 is {sha.hexdigest()})")
        return drawings


def _open(zipped: zipfile.ZipFile, member: str) -> Image.Image:
    """One drawing; its size is checked before a pixel is decoded: a small file cannot fill the memory."""
    info = zipped.getinfo(member)
    if info.file_size > _MAX_BYTES:
        raise WrongContentError(f"{member} is too large for a drawing")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # of others a few bytes fill the memory
        raise WrongContentError(f"{member} is compressed in another way than the official file")
    with zipped.open(member) as stream:  # a size, unlike none, bounds what is unpacked at a time: headers may lie
        content = stream.read(_MAX_BYTES)
    try:
        image = Image.open(io.BytesIO(content), formats=["PNG"])
        if image.size != (SIDE, SIDE) or image.mode != "1":
            raise WrongContentError(
                f"{member} has {image.size[0]}x{image.size[1]} pixels of mode {image.mode}, "
                f"expected {SIDE}x{SIDE} of mode 1"
            )
        image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # all that Pillow raises
        raise WrongContentError(f"{member} is no readable image ({error})") from error
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
