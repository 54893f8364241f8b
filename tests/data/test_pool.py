"""Pools: nothing is lost, mixed up or turned the wrong way."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_meta.data.pool import Pool
from lightning_meta.errors import UserError

SIZES = (3, 1, 4, 2)
NAMES = ("ant", "bee", "cat", "dog")


@pytest.fixture
def pool() -> Pool:
    """Ragged classes of 2-channel images whose every pixel is different."""
    x = torch.arange(sum(SIZES) * 2 * 5 * 5).view(-1, 2, 5, 5)
    return Pool(x, torch.tensor(SIZES), NAMES, ("insect", "insect", "mammal", "mammal"))


def images_of(pool: Pool, name: str) -> torch.Tensor:
    """The images of a class, found by walking through all classes."""
    first = 0
    for size, other in zip(pool.sizes.tolist(), pool.names, strict=True):
        if other == name:
            return pool.x[first : first + size]
        first += size
    raise KeyError(name)


# Made from labelled examples


@given(labels=st.lists(st.integers(0, 4), max_size=30))
def test_from_examples_keeps_each_class_in_its_order(labels: list[int]) -> None:
    x = torch.arange(len(labels))
    made = Pool.from_examples(x, labels, list("vwxyz"))
    for label, name in enumerate("vwxyz"):
        expected = [i for i, other in enumerate(labels) if other == label]
        assert images_of(made, name).tolist() == expected
    assert made.groups == ("",) * 5


def test_from_examples_takes_names_and_groups_by_label() -> None:
    made = Pool.from_examples(torch.zeros(3, 2), [1, 0, 1], ["no", "yes"], ["a", "b"])
    assert (made.names, made.groups) == (("no", "yes"), ("a", "b"))
    assert made.sizes.tolist() == [1, 2]
    assert made.input_shape == (2,)


@pytest.mark.parametrize(("labels", "wrong"), [([0, 1, 2], 2), ([0, -1, 1], -1)])
def test_a_label_out_of_range_is_named(labels: list[int], wrong: int) -> None:
    with pytest.raises(UserError, match=rf"label {wrong} is out of range: there are 2 classes, 0 to 1"):
        Pool.from_examples(torch.zeros(3, 1), labels, ["no", "yes"])


@pytest.mark.parametrize("labels", [[0, 1], [0, 1, 0, 1]])
def test_every_example_needs_its_label(labels: list[int]) -> None:
    with pytest.raises(UserError, match=f"3 examples have {len(labels)} labels"):
        Pool.from_examples(torch.zeros(3, 1), labels, ["no", "yes"])


def test_sizes_names_and_examples_must_agree() -> None:
    x, names = torch.zeros(5, 1), ("a", "b")
    with pytest.raises(ValueError, match="add up to 6, but there are 5 examples"):
        Pool(x, torch.tensor([3, 3]), names, names)
    with pytest.raises(ValueError, match="got 2, 2 and 1"):
        Pool(x, torch.tensor([3, 2]), names, ("g",))
    with pytest.raises(ValueError, match="unique"):
        Pool(x, torch.tensor([3, 2]), ("a", "a"), names)


# Looked up


def test_gather_finds_what_naive_indexing_finds(pool: Pool) -> None:
    classes = torch.tensor([[0, 3], [2, 0], [3, 2]])
    members = torch.tensor([[[2, 0], [1, 0]], [[3, 1], [0, 1]], [[0, 1], [2, 0]]])
    found = pool.gather(classes, members)
    assert found.shape == (3, 2, 2, 2, 5, 5)
    for task in range(3):
        for label in range(2):
            for example in range(2):
                name = NAMES[int(classes[task, label])]
                expected = images_of(pool, name)[int(members[task, label, example])]
                assert torch.equal(found[task, label, example], expected)


def test_select_takes_classes_in_the_order_given(pool: Pool) -> None:
    chosen = pool.select([2, 0])
    assert (chosen.names, chosen.groups) == (("cat", "ant"), ("mammal", "insect"))
    assert chosen.sizes.tolist() == [4, 3]
    for name in chosen.names:
        assert torch.equal(images_of(chosen, name), images_of(pool, name))
    chosen.x.zero_()
    assert pool.x[1:].all()


def test_selecting_nothing_leaves_an_empty_pool(pool: Pool) -> None:
    empty = pool.select([])
    assert (empty.num_classes, len(empty.x)) == (0, 0)


# Rotations


def test_every_class_turns_as_a_whole(pool: Pool) -> None:
    turned = pool.rotated()
    assert (turned.num_classes, pool.num_classes) == (16, 4)
    for number in range(16):
        quarter, base = divmod(number, 4)
        members = torch.arange(SIZES[base])
        images = turned.gather(torch.tensor([number]), members[None])[0]
        expected = torch.rot90(images_of(pool, NAMES[base]), quarter, dims=(-2, -1))
        assert torch.equal(images, expected)


def test_a_meta_batch_may_hold_classes_turned_and_not(pool: Pool) -> None:
    turned = pool.rotated()
    classes, members = torch.tensor([[0, 4, 14], [11, 8, 2]]), torch.zeros(2, 3, 1, dtype=torch.int64)
    together = turned.gather(classes, members)
    for task in range(2):
        for label in range(3):
            alone = turned.gather(classes[task, label, None], members[task, label, None])
            assert torch.equal(together[task, label], alone[0])


def test_looking_up_leaves_the_stored_images_alone(pool: Pool) -> None:
    turned, before = pool.rotated(), pool.x.clone()
    turned.gather(torch.arange(16), torch.zeros(16, 1, dtype=torch.int64))
    assert torch.equal(pool.x, before)


def test_turned_classes_are_named_after_their_base(pool: Pool) -> None:
    assert pool.rotated().class_names(torch.tensor([1, 5, 9, 13])) == ["bee", "bee@90", "bee@180", "bee@270"]
    assert pool.class_names([3, 0]) == ["dog", "ant"]


def test_turned_classes_are_selected_with_their_turns(pool: Pool) -> None:
    chosen = pool.rotated().select([3])
    assert chosen.class_names(range(chosen.num_classes)) == ["dog", "dog@90", "dog@180", "dog@270"]


@pytest.mark.parametrize("shape", [(7,), (1, 4, 5), (5, 5)])
def test_only_square_images_can_be_turned(shape: tuple[int, ...]) -> None:
    pool = Pool(torch.zeros(2, *shape), torch.tensor([1, 1]), ("a", "b"), ("", ""))
    with pytest.raises(UserError, match=r"rotations: only square images \(channels, height, width\)"):
        pool.rotated()
