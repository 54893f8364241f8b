"""Glyphs: letters of five scripts, digits and signs, rendered from the fonts that matplotlib carries.

Nothing is downloaded. A class is a character, an example is that character in one of twelve DejaVu faces under
a small random affine map, a group is a script. Characters and their splits are a text file of this package,
made by `scripts/make_glyph_lists.py`:

- What differs by case, diacritic, stroke or hook alone shares a base, and so does what looks nearly the same
  (Greek Eta and Latin H, sha and turned m); a base lies in one split.
- Characters that look the same in every face are one class. Where they belong to two scripts (Latin A, Greek
  Alpha, Cyrillic A) the later one is marked "twin" and is in no split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from importlib import resources
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_meta.batches import SPLITS, Split
from lightning_meta.data.pool import Pool
from lightning_meta.data.source import Source
from lightning_meta.errors import UserError
from lightning_meta.sources.division import divide
from lightning_meta.sources.glyph_outlines import UNITS_PER_EM, Outlines, rasterise, read_outlines

FACES: tuple[str, ...] = tuple(
    f"DejaVu{family}{style}"
    for family, slant in (("Sans", "Oblique"), ("SansMono", "Oblique"), ("Serif", "Italic"))
    for style in ("", "-Bold", f"-{slant}", f"-Bold{slant}")
)
# Upright and slanted together, for they are nearly each other's shear; each at the weight whose bold is for training.
HELD_OUT_FACES: dict[Split, tuple[str, ...]] = {
    "val": ("DejaVuSansMono", "DejaVuSansMono-Oblique"),
    "test": ("DejaVuSerif", "DejaVuSerif-Italic"),
}
LIST = resources.files("lightning_meta.sources").joinpath("glyph_lists").joinpath("glyphs.txt")

_EM = 20 / 28  # of the image; an x is then 11 of 28 pixels high, a capital 15
_MIDDLE = 780  # font units above the baseline that lie at half the image's height
_MARGIN = 0.5  # of a pixel at each border, which no outline enters
# the most that jitter=1 does to a glyph, each drawn evenly from -most to +most
_TURN, _SHEAR, _STRETCH, _SHIFT = np.radians(15), 0.18, 0.18, 2.5 / 28


class Character(NamedTuple):
    """A line of the list.

    Attributes:
        code: The Unicode code point.
        script: The writing system, or "Digit" or "Symbol".
        base: The letter that stands for all that must share a split with this one.
        split: "train", "val", "test", or "twin".
        name: The Unicode name.
    """

    code: int
    script: str
    base: str
    split: str
    name: str

    @property
    def label(self) -> str:
        """The class name, as in "U+00E9 é"."""
        return f"U+{self.code:04X} {chr(self.code)}"


def read_characters() -> list[Character]:
    """The shipped list: every character once, by script and code point, twins included."""
    lines = LIST.read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if not line.startswith("# ")]
    return [Character(int(code[2:], 16), script, base, split, name) for code, _, script, base, split, name in rows]


class Glyphs(Source):
    """Characters of the DejaVu fonts: the embedded data set, which needs no download.

    Images are uint8 `(1, image_size, image_size)`, ink 255 on 0. The examples of a class come face by face,
    in the order of `face_names`: example `i` is in face `i // copies`. A glyph's jitter depends on the seed,
    the character, the face and the copy alone, so it is the same whatever else is rendered.

    At a glance:
        - Classes: 806 / 216 / 384 characters.
        - Examples: 12 faces.
        - Tasks: 7 scripts of 10 to 847 characters.
        - Held out: 2 and 2 of 12 typefaces.
        - From: rendered from matplotlib's fonts in seconds.

    Args:
        seed: The seed of the jitter, 0 or more.
        jitter: How much each glyph is turned, sheared, stretched and shifted: 0 for not at all, 1 for up to
            15 degrees, 18 %, 18 % and 2.5 of 28 pixels, at most 2. No glyph leaves the image.
        copies: Examples of each character in each face. A class has 12 times as many; with more than one, the
            support and the query set of an episode may show the same face.
        image_size: Height and width in pixels, at least 16.

    Raises:
        UserError: An argument is out of range.
    """

    face_names: tuple[str, ...] = FACES

    def __init__(self, seed: int = 0, jitter: float = 1.0, copies: int = 1, image_size: int = 28) -> None:
        if not 0 <= seed < 2**63:
            raise UserError(f"Glyphs: seed is {seed}, expected a whole number from 0 to 2**63 - 1")
        if not 0 <= jitter <= 2:
            raise UserError(f"Glyphs: jitter is {jitter}, expected a number from 0 (none) to 2; 1 is the usual")
        if copies < 1:
            raise UserError(f"Glyphs: copies is {copies}, expected at least 1 example per face")
        if image_size < 16:
            raise UserError(f"Glyphs: image_size is {image_size}, expected at least 16 pixels: 28 is the usual")
        self.seed, self.jitter, self.copies, self.image_size = seed, jitter, copies, image_size

    def pools(self) -> dict[Split, Pool]:
        """Train, val and test: about 60, 15 and 25 % of the characters, 12 * copies examples each."""
        return self._pools

    def held_out(self) -> dict[Split, Pool]:
        """Every character of every script in each split, in other faces: eight for train, two for val, two for test.

        Unseen in training are DejaVu Sans Mono and its oblique (val), DejaVu Serif and its italic (test). A slanted
        face is nearly the shear of its upright one, so the two stay together; what training shows of both families is
        the bold, and of the regular weight the proportional sans.

        A script holds all its distinct characters. Twins of other scripts are among them, as each script is a task of
        its own: 847 Latin, 306 Greek, 185 Cyrillic, 78 Armenian and 44 Georgian characters, 10 digits, 24 symbols.
        Two of the 1,494 (U+02B9, U+0559) are drawn alike in a face of test and one of train, 40 in one of val; their
        jitter differs.

        Returns:
            Pools with `8 * copies`, `2 * copies` and `2 * copies` examples a class; classes by script and code point.
        """
        characters = read_characters()
        pool = _pool(self.render(characters), characters)
        held = {face for faces in HELD_OUT_FACES.values() for face in faces}
        faces = {"train": tuple(face for face in FACES if face not in held), **HELD_OUT_FACES}
        return divide(pool, {split: self._members(faces[split]) for split in SPLITS})

    def fingerprint(self) -> str:
        """SHA-256 of all images: train, val, test, each by script, code point and face."""
        return self._hash

    def render(self, characters: Sequence[Character]) -> Tensor:
        """Images of any characters of the list, twins too: `(C, 12 * copies, 1, image_size, image_size)`."""
        size, codes = self.image_size, [character.code for character in characters]
        images = np.empty((len(codes), len(FACES), self.copies, 1, size, size), np.uint8)
        jitter = np.stack([self._draw(code) for code in codes])
        for face, name in enumerate(FACES):
            glyphs = _centred(read_outlines(name, codes), size)
            for copy in range(self.copies):
                images[:, face, copy, 0] = rasterise(_jittered(glyphs, jitter[:, copy, face], size), size)
        return torch.from_numpy(images.reshape(len(codes), -1, 1, size, size))

    @cached_property
    def _pools(self) -> dict[Split, Pool]:
        characters = [c for c in read_characters() if c.split in SPLITS]
        images = self.render(characters)
        places = {split: [i for i, c in enumerate(characters) if c.split == split] for split in SPLITS}
        return {split: _pool(images[places[split]], [characters[i] for i in places[split]]) for split in SPLITS}

    @cached_property
    def _hash(self) -> str:
        digest = hashlib.sha256()
        for split in SPLITS:
            digest.update(self._pools[split].x.numpy().data)
        return digest.hexdigest()

    def _members(self, faces: Sequence[str]) -> list[int]:
        """The examples of a class that are in a few faces."""
        return [FACES.index(face) * self.copies + copy for face in faces for copy in range(self.copies)]

    def _draw(self, code: int) -> NDArray[np.float64]:
        """`(copies, 12, 6)` numbers in [-jitter, jitter], from a counter-based generator keyed by the code."""
        stream = np.random.Generator(np.random.Philox(key=np.array([self.seed, code], np.uint64)))
        return stream.uniform(-self.jitter, self.jitter, (self.copies, len(FACES), 6))


def _pool(images: Tensor, characters: Sequence[Character]) -> Pool:
    return Pool(
        x=images.flatten(0, 1),
        sizes=torch.full((len(characters),), images.shape[1]),
        names=tuple(character.label for character in characters),
        groups=tuple(character.script for character in characters),
    )


def _centred(glyphs: Outlines, size: int) -> Outlines:
    """Outlines from font units to pixels; the origin is mid-width, at a fixed height above the baseline."""
    low, high = glyphs.bounds()
    scale = np.eye(2) * (size * _EM / UNITS_PER_EM)
    middle = np.stack([(low[:, 0] + high[:, 0]) / 2, np.full(len(low), float(_MIDDLE))], axis=1)
    return glyphs.mapped(np.broadcast_to(scale, (len(low), 2, 2)), -middle @ scale)


def _jittered(glyphs: Outlines, draws: NDArray[np.float64], size: int) -> Outlines:
    """Each glyph turned, sheared, stretched and shifted by its six draws, then brought inside the image."""
    turn, shear, wide, tall = draws[:, :4].T * np.array([_TURN, _SHEAR, _STRETCH, _STRETCH])[:, None]
    cos, sin, one, zero = np.cos(turn), np.sin(turn), np.ones_like(turn), np.zeros_like(turn)
    rotation = np.array([[cos, -sin], [sin, cos]]).transpose(2, 0, 1)
    slanting = np.array([[np.exp(wide), shear], [zero, np.exp(tall)]]).transpose(2, 0, 1)
    glyphs = glyphs.mapped(rotation @ slanting, np.zeros((len(turn), 2)))

    low, high = glyphs.bounds()
    fit = np.minimum(one, (size - 2 * _MARGIN) / (high - low).max(axis=1))[:, None]
    shift = np.clip(size / 2 + draws[:, 4:] * _SHIFT * size, _MARGIN - low * fit, size - _MARGIN - high * fit)
    return glyphs.mapped(np.eye(2) * fit[..., None], shift)
