"""The report on metrics that are no means over examples, or good where they are small; and its marks."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy import stats

from lightning_meta.multitask.records import TaskRecord
from lightning_meta.multitask.tables import NOT_BETTER
from lightning_meta.report.transfer import compare, print_report
from lightning_meta.report.transfer.intervals import paired_intervals
from lightning_meta.report.transfer.reading import MEANS, TaskResult
from lightning_meta.tasks import Binary, Multilabel, Regression, Task
from tests.report.transfer_runs import Simulated, write_run

EXAMPLES, TRIALS, LARGE = 300, 1000, 200_000


def drawn(n: int, regression: bool, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Targets and the outputs of two models that share a part of their errors."""
    y = torch.randn(n, 1, generator=generator, dtype=torch.float64)
    shared, a, b = torch.randn(3, n, 1, generator=generator, dtype=torch.float64)
    outputs = y + 0.8 * shared + 0.6 * a, y + 0.8 * shared + 0.9 * b
    targets = y if regression else (y[:, 0] > 0.8).long()  # 21 % positives
    return targets, outputs[0] - (not regression) * 0.8, outputs[1] - (not regression) * 0.8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "metric"),
    [
        *((Binary, m) for m in ("auroc", "average_precision", "f1", "balanced_accuracy", "log_loss")),
        *((lambda m: Regression(1, metric=m), m) for m in ("rmse", "mae", "r2")),
    ],
)
def test_a_95_percent_interval_covers_the_true_difference_in_93_to_97_percent(
    make: Callable[[str], Task], metric: str
) -> None:
    task, generator = make(metric), torch.Generator().manual_seed(1)
    regression = isinstance(task, Regression)
    y, a, b = drawn(LARGE, regression, generator)
    truth = task.evaluate(a, y) - task.evaluate(b, y)
    differences, classes = [], []
    for _ in range(TRIALS):
        y, a, b = drawn(EXAMPLES, regression, generator)
        differences.append(influences(task, y, a, b))
        classes.append(None if metric in MEANS else y.numpy())
    found = paired_intervals(differences, [False] * TRIALS, classes)
    covered = np.mean((found.low <= truth) & (truth <= found.high))
    assert 0.93 <= covered <= 0.97


