from __future__ import annotations

import io
import json
import os
import pickle
import random
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_meta.batches import SPLITS
from lightning_meta.errors import UserError
from lightning_meta.sources import cifar, restricted_pickle
from lightning_meta.sources.cifar import CIFARFS, FC100
from lightning_meta.sources.class_lists import class_list

PER_CLASS = 3  # images of each of the 100 classes in the toy archive, one of them in the test file


class Malicious:
    """An object that runs a command when it is unpickled by `pickle.load`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.path}'",)


def tar_bytes(members: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz", compresslevel=1) as archive:
        for name, content in members.items():
            data = content if isinstance(content, bytes) else pickle.dumps(content, protocol=2)
            info = tarfile.TarInfo(f"cifar-100-python/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def members(seed: int = 0) -> dict[str, Any]:
    """The content of a small CIFAR-100, always the same images, their rows shuffled by the seed."""
    names = sorted(name for split in SPLITS for name in class_list("cifar_fs")[split])
    superclasses = sorted(name for split in SPLITS for name in class_list("fc100")[split])
    fine = np.repeat(np.arange(100), PER_CLASS)
    images = np.random.default_rng(0).integers(0, 256, (len(fine), 3072), np.uint8)
    member = np.arange(len(fine)) % PER_CLASS == 0
    content: dict[str, Any] = {}
    for name, rows in (("train", np.flatnonzero(~member)), ("test", np.flatnonzero(member))):
        rows = np.random.default_rng(seed).permutation(rows)
        labels = fine[rows]
        content[name] = {
            b"data": images[rows],
            b"fine_labels": labels.tolist(),
            b"coarse_labels": (labels // 5).tolist(),
            b"filenames": [b"x.png" for _ in rows],
        }
    content["meta"] = {
        b"fine_label_names": [name.encode() for name in names],
        b"coarse_label_names": [name.encode() for name in superclasses],
    }
    return content


@pytest.fixture
def archive(own_data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small archive that passes for the official one."""
    path = own_data / "cifar-100-python.tar.gz"
    path.write_bytes(tar_bytes(members()))
    monkeypatch.setattr(cifar, "PER_CLASS", PER_CLASS)
    monkeypatch.setattr(cifar, "IMAGES", {"train": 100 * (PER_CLASS - 1), "test": 100})
    with pytest.raises(UserError) as error:
        CIFARFS().pools()
    monkeypatch.setattr(cifar, "CONTENT", str(error.value).partition("sha256 is ")[2][:64])
    return path


def refused(path: Path) -> str:
    with pytest.raises(UserError) as error:
        CIFARFS().pools()
    line = str(error.value)
    assert line.startswith(f"{path}: ")
    assert "\n" not in line
    return line


def test_the_published_splits() -> None:
    for name, sizes in (("cifar_fs", [64, 16, 20]), ("fc100", [12, 4, 4]), ("mini_imagenet", [64, 16, 20])):
        classes = class_list(name)
        assert [len(classes[split]) for split in SPLITS] == sizes
        assert len(set().union(*classes.values())) == sum(sizes)


def test_order_of_rows_and_of_members_does_not_matter(archive: Path, cache: Path) -> None:
    first = CIFARFS().fingerprint()
    next(cache.rglob("cifarfs*")).unlink()
    other = members(seed=1)
    archive.write_bytes(tar_bytes({name: other[name] for name in ("meta", "test", "train")}))
    assert CIFARFS().fingerprint() == first


