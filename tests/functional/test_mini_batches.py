"""Mini-batches of a support set: every example once an epoch, in an order of the task's own."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from lightning_meta.batches import Examples
from lightning_meta.functional.mini_batches import content_keys, mini_batches


def numbers(examples: Examples, size: int, count: int) -> Tensor:
    """The numbers of the drawn examples in order; the target of an example is its number."""
    return torch.cat([batch.y for batch in mini_batches(examples, size, count)])


def tasks(count: int, examples: int) -> Examples:
    return Examples(torch.rand(count, examples, 3), torch.arange(examples).expand(count, -1))


@pytest.mark.parametrize(("size", "count"), [(5, 6), (4, 9), (3, 1)])
def test_every_example_comes_once_an_epoch(size: int, count: int) -> None:
    support = Examples(*(part[0] for part in tasks(1, 10)))
    batches = mini_batches(support, size, count)
    assert len(batches) == count
    for batch in batches:
        assert batch.y.shape == (size,)
        assert torch.equal(batch.x, support.x[batch.y])  # inputs and targets stay together
    epochs = torch.cat([batch.y for batch in batches]).split(10)
    for epoch in epochs:
        assert len(set(epoch.tolist())) == len(epoch)
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == len(epochs)  # shuffled anew


def test_more_than_there_are_is_the_whole_support_set() -> None:
    support = Examples(*(part[0] for part in tasks(1, 4)))
    for batch in mini_batches(support, 100, 3):
        assert sorted(batch.y.tolist()) == [0, 1, 2, 3]
    assert mini_batches(support, 2, 0) == []


def test_all_orders_are_alike_frequent() -> None:
    count = 24_000
    found = vmap(lambda x, y: numbers(Examples(x, y), 4, 2))(*tasks(count, 4))
    for epoch in found.split(4, dim=-1):
        orders = Counter(map(tuple, epoch.tolist()))
        expected = count / 24
        chi = sum((n - expected) ** 2 / expected for n in orders.values())
        assert len(orders) == 24
        assert chi < 49.7  # the 99.9 % quantile at 23 degrees of freedom
    pairs = Counter(zip(found[:, 0].tolist(), found[:, 4].tolist(), strict=True))  # the firsts of two epochs
    assert sum((n - count / 16) ** 2 / (count / 16) for n in pairs.values()) < 37.7  # 15 degrees


def test_the_order_follows_the_examples_and_not_their_places_or_precision() -> None:
    support = Examples(*(part[0] for part in tasks(1, 10)))
    expected = numbers(support, 3, 7)
    turned = torch.randperm(10)
    assert torch.equal(numbers(Examples(support.x[turned], support.y[turned]), 3, 7), expected)
    assert torch.equal(numbers(Examples(support.x.double(), support.y), 3, 7), expected)
    many = tasks(5, 10)
    mapped = vmap(lambda x, y: numbers(Examples(x, y), 3, 7))(*many)
    assert torch.equal(mapped, torch.stack([numbers(Examples(*one), 3, 7) for one in zip(*many, strict=True)]))


def test_examples_with_one_input_and_several_targets_are_not_interchangeable() -> None:
    x, y = torch.ones(10, 3), torch.arange(10)
    turned = torch.randperm(10)
    assert torch.equal(numbers(Examples(x, y[turned]), 3, 7), numbers(Examples(x, y), 3, 7))
    assert len(content_keys(Examples(x, y)).unique()) == 10
