from __future__ import annotations

import io
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_meta.batches import SPLITS
from lightning_meta.data.files import WrongContentError
from lightning_meta.data.hashes import of_pools
from lightning_meta.errors import UserError
from lightning_meta.sources import omniglot
from lightning_meta.sources.class_lists import class_list
from lightning_meta.sources.omniglot import VALIDATION_ALPHABETS, Omniglot

Members = dict[str, bytes]


def png(seed: int, mode: str = "1") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 2, (105, 105)).astype(bool)
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, "PNG")
    return stream.getvalue()


def claiming(width: int, height: int) -> bytes:
    """A small PNG whose header claims to be large."""
    plain = png(1)
    header = plain[12:16] + struct.pack(">II", width, height) + plain[24:29]
    return plain[:12] + header + struct.pack(">I", zlib.crc32(header)) + plain[33:]


def members(archive: str, alphabet: str) -> Members:
    return {f"{archive}/{alphabet}/character01/0001_{d:02}.png": png(d) for d in range(1, 21)}


def zip_bytes(content: Members) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, data in content.items():
            zipped.writestr(name, data)
    return stream.getvalue()


@pytest.fixture
def toy(own_data: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Members], None]:
    """An official Omniglot of three characters; the returned function replaces the background archive."""
    folder = own_data / "omniglot"
    folder.mkdir()
    background = members("images_background", "Latin") | members("images_background", "Hebrew")
    sums = {"images_background": (2, "not known yet"), "images_evaluation": (1, "not known yet")}
    contents = {"images_background": background, "images_evaluation": members("images_evaluation", "Keble")}
    for archive, content in contents.items():
        (folder / f"{archive}.zip").write_bytes(zip_bytes(content))
        try:  # the hash of drawings made here depends on nothing but the drawings: take it from the message
            monkeypatch.setattr(omniglot, "ARCHIVES", sums)
            Omniglot("lake")._read(folder / f"{archive}.zip", archive)
        except WrongContentError as error:
            sums[archive] = (sums[archive][0], str(error).rpartition("sha256 is ")[2].rstrip(")"))

    def replace(content: Members) -> None:
        (folder / "images_background.zip").write_bytes(zip_bytes(content))

    replace.background = background  # type: ignore[attr-defined]
    return replace


def test_the_published_split() -> None:
    classes = class_list("omniglot_vinyals")
    assert [len(set(classes[split])) for split in SPLITS] == [1028, 172, 423]
    assert len(set().union(*classes.values())) == 1623
    assert {name.split("/")[0] for name in classes["val"]} == set(VALIDATION_ALPHABETS)


def test_ink_is_255_and_drawers_are_in_order(toy: Any) -> None:
    pools = Omniglot("lake", image_size=105).pools()
    assert [pools[split].names for split in SPLITS] == [
        ("Latin/character01",),
        ("Hebrew/character01",),
        ("Keble/character01",),
    ]
    assert pools["val"].groups == ("Hebrew",)
    expected = [np.asarray(Image.open(io.BytesIO(png(d)))) for d in range(1, 21)]  # True is paper
    assert torch.equal(pools["train"].x[:, 0] == 0, torch.from_numpy(np.stack(expected)))
    assert set(pools["train"].x.unique().tolist()) == {0, 255}


def test_a_repacked_archive_is_the_same_and_foreign_members_are_passed_over(toy: Any, own_data: Path) -> None:
    plain = Omniglot("lake").fingerprint()
    content = list(toy.background.items())
    random.Random(0).shuffle(content)
    foreign = {"images_background/": b"", "../../escaped.png": png(1), "/etc/escaped": b"", "__MACOSX/a.png": b""}
    for path in (own_data.parent / "fresh cache/decoded").iterdir():
        path.unlink()
    toy(dict(content) | foreign)
    assert Omniglot("lake").fingerprint() == plain
    assert not list(own_data.parent.parent.rglob("*escaped*"))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("Latin/character01/0001_07.png", claiming(9000, 9000), "9000x9000 pixels of mode 1, expected 105x105"),
        ("Latin/character01/0001_07.png", claiming(99999, 99999), "decompression bomb"),
        ("Latin/character01/0001_07.png", png(7, mode="L"), "105x105 pixels of mode L"),
        ("Latin/character01/0001_07.png", png(7)[:60], "0001_07.png is not a readable image"),
        ("Latin/character01/0001_07.png", b"", "0001_07.png is not a readable image"),
        ("Latin/character01/0001_07.png", bytes(10**6), "0001_07.png is too large for a drawing"),
        ("Latin/character01/0001_07.png", png(99), "its drawings are not the official ones"),
        ("Latin/character02/0002_01.png", png(1), "it has 41 drawings, expected 40"),
    ],
)
def test_wrong_content(toy: Any, name: str, data: bytes, message: str) -> None:
    toy(toy.background | {f"images_background/{name}": data})
    with pytest.raises(UserError, match=message) as error:
        Omniglot("lake").pools()
    assert "images_background.zip: " in str(error.value)
    assert "delete it, or put the official file from https://raw" in str(error.value)
    assert "\n" not in str(error.value)