def labels_drawn(
    n: int, share: float, noise: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Labels of which a share is yes, both there, and the logits of two models."""
    threshold = torch.distributions.Normal(0, 1).icdf(torch.tensor(1 - share, dtype=torch.float64))
    while True:
        y, shared, a, b = torch.randn(4, n, 1, generator=generator, dtype=torch.float64)
        yes = (y > threshold).long()[:, 0]
        if 0 < int(yes.sum()) < n:
            return yes, y + 0.8 * shared + 0.6 * a - threshold, y + 0.8 * shared + noise * b - threshold


def influences(task: Task, y: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    values: np.ndarray = (task.example_scores(a, y) - task.example_scores(b, y)).numpy()[None]
    return values


@pytest.mark.slow
@pytest.mark.parametrize("examples", [50, 100])
@pytest.mark.parametrize("metric", ["auroc", "average_precision", "f1", "balanced_accuracy"])
def test_intervals_cover_the_truth_where_labels_are_rare(metric: str, examples: int) -> None:
    """Six in a hundred labels are yes; with a single example of a class there is no interval."""
    task, generator = Binary(metric), torch.Generator().manual_seed(2)
    y, a, b = labels_drawn(LARGE, 0.06, 0.9, generator)
    truth = task.evaluate(a, y) - task.evaluate(b, y)
    differences, classes = [], []
    for _ in range(600):
        y, a, b = labels_drawn(examples, 0.06, 0.9, generator)
        differences.append(influences(task, y, a, b))
        classes.append(y.numpy())
    found = paired_intervals(differences, [False] * 600, classes)
    known = np.isfinite(found.low)
    assert known.mean() > (0.8 if examples == 50 else 0.97)
    assert 0.92 <= ((found.low <= truth) & (truth <= found.high))[known].mean() <= 0.985


@pytest.mark.slow
def test_of_29_tasks_with_rare_labels_that_do_not_differ_few_are_accused() -> None:
    task, generator, trials = Binary("auroc"), torch.Generator().manual_seed(3), 60
    wrong = 0
    for _ in range(trials):
        of_tasks = [labels_drawn(60, 0.06, 0.6, generator) for _ in range(29)]
        differences = [influences(task, *of) for of in of_tasks]
        found = paired_intervals(differences, [False] * 29, [y.numpy() for y, _, _ in of_tasks])
        wrong += bool((found.p_holm < 0.05).any())
    # At a rate of 0.05, more than 8 of 60 would be seen once in 300 times; one variance of all accuses in 41 %.
    assert wrong <= 8


def runs_of(folder: Path, **of_methods: dict[str, Any]) -> list[Path]:
    """One run of each method on one task."""
    made = []
    for method, row in of_methods.items():
        scores = np.random.default_rng(len(method)).normal(row["test"], 0.05, 400)
        scores += row["test"] - scores.mean()
        fields = {name: value for name, value in row.items() if name != "test"}
        made.append(write_run(folder / method / "0", {"t": Simulated(scores, **fields)}))
    return made


def test_of_a_metric_that_is_good_where_it_is_small_the_smaller_helps(tmp_path: Path) -> None:
    row = {"metric": "rmse", "better": "lower"}
    worse, better = runs_of(tmp_path, alone={**row, "test": 2.0}, together={**row, "test": 1.0})
    report = compare([better], [worse])
    (task,) = report.methods[0].tasks
    assert (task.baseline, task.value, task.delta) == pytest.approx((2.0, 1.0, 1.0))
    assert task.low > 0.9
    assert task.verdict == "too few seeds"
    assert report.methods[0].delta_m == pytest.approx(0.5)
    assert (report.methods[0].mean_rank, report.baseline_rank) == (1, 2)


def test_a_baseline_stands_selected_by_task_and_jointly(tmp_path: Path) -> None:
    alone, together = runs_of(
        tmp_path, alone={"metric": "auroc", "test": 0.7, "joint": 0.8}, together={"metric": "auroc", "test": 0.75}
    )
    (method,) = compare([together], [alone]).methods
    assert method.mean_delta == pytest.approx(0.05)
    assert method.mean_delta_joint == pytest.approx(-0.05)


def test_a_method_that_is_not_better_than_a_constant_is_named(tmp_path: Path) -> None:
    row = {"metric": "auroc", "constant": 0.5}
    alone, together = runs_of(tmp_path, alone={**row, "test": 0.5}, together={**row, "test": 0.9})
    notes = [note for note in compare([together], [alone]).notes if "not better than a constant" in note]
    assert len(notes) == 1
    assert notes[0].startswith("alone is not better")
    assert notes[0].endswith("in 1 of 1 tasks: t.")


@pytest.mark.parametrize(("count", "known"), [(1, False), (2, True)])
def test_a_class_of_one_test_example_leaves_no_interval(count: int, known: bool, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(0.7, 0.1, (2, 90))
    targets = (np.arange(90) < count).astype(float)
    runs = [
        write_run(tmp_path / name / "0", {"t": Simulated(scores, metric="auroc", targets=targets)})
        for name, scores in zip(("alone", "together"), rows, strict=True)
    ]
    report = compare(runs[1:], runs[:1])
    (task,) = report.methods[0].tasks
    assert math.isfinite(task.low) == known
    assert math.isfinite(task.delta)
    assert task.p_holm == 1 or known
    notes = [note for note in report.notes if note.startswith("1 of 1 tasks have no interval")]
    assert len(notes) == (not known)


def test_few_of_a_class_are_few_degrees_of_freedom(tmp_path: Path) -> None:
    """Five positives among a hundred, which alone vary: the interval is the t interval of the five."""
    values, targets = np.full(100, 0.1), (np.arange(100) < 5).astype(float)
    values[:5] += [1.0, -1.0, 0.0, 2.0, -2.0]
    runs = [
        write_run(tmp_path / name / "0", {"t": Simulated(scores, metric="auroc", targets=targets)})
        for name, scores in (("alone", np.zeros(100)), ("together", values))
    ]
    (task,) = compare(runs[1:], runs[:1]).methods[0].tasks
    assert task.df == pytest.approx(4)
    half = stats.t.ppf(0.975, 4) * 5 / 100 * math.sqrt(np.var(values[:5], ddof=1) / 5)
    assert (task.low, task.high) == pytest.approx((0.1 - half, 0.1 + half))


def test_a_metric_of_ones_own_without_parts_has_no_interval(tmp_path: Path) -> None:
    """If the metric is undefined without some example, all scores are the metric itself, also over several seeds."""
    rng = np.random.default_rng(0)
    for method in ("alone", "together"):
        for seed in range(3):
            scores = np.full(90, rng.normal()) if method == "alone" else rng.normal(0.7, 0.1, 90)
            write_run(tmp_path / method / str(seed), {"t": Simulated(scores, metric="gain")}, seed=seed)
    report = compare([tmp_path / "together"], [tmp_path / "alone"])
    (task,) = report.methods[0].tasks
    assert math.isnan(task.low)
    assert task.p == 1
    assert any(note.startswith("1 of 1 tasks have no interval") for note in report.notes)


def test_a_task_without_a_score_does_not_hide_both_selections(tmp_path: Path) -> None:
    for method in ("alone", "together"):
        tasks = {n: Simulated(np.full(9, v), metric="auroc", joint=v - 0.1) for n, v in (("a", 0.8), ("b", 0.6))}
        tasks["c"] = Simulated(np.full(9, math.nan), metric="auroc", joint=0.5)
        write_run(tmp_path / method / "0", tasks)
    report = compare([tmp_path / "together"], [tmp_path / "alone"])
    assert report.selection["alone"] == pytest.approx((0.7, 0.6, 2))
    assert report.methods[0].mean_delta_joint == pytest.approx(0.1)
    text = io.StringIO()
    print_report(report, Console(file=text, width=140))
    assert "mean 0.700 over the 2 tasks that have both; with one joint epoch 0.600" in " ".join(text.getvalue().split())


def test_selections_of_different_metrics_have_no_mean(tmp_path: Path) -> None:
    for method in ("alone", "together"):
        tasks = {m: Simulated(np.full(9, 0.5), metric=m, joint=0.4) for m in ("auroc", "r2")}
        write_run(tmp_path / method / "0", tasks)
    assert compare([tmp_path / "together"], [tmp_path / "alone"]).selection == {}


def test_means_of_errors_say_their_unit_and_do_not_depend_on_those_of_targets(tmp_path: Path) -> None:
    """One task has targets in metres, and the other in kilometres."""
    for method, gain in (("alone", 0.0), ("together", 0.1)):
        tasks = {
            n: Simulated(np.full(9, (0.5 - gain) * u), metric="rmse", better="lower", joint=0.6 * u, constant=u)
            for n, u in (("m", 1e3), ("km", 1.0))
        }
        write_run(tmp_path / method / "0", tasks)
    report = compare([tmp_path / "together"], [tmp_path / "alone"])
    assert report.selection["alone"] == pytest.approx((0.5, 0.6, 2))
    print_report(report, Console(file=(text := io.StringIO()), width=140))
    printed = " ".join(text.getvalue().split())
    assert "mean 0.500; with one joint epoch 0.600 (errors over that of a constant prediction)." in printed
    assert "the mean Δ and the statements are in comparable units, errors over that of a constant prediction" in printed
    assert "Tasks have different" not in printed  # all have the same metric
    assert report.methods[0].mean_delta_joint == pytest.approx(0.2)


def test_the_worst_difference_has_its_unit_where_metrics_differ(tmp_path: Path) -> None:
    for method, right in (("alone", [0, 1, 1, 1] * 2), ("together", [0, 0, 1, 1] * 2)):
        tasks = {"a": Simulated(np.array(right, float)), "r": Simulated(np.full(9, 0.5), metric="r2")}
        write_run(tmp_path / method / "0", tasks)
    print_report(
        compare([tmp_path / "together"], [tmp_path / "alone"]), Console(file=(text := io.StringIO()), width=140)
    )
    lines = text.getvalue().splitlines()
    assert "-25.0 points" in next(line for line in lines if "worst Δ" in line)
    assert "together against alone: Δ in the unit of each metric, Δ > 0 means better" in text.getvalue()
    assert [line.split()[:2] for line in lines if line.split()[:1] in (["a"], ["r"])] == [
        ["a", "accuracy,"],
        ["r", "R²"],
    ]


def test_one_metric_stands_in_the_title_and_needs_no_column(tmp_path: Path) -> None:
    for method in ("alone", "together"):
        write_run(tmp_path / method / "0", {"r": Simulated(np.full(9, 0.5), metric="r2")})
    report = compare([tmp_path / "together"], [tmp_path / "alone"])
    print_report(report, Console(file=(text := io.StringIO()), width=140))
    assert "Δ in R², Δ > 0 means better" in text.getvalue()
    assert "metric" not in text.getvalue().split("Over")[0]


def test_means_over_different_metrics_are_in_comparable_units(tmp_path: Path) -> None:
    """An increase of an error from 1000 to 1100 counts as 0.1, one of the accuracy by 0.2 as 0.2."""
    for method, cost, right in (("alone", 1000.0, 5), ("together", 1100.0, 7)):
        tasks = {
            "cost": Simulated(np.full(10, cost), metric="rmse", better="lower", joint=cost, train=1.0, val=500.0),
            "grade": Simulated(np.arange(10) < right, joint=right / 10),
        }
        write_run(tmp_path / method / "0", tasks)
    report = compare([tmp_path / "together"], [tmp_path / "alone"])
    (method_transfer,) = report.methods
    assert method_transfer.mean_delta == pytest.approx((-0.1 + 0.2) / 2)
    assert method_transfer.mean_delta_joint == pytest.approx((-0.1 + 0.2) / 2)
    assert math.isnan(method_transfer.mean_gap)
    assert method_transfer.worst == "cost"
    assert not any("half-width" in note or "corrected for" in note for note in report.notes)


def test_the_gap_is_named_by_the_better_direction(tmp_path: Path) -> None:
    """Above 0, training is better: train − val for a score, val − train for an error."""
    named = {
        ("higher",): "mean gap train − val",
        ("lower",): "mean gap val − train",
        ("lower", "higher"): "mean training better",
    }
    for ends, name in named.items():
        folder = tmp_path / "-".join(ends)
        for method in ("alone", "together"):
            tasks = {
                f"task{i}": Simulated(np.full(10, 0.5), metric="mine", better=end, train=0.4, val=0.6)
                for i, end in enumerate(ends)
            }
            write_run(folder / method / "0", tasks)
        report, text = compare([folder / "together"], [folder / "alone"]), io.StringIO()
        assert report.methods[0].tasks[0].gap == pytest.approx(-0.2 if ends[0] == "higher" else 0.2)
        print_report(report, Console(file=text, width=140))
        assert name in text.getvalue()
        assert ("gap" in text.getvalue()) == (len(ends) == 1)


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize(
    ("known", "before", "expected"),
    [(True, 0.5, 0.2), (False, 0.5, 0.2), (True, 0.04, math.nan), (False, 0.04, 0.2)],
)
def test_delta_m_of_errors_does_not_depend_on_units(
    unit: float, known: bool, before: float, expected: float, tmp_path: Path
) -> None:
    """The floor is a share of what a constant prediction has; where that is not known there is none."""
    row = {"metric": "rmse", "better": "lower", **({"constant": 1.0 * unit} if known else {})}
    alone, together = runs_of(
        tmp_path, alone={**row, "test": before * unit}, together={**row, "test": 0.8 * before * unit}
    )
    assert compare([together], [alone]).methods[0].delta_m == pytest.approx(expected, nan_ok=True)


def result(metric: str, targets: list[Any], outputs: int) -> TaskResult:
    rows = np.array(targets, dtype=float).reshape(len(targets), -1)
    numbers = dict.fromkeys(
        ("train", "val", "test", "train_loss", "joint", "gradient_share", "constant", "best_step", "best_val"), 0.5
    )
    ids = np.arange(len(rows))
    return TaskResult(metric, "higher", 9, **numbers, ids=ids, scores=ids * 1.0, targets=rows, outputs=outputs)


@pytest.mark.parametrize(
    ("metric", "targets", "outputs", "classes"),
    [
        ("auroc", [0, 1, 1], 1, [0, 1, 1]),
        ("gain", [0, 2, 1], 3, [0, 2, 1]),
        ("auroc", [[0, math.nan], [1, math.nan]], 1, [0, 1]),
        ("accuracy", [0, 1, 1], 1, None),
        ("rmse", [0, 1, 1], 1, None),
        ("pearson", [0, 1, 7], 1, None),
        ("pearson", [0.5, 1, 0], 1, None),
        ("pearson", [[0, 2], [1, 3]], 2, None),
        # The first label is rarely yes, the second rarely no, the third has one value.
        ("f1", [[0, 1, 1], [0, 0, 1], [1, 0, 1], [0, 1, 1], [0, 1, 1]], 3, [0, 2, 1, 0, 0]),
    ],
)
def test_classes_are_read_off_the_targets(metric: str, targets: list[Any], outputs: int, classes: list[int]) -> None:
    found = result(metric, targets, outputs).classes
    assert (found if found is None else found.tolist()) == classes


def test_classes_matter_over_seeds_as_well() -> None:
    """Classes of equal size and variance hardly change the interval."""
    d = np.random.default_rng(0).normal(0.1, 1, (3, 2000)) + np.random.default_rng(1).normal(size=2000)
    halves = np.arange(2000) % 2
    one, two = (paired_intervals([d, d], [False] * 2, [c] * 2) for c in (None, halves))
    np.testing.assert_allclose([one.low, one.high, one.df], [two.low, two.high, two.df], rtol=0.01)


def test_what_a_constant_reaches() -> None:
    y = torch.tensor([0] * 90 + [1] * 10)
    constant = {name: Binary(name).fitted(y) for name in Binary.names}
    record = TaskRecord(torch.arange(100), torch.zeros(100), torch.zeros(100, 1), y)
    entropy = -0.9 * math.log(0.9) - 0.1 * math.log(0.1)
    expected = {"accuracy": 0.9, "balanced_accuracy": 0.5, "auroc": 0.5, "average_precision": 0.1, "f1": 2 / 11}
    for name, value in {**expected, "log_loss": entropy}.items():
        assert record.constant_score(constant[name]) == pytest.approx(value, abs=1e-9), name
    x = torch.randn(50, 1, dtype=torch.float64) * 3 + 7
    of_values = TaskRecord(torch.arange(50), torch.zeros(50), torch.zeros(50, 1), x)
    assert of_values.constant_score(Regression(1).fitted(x)) == pytest.approx(0, abs=1e-9)
    assert of_values.constant_score(Regression(1, metric="rmse").fitted(x)) == pytest.approx(
        float(x.std(correction=0)), rel=1e-6
    )
    assert math.isnan(record.constant_score(Binary())), "a task of an earlier version does not say its frequencies"
    skewed = x.exp()
    of_skewed = TaskRecord(torch.arange(50), torch.zeros(50), torch.zeros(50, 1), skewed)
    mae = Regression(1, metric="mae")
    assert of_skewed.constant_score(mae.fitted(skewed)) == pytest.approx(
        float((skewed - skewed.median()).abs().mean()), rel=1e-6
    )
    assert math.isnan(of_skewed.constant_score(Regression(1, (0.0,), (1.0,), "mae"))), "nor its median"
    many = torch.stack([y, 1 - y], 1)
    of_many = TaskRecord(torch.arange(100), torch.zeros(100), torch.zeros(100, 2), many)
    assert of_many.constant_score(Multilabel(2, "f1").fitted(many)) == pytest.approx((2 / 11 + 1.8 / 1.9) / 2)
    assert "constant" in NOT_BETTER
