"""False verdicts stay at 5 % where tasks share what a seed does to them and where a few are noisier."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from lightning_meta.report.transfer.intervals import moderated, paired_intervals
from tests.report.verdict_simulation import CASES, SEEDS, simulate

TRIALS = 150


@pytest.mark.slow
def test_false_verdicts_power_and_coverage() -> None:
    found = {(case, seeds): simulate(case, seeds, TRIALS) for case in CASES for seeds in SEEDS}
    for rates in found.values():  # each bound would be seen to fail once in 300 times if the rate were just as said
        assert rates.false * TRIALS <= stats.binom.ppf(0.997, TRIALS, 0.05)
        assert rates.coverage >= 0.92
        assert rates.method_coverage * TRIALS >= stats.binom.ppf(0.001, TRIALS, 0.95)
    of_three = [rates for (_, seeds), rates in found.items() if seeds == 3]
    trials = TRIALS * len(of_three)
    assert sum(rates.false for rates in of_three) * TRIALS <= stats.binom.ppf(0.997, trials, 0.05)
    for case in CASES:  # and effects are found
        signs_differ = CASES[case].unequal > 1
        assert found[case, 5].power > (0.03 if CASES[case].tasks > 20 else 0.3 if signs_differ else 0.45)
        assert found[case, 10].power > (0.7 if signs_differ else 0.9)
        assert found[case, 10].method_power > 0.9
    assert found["nothing", 3].power > 0.9
    assert found["each task alone", 3].power > 0.25  # Holm over t tests with two degrees of freedom finds 3 %


def test_a_lucky_seed_of_all_tasks_is_no_verdict_of_any() -> None:
    # Of three seeds one helps every task; what is left of each task is small. Pooled over tasks, its variance seemed
    # known with 2 x 40 degrees of freedom.
    rng = np.random.default_rng(0)
    lucky = np.array([0.42, 0.15, 0.21])[:, None, None]
    d = lucky + rng.normal(0, 0.3, (3, 40, 50)) + rng.normal(0, 0.02, (3, 40, 1))
    found = paired_intervals(list(d.transpose(1, 0, 2)), [False] * 40)
    t = stats.ttest_1samp(lucky.ravel(), 0)
    assert 0.05 < t.pvalue < 0.1
    assert (found.p_holm > 0.05).all()
    assert (found.df < 4).all()  # two, and a little of the tasks' own


def test_what_seeds_do_to_each_task_is_still_pooled() -> None:
    rng = np.random.default_rng(1)
    effect = np.where(np.arange(30) < 5, 0.8, 0.0)
    d = effect[:, None] + rng.normal(0, 0.5, (3, 30, 100)) + rng.normal(0, 0.15, (3, 30, 1))
    of_seeds = d.mean(2)
    found = paired_intervals(list(d.transpose(1, 0, 2)), [False] * 30)
    assert (found.p_holm[:5] < 0.05).all()
    assert (found.p_holm[5:] > 0.05).all()
    alone = stats.ttest_1samp(of_seeds, 0).pvalue
    assert (alone[:5] * 30 < 0.05).sum() < 5  # a t test for each task finds fewer


def test_of_few_tasks_each_stands_alone() -> None:
    of_seed = np.array([[0.1, 0.3, 0.25, 0.5], [0.4, 0.2, -0.3, 0.1]])
    found = paired_intervals([np.repeat(row[:, None], 30, 1) for row in of_seed], [False] * 2)
    np.testing.assert_allclose(found.p, stats.ttest_1samp(of_seed, 0, axis=1).pvalue)
    small, large = sorted(found.p)
    assert sorted(found.p_holm) == pytest.approx([min(2 * small, 1), max(2 * small, large)])


@pytest.mark.filterwarnings("error")
def test_one_task_that_seeds_move_says_nothing_about_tails() -> None:
    between = np.zeros(20)
    between[3] = 5.0
    mean_square, df = moderated(between, np.ones(20), np.full(20, 30.0), 3)
    assert np.isfinite(mean_square).all()
    assert mean_square[3] >= 5.0
    assert (df > 0).all()