def test_truncated_or_flipped_archives(toy: Any, own_data: Path) -> None:
    path = own_data / "omniglot/images_background.zip"
    intact = path.read_bytes()
    rng = random.Random(0)
    lines = []
    for case in range(60):
        damaged = bytearray(intact)
        if case % 2:
            damaged = damaged[: rng.randrange(len(intact))]
        else:
            damaged[rng.randrange(len(intact))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            drawings = Omniglot("lake")._read_official("images_background")
        except UserError as error:
            lines.append(str(error))
        else:  # a flip in a date or a comment
            assert list(drawings) == ["Hebrew/character01", "Latin/character01"]
    assert len(lines) > 40
    assert all("images_background.zip: " in line and "\n" not in line for line in lines)


def test_downloads_from_its_authors(toy: Any, own_data: Path, server: Any) -> None:
    folder = own_data / "omniglot"
    for archive in omniglot.ARCHIVES:
        server.add((folder / f"{archive}.zip").read_bytes())
        (folder / f"{archive}.zip").unlink()
    assert Omniglot("lake", url=server.url).pools()["train"].num_classes == 1
    assert server.requests == ["/images_background.zip", "/images_evaluation.zip"]


def test_bad_options() -> None:
    with pytest.raises(UserError, match="split='mine'"):
        Omniglot("mine")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="image_size=0"):
        Omniglot(image_size=0)


@pytest.mark.data
def test_vinyals(data_folder: Path) -> None:
    source = Omniglot()
    pools = source.pools()
    assert [pools[split].num_classes for split in SPLITS] == [1028, 172, 423]
    assert {split: list(pools[split].names) for split in SPLITS} == class_list("omniglot_vinyals")
    for pool in pools.values():
        assert pool.input_shape == (1, 28, 28)
        assert pool.x.dtype == torch.uint8
        assert pool.sizes.unique().tolist() == [20]
        assert 15 < pool.x.float().mean() < 30  # little ink, much paper
        assert pool.groups == tuple(name.split("/")[0] for name in pool.names)
    assert len({g for pool in pools.values() for g in pool.groups}) == 50
    assert source.fingerprint() == "400e3c5a1d4aaec6d50444d8bd89079572b4f55acb92b1457b97aacd3680abd4"


@pytest.mark.data
def test_real_drawings_are_where_they_should_be(data_folder: Path) -> None:
    pool = Omniglot().pools()["train"]
    with zipfile.ZipFile(data_folder / "omniglot/images_background.zip") as zipped:
        for name in ("Latin/character13", "Tifinagh/character55"):
            for drawer in (1, 20):
                (member,) = [m for m in zipped.namelist() if f"/{name}/" in m and m.endswith(f"_{drawer:02}.png")]
                ink = ~np.asarray(Image.open(io.BytesIO(zipped.read(member))))
                blocks = torch.from_numpy(ink).float()[None, None]
                mean = torch.nn.functional.interpolate(blocks, (28, 28), mode="area")[0, 0]
                ours = pool.x[pool.starts[pool.names.index(name)] + drawer - 1, 0].float()
                assert torch.corrcoef(torch.stack([mean.flatten(), ours.flatten()]))[0, 1] > 0.9


@pytest.mark.slow
@pytest.mark.data
def test_lake(data_folder: Path) -> None:
    pools = Omniglot("lake").pools()
    assert [pools[split].num_classes for split in SPLITS] == [792, 172, 659]
    assert pools["val"].names == Omniglot().pools()["val"].names
    groups = [set(pools[split].groups) for split in SPLITS]
    assert [len(g) for g in groups] == [25, 5, 20]
    assert len(set.union(*groups)) == 50


@pytest.mark.data
def test_drawers_are_held_out(data_folder: Path) -> None:
    pools = Omniglot().held_out()
    drawn = Omniglot().pools()
    names = pools["train"].names
    assert len(names) == 1623
    assert list(names) == sorted(name for split in SPLITS for name in class_list("omniglot_vinyals")[split])
    assert len(set(pools["train"].groups)) == 50
    drawers = {"train": range(14), "val": range(14, 16), "test": range(16, 20)}
    for split in SPLITS:
        assert (pools[split].names, pools[split].groups) == (names, pools["train"].groups)
        assert pools[split].sizes.unique().tolist() == [len(drawers[split])]
        x = pools[split].x.view(1623, -1, 28, 28)
        for of in drawn.values():
            for c in range(0, of.num_classes, 40):
                expected = of.x[int(of.starts[c]) :][list(drawers[split]), 0]
                assert torch.equal(x[names.index(of.names[c])], expected)
    assert (
        of_pools(pools).whole
        == of_pools(Omniglot("lake").held_out()).whole
        == "fa0ea104370dce5fb710bb6051448a837292cbd3d3c4568698f1c0b7fa955db9"
    )
