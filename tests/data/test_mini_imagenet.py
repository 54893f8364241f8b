from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightning_meta.batches import SPLITS
from lightning_meta.errors import UserError
from lightning_meta.sources import mini_imagenet
from lightning_meta.sources.class_lists import class_list
from lightning_meta.sources.mini_imagenet import MiniImageNet


@pytest.fixture
def root(own_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """mini-ImageNet with two images a class, each of a colour of its own."""
    monkeypatch.setattr(mini_imagenet, "PER_CLASS", 2)
    folder = tmp_path / "mini"
    (folder / "images").mkdir(parents=True)
    for split in SPLITS:
        with (folder / f"{split}.csv").open("w", newline="") as lines:
            rows = csv.writer(lines)
            rows.writerow(["filename", "label"])
            for number, label in enumerate(class_list("mini_imagenet")[split]):
                for i in (1, 2):
                    rows.writerow([f"{label}0000000{i}.jpg", label])
                    pixels = np.full((20, 30, 3), (2 * number, 100 * i, 7), np.uint8)
                    Image.fromarray(pixels).save(folder / f"images/{label}0000000{i}.jpg", quality=95)
    return folder


def refused(root: Path) -> str:
    with pytest.raises(UserError) as error:
        MiniImageNet(root).prepare()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_reads_the_published_split(root: Path) -> None:
    pools = MiniImageNet(root).pools()
    assert [pools[split].num_classes for split in SPLITS] == [64, 16, 20]
    for split in SPLITS:
        pool = pools[split]
        assert list(pool.names) == class_list("mini_imagenet")[split]
        assert pool.input_shape == (3, 84, 84)
        for number in range(pool.num_classes):
            colours = pool.x[2 * number : 2 * number + 2].float().mean(dim=(2, 3))
            assert (colours - colours.new_tensor([[2 * number, 100, 7], [2 * number, 200, 7]])).abs().max() < 4


def test_lists_may_lie_in_the_data_folder(root: Path, own_data: Path) -> None:
    (own_data / "splits").mkdir()
    for split in SPLITS:
        (root / f"{split}.csv").rename(own_data / "splits" / f"mini_imagenet_{split}.csv")
    assert MiniImageNet(root).pools()["test"].num_classes == 20


def test_missing_files(root: Path) -> None:
    assert "it has no folder 'images'" in refused(root / "elsewhere")
    label = class_list("mini_imagenet")["train"][0]
    for i in (1, 2):
        (root / f"images/{label}0000000{i}.jpg").unlink()
    line = refused(root)
    assert line.startswith(f"{root}/images/{label}00000001.jpg: this image is missing (2 of 200 are missing)")
    (root / "val.csv").unlink()
    assert refused(root).startswith(f"{root}/val.csv: the list of images is missing; get it from https://")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("n01532829", "n99999999", "unexpected row"),
        ("n0153282900000001.jpg", "../../n0153282900000001.jpg", "unexpected row"),
        ("n0153282900000001.jpg", "n0153282900000002.jpg", "class n01532829 has 1 images, expected 2"),
        ("filename,label", "a,b", "unexpected row"),
    ],
)
def test_wrong_lists(root: Path, old: str, new: str, message: str) -> None:
    path = root / "train.csv"
    path.write_text(path.read_text().replace(old, new))
    assert message in refused(root)


def test_a_broken_image(root: Path) -> None:
    label = class_list("mini_imagenet")["test"][3]
    file = root / f"images/{label}00000002.jpg"
    file.write_bytes(file.read_bytes()[:300])
    assert refused(root).startswith(f"{file}: the file cannot be read as an image")


@pytest.mark.data
def test_the_published_lists(data_folder: Path, tmp_path: Path) -> None:
    """60,000 names; the images are not ours to have, so empty files stand for them."""
    (tmp_path / "images").mkdir()
    for split in SPLITS:
        with (data_folder / f"splits/mini_imagenet_{split}.csv").open(newline="") as lines:
            for row in csv.DictReader(lines):
                os.close(os.open(tmp_path / "images" / row["filename"], os.O_CREAT))
    listing = MiniImageNet(tmp_path)._listing()
    assert [len(listing[split]) for split in SPLITS] == [64, 16, 20]
    assert {len(files) for split in SPLITS for files in listing[split].values()} == {600}
