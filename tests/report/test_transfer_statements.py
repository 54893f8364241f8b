"""Two statements over all tasks: one about the trained models, one about the method."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from scipy import stats

from lightning_meta.report.transfer import TransferReport, compare, print_report, write_report
from lightning_meta.report.transfer.intervals import state
from tests.report.transfer_runs import Simulated, write_run


def many_tasks(root: Path, seeds: int, shift: float = 0.06, tasks: int = 139, metric: str = "r2") -> TransferReport:
    """Small tasks of few test examples in each of which sharing adds a little, too little to show in one alone."""
    for method, added in (("independent", 0.0), ("shared", shift)):
        for seed in range(1, seeds + 1):
            made = {}
            for i in range(tasks):
                level = 0.3 + np.random.default_rng(i).normal(0, 0.05) + added
                level += np.random.default_rng([len(method), seed, i]).normal(0, 0.07)
                scores = np.random.default_rng([len(method), seed, i, 1]).normal(0, 0.9, 20)
                made[f"school_{i:03}"] = Simulated(scores - scores.mean() + level, metric=metric)
            write_run(root / method / str(seed), made, seed=seed)
    return compare([root / "shared"], [root / "independent"])


def printed(report: TransferReport, file: Path, width: int = 140) -> str:
    with file.open("w") as stream:
        print_report(report, Console(file=stream, width=width), Path("report/transfer.csv"))
    return " ".join(file.read_text().split())


def test_what_helps_over_139_small_tasks_is_said_once_for_all(tmp_path: Path) -> None:
    report = many_tasks(tmp_path, seeds=3)
    (method,) = report.methods
    assert {t.verdict for t in method.tasks} == {"no difference shown"}
    assert method.for_models.better == sum(t.delta > 0 for t in method.tasks) > 100
    assert method.for_models.low > 0
    assert method.for_method.verdict == "helps"
    said = printed(report, tmp_path / "table")
    assert len((tmp_path / "table").read_text().splitlines()) < 60
    assert "The worst 10 and the best 10 of 139; all are in report/transfer.csv" in said
    worst, best = (pick(method.tasks, key=lambda t: t.delta).task for pick in (min, max))
    assert 0 < said.index(f" {worst} ") < said.index("119 more") < said.index(f" {best} ")
    write_report(report, tmp_path / "report")
    with Image.open(tmp_path / "report" / "forest.png") as forest:
        assert forest.height < 2500  # 30 pixels for each of 139 rows would be 4170
    assert f"For these trained models: better on average (better in {method.for_models.better} of 139" in said
    assert f"For the method: helps: mean Δ {method.for_method.mean:+.3f}, 95 % interval over 3 seeds" in said
    assert said.count("Smallest Δ that could have been shown") == 2


def test_the_statements_are_t_tests_of_tasks_and_of_seeds() -> None:
    rng = np.random.default_rng(0)
    d = rng.normal(0.1, 0.3, (4, 30)) + rng.normal(0, 0.1, (4, 1))
    models, method = state(d)
    for found, values in ((models, d.mean(0)), (method, d.mean(1))):
        test = stats.ttest_1samp(values, 0)
        interval = test.confidence_interval(0.95)
        assert (found.mean, found.low, found.high) == pytest.approx((values.mean(), interval.low, interval.high))
        # A difference of this size, in units of the standard error, is shown with a chance of 0.8.
        df, shift = len(values) - 1, found.smallest / stats.sem(values)
        assert stats.nct.sf(stats.t.ppf(0.975, df), df, shift) == pytest.approx(0.8, abs=1e-4)
    assert method.p == pytest.approx(stats.ttest_1samp(d.mean(1), 0).pvalue)


def test_a_seed_that_moves_all_tasks_is_no_evidence_for_the_method() -> None:
    d = np.array([[0.2], [-0.1], [0.15]]) + np.random.default_rng(0).normal(0, 0.02, (3, 100))
    models, method = state(d)
    assert models.low > 0  # these models are better in nearly all tasks
    assert method.verdict == "no difference shown"
    assert method.low < 0 < method.high


@pytest.mark.parametrize("seeds", [1, 2])
def test_too_few_seeds_have_intervals_at_most_and_are_told_what_is_missing(seeds: int, tmp_path: Path) -> None:
    report = many_tasks(tmp_path, seeds, shift=0.5, tasks=12)
    (method,) = report.methods
    assert method.for_method.verdict == "too few seeds"
    assert np.isfinite(method.for_method.low) == (seeds == 2)
    assert method.for_models.low > 0
    said = printed(report, tmp_path / "table")
    assert f"A verdict takes 3 seeds: train {3 - seeds} more." in said


def test_one_task_with_a_bottomless_score_does_not_decide(tmp_path: Path) -> None:
    for name, others in (("independent", 0.3), ("shared", 0.4)):
        for seed in (1, 2, 3):
            made = {f"t{i}": Simulated(np.array([others + 0.01 * i + 0.001 * seed, others])) for i in range(9)}
            made["lost"] = Simulated(np.full(2, -435.0 if name == "shared" else -2.0))
            made = {of: task.but(metric="r2") for of, task in made.items()}
            write_run(tmp_path / name / str(seed), made, seed=seed)
    (method,) = compare([tmp_path / "shared"], [tmp_path / "independent"]).methods
    assert method.mean_delta < -40
    assert method.for_models.mean == pytest.approx(0.9 * 0.1)  # both count at -1
    assert (method.for_models.better, method.for_models.worse) == (9, 0)


def test_a_narrow_terminal_and_tasks_that_do_not_differ(tmp_path: Path) -> None:
    report = many_tasks(tmp_path, 3, shift=0.0, tasks=1, metric="accuracy")
    assert "without an interval over tasks" in printed(report, tmp_path / "table", 80)
    models, method = state(np.full((3, 4), 0.25))
    assert np.isnan([models.low, method.low]).all()
    assert method.verdict == "seeds do not differ"
    models, method = state(np.full((3, 2), np.nan))
    assert (models.tasks, np.isnan(models.mean), np.isnan(method.mean)) == (0, True, True)
