"""Small files that stand for much: refused before the memory is full. Each test runs with little memory to spare."""

from __future__ import annotations

import gzip
import io
import os
import resource
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lightning_meta.data import images
from lightning_meta.data.images import image_files
from lightning_meta.errors import UserError
from lightning_meta.report.transfer import reading
from lightning_meta.report.transfer.reading import read_arrays
from lightning_meta.sources import CIFARFS, MiniImageNet, MultiMNIST, Omniglot, Parkinsons, Table, cifar
from lightning_meta.sources.cifar import ARCHIVE

SPARE = 3 * 2**29  # bytes of addresses beyond what the process has


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("LIGHTNING_META_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LIGHTNING_META_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    before = resource.getrlimit(resource.RLIMIT_AS)
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + SPARE, before[1]))
    yield tmp_path
    resource.setrlimit(resource.RLIMIT_AS, before)


def refusal(read: Any) -> str:
    with pytest.raises(UserError) as error:
        read()
    assert len(str(error.value)) < 1000
    return str(error.value)


# predictions.npz


def npz(parts: dict[str, bytes], kind: int = zipfile.ZIP_DEFLATED, claim: int | None = None) -> Path:
    with zipfile.ZipFile("a.npz", "w", kind) as archive:
        for name, content in parts.items():
            archive.writestr(f"{name}.npy", content)
        for info in archive.infolist():
            info.file_size = info.file_size if claim is None else claim
    return Path("a.npz")


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,)}"), "damaged"),
        (npy("{'descr': '<U0', 'fortran_order': False, 'shape': (1000000000000000,)}"), "its header claims"),
        (npy("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,)}", bytes(8)), "damaged"),
        (npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", b"cos\nsystem\n."), "plain arrays"),
        (b"no array at all", "damaged"),
        (b"", "damaged"),
    ],
)
def test_an_array_that_claims_more_than_it_has(content: bytes, line: str) -> None:
    assert line in refusal(lambda: read_arrays(npz({"a": content}), ["a"]))


def test_arrays_that_unpack_to_more_than_any_run_has(monkeypatch: pytest.MonkeyPatch) -> None:
    zeros = io.BytesIO()
    np.save(zeros, np.zeros(2**17))
    monkeypatch.setattr(reading, "SLACK", 2**19)
    monkeypatch.setattr(reading, "RATIO", 1)
    assert "it would inflate from" in refusal(lambda: read_arrays(npz({"a": zeros.getvalue()}), ["a"]))


