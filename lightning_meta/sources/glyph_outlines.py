"""Glyph outlines of the fonts that matplotlib carries, and their rasterisation by exact arithmetic.

Outlines are read in font units, without scaling or hinting, and filled here. The images then depend on the
font files alone, which have not changed from matplotlib 3.8 to 3.11, and not on the FreeType of a release of
matplotlib or Pillow, which changes nearly every glyph a little.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib import ft2font
from numpy.typing import NDArray

from lightning_meta.errors import UserError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

UNITS_PER_EM = 2048
_MOVE, _LINE, _CURVE, _CLOSE = 1, 2, 3, 79  # matplotlib.path.Path's codes
_PIECES = 4  # straight pieces per quadratic curve: at 28 pixels the error is far below a grey level
_SCANLINES = 5  # per pixel row; along a scanline the coverage is exact
# before 3.11 matplotlib divides x by this factor, with a loss; the enumeration of flags is there since 3.10
_EXACT: dict[str, Any] = {"hinting_factor": 1} if matplotlib.__version_info__ < (3, 11) else {}
_NO_SCALE: Any = getattr(ft2font, "LoadFlags", None)
_NO_SCALE = _NO_SCALE.NO_SCALE if _NO_SCALE else 1


class Outlines(NamedTuple):
    """Closed outlines of several glyphs as straight segments, each glyph's segments in one run.

    Attributes:
        ends: `(S, 2, 2)` start and end of every segment as (x, y); y points up.
        counts: `(G,)` how many segments each glyph has; at least one.
    """

    ends: Floats
    counts: Ints

    @property
    def owner(self) -> Ints:
        """`(S,)` the glyph that each segment belongs to."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    def bounds(self) -> tuple[Floats, Floats]:
        """The lower left and upper right corner of every glyph, each `(G, 2)`."""
        starts = self.counts.cumsum() - self.counts
        low = np.minimum.reduceat(self.ends.min(axis=1), starts)
        return low, np.maximum.reduceat(self.ends.max(axis=1), starts)

    def mapped(self, matrix: Floats, shift: Floats) -> Outlines:
        """Every glyph under its own affine map: `matrix` is `(G, 2, 2)`, `shift` is `(G, 2)`."""
        owner = self.owner
        moved = np.einsum("sij,spj->spi", matrix[owner], self.ends) + shift[owner, None]
        return Outlines(moved, self.counts)


def charmap(face: str) -> set[int]:
    """The code points that a face has a glyph for."""
    return set(_font(face).get_charmap())


def _font(face: str) -> ft2font.FT2Font:
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{face}.ttf")
    if not path.is_file():
        raise UserError(f"Glyphs: the font {path} is missing, but matplotlib carries it: reinstall matplotlib")
    return ft2font.FT2Font(str(path), **_EXACT)


def read_outlines(face: str, codes: Sequence[int]) -> Outlines:
    """The outlines of a few characters in one face, in font units.

    Args:
        face: The name of a face that matplotlib carries, for example "DejaVuSans-Bold".
        codes: Unicode code points.

    Raises:
        UserError: There is no such face, or it lacks a character (a "missing glyph" box is never drawn).
    """
    font = _font(face)
    missing = sorted(set(codes) - font.get_charmap().keys())
    if missing:
        raise UserError(f"Glyphs: the face {face} has no glyph for U+{missing[0]:04X}; reinstall matplotlib")
    vertices, kinds = [], []
    for code in codes:
        font.load_char(code, flags=_NO_SCALE)
        path_vertices, path_kinds = font.get_path()
        vertices.append(np.asarray(path_vertices) * 64.0)  # get_path divides by 64
        kinds.append(np.asarray(path_kinds))
    owner = np.repeat(np.arange(len(codes)), [len(k) for k in kinds])
    return _straighten(np.concatenate(vertices), np.concatenate(kinds), owner, len(codes))


def _straighten(vertices: Floats, kinds: NDArray[np.uint8], owner: Ints, glyphs: int) -> Outlines:
    """Straight segments of paths of moves, lines, quadratic curves and closings; one `owner` a vertex."""
    index = np.arange(len(kinds))
    first = np.maximum.accumulate(np.where(kinds == _MOVE, index, 0))  # where each contour began
    run = np.maximum.accumulate(np.where(kinds != _CURVE, index, 0))
    lines, closes = index[kinds == _LINE], index[kinds == _CLOSE]
    controls = index[(kinds == _CURVE) & ((index - run) % 2 == 1)]  # a curve is a pair: control point, end
    t = np.linspace(0.0, 1.0, _PIECES + 1)[:, None, None]
    curves = (
        (1 - t) ** 2 * vertices[controls - 1] + 2 * t * (1 - t) * vertices[controls] + t**2 * vertices[controls + 1]
    )
    ends = np.concatenate(
        [
            np.stack([vertices[lines - 1], vertices[lines]], axis=1),
            np.stack([vertices[closes - 1], vertices[first[closes]]], axis=1),
            np.stack([curves[:-1], curves[1:]], axis=2).reshape(-1, 2, 2),
        ]
    )
    glyph = owner[np.concatenate([lines, closes, np.tile(controls, _PIECES)])]
    return Outlines(ends[glyph.argsort(kind="stable")], np.bincount(glyph, minlength=glyphs))


def rasterise(outlines: Outlines, size: int) -> NDArray[np.uint8]:
    """Fill outlines given in pixels: `(G, size, size)` ink, 255 where a pixel is covered, 0 outside.

    The origin is the lower left corner. Every scanline accumulates, at each crossing of an outline, how much
    of the pixel and of all to the right of it lies beyond; overlapping contours of one glyph count once.
    """
    (x0, y0), (x1, y1) = outlines.ends.transpose(1, 2, 0)
    rows = size * _SCANLINES
    y0, y1 = (size - y0) * _SCANLINES - 0.5, (size - y1) * _SCANLINES - 0.5  # downwards, scanline k at y = k
    low = np.clip(np.ceil(np.minimum(y0, y1)), 0, rows).astype(np.int64)
    crossings = np.clip(np.ceil(np.maximum(y0, y1)), 0, rows).astype(np.int64) - low
    segment = np.repeat(np.arange(len(low)), crossings)
    row = np.arange(len(segment)) - np.repeat(crossings.cumsum() - crossings, crossings) + low[segment]
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = (x1 - x0) / (y1 - y0)  # infinite for a horizontal one, which crosses no scanline
    x = np.clip(x0[segment] + (row - y0[segment]) * slope[segment], 0, size)
    pixel = x.astype(np.int64)
    beyond = x - pixel
    sign = np.where(y1 > y0, 1.0, -1.0)[segment]

    glyphs, width = len(outlines.counts), size + 2
    at = (outlines.owner[segment] * rows + row) * width + pixel
    total = glyphs * rows * width
    ink = np.bincount(at, sign * (1 - beyond), total) + np.bincount(at + 1, sign * beyond, total)
    ink = np.minimum(np.abs(ink.reshape(glyphs, rows, width).cumsum(axis=2)[..., :size]), 1.0)
    shades: NDArray[np.uint8] = np.rint(ink.reshape(glyphs, size, _SCANLINES, size).mean(axis=2) * 255).astype(np.uint8)
    return shades
