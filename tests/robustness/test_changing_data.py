"""Data that change while they are read: one line, and nothing wrong is kept in the cache."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lightning_meta.data import image_files
from lightning_meta.errors import UserError
from lightning_meta.sources import ImageFolder


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three classes of three images, and an empty cache."""
    monkeypatch.setenv("LIGHTNING_META_CACHE", str(tmp_path / "cache"))
    for c in "abc":
        folder = tmp_path / "images" / c
        folder.mkdir(parents=True)
        for i in range(3):
            Image.new("L", (9, 9), 10 * i).save(folder / f"{i}.png")
    return tmp_path / "images"


def while_reading(change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let something happen once, just before the first image is decoded."""
    before, decode = [change], image_files.decode

    def first_change(path: Path, *options: Any) -> Any:
        if before:
            before.pop()()
        return decode(path, *options)

    monkeypatch.setattr(image_files, "decode", first_change)


def refusal(root: Path) -> str:
    with pytest.raises(UserError) as error:
        ImageFolder(root, image_size=4).prepare()
    assert str(error.value).isprintable()
    assert not list((root.parent / "cache").rglob("*.*"))
    return str(error.value)


def test_a_file_that_vanishes_after_it_was_listed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("c/1.png", "a/1.png", "b/1.png"):
        with monkeypatch.context() as patch:
            while_reading((root / name).unlink, patch)
            line = refusal(root)
        assert line.startswith(f"there is no file {root / name}")
        Image.new("L", (9, 9)).save(root / name)
    ImageFolder(root, image_size=4).prepare()


def test_a_folder_that_vanishes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    while_reading(lambda: (root / "a").rename(root.parent / "away"), monkeypatch)
    assert "there is no file" in refusal(root)


def test_what_was_replaced_while_it_was_read_is_not_kept(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = root / "a" / "0.png"
    old, times = file.read_bytes(), file.stat()

    def replace() -> None:
        Image.new("L", (9, 9), 255).save(file)

    with monkeypatch.context() as patch:
        while_reading(replace, patch)
        assert "files changed while they were read" in refusal(root)
    file.write_bytes(old)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # the very same state as before
    pools = ImageFolder(root, image_size=4).pools()
    assert max(int(pool.x.max()) for pool in pools.values()) == 20


def test_a_cache_that_cannot_be_written_is_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = ImageFolder(root, image_size=4).fingerprint()

    def refuse(*args: Any, **options: Any) -> None:
        raise OSError(30, "Read-only file system")

    for name in ("mkdir", "touch", "unlink", "replace", "chmod"):
        monkeypatch.setattr(Path, name, refuse)
    assert ImageFolder(root, image_size=4).fingerprint() == before
    with pytest.raises(UserError, match=r"cannot write .*Read-only file system.*LIGHTNING_META_CACHE") as error:
        ImageFolder(root, image_size=5).prepare()
    assert str(error.value).isprintable()