@pytest.mark.parametrize("kind", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_arrays_packed_as_numpy_never_does(kind: int) -> None:
    stored = io.BytesIO()
    np.save(stored, np.zeros(9))
    assert "does not use" in refusal(lambda: read_arrays(npz({"a": stored.getvalue()}, kind), ["a"]))


# Zip


def zeros_deflated(size: int) -> bytes:
    """A raw deflate stream of a multiple of 16 MiB of zeros, made quickly: equal blocks, one after the other."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    first = packer.compress(bytes(2**24)) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(2**24)) + packer.flush(zlib.Z_FULL_FLUSH)
    return first + block * (size // 2**24 - 1) + packer.flush()


def lying_zip(name: str, content: bytes, claim: int) -> bytes:
    """A zip with one deflated member whose headers claim to unpack to less than it does."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(name, content)
        info = archive.infolist()[0]
        info.compress_type, info.file_size, info.CRC = zipfile.ZIP_DEFLATED, claim, 0
    whole = bytearray(buffer.getvalue())
    whole[8:10] = struct.pack("<H", zipfile.ZIP_DEFLATED)
    return bytes(whole)


@pytest.mark.parametrize("kind", ["lies", "lzma"])
def test_a_drawing_that_unpacks_to_more_than_its_headers_claim(
    kind: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_meta.sources.omniglot.ARCHIVES", {"images_background": (1, ""), "x": (1, "")})
    monkeypatch.setattr("lightning_meta.sources.omniglot.DRAWERS", 1)
    member = "images_background/Latin/character01/0001_01.png"
    file = here / "data" / "omniglot" / "images_background.zip"
    file.parent.mkdir()
    if kind == "lies":
        file.write_bytes(lying_zip(member, zeros_deflated(2**31), 500))
    else:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_LZMA) as archive:
            archive.writestr(member, bytes(500))
    line = refusal(Omniglot().prepare)
    assert ("not a readable image" if kind == "lies" else "not compressed like") in line or "damaged" in line


# Tar and pickle


def tar(*members: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def header(kind: bytes, size: int) -> bytes:
    """The header of a member that claims a size."""
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


FAR_NOTE = b"\x80\x02}r" + struct.pack("<I", 2**31) + b"."


@pytest.mark.parametrize("kind", ["long name", "pax", "member", "zeros", "far note"])
def test_a_tar_that_unpacks_to_more_than_cifar(kind: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar, "_MAX_UNPACKED", 2**25)
    packed = {
        "long name": header(tarfile.GNUTYPE_LONGNAME, 2**33) + bytes(2**26),
        "pax": header(tarfile.XHDTYPE, 2**33) + bytes(2**26),
        "member": header(tarfile.REGTYPE, 2**27) + bytes(2**27),
        "zeros": tar(*((f"x{i}", bytes(2**20)) for i in range(40))),
        "far note": tar(("train", FAR_NOTE)),
    }[kind]
    (here / "data" / ARCHIVE).write_bytes(gzip.compress(packed, 1))
    line = refusal(CIFARFS().prepare)
    assert ("the memo index 2147483648" if kind == "far note" else "unpacks to more than 33,554,432 bytes") in line


def test_labels_within_labels_are_not_followed(here: Path) -> None:
    """Sixty lists, each twice in the next."""
    halves: Any = [1]
    for _ in range(60):
        halves = [halves, halves]
    fields = {"data": np.zeros((1, 3072), np.uint8), "fine_labels": halves, "coarse_labels": [1]}
    meta = {"fine_label_names": ["a"], "coarse_label_names": ["b"]}
    with pytest.raises(Exception, match="not a list of whole numbers"):
        cifar._classes({"train": fields, "test": fields, "meta": meta})


# Tables


def test_a_parquet_file_of_a_few_bytes_that_stands_for_a_billion_rows(here: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    once = pa.table({"x": pa.array(np.zeros(2**21, np.int8)), "y": pa.array(np.zeros(2**21, np.int8))})
    with parquet.ParquetWriter("t.parquet", once.schema, compression="zstd") as writer:
        for _ in range(32):
            writer.write_table(once)
    assert Path("t.parquet").stat().st_size < 2**20
    assert "may hold at most 100,000,000 values, but it declares 134,217,728" in refusal(
        lambda: Table("t.parquet", {"y": "regression"}).tasks()
    )


def test_one_long_text_in_many_rows(here: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    text = pa.DictionaryArray.from_arrays(pa.array(np.zeros(2**20, np.int32)), pa.array(["x" * 2**20]))
    schema = pa.schema({"x": pa.dictionary(pa.int32(), pa.string()), "y": pa.int8()})
    table = pa.table({"x": text, "y": pa.array(np.zeros(2**20, np.int8))}, schema=schema)
    parquet.write_table(table, "t.parquet", compression="zstd", store_schema=False)
    assert Path("t.parquet").stat().st_size < 2**20
    line = refusal(lambda: Table("t.parquet", {"y": "regression"}, features=["x"]).tasks())
    assert "texts of up to 1,048,576 bytes in 1,048,576 rows" in line


def test_texts_of_parquet_are_still_texts(here: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    names = ["ab", "c", None] * 20
    parquet.write_table(pa.table({"x": names, "n": range(60), "y": list(range(60))}), "t.parquet")
    assert Table("t.parquet", {"y": "regression"}).input_names == ["x=ab", "x=c", "n"]


# Folders and files that are none


def picture(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (9, 9)).save(file)


def test_links_between_folders_are_followed_once(here: Path) -> None:
    """Twelve folders, each with a link to each: 12! ways."""
    for i in range(12):
        picture(here / "f" / str(i) / "a.png")
        for k in range(12):
            (here / "f" / str(i) / f"to {k}").symlink_to(here / "f" / str(k))
    assert len(image_files([here / "f"])) == 12


def test_a_deep_folder(here: Path) -> None:
    """The folder is no deeper, so that recursive functions can remove it."""
    place = here / "f" / "/".join(["a"] * 600)
    place.mkdir(parents=True)
    picture(place / "x.png")
    assert image_files([here / "f"]) == [place / "x.png"]


def test_a_link_to_everything_is_not_followed_for_ever(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MOST_FOLDERS", 100)
    (here / "f").mkdir()
    (here / "f" / "all").symlink_to("/")
    assert "more than 100 folders; check for a link to a folder outside" in refusal(lambda: image_files([here / "f"]))


@pytest.mark.parametrize("source", ["Omniglot", "CIFARFS", "MultiMNIST", "Parkinsons"])
def test_an_official_file_that_is_a_pipe(source: str, here: Path) -> None:
    for name in (
        *("omniglot/images_background.zip", ARCHIVE),
        *("mnist/train-images-idx3-ubyte.gz", "parkinsons/parkinsons_updrs.data"),
    ):
        (here / "data" / name).parent.mkdir(exist_ok=True)
        os.mkfifo(here / "data" / name)
    made = {"Omniglot": Omniglot, "CIFARFS": CIFARFS, "MultiMNIST": MultiMNIST, "Parkinsons": Parkinsons}[source]()
    assert "this is not a regular file" in refusal(made.prepare)


@pytest.mark.parametrize(
    "content", [b"\xff", b"filename,label\n" + b"x" * 200_000, b"a\n", b"", b"filename,label\n\x00,\x00\n"]
)
def test_a_damaged_list_of_images(content: bytes, here: Path) -> None:
    (here / "images").mkdir()
    (here / "train.csv").write_bytes(content)
    assert str(here / "train.csv") in refusal(MiniImageNet(here).prepare)
