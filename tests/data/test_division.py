from __future__ import annotations

from collections import Counter

import torch

from lightning_meta.batches import SPLITS
from lightning_meta.data.pool import Pool
from lightning_meta.sources.division import class_counts, divide, divided, enough_classes, merged


def numbered(sizes: list[int], names: str, first: int = 0) -> Pool:
    """A pool whose examples are consecutive numbers."""
    x = torch.arange(first, first + sum(sizes)).view(-1, 1)
    return Pool(x, torch.tensor(sizes), tuple(names), tuple(name.upper() for name in names))


def test_merged_classes_are_in_order_of_name_with_their_own_examples() -> None:
    pool = merged({"train": numbered([2, 1], "da"), "val": numbered([2], "c", 10), "test": numbered([1], "b", 20)})
    assert pool.names == ("a", "b", "c", "d")
    assert pool.groups == ("A", "B", "C", "D")
    assert pool.sizes.tolist() == [1, 1, 2, 2]
    assert pool.x[:, 0].tolist() == [2, 20, 10, 11, 0, 1]


def test_divide_takes_the_same_members_of_every_class() -> None:
    pools = divide(numbered([4, 4], "ab"), {"train": [0, 2], "val": [3], "test": [1]})
    assert pools["train"].x[:, 0].tolist() == [0, 2, 4, 6]
    assert pools["val"].x[:, 0].tolist() == [3, 7]
    assert pools["test"].x[:, 0].tolist() == [1, 5]
    assert {(p.names, p.groups) for p in pools.values()} == {(("a", "b"), ("A", "B"))}


def test_divided_depends_on_the_units_alone() -> None:
    units = [f"row {i}" for i in range(200)]
    split_of = divided(set(units), (0.6, 0.15, 0.25), seed=0)
    assert Counter(split_of.values()) == {"train": 120, "val": 30, "test": 50}
    other = divided(set(units), (0.6, 0.15, 0.25), seed=1)
    assert 40 < sum(other[unit] != split_of[unit] for unit in units) < 160
    assert len({split_of[unit] for unit in units[:10]}) > 1
    for count, least, sizes in ((1, 0, [1, 0, 0]), (2, 0, [2, 0, 0]), (3, 0, [2, 0, 1]), (3, 1, [1, 1, 1])):
        of = Counter(divided(set(units[:count]), (0.6, 0.15, 0.25), seed=0, least=least).values())
        assert [of[split] for split in SPLITS] == sizes


def test_more_classes_are_a_different_division() -> None:
    fractions, needs = (0.6, 0.15, 0.25), dict.fromkeys(SPLITS, (5, 6))
    # Validation has 5 of 30 classes. If one of these has too few examples, 2 to 5 for each split change nothing.
    assert class_counts(30, fractions, least=1) == class_counts(30, fractions, least=5)
    assert enough_classes(30, fractions, 1, needs) == 6
    assert enough_classes(17, fractions, 5, needs) is None
