from __future__ import annotations

import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_meta.batches import SPLITS, Split
from lightning_meta.errors import UserError
from lightning_meta.sources import CIFAR100, cifar100
from lightning_meta.tasks import Classification
from tests.data.test_cifar import PER_CLASS, archive, members, tar_bytes

__all__ = ["archive"]  # the fixture


@pytest.fixture
def small(archive: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small archive, and its division passes for the official one."""
    monkeypatch.setattr(cifar100, "VALIDATION", 1)
    with pytest.raises(UserError) as error:
        CIFAR100().prepare()
    monkeypatch.setattr(cifar100, "DIVISION", str(error.value).partition("official one (")[2][:64])
    return archive


def images(source: CIFAR100, split: Split) -> Tensor:
    inputs = source.sets()[split].inputs
    assert isinstance(inputs, Tensor)
    return inputs


def test_test_images_are_those_of_the_test_file(small: Path) -> None:
    source, content = CIFAR100(), members()
    wanted = {row.tobytes() for row in content["test"][b"data"]}
    assert {row.numpy().tobytes() for row in images(source, "test")} == wanted
    rest = {row.numpy().tobytes() for split in ("train", "val") for row in images(source, split)}
    assert rest == {row.tobytes() for row in content["train"][b"data"]}
    assert [len(images(source, split)) for split in SPLITS] == [100 * (PER_CLASS - 2), 100, 100]


def test_rows_in_another_order_are_the_same_and_another_division_is_refused(small: Path, cache: Path) -> None:
    expected = CIFAR100().fingerprint()
    next(cache.rglob("cifar100*")).unlink()
    small.write_bytes(tar_bytes(members(seed=1)))
    assert CIFAR100().fingerprint() == expected
    next(cache.rglob("cifar100*")).unlink()
    content = members()
    train, test = content["train"], content["test"]
    place = train[b"fine_labels"].index(test[b"fine_labels"][0])  # two images of a class change places
    train[b"data"][place], test[b"data"][0] = test[b"data"][0].copy(), train[b"data"][place].copy()
    small.write_bytes(tar_bytes(content))
    with pytest.raises(UserError, match="division into training and test images is not the official one") as error:
        CIFAR100().prepare()
    assert str(error.value).startswith(f"{small}: ")


@pytest.mark.slow
@pytest.mark.data
def test_twenty_tasks_of_five_classes(data_folder: Path) -> None:
    source = CIFAR100()
    official = official_rows(data_folder)
    assert len(source.tasks()) == 20
    assert all(isinstance(t, Classification) and t.outputs == 5 for t in source.tasks().values())
    for split, count in zip(SPLITS, (450, 50, 100), strict=True):
        data = source.sets()[split]
        assert data.names == sorted(official["superclasses"])
        for name in data.names:
            assert data.targets[name].bincount().tolist() == [count] * 5
            of_superclass = sorted(official["classes"][name])
            for row, label in list(zip(data.rows[name].tolist(), data.targets[name].tolist(), strict=True))[::25]:
                key = images(source, split)[row].numpy().tobytes()
                member = "test" if split == "test" else "train"
                assert of_superclass[label] in official[member][key]
    seen = {split: {x.tobytes() for x in images(source, split).numpy()} for split in SPLITS}
    assert [len(seen["train"] & seen["test"]), len(seen["train"] & seen["val"]), len(seen["val"] & seen["test"])] == [
        10,  # as published
        1,
        0,
    ]
    assert images(source, "train").shape == (45000, 3, 32, 32)
    assert images(source, "train").dtype == torch.uint8
    assert source.fingerprint() == "9bd831fede9407bc75258b318fdce4ec144d3ef6677ea13a657528c942cc750b"


def official_rows(folder: Path) -> dict[str, Any]:
    """The archive as plain pickles: by member, the class names of each image's bytes; the classes of each task."""
    found: dict[str, Any] = {"train": {}, "test": {}, "classes": {}}
    with tarfile.open(folder / "cifar-100-python.tar.gz") as tar:
        content = {
            name: pickle.load(tar.extractfile(f"cifar-100-python/{name}"), encoding="bytes")  # type: ignore[arg-type]
            for name in ("train", "test", "meta")
        }
    fine = [name.decode() for name in content["meta"][b"fine_label_names"]]
    coarse = [name.decode() for name in content["meta"][b"coarse_label_names"]]
    for member in ("train", "test"):
        for row, label in zip(np.asarray(content[member][b"data"]), content[member][b"fine_labels"], strict=True):
            found[member].setdefault(row.tobytes(), []).append(fine[label])
        for label, of in zip(content[member][b"fine_labels"], content[member][b"coarse_labels"], strict=True):
            found["classes"].setdefault(coarse[of], set()).add(fine[label])
    return found | {"superclasses": coarse}
