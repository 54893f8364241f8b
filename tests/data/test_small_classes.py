"""Support sets whose classes are not balanced, and classes with few examples: left out, or with fewer queries."""

from __future__ import annotations

import logging
from typing import Any

import lightning as L
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import lightning_meta as lm
from lightning_meta.batches import Episode
from lightning_meta.data.episodes import EpisodeDataset, EpisodeShape, capped_counts
from lightning_meta.data.pool import Pool
from lightning_meta.errors import UserError
from lightning_meta.testing import toys
from tests.data.test_episodes import episodes, one, ragged, same

UNBALANCED = EpisodeShape(5, 3, 2, support_dirichlet=1.0)
CAPPED = EpisodeShape(5, 2, 5, small_classes="cap")
SKIPPED = EpisodeShape(3, 2, 8, small_classes="skip")  # classes of 8 and 9 examples are too small


def uneven() -> Pool:
    """Classes of 4, 20 and 30 examples, each of which is its own number."""
    sizes = torch.tensor([4, 20, 30])[torch.arange(11) % 3]
    x = torch.cat([1000 * c + torch.arange(size) for c, size in enumerate(sizes.tolist())])
    names = tuple(f"class {c}" for c in range(11))
    return Pool(x, sizes, names, names)


def of(shape: EpisodeShape, **options: Any) -> EpisodeDataset:
    pools = {UNBALANCED: ragged(smallest=13), CAPPED: uneven(), SKIPPED: ragged()}
    return episodes(pools[shape], shape, **options)


def counts(labels: Tensor, ways: int) -> Tensor:
    return torch.stack([(labels == label).sum(1) for label in range(ways)], 1)


def check(batch: Episode) -> None:
    """Examples are of the class that their label stands for, and none stands in a task twice."""
    assert batch.classes is not None
    for part in (batch.support, batch.query):
        assert torch.equal(part.x // 1000, batch.classes.gather(1, part.y))
    both = torch.cat([batch.support.x, batch.query.x], dim=1).sort(dim=1).values
    assert (both[:, 1:] != both[:, :-1]).all()


def test_support_sets_have_a_fixed_size_and_every_class() -> None:
    batch = of(UNBALANCED, meta_batch_size=200, num_tasks=200).__getitems__(range(200))
    check(batch)
    assert batch.support.y.shape == (200, 15)
    found = counts(batch.support.y, 5)
    assert found.min() == 1
    assert found.max() > 7
    assert (counts(batch.query.y, 5) == 2).all()
    # One each, and 10 by shares of a Dirichlet(1, ..., 1): variance 10 · (1/5 · 4/5) · (10 + 5) / (1 + 5) for counts of
    # a Dirichlet-multinomial; rounded shares vary as 100 · (4/25) / 6.
    assert float(found.double().var()) == pytest.approx(100 * (4 / 25) / 6, rel=0.15)


def test_capped_classes_leave_their_queries_to_others() -> None:
    dataset = of(CAPPED, meta_batch_size=100, num_tasks=100)
    batch = dataset.__getitems__(range(100))
    check(batch)
    assert batch.query.y.shape == (100, 25)
    sizes = uneven().sizes[dataset.draw(range(100)).classes]
    found = counts(batch.query.y, 5)
    assert (found[sizes == 4] == 2).all()
    assert (found[sizes > 4] >= 5).all()
    assert (found <= sizes - 2).all()
    assert found.max() > 5
    assert (counts(batch.support.y, 5) == 2).all()


@given(queries=st.integers(1, 9), rooms=st.lists(st.integers(0, 30), min_size=2, max_size=6))
@settings(max_examples=100)
def test_capped_counts_add_up_and_change_as_little_as_they_can(queries: int, rooms: list[int]) -> None:
    wanted = queries * len(rooms)
    if sum(rooms) < wanted:
        return
    room = torch.tensor([rooms])
    found = capped_counts(room, queries)
    assert int(found.sum()) == wanted
    assert (found <= room).all()
    assert (found >= room.clamp(max=queries)).all()


def test_skipped_classes_are_as_if_they_were_not_there() -> None:
    pool = ragged()
    large = [c for c, size in enumerate(pool.sizes.tolist()) if size >= 10]
    assert len(large) < 11
    alone = EpisodeDataset(pool.select(large), "train", EpisodeShape(3, 2, 8), 4, 40, 0)
    for numbers in ([0, 1, 2, 3], [9, 11]):
        found, expected = of(SKIPPED).__getitems__(numbers), alone.__getitems__(numbers)
        assert torch.equal(found.support.x, expected.support.x)
        assert torch.equal(found.query.x, expected.query.x)
        assert found.classes is not None
        assert set(found.classes.flatten().tolist()) <= set(large)


@pytest.mark.parametrize("shape", [UNBALANCED, CAPPED, SKIPPED], ids=["unbalanced", "capped", "skipped"])
def test_a_task_is_the_same_alone_and_in_any_company(shape: EpisodeShape) -> None:
    dataset, whole = of(shape), of(shape).__getitems__([8, 9, 10, 11])
    backwards = of(shape).__getitems__([11, 10, 9, 8])
    for t, number in enumerate((8, 9, 10, 11)):
        assert same(one(whole, t), dataset[number])
        assert same(one(backwards, 3 - t), dataset[number])


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (
            EpisodeShape(5, 2, 8),
            r"^shots \+ queries: 2 \+ 8 .* 'class 0' .* has 8; .* set small_classes='skip' to leave such classes out$",
        ),
        (
            EpisodeShape(11, 2, 8, small_classes="skip"),
            r"^ways: 11 .* has 6 with at least 10 examples; ask for at most 6",
        ),
        (
            EpisodeShape(5, 2, 9, small_classes="cap"),
            r"^queries: 9 .* 45 .* 5 smallest .* have 32 .* ask for at most 6$",
        ),
        (
            EpisodeShape(5, 3, 2, support_dirichlet=1.0),
            r"^support_dirichlet: .* up to 13 examples .* 'class 0' .* has 8;",
        ),
    ],
    ids=["refused", "skipped", "capped", "support"],
)
def test_what_the_classes_cannot_fill_is_refused(shape: EpisodeShape, said: str) -> None:
    with pytest.raises(UserError, match=said):
        EpisodeDataset(ragged(), "train", shape, 4, 4, 0)