def test_pickles_of_both_numpy_generations(archive: Path, cache: Path) -> None:
    first = FC100().fingerprint()
    next(cache.rglob("fc100*")).unlink()
    pickled = {name: pickle.dumps(content, protocol=2) for name, content in members().items()}
    old = {name: data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray") for name, data in pickled.items()}
    new = {name: data.replace(b"numpy.core.multiarray", b"numpy._core.multiarray") for name, data in old.items()}
    assert old["train"] != new["train"]
    for generation in (old, new):
        archive.write_bytes(tar_bytes(generation))
        assert FC100().fingerprint() == first
        next(cache.rglob("fc100*")).unlink()


def test_images_are_planes_of_colour(archive: Path) -> None:
    pool = CIFARFS().pools()["test"]
    content = members()
    row = content["train"][b"data"][0].reshape(3, 32, 32)
    everything = torch.cat([p.x for p in CIFARFS().pools().values()])
    assert (everything == torch.from_numpy(row)).all(dim=(1, 2, 3)).sum() == 1
    assert pool.input_shape == (3, 32, 32)
    assert pool.sizes.unique().tolist() == [PER_CLASS]


def test_a_malicious_pickle_runs_nothing(archive: Path, tmp_path: Path) -> None:
    mark = tmp_path / "was here"
    archive.write_bytes(tar_bytes(members() | {"train": {b"data": Malicious(mark)}}))
    assert "it refers to posix.system, which a data file does not need" in refused(archive).replace("nt.", "posix.")
    assert not mark.exists()


@pytest.mark.parametrize(
    "code",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"\x80\x02cnumpy\nload\n(S'x'\ntR.",
        b"\x80\x04\x8c\x05numpy\x8c\x0bndarray.ctypes\x93.",
        b"c_codecs\ndecode\n(S'x'\ntR.",
        b"\x80\x02c_codecs\nencode\n(X\x01\x00\x00\x00xX\x03\x00\x00\x00zip" + b"tR.",
        b"\x80\x02P1\n.",
        b"\x80\x02\x82\x01.",
    ],
)
def test_the_unpickler_makes_nothing_but_data(code: bytes) -> None:
    with pytest.raises(pickle.UnpicklingError):
        restricted_pickle.load(io.BytesIO(code))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": [1, 2]}, "it is not laid out like CIFAR-100"),
        ({"train": {}}, "it is not laid out like CIFAR-100"),
        ({"meta": {}}, "it is not laid out like CIFAR-100"),
        ({"test": b"no pickle"}, "damaged, truncated or unreadable"),
        ({"test": b""}, "damaged, truncated or unreadable"),
    ],
)
def test_wrong_members(archive: Path, change: dict[str, Any], message: str) -> None:
    archive.write_bytes(tar_bytes(members() | change))
    assert message in refused(archive)


def test_missing_members_and_images(archive: Path) -> None:
    content = members()
    del content["meta"]
    archive.write_bytes(tar_bytes(content))
    assert "it has no member meta" in refused(archive)
    content = members()
    content["test"][b"data"] = content["test"][b"data"][:-1]
    archive.write_bytes(tar_bytes(content))
    assert "it has images (299, 3072) of uint8" in refused(archive)
    content = members()
    content["test"][b"data"][0, 0] ^= 1
    archive.write_bytes(tar_bytes(content))
    assert "its images are not the official ones" in refused(archive)


def test_a_member_too_large_is_not_read(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar, "_MAX_BYTES", 1000)
    assert "its member cifar-100-python/train has" in refused(archive)


def test_truncated_or_flipped_archives(archive: Path) -> None:
    intact = archive.read_bytes()
    rng = random.Random(0)
    for case in range(24):
        damaged = bytearray(intact)
        if case % 2:
            damaged = damaged[: rng.randrange(len(intact) - 100)]
        else:
            damaged[rng.randrange(100, len(intact) - 100)] ^= 1 << rng.randrange(8)
        archive.write_bytes(damaged)
        refused(archive)


@pytest.mark.data
def test_cifar_fs(data_folder: Path) -> None:
    source = CIFARFS()
    pools = source.pools()
    assert [pools[split].num_classes for split in SPLITS] == [64, 16, 20]
    assert source.fingerprint() == "121ab6c59e44e709d7999010766e284f91cba29662463ade8fe1dcbad2833e1b"
    for split in SPLITS:
        assert pools[split].sizes.unique().tolist() == [600]
        published = json.loads((data_folder / f"splits/cifar_fs_{split}.json").read_text())
        assert sorted(zip(pools[split].groups, pools[split].names, strict=True)) == sorted(map(tuple, published))


@pytest.mark.data
def test_fc100(data_folder: Path) -> None:
    source = FC100()
    pools = source.pools()
    assert [pools[split].num_classes for split in SPLITS] == [60, 20, 20]
    assert source.fingerprint() == "bc57740708782b6f4490575b6b63a93251a4a079b13e1900722b5395c671e2d8"
    for split in SPLITS:
        assert pools[split].sizes.unique().tolist() == [600]
        published = json.loads((data_folder / f"splits/fc100_{split}.json").read_text())
        assert set(pools[split].groups) == set(published)
