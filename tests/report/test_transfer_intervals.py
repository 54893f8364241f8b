"""Intervals cover a known effect as often as they say, and false verdicts are as rare as they should be."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from lightning_meta.report.transfer.intervals import holm, moderated, paired_intervals


def gaussian(
    rng: np.random.Generator, tasks: int, seeds: int, examples: int, of_seeds: float, effect: float, spread: float = 0.0
) -> list[np.ndarray]:
    """Differences of an effect, seeds of a standard deviation (log-normally spread over tasks), examples and noise."""
    made = []
    for _ in range(tasks):
        scale = of_seeds * np.exp(spread * rng.normal())
        d = effect + scale * rng.normal(size=(seeds, 1)) + 0.4 * rng.normal(size=(1, examples))
        made.append(d + rng.normal(size=(seeds, examples)))
    return made


def bernoulli(rng: np.random.Generator, tasks: int, seeds: int, examples: int, effect: float) -> list[np.ndarray]:
    """Differences of 0/1 scores; a new seed and a new example change the chance of a right answer of both."""
    made = []
    for _ in range(tasks):
        shape = (seeds, examples)
        chance = np.clip(0.6 + 0.25 * rng.uniform(-1, 1, size=(1, examples)), 0, 1)
        better = chance + effect + 0.05 * rng.uniform(-1, 1, size=(seeds, 1))
        worse = chance + 0.05 * rng.uniform(-1, 1, size=(seeds, 1))
        made.append((rng.random(shape) < better).astype(float) - (rng.random(shape) < worse))
    return made


def coverage(tables: list[list[np.ndarray]], bounded: bool, effect: float) -> float:
    hits = []
    for table in tables:
        found = paired_intervals(table, [bounded] * len(table))
        hits += list((found.low <= effect) & (effect <= found.high))
    return float(np.mean(hits))


@pytest.mark.parametrize(("seeds", "tasks"), [(1, 10), (2, 10), (3, 1), (3, 10), (5, 10)])
@pytest.mark.parametrize("of_seeds", [0.0, 0.1, 0.4])
def test_coverage_with_gaussian_effects(seeds: int, tasks: int, of_seeds: float) -> None:
    rng = np.random.default_rng(seeds)
    # The interval of one seed only covers the choice of examples.
    of_seeds = 0.0 if seeds == 1 else of_seeds
    tables = [gaussian(rng, tasks, seeds, 60, of_seeds, 0.7) for _ in range(3000 // tasks)]
    # The standard error of 3000 simulations is 0.004. The truncation of variances at zero makes intervals wide where
    # seeds do not matter.
    assert 0.935 <= coverage(tables, False, 0.7) <= 0.99


@pytest.mark.parametrize("seeds", [1, 3, 5])
@pytest.mark.parametrize(("examples", "effect"), [(20, 0.0), (20, 0.1), (200, 0.1)])
def test_coverage_with_right_and_wrong_answers(seeds: int, examples: int, effect: float) -> None:
    rng = np.random.default_rng(seeds)
    tables = [bernoulli(rng, 10, seeds, examples, effect) for _ in range(300)]
    if seeds == 1:  # without the seeds' own spread, which no interval of one seed covers
        tables = []
        for _ in range(3000):
            chance = np.clip(0.6 + 0.25 * rng.uniform(-1, 1, size=(1, examples)), 0, 1)
            draw = rng.random((2, 1, examples))
            tables.append([(draw[0] < chance + effect).astype(float) - (draw[1] < chance)])
    # Pseudo-examples are the same in every seed: of few examples and several seeds they make wide intervals.
    assert 0.935 <= coverage(tables, True, effect) <= (0.997 if examples == 20 else 0.985)


@pytest.mark.parametrize("seeds", [1, 3, 5])
@pytest.mark.parametrize("of_seeds", [0.0, 0.1, 0.4])
def test_few_of_fifty_unaffected_tasks_are_accused(seeds: int, of_seeds: float) -> None:
    rng = np.random.default_rng(seeds)
    of_seeds = 0.0 if seeds == 1 else of_seeds
    trials = 250
    wrong = sum(
        (paired_intervals(gaussian(rng, 50, seeds, 40, of_seeds, 0.0), [False] * 50).p_holm < 0.05).any()
        for _ in range(trials)
    )
    # At a rate of 0.05, more than 22 of 250 would be seen once in 300 times.
    assert wrong <= stats.binom.ppf(0.997, trials, 0.05)


def test_seeds_that_spread_unequally_over_tasks_accuse_little_more() -> None:
    rng = np.random.default_rng(7)
    trials = 250
    wrong = sum(
        (paired_intervals(gaussian(rng, 50, 3, 40, 0.2, 0.0, spread=0.35), [False] * 50).p_holm < 0.05).any()
        for _ in range(trials)
    )
    assert wrong <= 0.12 * trials


def test_one_seed_is_the_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.3, 1, 25), rng.normal(0, 1, 25)
    found = paired_intervals([(a - b)[None]], [False])
    expected = stats.ttest_rel(a, b)
    interval = expected.confidence_interval(0.95)
    assert found.p[0] == pytest.approx(expected.pvalue)
    assert (found.low[0], found.high[0]) == pytest.approx((interval.low, interval.high))
    assert found.df[0] == pytest.approx(24)


def test_where_examples_do_not_matter_seeds_decide() -> None:
    # Every example says the same: what is left is a one-sample t test over seeds.
    of_seed = np.array([0.1, 0.3, 0.25, 0.5])
    found = paired_intervals([np.repeat(of_seed[:, None], 30, 1)], [False])
    expected = stats.ttest_1samp(of_seed, 0)
    assert found.p[0] == pytest.approx(expected.pvalue)
    assert found.df[0] == pytest.approx(3)


def test_agresti_and_min_s_interval_for_one_seed() -> None:
    # Their table 2-by-2 with half a pair more in each cell, n* = n + 2; a t quantile for their normal one.
    d = np.array([1.0] * 9 + [-1.0] * 3 + [0.0] * 28)
    found = paired_intervals([d[None]], [True])
    n, plus, minus = 42, 9.5, 3.5
    centre = (plus - minus) / n
    error = np.sqrt(((plus + minus) - (plus - minus) ** 2 / n) / (n - 1) / n)
    half = stats.t.ppf(0.975, n - 1) * error
    assert (found.low[0], found.high[0]) == pytest.approx((centre - half, centre + half))
    assert found.delta[0] == pytest.approx(6 / 40)


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_agreement_on_twenty_examples_is_no_certainty(seeds: int, value: float) -> None:
    found = paired_intervals([np.full((seeds, 20), value)] * 5, [True] * 5)
    width = found.high - found.low
    # The rule of three: an event never seen in 20 trials may have a chance of 3 in 20.
    assert (width > 0.1).all()
    assert (found.low >= -1).all()
    assert (found.high <= 1).all()
    assert ((found.low <= value) & (value <= found.high)).all()


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("value", [0.0, 0.3])
def test_what_never_varies_without_bounds_has_no_interval_and_no_verdict(seeds: int, value: float) -> None:
    found = paired_intervals([np.full((seeds, 20), value)] * 2, [False] * 2)
    assert np.isnan(found.low).all()
    assert (found.p_holm == 1).all()


def test_one_test_example_has_no_interval() -> None:
    rng = np.random.default_rng(0)
    for bounded in (False, True):
        found = paired_intervals([rng.integers(0, 2, (3, 1)).astype(float), np.ones((3, 1))], [bounded] * 2)
        assert np.isnan(found.low).all()
        assert (found.p == 1).all()


def test_scores_that_are_not_known_have_no_interval() -> None:
    found = paired_intervals([np.full((3, 9), np.nan), np.random.default_rng(0).normal(size=(3, 9))], [False] * 2)
    assert np.isnan(found.low[0])
    assert found.p[0] == 1
    assert np.isfinite(found.low[1])


def test_the_order_of_seeds_examples_and_tasks_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    tables = gaussian(rng, 6, 3, 30, 0.3, 0.2)
    order = rng.permutation(6)
    first = paired_intervals(tables, [False] * 6)
    of_seeds = rng.permutation(3)  # of all tasks alike: they share their seeds
    shuffled = [tables[i][of_seeds][:, rng.permutation(30)] for i in order]
    second = paired_intervals(shuffled, [False] * 6)
    for name in ("delta", "low", "high", "p", "p_holm", "df"):
        np.testing.assert_allclose(getattr(second, name), getattr(first, name)[order], err_msg=name)


def test_moderation_pools_what_is_alike_and_keeps_what_stands_out() -> None:
    rng = np.random.default_rng(0)
    sizes, residual = np.full(40, 50), np.ones(40)
    alike = 6 * rng.chisquare(2, 40) / 2
    pooled, df = moderated(alike, residual, sizes, 3)
    assert df.max() > 20
    assert pooled.min() > 2
    assert (pooled >= alike).all()
    alike[0] = 500.0
    pooled, df = moderated(alike, residual, sizes, 3)
    assert pooled[0] >= 500
    assert df.max() < 20


def test_holm_by_hand() -> None:
    # Sorted 0.01, 0.02, 0.03, 0.5 times 4, 3, 2, 1, made monotone.
    np.testing.assert_allclose(holm(np.array([0.03, 0.01, 0.5, 0.02])), [0.06, 0.04, 0.5, 0.06])


def test_moderation_knows_that_seeds_matter_more_where_examples_are_many() -> None:
    rng = np.random.default_rng(0)
    sizes, residual = np.repeat([20, 2000], 20), np.ones(40)
    expected = 1 + 0.05 * sizes  # a variance between seeds of 5 % of the residual one
    pooled, df = moderated(expected * rng.chisquare(2, 40) / 2, residual, sizes, 3)
    assert df.min() > 15
    for size, mean_square in ((20, 2.0), (2000, 101.0)):
        assert np.median(pooled[sizes == size]) == pytest.approx(mean_square, rel=0.5)
