"""Glyph outlines of the fonts shipped with matplotlib, and their rasterisation by exact arithmetic.

Outlines are read in font units, without scaling or hinting, and filled here. The images therefore depend only on the
font files, which have not changed from matplotlib 3.8 to 3.11, and not on the FreeType version of a release of
matplotlib or Pillow, which changes nearly every glyph slightly.
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
_MOVE, _LINE, _CURVE, _CLOSE = 1, 2, 3, 79  # codes of matplotlib.path.Path
_PIECES = 4  # straight segments per quadratic curve: at 28 pixels the error is far below one grey level
_SCANLINES = 5  # scanlines per pixel row; along a scanline the coverage is exact
# Before 3.11, matplotlib divides x by the hinting factor, which loses precision; `LoadFlags` exists since 3.10.
_EXACT: dict[str, Any] = {"hinting_factor": 1} if matplotlib.__version_info__ < (3, 11) else {}
_NO_SCALE: Any = getattr(ft2font, "LoadFlags", None)
_NO_SCALE = _NO_SCALE.NO_SCALE if _NO_SCALE else 1


class Outlines(NamedTuple):
    """Closed outlines of G glyphs as S straight segments; the segments of a glyph are contiguous.

    Attributes:
        ends: Start and end of every segment as (x, y), `(S, 2, 2)`; y points up.
        counts: Number of segments of each glyph, `(G,)`; at least one.
    """

    ends: Floats
    counts: Ints

    @property
    def owner(self) -> Ints:
        """Index of the glyph of each segment, `(S,)`."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    def bounds(self) -> tuple[Floats, Floats]:
        """Return the lower left and upper right corners of the bounding box of every glyph, each `(G, 2)`."""
        starts = self.counts.cumsum() - self.counts
        begin, end = self.ends[:, 0], self.ends[:, 1]
        return np.minimum.reduceat(np.minimum(begin, end), starts), np.maximum.reduceat(np.maximum(begin, end), starts)

    def mapped(self, matrix: Floats, shift: Floats) -> Outlines:
        """Apply a separate affine map to every glyph.

        Args:
            matrix: Matrix of each map, `(G, 2, 2)`.
            shift: Translation of each map, `(G, 2)`, applied after the matrix.
        """
        owner = self.owner
        x, y = self.ends[..., 0], self.ends[..., 1]
        (xx, xy), (yx, yy) = matrix[owner].transpose(1, 2, 0)[..., None]
        # Written out, since einsum takes twice as long over axes of two.
        moved = np.stack([xx * x + xy * y, yx * x + yy * y], axis=-1) + shift[owner, None]
        return Outlines(moved, self.counts)


def charmap(face: str) -> set[int]:
    """Return the code points for which a face has a glyph."""
    return set(_font(face).get_charmap())


def _font(face: str) -> ft2font.FT2Font:
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{face}.ttf")
    if not path.is_file():
        raise UserError(f"Glyphs: the font {path} is missing, but matplotlib ships it: reinstall matplotlib")
    return ft2font.FT2Font(str(path), **_EXACT)


def read_outlines(face: str, codes: Sequence[int]) -> Outlines:
    """Read the outlines of characters in one face, in font units.

    Args:
        face: Name of a face shipped with matplotlib, for example "DejaVuSans-Bold".
        codes: Unicode code points.

    Raises:
        UserError: The face does not exist, or it lacks a character (a "missing glyph" box is never drawn).
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
    """Convert paths of moves, lines, quadratic curves and closing lines into straight segments.

    Args:
        vertices: Vertices of all paths, `(V, 2)`.
        kinds: Path code of each vertex, `(V,)`.
        owner: Index of the glyph of each vertex, `(V,)`.
        glyphs: Number of glyphs.
    """
    index = np.arange(len(kinds))
    first = np.maximum.accumulate(np.where(kinds == _MOVE, index, 0))  # first vertex of the contour of each vertex
    run = np.maximum.accumulate(np.where(kinds != _CURVE, index, 0))  # last vertex that is not of a curve
    lines, closes = index[kinds == _LINE], index[kinds == _CLOSE]
    controls = index[(kinds == _CURVE) & ((index - run) % 2 == 1)]  # a curve has two vertices: control point, end point
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
    """Fill outlines and return images `(G, size, size)` with the ink of each pixel, 255 if it is covered, 0 if outside.

    At each crossing of a scanline and an outline, the signed coverage of the pixel is recorded, and the sum from the
    left gives the coverage of every pixel. Overlapping contours of a glyph count once.

    Args:
        outlines: Outlines in pixels, with the origin at the lower left corner of the image.
        size: Height and width of the images in pixels.
    """
    (x0, y0), (x1, y1) = outlines.ends.transpose(1, 2, 0)
    rows = size * _SCANLINES
    y0, y1 = (size - y0) * _SCANLINES - 0.5, (size - y1) * _SCANLINES - 0.5  # y points down, and scanline k is at y = k
    low = np.clip(np.ceil(np.minimum(y0, y1)), 0, rows).astype(np.int64)
    crossings = np.clip(np.ceil(np.maximum(y0, y1)), 0, rows).astype(np.int64) - low
    segment = np.repeat(np.arange(len(low)), crossings)
    row = np.arange(len(segment)) - np.repeat(crossings.cumsum() - crossings, crossings) + low[segment]
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = (x1 - x0) / (y1 - y0)  # infinite for a horizontal segment, which crosses no scanline
    x = np.clip(x0[segment] + (row - y0[segment]) * slope[segment], 0, size)
    pixel = x.astype(np.int64)
    fraction = x - pixel
    sign = np.where(y1 > y0, 1.0, -1.0)[segment]  # by the direction of the segment

    glyphs, width = len(outlines.counts), size + 2
    position = (outlines.owner[segment] * rows + row) * width + pixel
    total = glyphs * rows * width
    # A crossing adds its sign to all pixels to the right, and to its own pixel the share that is right of the crossing.
    ink = np.bincount(position, sign * (1 - fraction), total) + np.bincount(position + 1, sign * fraction, total)
    ink = np.minimum(np.abs(ink.reshape(glyphs, rows, width).cumsum(axis=2)[..., :size]), 1.0)
    shades: NDArray[np.uint8] = np.rint(ink.reshape(glyphs, size, _SCANLINES, size).mean(axis=2) * 255).astype(np.uint8)
    return shades
