"""Episodes: pure functions of (seed, split, number), fair, and never across splits."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_meta.batches import SPLITS, Episode, Examples, Split
from lightning_meta.data.episodes import EpisodeDataset, EpisodeShape
from lightning_meta.data.loader import as_is
from lightning_meta.data.pool import Pool
from lightning_meta.data.source import TaskGenerator
from lightning_meta.errors import UserError
from lightning_meta.sources import CIFARFS, FC100, GaussianProcess, Glyphs, Omniglot, Sinusoid

UNLIKELY = 1e-6  # a p-value for fixed seeds, so tests do not flicker


def ragged(classes: int = 11, smallest: int = 8) -> Pool:
    """Every example is its own number, 1000 * class + member."""
    sizes = torch.arange(classes) % 5 + smallest
    x = torch.cat([1000 * c + torch.arange(size) for c, size in enumerate(sizes.tolist())])
    names = tuple(f"class {c}" for c in range(classes))
    return Pool(x, sizes, names, names)


def tasks_of_rows() -> Pool:
    """Regression tasks in place of the classes; the target of a row is its own number plus a half."""
    pool = ragged()
    return replace(pool, y=pool.x.unsqueeze(1).double() + 0.5)


def episodes(
    tasks: Pool | TaskGenerator | None = None,
    shape: EpisodeShape = EpisodeShape(5, 2, 3),  # noqa: B008 - a tuple
    meta_batch_size: int = 4,
    seed: int = 0,
    split: Split = "train",
    num_tasks: int = 40,
) -> EpisodeDataset:
    return EpisodeDataset(ragged() if tasks is None else tasks, split, shape, meta_batch_size, num_tasks, seed)


def tensors(episode: Episode) -> Iterator[Tensor]:
    yield from (*episode.support, *episode.query, episode.tasks)
    if episode.classes is not None:
        yield episode.classes


def same(a: Episode, b: Episode) -> bool:
    pairs = list(zip(tensors(a), tensors(b), strict=True))
    return a.ways == b.ways and all(torch.equal(x, y) for x, y in pairs)


def one(batch: Episode, t: int) -> Episode:
    """Task t of a meta-batch, as a meta-batch of one."""
    support, query = (type(part)(part.x[t : t + 1], part.y[t : t + 1]) for part in (batch.support, batch.query))
    classes = None if batch.classes is None else batch.classes[t : t + 1]
    return Episode(support, query, batch.ways, batch.tasks[t : t + 1], classes)


class Squeezed(Sinusoid):
    """Targets without the dimension of outputs."""

    def generate(self, keys: Tensor, shots: int, queries: int) -> tuple[Examples, Examples]:
        support, query = super().generate(keys, shots, queries)
        return support, query._replace(y=query.y.squeeze(-1))


class Pairs(Sinusoid):
    """Plain pairs in place of `Examples`."""

    def generate(self, keys: Tensor, shots: int, queries: int) -> Any:
        return tuple(map(tuple, super().generate(keys, shots, queries)))


def test_generated_tasks_of_another_kind_are_refused() -> None:
    with pytest.raises(UserError, match=r"Pairs.generate: each of the two results: an Examples is needed, got tuple"):
        episodes(Pairs()).__getitems__(range(4))


def test_generated_tasks_of_another_shape_are_refused() -> None:
    message = r"Squeezed.generate returned y of shape \(4, 3\); expected \(4, 3, 1\)"
    with pytest.raises(UserError, match=message):
        episodes(Squeezed()).__getitems__(range(4))


# A pure function


@pytest.mark.parametrize(
    "tasks",
    [ragged(), tasks_of_rows(), Sinusoid(), GaussianProcess()],
    ids=["pool", "rows", "sinusoid", "gaussian process"],
)
def test_a_task_is_the_same_alone_and_in_any_company_and_order(tasks: Pool | TaskGenerator) -> None:
    dataset = episodes(tasks)
    whole = dataset.__getitems__([8, 9, 10, 11])
    backwards = episodes(tasks).__getitems__([11, 10, 9, 8])
    part = dataset.__getitems__([9, 11])
    for t, number in enumerate((8, 9, 10, 11)):
        alone = dataset[number]
        assert alone.tasks.tolist() == [number]
        assert same(one(whole, t), alone)
        assert same(one(backwards, 3 - t), alone)
    assert same(one(part, 1), dataset[11])


def test_a_task_does_not_depend_on_the_meta_batch_size_or_the_length() -> None:
    small = episodes(meta_batch_size=2, num_tasks=8)
    large = episodes(meta_batch_size=32, num_tasks=320)
    assert all(same(small[i], large[i]) for i in (0, 3, 7))
    assert same(small[100], large[100])


def test_seed_split_and_number_each_make_other_tasks() -> None:
    seen = {
        (seed, split, number): tuple(torch.cat([t.flatten() for t in tensors(task)]).tolist())
        for seed in (0, 1)
        for split in SPLITS
        for number in range(6)
        for task in [episodes(seed=seed, split=split)[number]._replace(tasks=torch.zeros(1))]
    }
    assert len(set(seen.values())) == 2 * 3 * 6


def test_the_global_generators_play_no_part() -> None:
    torch.manual_seed(1)
    random.seed(1)
    before = torch.get_rng_state()
    first = episodes()[5]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    random.seed(2)
    assert same(first, episodes()[5])


def test_the_draws_of_seed_0_stay_what_they_are() -> None:
    # A golden value: another number here means that no published run can be repeated.
    draw = episodes().draw([0, 1])
    assert draw.classes.tolist() == [[0, 4, 10, 8, 3], [7, 4, 2, 10, 0]]
    assert draw.support[0].tolist() == [[2, 6], [11, 10], [0, 4], [4, 0], [4, 10]]


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_change_nothing(workers: int) -> None:
    dataset = episodes(num_tasks=16)
    loader = DataLoader(dataset, 4, num_workers=workers, collate_fn=as_is)
    for b, batch in enumerate(loader):
        assert same(batch, dataset.__getitems__(range(4 * b, 4 * b + 4)))
    assert b == 3


def test_one_can_walk_through_a_dataset() -> None:
    dataset = episodes(num_tasks=5)
    assert [int(task.tasks) for task in dataset] == [0, 1, 2, 3, 4]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_a_pool_on_the_accelerator_is_drawn_there_and_the_same() -> None:
    expected = episodes().__getitems__([0, 1])
    found = episodes(ragged().to("cuda")).__getitems__([0, 1])
    assert all(tensor.device.type == "cuda" for tensor in tensors(found))
    assert all(torch.equal(a, b.cpu()) for a, b in zip(tensors(expected), tensors(found), strict=True))


# What an episode holds


def test_support_and_query_hold_what_their_labels_say() -> None:
    pool = ragged()
    batch = episodes(pool, EpisodeShape(6, 3, 4), meta_batch_size=50).__getitems__(range(50))
    assert batch.ways == 6
    assert batch.classes is not None
    assert batch.support.x.shape == batch.support.y.shape == (50, 18)
    assert batch.query.x.shape == batch.query.y.shape == (50, 24)
    for part in (batch.support, batch.query):
        assert torch.equal(part.x // 1000, batch.classes.gather(1, part.y))
        assert (part.x % 1000 < pool.sizes[part.x // 1000]).all()


def test_labels_are_way_major() -> None:
    batch = episodes(shape=EpisodeShape(3, 2, 1)).__getitems__([0, 1])
    assert batch.support.y.tolist() == [[0, 0, 1, 1, 2, 2]] * 2
    assert batch.query.y.tolist() == [[0, 1, 2]] * 2


def test_no_example_is_in_support_and_query_and_none_comes_twice() -> None:
    batch = episodes(shape=EpisodeShape(5, 3, 5), meta_batch_size=500).__getitems__(range(500))
    both = torch.cat([batch.support.x, batch.query.x], dim=1).sort(dim=1).values
    assert (both[:, 1:] != both[:, :-1]).all()


def test_a_class_that_has_just_enough_examples_gives_all() -> None:
    pool = ragged(classes=5)
    smallest = pool.select([0])
    two = Pool(torch.cat([smallest.x, smallest.x + 1000]), torch.tensor([8, 8]), ("a", "b"), ("", ""))
    task = episodes(two, EpisodeShape(2, 3, 5))[0]
    assert sorted(torch.cat([task.support.x, task.query.x], 1)[0].tolist()) == sorted(two.x.tolist())


def test_labels_are_shuffled() -> None:
    classes = episodes(shape=EpisodeShape(5, 1, 1)).draw(range(0, 4)).classes
    draws = EpisodeDataset(ragged(), "train", EpisodeShape(5, 1, 1), 20_000, 20_000, 0).draw(range(20_000))
    assert torch.equal(draws.classes[:4], classes)
    table = torch.zeros(5, 11, dtype=torch.int64)
    for label in range(5):
        table[label] = torch.bincount(draws.classes[:, label], minlength=11)
    assert stats.chisquare(table.flatten().numpy()).pvalue > UNLIKELY
    rising = (draws.classes.diff(dim=1) > 0).all(1).sum()
    assert stats.binomtest(int(rising), 20_000, 1 / 120).pvalue > UNLIKELY


def test_every_example_of_a_class_is_as_likely_in_support_as_in_query() -> None:
    shape = EpisodeShape(2, 1, 2)
    draw = EpisodeDataset(ragged(classes=2), "train", shape, 20_000, 20_000, 3).draw(range(20_000))
    for label in range(2):
        eight = draw.classes[:, label] == 0
        for members in (draw.support[eight, label, 0], draw.query[eight, label, 0], draw.query[eight, label, 1]):
            assert stats.chisquare(torch.bincount(members, minlength=8).numpy()).pvalue > UNLIKELY


def test_members_of_different_labels_are_drawn_independently() -> None:
    shape = EpisodeShape(2, 1, 1)
    pool = Pool(torch.arange(16), torch.tensor([8, 8]), ("a", "b"), ("", ""))
    draw = EpisodeDataset(pool, "train", shape, 20_000, 20_000, 3).draw(range(20_000))
    pairs = torch.bincount(draw.support[:, 0, 0] * 8 + draw.support[:, 1, 0], minlength=64)
    assert stats.chisquare(pairs.numpy()).pvalue > UNLIKELY


# Ranges


def test_way_and_shot_are_drawn_anew_for_each_meta_batch_and_hold_both_ends() -> None:
    dataset = episodes(shape=EpisodeShape((2, 6), (1, 4), 3))
    sizes = [dataset.sizes(b) for b in range(2_000)]
    table = torch.zeros(5, 4, dtype=torch.int64)
    for ways, shots in sizes:
        table[ways - 2, shots - 1] += 1
    assert stats.chisquare(table.flatten().numpy()).pvalue > UNLIKELY
    for b in range(10):
        ways, shots = sizes[b]
        batch = dataset.__getitems__(range(4 * b, 4 * b + 4))
        assert batch.ways == ways
        assert batch.support.x.shape == (4, ways * shots)
        assert batch.query.x.shape == (4, ways * 3)


def test_all_tasks_of_a_meta_batch_share_its_sizes_wherever_they_are_drawn() -> None:
    dataset = episodes(shape=EpisodeShape((2, 6), (1, 4), 3), meta_batch_size=4)
    for b in range(8):
        whole = dataset.__getitems__(range(4 * b, 4 * b + 4))
        halves = [dataset.__getitems__(range(first, first + 2)) for first in (4 * b, 4 * b + 2)]
        assert all(same(one(whole, t), one(halves[t // 2], t % 2)) for t in range(4))


def test_one_draw_is_one_meta_batch() -> None:
    with pytest.raises(ValueError, match=r"one meta-batch.*\[0, 1\]"):
        episodes(meta_batch_size=4).__getitems__([3, 4])


RANGES = st.integers(1, 5) | st.tuples(st.integers(1, 5), st.integers(1, 5)).map(lambda r: (min(r), max(r)))


@given(
    ways=RANGES.map(lambda r: r + 1 if isinstance(r, int) else (r[0] + 1, r[1] + 1)),
    shots=RANGES,
    queries=st.integers(1, 6),
    seed=st.integers(0, 2**63 - 1),
    batch=st.integers(0, 10**12),
)
@settings(max_examples=60)
def test_any_shape_gives_episodes_of_that_shape(
    ways: int | tuple[int, int], shots: int | tuple[int, int], queries: int, seed: int, batch: int
) -> None:
    shape = EpisodeShape(ways, shots, queries)
    most_ways, most_examples = shape.largest()
    pool = ragged(classes=most_ways, smallest=most_examples)
    episode = episodes(pool, shape, meta_batch_size=3, seed=seed).__getitems__(range(3 * batch, 3 * batch + 3))
    low, high = (ways, ways) if isinstance(ways, int) else ways
    assert low <= episode.ways <= high
    k = episode.support.y.shape[1] // episode.ways
    low, high = (shots, shots) if isinstance(shots, int) else shots
    assert low <= k <= high
    assert episode.query.y.shape == (3, episode.ways * queries)
    for t in range(3):
        x = torch.cat([episode.support.x[t], episode.query.x[t]])
        assert len(x.unique()) == len(x) == episode.ways * (k + queries)
        assert len((x // 1000).unique()) == episode.ways


# What cannot be drawn


def test_too_few_classes_name_the_split_and_the_counts() -> None:
    with pytest.raises(UserError, match=r"ways: 6 classes .* the val split has 4"):
        episodes(ragged(classes=4), EpisodeShape((2, 6), 1, 1), split="val")


def test_rotations_count_as_classes() -> None:
    images = Pool(torch.zeros(8, 1, 3, 3), torch.tensor([4, 4]), ("a", "b"), ("", "")).rotated()
    assert episodes(images, EpisodeShape(8, 1, 1))[0].ways == 8
    with pytest.raises(UserError, match=r"ways: 9 .* has 8"):
        episodes(images, EpisodeShape(9, 1, 1))


def test_too_few_examples_name_the_split_the_class_and_the_counts() -> None:
    pool = Pool(torch.zeros(16), torch.tensor([7, 4, 5]), ("ant", "bee", "cat"), ("", "", ""))
    with pytest.raises(UserError, match=r"3 \+ 2 = 5 examples .* class 'bee' of the test split has 4"):
        episodes(pool, EpisodeShape(2, (1, 3), 2), split="test")
    assert episodes(pool, EpisodeShape(3, 2, 2), split="test")[0].ways == 3


# Splits never leak


def hashes(images: Tensor) -> list[bytes]:
    """The hash of each image of `(M, C, H, W)`."""
    return [hashlib.blake2b(image.numpy().data, digest_size=16).digest() for image in images.contiguous()]


def turned_back(images: Tensor, quarters: Tensor) -> Tensor:
    return torch.stack([torch.rot90(x, -int(q), (-2, -1)) for x, q in zip(images, quarters, strict=True)])


def check_no_leak(pools: dict[Split, Pool], tasks: int, rotated: bool, identical: int = 0, at_once: int = 500) -> None:
    """Draws training tasks: none of their classes, and no image that is looked at, is of another split.

    They are 5-way with 1 support and 5 query examples, drawn in large meta-batches for speed, which does not change
    them. Two tasks of each meta-batch are looked at image by image, turned ones turned back.

    Args:
        pools: Pools of the splits.
        tasks: Number of tasks to draw.
        rotated: Whether quarter-turns are classes, too.
        identical: Images that the data set itself holds in a training and in a held-out class.
        at_once: Tasks in a meta-batch.
    """
    stored = pools["train"]
    train = stored.rotated() if rotated else stored
    names_of: dict[bytes, set[str]] = {}
    labels = torch.arange(len(stored.names)).repeat_interleave(stored.sizes).tolist()
    for label, image in zip(labels, hashes(stored.x), strict=True):
        names_of.setdefault(image, set()).add(stored.names[label])
    held_out_images = {image for split in ("val", "test") for image in hashes(pools[split].x)}
    held_out_names = {name for split in ("val", "test") for name in pools[split].names}
    assert held_out_names.isdisjoint(stored.names), "a held-out class is trained on"
    assert len(held_out_images & names_of.keys()) == identical, "an image of a held-out class is trained on"

    dataset = EpisodeDataset(train, "train", EpisodeShape(5, 1, 5), at_once, tasks, 0)
    met = torch.zeros(train.num_classes, dtype=torch.int64)
    for first in range(0, tasks, at_once):
        draw = dataset.draw(range(first, first + at_once))
        met += torch.bincount(draw.classes.flatten(), minlength=train.num_classes)
        batch = dataset.__getitems__([first, first + at_once // 2])
        assert batch.classes is not None
        for part in (batch.support, batch.query):
            classes = batch.classes.gather(1, part.y).flatten()
            found = hashes(turned_back(part.x.flatten(0, 1), classes // len(stored.names)))
            bases = [stored.names[c] for c in (classes % len(stored.names)).tolist()]
            assert all(base in names_of[image] for base, image in zip(bases, found, strict=True))
    assert int(met.sum()) == 5 * tasks
    assert met.all(), "in so many tasks every training class is met"
    drawn = set(train.class_names(met.nonzero().flatten()))
    suffixes = ("", "@90", "@180", "@270") if rotated else ("",)
    assert drawn == {name + suffix for name in stored.names for suffix in suffixes}


@pytest.fixture(scope="module")
def glyphs() -> dict[Split, Pool]:
    return Glyphs().pools()


@pytest.mark.parametrize("rotated", [False, True])
def test_no_held_out_class_of_glyphs_in_10_000_training_episodes(glyphs: dict[Split, Pool], rotated: bool) -> None:
    check_no_leak(glyphs, 10_000, rotated)


@pytest.mark.slow
@pytest.mark.parametrize("rotated", [False, True])
def test_no_held_out_class_of_glyphs_in_100_000_training_episodes(glyphs: dict[Split, Pool], rotated: bool) -> None:
    check_no_leak(glyphs, 100_000, rotated)


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("split", ["vinyals", "lake"])
def test_no_held_out_class_of_omniglot_in_100_000_training_episodes(
    data_folder: Path, split: Literal["vinyals", "lake"], rotated: bool
) -> None:
    check_no_leak(Omniglot(split).pools(), 100_000, rotated)


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize(("source", "identical"), [(CIFARFS, 14), (FC100, 3)])
def test_no_held_out_class_of_cifar_100_in_100_000_training_episodes(
    data_folder: Path, source: type[CIFARFS] | type[FC100], identical: int
) -> None:
    # CIFAR-100 holds some images twice under two labels (seal and otter, girl and baby, ...); the published splits
    # part them.
    check_no_leak(source().pools(), 100_000, rotated=False, identical=identical)


def test_a_leak_would_be_found() -> None:
    # The check itself must be able to fail: by a name in two splits, or by the same images under two names.
    x = torch.rand(9 * 6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    x[-6:] = x[:6]
    whole = Pool.from_examples(x, [c for c in range(9) for _ in range(6)], [f"c{c}" for c in range(9)])
    pools: dict[Split, Pool] = {"train": whole.select(range(5)), "val": whole.select([5, 6])}
    check_no_leak({**pools, "test": whole.select([7])}, 500, rotated=True, at_once=20)
    with pytest.raises(AssertionError, match="an image of a held-out class"):
        check_no_leak({**pools, "test": whole.select([7, 8])}, 500, rotated=True, at_once=20)
    others = replace(whole.select([7, 8]), names=("c4", "c7"), x=torch.zeros(12, 1, 4, 4))
    with pytest.raises(AssertionError, match="a held-out class"):
        check_no_leak({**pools, "test": others}, 500, rotated=True, at_once=20)