def test_the_smallest_way_decides_whether_capped_classes_have_room() -> None:
    sizes = torch.tensor([2, 2, 100, 100, 100])
    names = tuple("abcde")
    pool = Pool(torch.arange(int(sizes.sum())), sizes, names, names)
    EpisodeDataset(pool, "train", EpisodeShape(5, 1, 15, small_classes="cap"), 4, 4, 0)
    with pytest.raises(
        UserError, match=r"^queries: 15 .* 30 queries a task, but the 2 smallest .* have 2 .* at most 1$"
    ):
        EpisodeDataset(pool, "train", EpisodeShape((2, 5), 1, 15, small_classes="cap"), 4, 4, 0)


def few(**options: Any) -> lm.EpisodicDataModule:
    class Few(toys.NoisyPictures):
        """One class of each split is small."""

        def pools(self) -> dict[Any, Pool]:
            def cut(pool: Pool) -> Pool:
                rows = torch.cat([torch.arange(3), torch.arange(int(pool.sizes[0]), len(pool.x))])
                sizes = torch.cat([torch.tensor([3]), pool.sizes[1:]])
                return Pool(pool.x[rows], sizes, pool.names, pool.groups)

            return {split: cut(pool) for split, pool in super().pools().items()}

    sizes = {"ways": 3, "shots": 2, "queries": 3, "val_tasks": 4, "test_tasks": 4, "meta_batches_per_epoch": 2}
    return lm.EpisodicDataModule(Few(), **{**sizes, **options})


def test_the_data_module_says_what_it_leaves_out(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UserError, match="has 3; ask for fewer"):
        few().setup("fit")
    with caplog.at_level(logging.WARNING):
        made = few(small_classes="skip")
        made.setup("fit")
        made.setup("test")  # says it once
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 3
    assert all("have fewer than 5 examples and are left out: " in line for line in said)
    caplog.clear()
    few(small_classes="cap").setup("fit")
    assert not caplog.records


@pytest.mark.parametrize("options", [{"small_classes": "cap"}, {"small_classes": "skip", "support_dirichlet": 2.0}])
@pytest.mark.parametrize("method", [lm.ProtoNet, lm.MAML, lm.R2D2, lm.MatchingNet], ids=lambda m: m.__name__)
def test_methods_train_on_them(method: Any, options: dict[str, Any]) -> None:
    off: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_epochs=1, enable_model_summary=False, **off)
    trainer.fit(method(lm.nn.MLP(256, (8,))), few(**options))
    assert torch.isfinite(trainer.callback_metrics["val/accuracy"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"small_classes": "drop"}, "small_classes"),
        ({"support_dirichlet": -1.0}, "support_dirichlet: a positive number"),
        (
            {"small_classes": "cap", "test_dirichlet": 1.0},
            "small_classes: cap sets .* so does test_dirichlet; use skip",
        ),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        few(**options)
    with pytest.raises(UserError, match="regression tasks have no classes"):
        lm.EpisodicDataModule(lm.sources.Sinusoid(), small_classes="skip")
