"""Folders with anything in them: pools of images, or one line that names the file; never another error."""

from __future__ import annotations

import io
import os
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lightning_meta.batches import SPLITS, Split
from lightning_meta.data.pool import Pool
from lightning_meta.errors import UserError
from lightning_meta.sources.image_folder import ImageFolder
from tests.robustness.fuzzing import repeated, short

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".gif": "GIF", ".bmp": "BMP", ".tif": "TIFF", ".webp": "WEBP", ".ppm": "PPM"}
SUFFIXES = [*FORMATS, ".jpeg", ".pgm", ".tiff", ".PNG", ".svg", ".txt", ""]
ODD = [
    "a",
    "b",
    "ä ö",
    "日本",
    "-rf",
    "..x",
    "x" * 100,
    "a'b\"",
    "%s",
    "$HOME",
    "new\nline",
    "\x1b[31m",
    ".hidden",
    "\udcff",
]
NAMES = st.sampled_from(ODD) | st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), max_size=8)
KINDS = st.sampled_from(
    [
        "good",
        "good",
        "good",
        "good",
        "mutated",
        "exif",
        "exif",
        "cut",
        "noise",
        "empty",
        "folder",
        "loop",
        "dangling",
        "svg",
        "fifo",
    ]
)

counts: Counter[str] = Counter()


def image(draw: random.Random, suffix: str) -> bytes:
    """A small image of a random mode in the format of a suffix."""
    mode = draw.choice(["L", "RGB", "1", "P", "RGBA", "CMYK", "LA"])
    picture = Image.new("RGB", (draw.randint(1, 20), draw.randint(1, 20)), tuple(draw.randbytes(3)))
    buffer = io.BytesIO()
    more = {"exif": exif(draw)} if suffix in (".jpg", ".png", ".webp", ".tif") and draw.random() < 0.5 else {}
    try:
        picture.convert(mode).save(buffer, FORMATS[suffix], **more)
    except (OSError, ValueError):  # not every format knows every mode
        buffer = io.BytesIO()
        picture.save(buffer, FORMATS[suffix], **more)
    return buffer.getvalue()


def exif(draw: random.Random) -> Image.Exif:
    """EXIF data with every type of tag."""
    tags = Image.Exif()
    tags.update({274: draw.randint(1, 8), 271: "maker", 282: 72.0, 306: "2020:01:01 00:00:00", 40091: b"title"})
    return tags


def place(path: Path, kind: str, draw: random.Random) -> None:
    """Put a file of a kind at a path, if the file system takes its name."""
    if not path.name.strip(".") or os.path.lexists(path) or len(os.fsencode(path.name)) > 250:
        return
    suffix = path.suffix if path.suffix in FORMATS else ".png"
    data = bytearray(image(draw, suffix))
    if kind == "mutated":
        for _ in range(draw.randint(1, 8)):
            data[draw.randrange(len(data))] = draw.randrange(256)
    elif kind == "exif" and (start := data.find(b"Exif")) >= 0:
        data[start + draw.randrange(min(150, len(data) - start))] = draw.randrange(256)
    elif kind == "cut":
        data = data[: draw.randrange(len(data))]
    elif kind == "noise":
        data = bytearray(draw.randbytes(draw.randrange(300)))
    elif kind == "empty":
        data = bytearray()
    elif kind == "svg":
        data = bytearray(b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>')
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind in ("loop", "dangling"):
        path.symlink_to({"loop": draw.choice([path, path.parent]), "dangling": path / "nothing"}[kind])
    else:
        path.write_bytes(data)


def read(source: ImageFolder, held_out: bool) -> Mapping[Split, Pool] | str:
    """The pools, or what is wrong."""
    try:
        return source.held_out() if held_out else source.pools()
    except UserError as error:
        return str(error)


@short
@given(
    odd=st.lists(NAMES, max_size=3, unique=True),
    plain=st.integers(1, 7),
    files=st.lists(st.tuples(NAMES, st.sampled_from(SUFFIXES), KINDS), max_size=4),
    spoiled=st.sampled_from([False, False, True]),
    split=st.sampled_from(["", "", "", "train", "train", "some"]),
    depth=st.sampled_from([0, 0, 1]),
    seed=st.integers(0, 2**32),
    held_out=st.booleans(),
)
def trees(
    odd: list[str],
    plain: int,
    files: list[tuple[str, str, str]],
    spoiled: bool,
    split: str,
    depth: int,
    seed: int,
    held_out: bool,
) -> None:
    draw = random.Random(seed)
    base = Path(tempfile.mkdtemp(dir=Path.cwd()))
    root = base / "root"
    root.mkdir()
    for i, name in enumerate(dict.fromkeys([*(f"class {c}" for c in range(plain)), *odd])):
        above = root / {"": "", "train": SPLITS[i % 3], "some": draw.choice(["", *SPLITS])}[split]
        folder = above / "group" / name if depth else above / name
        if not name.strip("."):
            continue
        try:
            folder.mkdir(parents=True)
        except OSError:
            continue
        for k in range(3):
            place(folder / f"{k}.png", "good", draw)
        for name_of, suffix, kind in files if spoiled and draw.random() < 0.5 else ():
            place(folder / f"{name_of}{suffix}", kind, draw)
    found = read(ImageFolder(root, image_size=4, channels=draw.choice([1, 3])), held_out)
    if isinstance(found, str):
        assert found.isprintable()
    else:
        for pool in found.values():
            assert pool.x.dtype == torch.uint8
            assert pool.x.shape[2:] == (4, 4)
            assert int(pool.sizes.sum()) == len(pool.x)
            assert len(pool.names) == len(pool.sizes)
    counts["refused" if isinstance(found, str) else "pools"] += 1
    shutil.rmtree(base)


@pytest.mark.filterwarnings("ignore")
def test_any_folder_becomes_pools_or_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_META_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    counts.clear()
    repeated(trees, counts)
    assert min(counts["refused"], counts["pools"]) > 5
