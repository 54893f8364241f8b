"""Files made to do harm: nothing in them runs, nothing is written outside, and one line says what is wrong."""

from __future__ import annotations

import csv
import io
import os
import pickle
import stat
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lightning_meta.cli import main
from lightning_meta.errors import UserError
from lightning_meta.sources import CIFARFS, ImageFolder, Omniglot, Table
from lightning_meta.sources.cifar import ARCHIVE
from tests.run.test_resume import MODEL

CONTENT = b"harm"


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("exploded",)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, inside a folder in which no file may appear."""
    folder = tmp_path / "outer" / "here"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("LIGHTNING_META_CACHE", str(folder / "cache"))
    monkeypatch.setenv("LIGHTNING_META_DATA", str(folder / "data"))
    return folder


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def refusal(prepare: Any) -> str:
    """The line; nothing has appeared outside of the cache."""
    before = files(Path.cwd().parent)
    with pytest.raises(UserError) as error:
        prepare()
    made = files(Path.cwd().parent) - before
    assert all((Path.cwd() / "cache") in (path, *path.parents) for path in made), made
    assert str(error.value).isprintable()
    return str(error.value)


# Archives


def tar_with(*members: tuple[str, bytes | str]) -> bytes:
    """Bytes are a file, `->path` is a symbolic link and `=>path` a hard one."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            else:
                info.type = tarfile.SYMTYPE if content.startswith("->") else tarfile.LNKTYPE
                info.linkname = content[2:]
                archive.addfile(info)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "members",
    [
        [("../../train", CONTENT), ("/exploded", CONTENT)],
        [("cifar-100-python/train", "->/etc/passwd")],
        [("cifar-100-python/train", "->../../../outside")],
        [("cifar-100-python/train", "=>/etc/passwd")],
        [("a/train", "->test"), ("a/test", "->train")],
        [("a", "->.."), ("a/exploded", CONTENT), ("train", pickle.dumps(Malicious()))],
    ],
)
def test_a_tar_that_reaches_outside(here: Path, members: list[tuple[str, bytes | str]]) -> None:
    archive = here / "data" / ARCHIVE
    archive.parent.mkdir(parents=True)
    archive.write_bytes(tar_with(*members))
    line = refusal(CIFARFS().prepare)
    assert line.startswith(f"{archive}: ")
    assert "root:" not in line  # of /etc/passwd


def zip_with(members: dict[str, bytes], link: bool = False) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16 if link else 0
            archive.writestr(info, content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize("name", ["../../exploded", "/exploded", "x/../../character01/0001_01.png"])
def test_a_zip_that_reaches_outside(here: Path, name: str, link: bool) -> None:
    for part in ("background", "evaluation"):
        archive = here / "data" / "omniglot" / f"images_{part}.zip"
        archive.parent.mkdir(parents=True, exist_ok=True)
        archive.write_bytes(zip_with({name: b"/etc/passwd" if link else CONTENT}, link))
    assert "drawings, expected" in refusal(Omniglot().prepare)


def test_a_zip_bomb_among_drawings_is_not_unpacked(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_meta.sources.omniglot.ARCHIVES", {"images_background": (1, ""), "x": (1, "")})
    monkeypatch.setattr("lightning_meta.sources.omniglot.DRAWERS", 1)
    archive = here / "data" / "omniglot" / "images_background.zip"
    archive.parent.mkdir(parents=True)
    archive.write_bytes(zip_with({"images_background/Latin/character01/0001_01.png": bytes(200 * 2**20)}))
    assert archive.stat().st_size < 2**20
    assert "is too large for a drawing" in refusal(Omniglot().prepare)


# Images

SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
EPS = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(exploded) (w) file closefile\nshowpage\n%%EOF\n"
)
PDF = b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF"


@pytest.mark.parametrize("content", [SVG, EPS, PDF, CONTENT, pickle.dumps(Malicious())])
def test_what_is_no_picture_is_refused_whatever_its_suffix(here: Path, content: bytes) -> None:
    for c in range(3):
        (here / "images" / str(c)).mkdir(parents=True)
        (here / "images" / str(c) / "0.png").write_bytes(content)
    assert "cannot be read as an image" in refusal(ImageFolder(here / "images").prepare)


def test_a_picture_with_the_suffix_of_another_is_read(here: Path) -> None:
    for c, kind in enumerate(("PNG", "JPEG", "WEBP")):
        (here / "images" / str(c)).mkdir(parents=True)
        Image.new("RGB", (9, 9), (250, 250, 250)).save(here / "images" / str(c) / "0.gif", kind)
    assert all(pool.x.min() > 240 for pool in ImageFolder(here / "images").pools().values())


# Tables


@pytest.mark.parametrize(
    "content",
    [
        b"x,y\n" + b"1,2\n" * 20 + b"1,\x00\n",
        b"x,y\n\x00\n",
        b"x,y\n1," + b"9" * 5_000_000 + b"\n" + b"1,2\n" * 20,
        b"x,y\n" + b'"' * 100_000,
        b"," * 100_000 + b"\n" + b"," * 100_000,
        b"\xef\xbb\xbf",
        b"x,y\n1,2\n\n\n\r\r\n1\n",
    ],
    ids=["NUL in a number", "NUL", "long number", "quotes", "many columns", "only a mark", "short rows"],
)
def test_a_damaged_table_is_refused_in_one_line(here: Path, content: bytes) -> None:
    (here / "t.csv").write_bytes(content)

    def read() -> None:
        source = Table(here / "t.csv", {"y": None})
        source.tasks()
        source.sets()

    assert len(refusal(read)) < 2000


def test_names_of_tasks_are_not_paths_nor_formulas_that_break_a_figure(here: Path) -> None:
    names = ["../../exploded", "/exploded", "=HYPERLINK(1)", "$\\frac{$", "[/red]", "a\nb", "{0.__class__}"]
    with (here / "t.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["x", "y", "task"])
        writer.writerows([i * 0.37 % 1, i * 0.11 % 1, names[i % len(names)]] for i in range(600))
    before = files(here.parent)
    options = [
        *("--model=MultiHead", "--model.backbone=MLP", "--model.backbone.in_features=1", "--data=MultiTaskDataModule"),
        *("--data.source=Table", "--data.source.path=t.csv", "--data.source.targets={y: regression}"),
        *("--data.source.features=[x]", "--data.source.task_column=task", "--trainer.max_steps=4"),
        *("--checkpoint.monitor=val/score", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"),
        *("--trainer.callbacks+=lightning_meta.GradientConflict", "--trainer.callbacks.every_n_steps=1"),
    ]
    status = main(["fit", *options])
    made = files(here.parent) - before
    assert all((here / "runs") in (path, *path.parents) for path in made), made
    assert status == 0


# Checkpoints


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("command", ["fit", "test"])
def test_code_in_a_checkpoint_is_not_run_by_any_command(
    here: Path, command: str, raw: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    if raw:
        (here / "a.ckpt").write_bytes(pickle.dumps(Malicious()))
    else:
        torch.save({"state_dict": {}, "loops": Malicious()}, here / "a.ckpt")
    before = files(here.parent)
    assert main([command, *(MODEL if command == "fit" else []), "--ckpt_path=a.ckpt"]) == 2
    assert files(here.parent) == before
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "a.ckpt" in said
