"""Query sets whose classes are not balanced: the distribution of their shares, and what an episode then holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

import lightning_meta as lm
from lightning_meta.data.class_shares import dirichlet_counts, log_gamma_variates
from lightning_meta.data.episodes import EpisodeDataset, EpisodeShape
from lightning_meta.data.pool import Pool
from lightning_meta.errors import UserError
from lightning_meta.functional.random_bits import key
from lightning_meta.sources import Sinusoid
from lightning_meta.testing import toys
from tests.data.test_episodes import UNLIKELY, episodes, one, ragged, same

MANY = 20_000
SHAPE = EpisodeShape(5, 2, 3, dirichlet=2.0)


def keys(count: int = MANY) -> Tensor:
    return key(7, torch.arange(count))


@pytest.mark.parametrize("shape", [0.3, 1.0, 2.0, 40.0])
def test_variates_are_of_the_gamma_distribution(shape: float) -> None:
    logs = log_gamma_variates(keys(), shape).numpy()
    assert stats.kstest(logs, stats.loggamma(shape).cdf).pvalue > UNLIKELY


@pytest.mark.parametrize("concentration", [0.5, 2.0, 20.0])
def test_shares_are_of_a_dirichlet(concentration: float) -> None:
    """Each is Beta(α, 4 α), their sums of two Beta(2 α, 3 α); rounding moves a share by a millionth at most."""
    shares = dirichlet_counts(keys(), 5, 10**6, concentration) / 10**6
    for share in shares.T:
        assert stats.kstest(share.numpy(), stats.beta(concentration, 4 * concentration).cdf).pvalue > UNLIKELY
    pair = (shares[:, 1] + shares[:, 3]).numpy()
    assert stats.kstest(pair, stats.beta(2 * concentration, 3 * concentration).cdf).pvalue > UNLIKELY


@given(
    ways=st.integers(2, 9),
    total=st.integers(1, 200),
    concentration=st.floats(1e-3, 1e4),
    seed=st.integers(-(2**63), 2**63 - 1),
)
@settings(max_examples=50)
def test_the_total_is_always_met(ways: int, total: int, concentration: float, seed: int) -> None:
    counts = dirichlet_counts(key(seed, torch.arange(20)), ways, total, concentration)
    assert (counts >= 0).all()
    assert (counts.sum(-1) == total).all()


def large() -> Pool:
    return ragged(smallest=17)


def test_batches_stay_dense_and_hold_what_their_labels_say() -> None:
    dataset = episodes(large(), SHAPE, meta_batch_size=40)
    batch = dataset.__getitems__(range(40))
    assert batch.classes is not None
    assert batch.query.x.shape == batch.query.y.shape == (40, 15)
    for part in (batch.support, batch.query):
        assert torch.equal(part.x // 1000, batch.classes.gather(1, part.y))
        assert (part.y.diff(dim=1) >= 0).all()  # way-major
    counts = torch.stack([(batch.query.y == label).sum(1) for label in range(5)], 1)
    assert torch.equal(counts, dataset.draw(range(40)).counts)
    assert counts.min() == 0
    assert counts.max() > 6
    both = torch.cat([batch.support.x, batch.query.x], dim=1).sort(dim=1).values
    assert (both[:, 1:] != both[:, :-1]).all()


def test_a_task_is_the_same_alone_and_in_any_company() -> None:
    dataset = episodes(large(), SHAPE)
    whole = dataset.__getitems__([8, 9, 10, 11])
    backwards = episodes(large(), SHAPE).__getitems__([11, 10, 9, 8])
    for t, number in enumerate((8, 9, 10, 11)):
        assert same(one(whole, t), dataset[number])
        assert same(one(backwards, 3 - t), dataset[number])


def test_support_sets_are_those_of_balanced_tasks() -> None:
    """Balanced and unbalanced tasks can be compared one by one."""
    balanced = episodes(large(), SHAPE._replace(dirichlet=None)).__getitems__(range(4))
    drawn = episodes(large(), SHAPE).__getitems__(range(4))
    assert torch.equal(balanced.support.x, drawn.support.x)
    assert torch.equal(balanced.support.y, drawn.support.y)
    shared = [len(set(a.tolist()) & set(b.tolist())) for a, b in zip(balanced.query.x, drawn.query.x, strict=True)]
    assert min(shared) >= 5
    assert any((drawn.query.y != balanced.query.y).flatten())


def test_a_class_must_have_examples_for_all_queries() -> None:
    with pytest.raises(
        UserError, match=r"test_dirichlet: all 15 queries .* needs 17 .* 'class 0' of the test split .* 8"
    ):
        EpisodeDataset(ragged(), "test", SHAPE, 4, 4, 0)


def data(**options: object) -> lm.EpisodicDataModule:
    given = {"ways": 3, "shots": 1, "queries": 2, "test_tasks": 30, "val_tasks": 30, "test_dirichlet": 1.0, **options}
    return lm.EpisodicDataModule(toys.NoisyPictures(), **given)  # type: ignore[arg-type]


def test_the_data_module_draws_them_for_validation_and_test_alone() -> None:
    made = data()
    made.setup("fit")
    made.setup("test")
    for split in ("train", "val", "test"):
        batch = made.datasets[split].__getitems__(range(4))
        counts = torch.stack([(batch.query.y == label).sum(1) for label in range(3)], 1)
        assert bool((counts == 2).all()) == (split == "train")
        assert batch.query.y.shape == (4, 6)
    assert made.test_conditions == "3-way 1-shot, Dirichlet(1) queries, chance 33.3 %"


def test_a_list_of_them_is_the_same_tasks(tmp_path: Path) -> None:
    made = data(queries=2)
    made.write_test_tasks(tmp_path / "tasks.csv")
    listed = data(test_dirichlet=None, test_task_list=tmp_path / "tasks.csv")
    for of_module in (made, listed):
        of_module.setup("test")
    assert same(listed.datasets["test"].__getitems__(range(5)), made.datasets["test"].__getitems__(range(5)))


def test_a_grid_of_ways_and_shots_draws_them_too() -> None:
    made = data()
    made.setup("fit")
    torch.manual_seed(0)
    module = lm.ProtoNet(lm.nn.MLP(256, (8,)), episodes=made.spec)
    for found, balanced in zip(
        lm.evaluate(module, made, shots=[1, 2], tasks=20),
        lm.evaluate(module, data(test_dirichlet=None), shots=[1, 2], tasks=20),
        strict=True,
    ):
        assert found.tasks == 20
        assert found.score != balanced.score


def test_the_picture_of_a_task_shows_queries_in_the_rows_of_their_classes(tmp_path: Path) -> None:
    made = data()
    made.setup("fit")
    made.setup("test")
    tasks = made.datasets["test"]
    module = lm.ProtoNet(lm.nn.MLP(256, (8,)), episodes=made.spec)
    module.configure_model()
    figure = lm.pictures.EpisodeGrid().draw(module, tasks, tmp_path)
    grid = figure.axes[0].get_gridspec()
    shown = [0] * 3
    for axes in figure.axes:
        place = axes.get_subplotspec()
        assert grid is not None
        assert place is not None
        row, column = divmod(place.num1, grid.ncols)
        shown[row] += column > 1 and bool(axes.images)
    assert shown == torch.bincount(tasks[0].query.y[0], minlength=3).tolist()
    assert len(set(shown)) > 1


@pytest.mark.parametrize("value", [0, -1.0, float("nan")])
def test_a_concentration_is_positive(value: float) -> None:
    with pytest.raises(UserError, match="test_dirichlet: a positive number is needed"):
        data(test_dirichlet=value)


def test_regression_has_no_classes() -> None:
    with pytest.raises(UserError, match="test_dirichlet: regression tasks have no classes"):
        lm.EpisodicDataModule(Sinusoid(), test_dirichlet=2.0)
