"""Decoding of image files: the pixels are those of Pillow's plain steps, and upright photographs are not copied."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from lightning_meta.data.image_files import decode

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 130, 3), np.uint8))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("orientation", [None, 1, 3, 6, 7])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_pixels_are_those_of_the_plain_steps(
    suffix: str, orientation: int | None, channels: int, tmp_path: Path
) -> None:
    exif, file = Image.Exif(), tmp_path / f"a.{suffix}"
    if orientation is not None:
        exif[0x0112] = orientation
    PICTURE.save(file, exif=exif)
    mode = "L" if channels == 1 else "RGB"
    with Image.open(file) as image:
        upright = ImageOps.exif_transpose(image).convert(mode)
    for invert in (False, True):
        whole = ImageOps.invert(upright) if invert else upright
        pixels = np.asarray(whole.resize((32, 32), Image.Resampling.LANCZOS)).reshape(32, 32, channels)
        assert (decode(file, 32, channels, invert).transpose(1, 2, 0) == pixels).all()


def test_an_upright_photograph_is_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PICTURE.save(tmp_path / "a.jpg")

    def copy(image: Image.Image) -> Image.Image:
        raise AssertionError("a copy of the whole photograph")

    monkeypatch.setattr(Image.Image, "copy", copy)
    assert decode(tmp_path / "a.jpg", 32, 3).shape == (3, 32, 32)
