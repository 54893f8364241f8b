from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import chisquare
from torch import Tensor

from lightning_meta.batches import SPLITS, Split
from lightning_meta.errors import UserError
from lightning_meta.sources import MultiMNIST, mnist
from lightning_meta.sources.mnist import read_mnist
from lightning_meta.tasks import Classification


def reference(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The published code (isl-org/MultiObjectiveOptimization, multi_mnist_loader.py), Pillow for scipy's imresize."""
    canvas = np.zeros((36, 36), np.uint8)
    canvas[0:28, 0:28] = left
    canvas[6:34, 6:34] = right
    canvas[6:28, 6:28] = np.maximum(left[6:28, 6:28], right[0:22, 0:22])
    return np.asarray(Image.fromarray(canvas).resize((28, 28), Image.Resampling.NEAREST))


def images(source: MultiMNIST, split: Split) -> Tensor:
    inputs = source.sets()[split].inputs
    assert isinstance(inputs, Tensor)
    return inputs


@pytest.fixture(scope="module")
def source() -> MultiMNIST:
    return MultiMNIST()


@pytest.mark.data
def test_pairs_are_made_as_published_from_images_of_their_own_split(source: MultiMNIST, data_folder: Path) -> None:
    """A right digit is looked for among all images of the split; no image of another split would do."""
    train, test = read_mnist()
    own = {"train": train.images[:55000], "val": train.images[55000:], "test": test.images}
    labels = {"train": train.labels[:55000], "val": train.labels[55000:], "test": test.labels}
    centre = (2 * np.arange(28) + 1) * 36 // 56
    for split in SPLITS:
        data = source.sets()[split]
        assert torch.equal(data.targets["left"], labels[split])
        # Below and right of the left digit's last row and column nothing but the right digit is seen.
        seen_rows, seen_columns = np.ix_(
            centre[(centre >= 28) & (centre < 34)] - 6, centre[(centre >= 6) & (centre < 34)] - 6
        )
        corner = images(source, split)[:, 0, (centre >= 28) & (centre < 34)][:, :, (centre >= 6) & (centre < 34)]
        for i in range(0, len(data.targets["left"]), len(data.targets["left"]) // 20):
            fits = (own[split][:, seen_rows, seen_columns] == corner[i]).flatten(1).all(1).nonzero()[:, 0]
            made = [j for j in fits.tolist() if labels[split][j] == data.targets["right"][i]]
            left = own[split][i].numpy()
            assert any(
                (reference(left, own[split][j].numpy()) == images(source, split)[i, 0].numpy()).all() for j in made
            )


@pytest.mark.data
def test_what_is_handed_over(source: MultiMNIST, data_folder: Path) -> None:
    sets = source.sets()
    assert {name: (type(t), t.outputs) for name, t in source.tasks().items()} == {
        "left": (Classification, 10),
        "right": (Classification, 10),
    }
    for split, count in zip(SPLITS, (55000, 5000, 10000), strict=True):
        assert images(source, split).shape == (count, 1, 28, 28)
        assert images(source, split).dtype == torch.uint8
        assert images(source, split).flatten(1).amax(1).min() > 200
        assert sets[split].counts == {"left": count, "right": count}
        assert sets[split].overlapping
        pairs = torch.stack(list(sets[split].targets.values()))
        table = torch.zeros(10, 10).index_put_(tuple(pairs), torch.ones(()), accumulate=True)
        expected = pairs[0].bincount().outer(pairs[0].bincount()) / count  # the right digit is independent of the left
        assert chisquare(table.flatten(), expected.flatten(), sum_check=False).pvalue > 1e-4
    assert source.fingerprint() == "c48f54104008da27ff3078980e37325d1ee200eb223b323adb02733d6e8c13e6"


@pytest.mark.data
def test_options(source: MultiMNIST, data_folder: Path) -> None:
    other, more = MultiMNIST(seed=1), MultiMNIST(validation=10000)
    assert torch.equal(other.sets()["val"].targets["left"], source.sets()["val"].targets["left"])
    assert not torch.equal(other.sets()["val"].targets["right"], source.sets()["val"].targets["right"])
    assert [len(images(more, split)) for split in SPLITS] == [50000, 10000, 10000]
    assert torch.equal(images(more, "test"), images(source, "test"))
    for options, message in (
        ({"validation": 0}, "validation is 0"),
        ({"validation": 60000}, "60000"),
        ({"seed": -1}, "seed"),
    ):
        with pytest.raises(UserError, match=message):
            MultiMNIST(**options)  # type: ignore[arg-type]


def test_damaged_and_foreign_files(own_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = own_data / "mnist"
    folder.mkdir()
    name = "train-images-idx3-ubyte"
    monkeypatch.setattr(mnist, "FILES", {name: mnist.FILES[name]})
    whole = gzip.compress(bytes(100_000))
    for content, message in (
        (whole, "its content is not the official one"),
        (whole[:50], "damaged, truncated or unreadable"),
        (b"", "its content is not the official one"),
        (b"no archive", "damaged, truncated or unreadable"),
        (gzip.compress(bytes(60_000_000), 1), "its content is not the official one"),
    ):
        (folder / f"{name}.gz").write_bytes(content)
        with pytest.raises(UserError, match=message) as error:
            MultiMNIST().prepare()
        assert str(error.value).startswith(f"{folder / name}.gz: ")
        assert "\n" not in str(error.value)
