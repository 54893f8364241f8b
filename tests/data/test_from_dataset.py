from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import IterableDataset, TensorDataset

from lightning_meta.errors import UserError
from lightning_meta.sources.dataset import FromDataset


def pairs(labels: list[int]) -> list[tuple[torch.Tensor, int]]:
    return [(torch.full((3,), float(10 * y + i)), y) for i, y in enumerate(labels)]


def refused(*datasets: Any, **options: Any) -> str:
    with pytest.raises(UserError) as error:
        FromDataset(*datasets, **options).pools()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_groups_by_label_and_keeps_the_order() -> None:
    pools = FromDataset(pairs([4, 1, 4, 4]), pairs([2]), pairs([0, 3])).pools()
    assert pools["train"].names == ("1", "4")
    assert pools["train"].sizes.tolist() == [1, 3]
    assert pools["train"].x[:, 0].tolist() == [11, 40, 42, 43]
    assert pools["test"].names == ("0", "3")


def test_tensor_datasets_and_names() -> None:
    def dataset(label: int) -> TensorDataset:
        return TensorDataset(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([label, label]))

    source = FromDataset(dataset(0), dataset(1), dataset(2), names=["cat", "dog", "owl"])
    assert [pool.names for pool in source.pools().values()] == [("cat",), ("dog",), ("owl",)]
    assert source.pools()["val"].x.dtype == torch.uint8
    assert source.pools() is source.pools()


@pytest.mark.parametrize(
    ("x", "shape", "dtype"),
    [
        (np.zeros((2, 3), np.float32), (2, 3), torch.float32),
        (Image.new("RGB", (5, 4)), (3, 4, 5), torch.uint8),
        (Image.new("L", (5, 4)), (1, 4, 5), torch.uint8),
        (Image.new("1", (5, 4), 1), (1, 4, 5), torch.uint8),
        (Image.new("RGBA", (5, 4)), (3, 4, 5), torch.uint8),
        ([1.0, 2.0], (2,), torch.float64),
    ],
)
def test_kinds_of_examples(x: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    pool = FromDataset([(x, 0)], [(x, np.int64(1))], [(x, torch.tensor(2))]).pools()["train"]
    assert (pool.input_shape, pool.x.dtype) == (shape, dtype)
    if isinstance(x, Image.Image) and x.mode == "1":
        assert pool.x.unique().tolist() == [255]


def test_transparent_pixels_of_pillow_images_are_white() -> None:
    for mode in ("RGBA", "LA"):
        image = Image.new(mode, (5, 4))
        pool = FromDataset([(image, 0)], [(image, 1)], [(image, 2)]).pools()["train"]
        assert pool.x.unique().tolist() == [255]


def test_fingerprint_follows_the_content() -> None:
    prints = [FromDataset(pairs([0]), pairs([1]), pairs([y])).fingerprint() for y in (2, 2, 3)]
    assert prints[0] == prints[1] != prints[2]


def test_a_class_in_two_splits_leaks_unless_labels_are_separate() -> None:
    leaking = pairs([0, 1]), pairs([2]), pairs([1, 3])
    assert "class '1' is in both train and test (1 such)" in refused(*leaking)
    pools = FromDataset(*leaking, separate_labels=True).pools()
    assert pools["train"].names == ("train/0", "train/1")
    assert pools["test"].names == ("test/1", "test/3")


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ((torch.zeros(3), 1.5), "train[1]: the label is 1.5, expected an integer"),
        ((torch.zeros(3), "cat"), "train[1]: the label is 'cat', expected an integer"),
        ((torch.zeros(3), True), "train[1]: the label is 'bool', expected an integer"),
        ((torch.zeros(3), torch.zeros(2)), "train[1]: the label is 'Tensor', expected an integer"),
        (torch.zeros(3), "train[1]: expected a pair (x, y), got Tensor"),
        (7, "train[1]: expected a pair (x, y), got int"),
        ((torch.zeros(4), 0), "train[1]: x is (4,) of torch.float32, but train[0] is (3,)"),
        ((torch.zeros(3), 0, "a.png"), "train[1]: expected a pair (x, y), got tuple of 3"),
        (
            {"image": torch.zeros(3), "label": 0},
            "train[1]: expected a pair (x, y), got a row with the keys 'image', 'l",
        ),
        ((torch.tensor(1.0), 0), "train[1]: x is a single number, expected at least one dimension, such as (1,)"),
        ((torch.zeros(3).to_sparse(), 0), "train[1]: x is a sparse tensor, expected a dense one"),
        ((torch.zeros(3) * 1j, 0), "train[1]: x is a complex tensor, expected a dense one of real numbers"),
        (("text", 0), "train[1]: x is a str, expected a tensor, an array or a PIL image"),
        ((Image.new("I;16", (2, 2)), 0), "train[1]: pixels of mode I;16"),
    ],
)
def test_bad_items(item: Any, message: str) -> None:
    assert message in refused([(torch.zeros(3), 0), item], pairs([1]), pairs([2]))


def test_bad_datasets_and_names() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any: ...

    assert "the val dataset is empty" in refused(pairs([0]), [], pairs([2]))
    assert "FromDataset val: Stream has no length" in refused(pairs([0]), Stream(), pairs([2]))
    columns: Any = {"x": torch.zeros(2, 3), "y": [0, 1]}
    assert "FromDataset train: dict has no length or no index by number" in refused(columns, pairs([1]), pairs([2]))
    given = pairs([0]), pairs([1]), pairs([2])
    assert "test[0]: label 2 is out of range, 2 names were given" in refused(*given, names=["a", "b"])
    assert "a name occurs twice" in refused(*given, names=["a", "b", "b"])
    assert "cannot both be given" in refused(*given, names=["a", "b", "c"], separate_labels=True)


def test_a_task_has_the_same_classes_in_every_split() -> None:
    source = FromDataset(pairs([0, 1, 1]), pairs([1, 0]), pairs([0, 1]))
    assert {pool.names for pool in source.held_out().values()} == {("0", "1")}
    assert source.held_out()["train"].sizes.tolist() == [1, 2]
    assert len(source.fingerprint()) == 64
    with pytest.raises(UserError, match="FromDataset val: there is no class '1', which train has"):
        FromDataset(pairs([0, 1]), pairs([0]), pairs([0, 1])).held_out()
