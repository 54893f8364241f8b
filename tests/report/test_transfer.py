"""The transfer report on run directories with a known story."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from scipy import stats

from lightning_meta.report.drawing import printable
from lightning_meta.report.transfer import TransferReport, compare, print_report, write_report
from lightning_meta.report.transfer.comparison import cause_if_hurt, dominating_tasks, shares
from lightning_meta.report.transfer.writing import draw_forest, draw_gap
from tests.report.transfer_runs import Simulated, draw, write_run

SEEDS = (1, 2, 3)


def story(
    root: Path,
    names: list[str],
    effects: dict[str, dict[str, float]],
    seeds: tuple[int, ...] = SEEDS,
    change: Callable[[str, str, Simulated], Simulated] = lambda method, name, task: task,
) -> Path:
    """Runs of methods: by method and task, what is added to the skill of the baseline `independent`."""
    for method in ("independent", *effects):
        for version, seed in enumerate(seeds):
            tasks = {}
            for name in names:
                rng = np.random.default_rng([len(method), seed, *name.encode()])
                difficulty = np.random.default_rng([*name.encode()]).normal(0, 0.8, 150)
                skill = 0.8 + effects.get(method, {}).get(name, 0.0)
                task = Simulated(draw(rng, skill, difficulty), joint=0.5 if method == "independent" else None)
                tasks[name] = change(method, name, task)
            write_run(root / method / str(version), tasks, seed=seed)
    return root


def against_independent(root: Path, *methods: str) -> TransferReport:
    return compare([root / m for m in methods or ("shared",)], [root / "independent"])


def verdicts(report: TransferReport) -> dict[str, tuple[str, str]]:
    return {t.task: (t.verdict, t.cause) for t in report.methods[0].tasks}


@pytest.mark.parametrize(
    ("loss_change", "expected"), [(0.2, "interference"), (-0.2, "generalisation gap"), (0.0, "unclear")]
)
def test_a_planted_hurt_and_a_planted_helped_task_are_reported_as_such(
    tmp_path: Path, loss_change: float, expected: str
) -> None:
    names = [f"task_{i}" for i in range(20)]

    def change(method: str, name: str, task: Simulated) -> Simulated:
        return task.but(train_loss=0.5 + loss_change) if method == "shared" and name == "task_3" else task

    story(tmp_path, names, {"shared": {"task_3": -1.5, "task_7": 1.8}}, change=change)
    found = verdicts(against_independent(tmp_path))
    assert found.pop("task_3") == ("hurt", expected)
    assert found.pop("task_7") == ("helped", "")
    assert set(found.values()) == {("no difference shown", "")}


def test_verdicts_agree_with_intervals_and_correction(tmp_path: Path) -> None:
    names = [f"task_{i}" for i in range(30)]
    effects = {name: float(e) for name, e in zip(names, np.linspace(-1.5, 1.5, 30), strict=True)}
    report = against_independent(story(tmp_path, names, {"shared": effects}))
    tasks = report.methods[0].tasks
    for task in tasks:
        assert (task.p < 0.05) == (not task.low <= 0 <= task.high)
        assert task.p_holm >= task.p
        if task.verdict != "no difference shown":
            assert task.low * task.high > 0
            assert (task.delta > 0) == (task.verdict == "helped")
    said = [t.verdict for t in tasks]
    assert said.count("hurt") > 1
    assert said.count("helped") > 1
    # Some intervals exclude zero and still stand no correction.
    assert sum(t.p < 0.05 for t in tasks) > 30 - said.count("no difference shown")


def test_what_stands_over_all_tasks_by_hand(tmp_path: Path) -> None:
    def scores(right: int) -> np.ndarray:
        return np.arange(100) < right

    accuracies = {"independent": (50, 80, 2), "shared": (55, 60, 12), "conditioned": (50, 90, 2)}
    for method, (a, b, c) in accuracies.items():
        for version, seed in enumerate(SEEDS):
            tasks = {"a": Simulated(scores(a)), "b": Simulated(scores(b)), "c": Simulated(scores(c))}
            tasks["a"] = tasks["a"].but(train=0.9, val=0.6, joint=0.4 if method == "independent" else None)
            if method == "independent":
                tasks |= {k: tasks[k].but(joint=0.4) for k in "bc"}
            write_run(tmp_path / method / str(version), tasks, seed=seed)
    report = against_independent(tmp_path, "shared", "conditioned")
    shared = report.methods[0]
    assert shared.delta_m == pytest.approx((0.1 - 0.25) / 2)  # c is below the floor
    assert shared.delta_m_excluded == 1
    assert shared.mean_delta == pytest.approx((0.05 - 0.2 + 0.1) / 3)
    assert shared.worst == "b"
    assert [shared.harmed, shared.helped] == pytest.approx([1 / 3, 2 / 3])
    ranks = [stats.rankdata([-50, -55, -50]), stats.rankdata([-80, -60, -90]), stats.rankdata([-2, -12, -2])]
    expected = np.mean(ranks, 0)
    assert report.baseline_rank == pytest.approx(expected[0])
    assert [m.mean_rank for m in report.methods] == pytest.approx(expected[1:])
    assert shared.tasks[0].gap == pytest.approx(0.3)
    assert list(report.selection) == ["independent"]
    assert report.selection["independent"] == pytest.approx((0.44, 0.4, 3))


def test_permuted_tasks_permute_the_rows_and_nothing_else(tmp_path: Path) -> None:
    names = [f"task_{i}" for i in range(8)]
    effects = {"shared": {"task_1": -1.5, "task_5": 1.0}}
    first = against_independent(story(tmp_path / "a", names, effects))
    order = [names[i] for i in (3, 1, 7, 0, 2, 6, 5, 4)]
    second = against_independent(story(tmp_path / "b", order, effects))
    assert [t.task for t in second.methods[0].tasks] == order
    rows = {t.task: t for t in second.methods[0].tasks}
    for task in first.methods[0].tasks:
        for field in ("delta", "low", "high", "p_holm", "gap"):
            assert getattr(rows[task.task], field) == pytest.approx(getattr(task, field)), field
    assert second.methods[0].delta_m == pytest.approx(first.methods[0].delta_m)


def test_the_order_of_tasks_in_a_run_does_not_matter(tmp_path: Path) -> None:
    names = [f"task_{i}" for i in range(4)]
    story(tmp_path, names, {"shared": {"task_1": -1.5}}, seeds=(1,))
    before = against_independent(tmp_path)
    story(tmp_path / "other", names[::-1], {"shared": {"task_1": -1.5}}, seeds=(1,))
    after = compare([tmp_path / "other" / "shared"], [tmp_path / "independent"])
    assert repr(after.methods) == repr(before.methods)


@pytest.mark.parametrize("recorded", [True, False])
def test_a_task_that_dominates_is_named_beside_what_it_does(tmp_path: Path, recorded: bool) -> None:
    names = ["large", "a", "b", "c", "d", "e"]

    def change(method: str, name: str, task: Simulated) -> Simulated:
        if recorded:
            task = task.but(gradient_share=0.9 if name == "large" else 0.02)
        loss = 20.0 if name == "large" and not recorded else 0.5
        return task.but(train_loss=loss + (0.1 if method == "shared" else 0))

    story(tmp_path, names, {"shared": {"a": -2.0, "large": -2.0}}, change=change)
    report = against_independent(tmp_path)
    assert report.methods[0].dominating == ("large",)
    found = verdicts(report)
    assert found["a"] == ("hurt", "interference, few tasks dominate")
    assert found["large"] == ("hurt", "interference")


def test_the_rule_of_domination() -> None:
    assert dominating_tasks(np.full(50, 0.02)) == []
    assert dominating_tasks(shares(np.array([1.0, 1.0]))) == []
    assert dominating_tasks(shares(np.array([1.0, 9.0]))) == [1]
    assert dominating_tasks(shares(np.array([5.0, 0.1, 4.0, 0.1, 0.1, 0.1]))) == [0]
    assert dominating_tasks(shares(np.array([3.0, 0.3, 3.1, 0.3, 0.3, 0.3]))) == [2, 0]
    assert dominating_tasks(shares(np.array([1.0, np.nan]))) == []
    assert np.isnan(shares(np.array([1.0, -1.0]))).all()
    assert cause_if_hurt(np.array([0.1, -0.1]), 0.5, [], 2, shares=True, converged=True, near=True) == "unclear"


def test_regression_whose_targets_never_vary_is_left_out(tmp_path: Path) -> None:
    for method, shift in (("independent", 0.0), ("shared", 0.1)):
        for version, seed in enumerate(SEEDS):
            rng = np.random.default_rng([len(method), seed])
            constant = Simulated(np.full(9, np.nan), metric="r2")
            good = Simulated(0.5 + shift + 0.3 * rng.normal(size=400), metric="r2")
            write_run(tmp_path / method / str(version), {"constant": constant, "good": good}, seed=seed)
    report = against_independent(tmp_path)
    constant_row, good_row = report.methods[0].tasks
    assert np.isnan(constant_row.delta)
    assert constant_row.verdict == "not comparable"
    assert any("Not comparable" in note and "constant" in note for note in report.notes)
    assert report.methods[0].delta_m_excluded == 0  # which speaks of baselines near zero
    assert good_row.delta == pytest.approx(0.1, abs=0.05)
    assert report.methods[0].worst == "good"
    assert np.isfinite(report.methods[0].delta_m)
    write_report(report, tmp_path / "report")
    print_report(report, Console(file=None, quiet=True))


def test_a_task_without_test_examples_is_named_and_leaves_the_others_compared(tmp_path: Path) -> None:
    names = [f"task_{i}" for i in range(6)]
    effects = {"shared": {"task_1": -1.5}}
    whole = against_independent(story(tmp_path / "whole", names, effects))

    def emptied(method: str, name: str, task: Simulated) -> Simulated:
        return task.but(scores=np.zeros(0), joint=None) if name == "empty" else task

    report = against_independent(story(tmp_path / "some", ["empty", *names], effects, change=emptied))
    empty, *others = report.methods[0].tasks
    assert (empty.verdict, empty.test_examples) == ("not comparable", 0)
    assert repr([t.p_holm for t in others]) == repr([t.p_holm for t in whole.methods[0].tasks])
    for field in ("delta_m", "mean_delta", "mean_gap", "harmed", "helped", "for_models", "for_method", "mean_rank"):
        assert repr(getattr(report.methods[0], field)) == repr(getattr(whole.methods[0], field)), field
    assert any(note.startswith("Not comparable are 1 of 7 tasks") for note in report.notes)
    assert any("empty (0 test examples)" in note for note in report.notes)
    assert any("corrected for the 6 tasks" in note for note in report.notes)
    write_report(report, tmp_path / "report")
    print_report(report, Console(file=None, quiet=True))


def test_a_task_of_few_test_examples_decides_nothing(tmp_path: Path) -> None:
    def few(method: str, name: str, task: Simulated) -> Simulated:
        lost = np.full(4, float(method == "independent"))
        return task.but(scores=lost, joint=None) if name == "few" else task

    names = [f"task_{i}" for i in range(6)]
    whole = against_independent(story(tmp_path / "whole", names, {"shared": {}}))
    report = against_independent(story(tmp_path / "some", ["few", *names], {"shared": {}}, change=few))
    assert report.methods[0].tasks[0].verdict == "not comparable"
    for field in ("delta_m", "mean_delta", "worst", "for_models", "for_method", "mean_rank"):
        assert repr(getattr(report.methods[0], field)) == repr(getattr(whole.methods[0], field)), field
    assert any("few (4 test examples)" in note for note in report.notes)
    with (tmp_path / "table").open("w") as file:
        print_report(report, Console(file=file, width=140))
    assert "Over 6 of 7 tasks" in (tmp_path / "table").read_text()


def test_one_seed_says_what_it_cannot_say(tmp_path: Path) -> None:
    report = against_independent(story(tmp_path, ["a", "b"], {"shared": {}}, seeds=(4,)))
    assert "1 seed (4)" in report.notes[0]
    assert "not the variation between seeds" in report.notes[0]
    three = against_independent(story(tmp_path / "three", ["a", "b"], {"shared": {}}))
    assert "3 seeds (1, 2, 3)" in three.notes[0]


def test_unequal_budgets_are_said(tmp_path: Path) -> None:
    tasks = {"a": Simulated(np.arange(50) % 2 == 0)}
    for method, steps in (("independent", 100), ("shared", 900)):
        write_run(tmp_path / method / "0", tasks, config={"trainer": {"max_steps": steps}, "model": {"x": method}})
    notes = against_independent(tmp_path).notes
    assert any("shared and independent differ in trainer.max_steps: 900 and 100" in note for note in notes)


@pytest.mark.parametrize(
    ("late", "shared_parameters", "expected"),
    [
        ("", 100, "interference"),
        ("shared", 100, "not converged: train longer"),
        ("independent", 100, "not converged: train longer"),
        ("", 0, "nothing is shared"),
        ("unknown", 100, "unclear"),
        ("never validated", 100, "unclear"),
        ("selected for others", 100, "selected for other tasks"),
    ],
)
def test_interference_takes_shared_parameters_and_training_to_the_end(
    tmp_path: Path, late: str, shared_parameters: int, expected: str
) -> None:
    for method, level in (("independent", 0.8), ("shared", 0.2)):
        for seed in SEEDS:
            rng = np.random.default_rng([len(method), seed])
            hurt = Simulated((rng.random(400) < level).astype(float), train_loss=1 - level)
            if method == late and seed == 2:
                hurt = hurt.but(best_step=20)  # of 20 steps
            if method == "shared" and late == "never validated":
                hurt = hurt.but(best_step=-1)
            if method == "shared" and late == "selected for others":
                hurt = hurt.but(val=0.3, best_val=0.75)  # of the 0.6 that it loses, selection costs 0.45
            if method == "independent":
                hurt = hurt.but(joint=0.25)
            run = write_run(tmp_path / method / str(seed), {"a": hurt}, seed=seed, shared_parameters=shared_parameters)
            if late == "unknown":
                (run / "metrics.csv").unlink()
    report = against_independent(tmp_path)
    assert verdicts(report) == {"a": ("hurt", expected)}
    with (tmp_path / "table").open("w") as file:
        print_report(report, Console(file=file, width=140))
    joint = (
        f"▼ a: {expected}; Δ {100 * report.methods[0].tasks[0].delta_joint:+.1f} against the baseline with one joint"
    )
    assert (joint in (tmp_path / "table").read_text()) == (late == "selected for others")
    said = [note for note in report.notes if "not converged" in note]
    assert [note.split()[0] for note in said] == ([late] if late in ("shared", "independent") else [])


def test_every_difference_of_rates_and_steps_is_named(tmp_path: Path) -> None:
    for method, rate, decay, steps in (("independent", 0.1, 0.0, 20), ("shared", 0.3, 0.5, 40)):
        optimizer = {"class_path": "SGD", "init_args": {"lr": rate, "weight_decay": decay}}
        config = {"model": {"init_args": {"optimizer": optimizer}}}
        write_run(tmp_path / method / "0", {"a": Simulated(np.arange(50) % 2)}, config=config, steps=steps)
    notes = "\n".join(against_independent(tmp_path).notes)
    assert "differ in model.optimizer.lr: 0.3 and 0.1" in notes
    tuned = " ".join(compare([tmp_path / "shared"], [tmp_path / "independent"], tuned=["model.optimizer.lr"]).notes)
    assert "model.optimizer.lr" not in tuned
    assert "differ in model.optimizer.weight_decay: 0.5 and 0.0" in tuned
    assert "differ in model.optimizer.weight_decay: 0.5 and 0.0" in notes
    assert "differ in the training steps that were made, on average 40 and 20" in notes


def test_a_run_a_folder_of_versions_and_a_pattern_are_all_understood(tmp_path: Path) -> None:
    story(tmp_path, ["a", "b"], {"shared": {"a": -2.0}, "conditioned": {}})
    whole = against_independent(tmp_path, "shared", "conditioned")
    everything = compare(sorted(p for p in tmp_path.iterdir()), [tmp_path / "independent"])
    assert {m.method: repr(m) for m in everything.methods} == {m.method: repr(m) for m in whole.methods}
    each = compare([tmp_path / "shared" / v for v in "210"], [tmp_path / "independent" / v for v in "102"])
    assert repr(each.methods[0].tasks) == repr(whole.methods[0].tasks)
    one = compare([tmp_path / "shared" / "1"], [tmp_path / "independent" / "1"])
    assert one.seeds == (2,)
    (tmp_path / "shared" / "3").mkdir()  # stopped before its first checkpoint
    assert repr(against_independent(tmp_path).methods) == repr(each.methods)


def test_files_and_table_hold_the_same_figures(tmp_path: Path) -> None:
    report = against_independent(story(tmp_path, ["a", "b", "[red]c"], {"shared": {"a": -2.0, "b": 2.0}}))
    folder = write_report(report, tmp_path / "out" / "report")
    assert {f.name for f in folder.iterdir()} == {"transfer.csv", "transfer.json", "forest.png", "gap.png"}
    with (folder / "transfer.csv").open() as file:
        rows = list(csv.DictReader(file))
    content = json.loads((folder / "transfer.json").read_text())
    assert [r["task"] for r in rows] == ["a", "b", "[red]c"]
    for row, task, stored in zip(rows, report.methods[0].tasks, content["methods"][0]["tasks"], strict=True):
        assert float(row["delta"]) == task.delta == stored["delta"]
        assert row["verdict"] == task.verdict == stored["verdict"]
        assert row["gradient_share"] == ""
        assert stored["gradient_share"] is None
    assert "Satterthwaite" in content["intervals"]
    assert content["sign"] == "higher is better"
    with (tmp_path / "table").open("w") as file:
        print_report(report, Console(file=file))
    table = (tmp_path / "table").read_text()
    lines = [line for line in table.splitlines() if line[1:3] in ("a ", "b ", "[r")]
    assert len(lines) == 3
    assert [line.split()[0] for line in lines] == ["a", "[red]c", "b"]  # the worst first
    assert "▼ hurt: unclear" in lines[0]
    assert "▲ helped" in lines[2]
    assert "independent selects each task's own best epoch" in table


def test_a_narrow_terminal_shows_every_figure_whole(tmp_path: Path) -> None:
    names = ["a task with a name that is far too long", "b"]
    report = against_independent(story(tmp_path, names, {"shared": {"b": -2.5}}))
    with (tmp_path / "table").open("w") as file:
        print_report(report, Console(file=file, width=80, force_terminal=True, color_system=None))
    lines = (tmp_path / "table").read_text().splitlines()
    assert max(map(len, lines)) <= 80
    for task in report.methods[0].tasks:
        (line,) = [line for line in lines if line.startswith(f" {task.task[:10]} ") or line[1:11] == task.task[:10]]
        for shown in (
            str(task.train_examples),
            f"{100 * task.delta:+.1f}",
            f"[{100 * task.low:+.1f}, {100 * task.high:+.1f}]",
        ):
            assert shown in line
    assert "▼ b: unclear" in lines


@pytest.mark.parametrize("tasks", [1, 2, 50])
def test_pictures_grow_with_the_tasks_and_need_no_colour(tmp_path: Path, tasks: int) -> None:
    names = [f"${i}^_ task of a rather long name, longer than a label" for i in range(tasks)]
    report = against_independent(story(tmp_path, names, {"shared": {names[0]: -2.5}}))
    folder = write_report(report, tmp_path / "report")
    forest, gap = (Image.open(folder / f"{name}.png").convert("RGB") for name in ("forest", "gap"))
    assert forest.height >= 25 * tasks
    assert gap.size == (960, 660)
    for picture in (forest, gap):
        pixels = np.asarray(picture).astype(int)
        assert np.ptp(pixels, axis=2).max() <= 2  # greys only
        assert (pixels < 128).mean() > 0.002


def test_the_forest_marks_verdicts_by_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = against_independent(story(tmp_path, ["a", "b", "same"], {"shared": {"a": -2.0, "b": 2.0}}))
    drawn: list[Any] = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, file, **options: drawn.append(figure))
    draw_forest(report, tmp_path / "forest.png")
    axes = drawn[0].axes[0]
    labels = [t.get_text() for t in axes.get_yticklabels()]
    shapes = {}
    for line in axes.lines:
        if line.get_marker() not in ("None", None, "") and len(line.get_xdata()) == 1:
            shapes[labels[int(line.get_ydata()[0])]] = (line.get_marker(), float(line.get_xdata()[0]))
    deltas = {t.task: 100 * t.delta for t in report.methods[0].tasks}
    assert {k: m for k, (m, _) in shapes.items()} == {"a": "v", "b": "^", "same": "o"}
    assert {k: x for k, (_, x) in shapes.items()} == pytest.approx(deltas)
    assert any(list(line.get_xdata()) == [0, 0] for line in axes.lines)
    assert labels[-1] == "a"  # the worst on top


def test_mixed_metrics_do_not_share_an_axis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for method, right in (("independent", 100), ("shared", 120)):
        tasks = {"rain": Simulated(np.arange(200) < right), "heat": Simulated(np.full(9, right / 200), metric="r2")}
        write_run(tmp_path / method / "0", tasks)
    report = against_independent(tmp_path)
    drawn: list[Any] = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, file, **options: drawn.append(figure))
    draw_forest(report, tmp_path / "forest.png")
    draw_gap(report, tmp_path / "gap.png")
    forest, gap = drawn
    for axes, value, label in zip(forest.axes, (10, 0.1), ("percentage points of accuracy", "R²"), strict=True):
        assert [line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 1] == pytest.approx([value])
        assert label in axes.get_xlabel()
    for axes, value, label in zip(gap.axes, (20, 0.2), ("percentage points of accuracy", "R²"), strict=True):
        assert axes.lines[0].get_ydata() == pytest.approx([value])
        assert axes.get_title() == f"shared and independent: 1 task of {'accuracy' if value == 20 else 'R²'}"
        assert label in axes.get_ylabel()


def test_names_cannot_steer_the_terminal() -> None:
    assert printable("a\x1b[31mb\n") == "a?[31mb?"
