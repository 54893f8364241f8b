"""Glyphs: letters of five scripts, digits and symbols, rendered from the fonts shipped with matplotlib.

Nothing is downloaded. A class is a character, an example is that character in one of twelve DejaVu faces under a small
random affine map, and a group is a script. The characters and their splits are listed in a text file of this package,
made by `scripts/make_glyph_lists.py`:

- Characters that differ only by case, diacritic, stroke or hook share a base, and so do characters that look nearly
  the same (Greek Eta and Latin H, sha and turned m). All characters with the same base are in one split.
- Characters that look the same in every face are one class. If they belong to two scripts (Latin A, Greek Alpha,
  Cyrillic A), the later one is marked "twin" and is in no split.
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
# Upright and slanted faces stay together, since one is nearly a shear of the other. The regular weight is held out; the
# bold weight of the same families is for training.
HELD_OUT_FACES: dict[Split, tuple[str, ...]] = {
    "val": ("DejaVuSansMono", "DejaVuSansMono-Oblique"),
    "test": ("DejaVuSerif", "DejaVuSerif-Italic"),
}
LIST = resources.files("lightning_meta.sources").joinpath("glyph_lists").joinpath("glyphs.txt")

_EM = 20 / 28  # em size as a fraction of the image size; an x is then 11 of 28 pixels high, a capital letter 15
_MIDDLE = 780  # height above the baseline, in font units, that is placed at half the height of the image
_MARGIN = 0.5  # width in pixels of the margin at each border, which no outline enters
# Bounds of the jitter at jitter=1: rotation in radians, shear, log scale, and shift relative to the image size. Each is
# drawn uniformly from -bound to +bound.
_TURN, _SHEAR, _STRETCH, _SHIFT = np.radians(15), 0.18, 0.18, 2.5 / 28


class Character(NamedTuple):
    """A line of the list of characters.

    Attributes:
        code: Unicode code point.
        script: Writing system, or "Digit" or "Symbol".
        base: Letter that represents all characters that must be in the same split as this one.
        split: "train", "val", "test", or "twin".
        name: Unicode name.
    """

    code: int
    script: str
    base: str
    split: str
    name: str

    @property
    def label(self) -> str:
        """Name of the class, such as "U+00E9 é"."""
        return f"U+{self.code:04X} {chr(self.code)}"


def read_characters() -> list[Character]:
    """Return the shipped list: every character once, sorted by script and code point, including twins."""
    lines = LIST.read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if not line.startswith("# ")]
    return [Character(int(code[2:], 16), script, base, split, name) for code, _, script, base, split, name in rows]


class Glyphs(Source):
    """Characters of the DejaVu fonts: the embedded data set, which needs no download.

    Images are uint8 `(1, image_size, image_size)`, with ink 255 on a background of 0. The examples of a class are
    ordered by face, as in `face_names`: example `i` is in face `i // copies`. The jitter of a glyph depends only on the
    seed, the character, the face and the copy, so it is the same whatever else is rendered.

    At a glance:
        - Classes: 806 / 216 / 384 characters.
        - Examples: 12 faces.
        - Tasks: 7 scripts of 10 to 847 characters.
        - Held out: 2 and 2 of 12 typefaces.
        - From: rendered from matplotlib's fonts in seconds.

    Example:
        >>> pool = Glyphs(image_size=16).pools()["train"]
        >>> pool.x.shape, pool.names[0]
        (torch.Size([9672, 1, 16, 16]), 'U+0042 B')

    Args:
        seed: Seed of the jitter, from 0 to 2^63 - 1.
        jitter: Strength of the random affine map, from 0 (none) to 2. With 1, glyphs are rotated by up to 15 degrees,
            sheared by up to 18 %, stretched by −16 to +20 %, and shifted by up to 2.5 of 28 pixels. No glyph leaves the
            image.
        copies: Number of examples of each character in each face, at least 1; a class has 12 times as many. With more
            than one, the support and the query set of an episode may show the same face.
        image_size: Height and width of the images in pixels, at least 16.

    Raises:
        UserError: An argument is out of range.
    """

    face_names: tuple[str, ...] = FACES

    def __init__(self, seed: int = 0, jitter: float = 1.0, copies: int = 1, image_size: int = 28) -> None:
        if not 0 <= seed < 2**63:
            raise UserError(f"Glyphs: seed is {seed}, expected a whole number from 0 to 2**63 - 1")
        if not 0 <= jitter <= 2:
            raise UserError(f"Glyphs: jitter is {jitter}, expected a number from 0 (none) to 2; the default is 1")
        if copies < 1:
            raise UserError(f"Glyphs: copies is {copies}, expected at least 1 example per face")
        if image_size < 16:
            raise UserError(f"Glyphs: image_size is {image_size}, expected at least 16 pixels; the default is 28")
        self.seed, self.jitter, self.copies, self.image_size = seed, jitter, copies, image_size

    def pools(self) -> dict[Split, Pool]:
        """Return train, val and test with about 60, 15 and 25 % of the characters, `12 * copies` examples per class."""
        return self._pools

    def held_out(self) -> dict[Split, Pool]:
        """Return every character in each split, in different faces: eight for train, two for val, two for test.

        DejaVu Sans Mono and its oblique (val) and DejaVu Serif and its italic (test) do not occur in training. A
        slanted face is nearly a shear of its upright face, so the two stay together. Training has the bold weight of
        both families, and the regular weight of the proportional sans.

        Each script is a separate task with all its distinct characters, including those that are twins of characters of
        other scripts: 847 Latin, 306 Greek, 185 Cyrillic, 78 Armenian and 44 Georgian characters, 10 digits, 24
        symbols. Of these 1,494 characters, two (U+02B9, U+0559) are drawn identically in a face of test and a face of
        train, and 40 in a face of val and a face of train; their jitter differs.

        Returns:
            Pools with `8 * copies`, `2 * copies` and `2 * copies` examples per class; the classes are sorted by script
            and code point.
        """
        characters = read_characters()
        pool = _pool(self.render(characters), characters)
        held_out = {face for faces in HELD_OUT_FACES.values() for face in faces}
        faces = {"train": tuple(face for face in FACES if face not in held_out), **HELD_OUT_FACES}
        return divide(pool, {split: self._members(faces[split]) for split in SPLITS})

    def fingerprint(self) -> str:
        """Return the SHA-256 of all images: train, val, test, each sorted by script, code point and face."""
        return self._hash

    def render(self, characters: Sequence[Character]) -> Tensor:
        """Render characters of the list, twins included: `(C, 12 * copies, 1, image_size, image_size)` uint8.

        Args:
            characters: The C characters.
        """
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
        """Return the numbers of the examples of a class that are in the given faces."""
        return [FACES.index(face) * self.copies + copy for face in faces for copy in range(self.copies)]

    def _draw(self, code: int) -> NDArray[np.float64]:
        """Draw the jitter of a character, `(copies, 12, 6)` in [-jitter, jitter], keyed by seed and code point."""
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
    """Convert outlines from font units to pixels; the origin is at mid-width, at a fixed height above the baseline."""
    low, high = glyphs.bounds()
    scale = np.eye(2) * (size * _EM / UNITS_PER_EM)
    middle = np.stack([(low[:, 0] + high[:, 0]) / 2, np.full(len(low), float(_MIDDLE))], axis=1)
    return glyphs.mapped(np.broadcast_to(scale, (len(low), 2, 2)), -middle @ scale)


def _jittered(glyphs: Outlines, draws: NDArray[np.float64], size: int) -> Outlines:
    """Rotate, shear, stretch and shift each glyph by its six random numbers, and fit it into the image."""
    turn, shear, wide, tall = draws[:, :4].T * np.array([_TURN, _SHEAR, _STRETCH, _STRETCH])[:, None]
    cos, sin, one, zero = np.cos(turn), np.sin(turn), np.ones_like(turn), np.zeros_like(turn)
    rotation = np.array([[cos, -sin], [sin, cos]]).transpose(2, 0, 1)
    slanting = np.array([[np.exp(wide), shear], [zero, np.exp(tall)]]).transpose(2, 0, 1)
    glyphs = glyphs.mapped(rotation @ slanting, np.zeros((len(turn), 2)))

    low, high = glyphs.bounds()
    fit = np.minimum(one, (size - 2 * _MARGIN) / (high - low).max(axis=1))[:, None]
    shift = np.clip(size / 2 + draws[:, 4:] * _SHIFT * size, _MARGIN - low * fit, size - _MARGIN - high * fit)
    return glyphs.mapped(np.eye(2) * fit[..., None], shift)
