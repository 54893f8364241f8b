"""Pictures are drawn from what a run left behind, and only where there is something to draw."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from lightning_meta.report import write_figures
from lightning_meta.report.figures import Point, _edges, columns_of, compare_training, draw_points
from lightning_meta.report.gradients import write_conflict_figures

HEADER = "task,metric,better,train_examples,train,val,test,constant"


def test_draws_what_there_is(tmp_path: Path) -> None:
    assert write_figures(tmp_path) == []
    (tmp_path / "metrics.csv").write_text(
        "step,train/accuracy,val/accuracy,val/accuracy_ci95\n0,,,\n49,0.5,,\n99,0.7,0.6,0.05\n"
    )
    (tmp_path / "per_task.csv").write_text("task,step_0,step_1\n0,0.2,0.8\n1,0.3,0.9\n2,0.1,1.0\n")
    drawn = write_figures(tmp_path)
    assert [file.relative_to(tmp_path).as_posix() for file in drawn] == ["figures/training.png", "figures/tasks.png"]
    for file in drawn:
        picture = np.asarray(Image.open(file).convert("L"))
        assert picture.shape == (600, 900)
        assert 0.001 < (picture < 128).mean() < 0.2


def test_one_test_task_has_no_interval_and_no_picture(tmp_path: Path) -> None:
    (tmp_path / "per_task.csv").write_text("task,score\n0,0.2\n")
    (tmp_path / "metrics.csv").write_text("step,epoch\n0,0\n")
    assert write_figures(tmp_path) == []
    assert not (tmp_path / "figures").exists()


@pytest.mark.parametrize("queries", [10, 50, 75])
def test_a_histogram_of_shares_has_as_many_possible_scores_in_each_bin(queries: int) -> None:
    """Scores are k / Q: bins of another width hold now three, now two possible ones, and show peaks that are not."""
    scores = np.arange(queries // 2, queries + 1) / queries
    edges = _edges(scores)
    counts, _ = np.histogram(scores, edges)
    assert edges[0] < scores.min()
    assert scores.max() < edges[-1]
    assert len(set(counts[:-1])) == 1
    assert counts[-1] <= counts[0]


def test_bins_of_other_scores_cover_them() -> None:
    for scores in (np.random.default_rng(0).exponential(size=200), np.full(5, 0.3)):
        counts, _ = np.histogram(scores, _edges(scores))
        assert counts.sum() == len(scores)


def test_the_name_of_a_task_keeps_its_digits(tmp_path: Path) -> None:
    (tmp_path / "named.csv").write_text("task,metric,test\n7,r2,0.5\n9007199254740993,r2,\n")
    named = columns_of(tmp_path / "named.csv", "task")
    assert named["task"].tolist() == ["7", "9007199254740993"]
    assert named["test"][0] == 0.5


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    figures: list[Figure] = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, file, **options: figures.append(figure))
    return figures


def test_pictures_name_method_metric_chance_and_number_of_tasks(tmp_path: Path, drawn: list[Figure]) -> None:
    facts = {"model": "lightning_meta.ProtoNet", "test_conditions": "5-way 1-shot, chance 20 %", "test_chance": 0.2}
    (tmp_path / "results.json").write_text(json.dumps({"test/accuracy": 0.7, **facts}))
    (tmp_path / "metrics.csv").write_text("step,val/accuracy,val/accuracy_ci95\n99,0.6,0.05\n")
    (tmp_path / "per_task.csv").write_text("task,score\n0,0.6\n1,0.8\n")
    write_figures(tmp_path)
    training, tasks = (figure.axes[0] for figure in drawn)
    assert training.get_title() == "ProtoNet, tested 5-way 1-shot: training"
    assert tasks.get_title() == "ProtoNet, 5-way 1-shot: 2 test tasks"
    assert training.get_ylabel() == tasks.get_xlabel() == "accuracy, %"
    assert training.lines[0].get_ydata() == pytest.approx([60])
    assert [line.get_label() for line in tasks.lines] == ["mean 70.0 %", "chance, 20 %"]
    assert "chance in validation, 20 %" in [line.get_label() for line in training.lines]


def test_curves_of_training_have_no_chance_level_of_test_tasks(tmp_path: Path, drawn: list[Figure]) -> None:
    # Training tasks may have 20 ways, and `Baseline` is trained on all classes.
    (tmp_path / "results.json").write_text(json.dumps({"model": "lightning_meta.ProtoNet", "test_chance": 0.2}))
    (tmp_path / "metrics.csv").write_text("step,train/accuracy,val/accuracy\n4,0.1,\n9,0.15,0.5\n")
    for stage in ("train", "val"):
        compare_training([tmp_path], tmp_path / f"{stage}.png", f"{stage}/accuracy")
    training, validation = (figure.axes[0].get_legend() for figure in drawn)
    assert training is not None
    assert [text.get_text() for text in training.get_texts()] == [f"{tmp_path} (ProtoNet)"]
    assert validation is not None
    assert [text.get_text() for text in validation.get_texts()] == [f"{tmp_path} (ProtoNet)", "chance, 20 %"]


def test_curves_of_several_runs_name_the_number_of_tasks_in_the_mean(tmp_path: Path, drawn: list[Figure]) -> None:
    for name, tasks in (("a", "29"), ("b", "28")):
        (tmp_path / name).mkdir()  # an earlier version did not write the number, as in the first row
        content = f"step,val/auroc,val/auroc_tasks\n4,0.5,\n9,0.6,29\n19,,\n29,0.7,{tasks}\n"
        (tmp_path / name / "metrics.csv").write_text(content)
    compare_training([tmp_path / "a"], tmp_path / "one.png", "val/auroc")
    compare_training([tmp_path / "a", tmp_path / "b"], tmp_path / "both.png", "val/auroc")
    titles = [figure.axes[0].get_title() for figure in drawn]
    assert titles == ["Validation; mean over 29 tasks", "Validation; mean over 28 to 29 tasks"]


def test_named_tasks_of_different_metrics_have_panels_of_their_own(tmp_path: Path, drawn: list[Figure]) -> None:
    rows = [
        "rain,accuracy,higher,90,0.9,0.8,0.7,",
        "snow,accuracy,higher,80,0.9,0.8,0.6,",
        "heat,r2,higher,70,0.5,0.4,0.3,",
    ]
    (tmp_path / "per_task.csv").write_text("\n".join([HEADER, *rows, ""]))
    write_figures(tmp_path, {"model": "lightning_meta.MultiHead"})
    (figure,) = drawn
    assert [axes.get_xlabel() for axes in figure.axes] == ["accuracy, %", "R²"]
    assert [[t.get_text() for t in axes.get_yticklabels()] for axes in figure.axes] == [
        ["snow (80)", "rain (90)"],
        ["heat (70)"],
    ]
    tests = [line for axes in figure.axes for line in axes.lines if line.get_label() == "test"]
    assert np.concatenate([line.get_xdata() for line in tests]) == pytest.approx([60, 70, 0.3])


def test_scores_below_zero_are_drawn_where_they_are(tmp_path: Path, drawn: list[Figure]) -> None:
    rows = ["a,cohen_kappa,higher,90,0.9,0.8,-0.2,", "b,r2,higher,80,0.9,0.8,-7,"]
    (tmp_path / "per_task.csv").write_text("\n".join([HEADER, *rows, ""]))
    write_figures(tmp_path)
    kappa, r2 = drawn[0].axes
    tests = [
        np.asarray(line.get_xdata())[0] for axes in (kappa, r2) for line in axes.lines if line.get_label() == "test"
    ]
    assert tests == pytest.approx([-0.2, -1])
    assert kappa.get_xlabel() == "cohen kappa"


@pytest.mark.parametrize(("second", "shown"), [("auroc", "AUROC"), ("accuracy", "score")])
def test_the_curve_of_training_is_of_what_tasks_are_compared_by(
    second: str, shown: str, tmp_path: Path, drawn: list[Figure]
) -> None:
    """The accuracy in training is of some tasks only, that in validation of all."""
    rows = ["a,auroc,higher,90,0.9,0.8,0.7,", f"b,{second},higher,80,0.9,0.8,0.6,"]
    (tmp_path / "per_task.csv").write_text("\n".join([HEADER, *rows, ""]))
    header = "step,train/accuracy,val/accuracy,val/auroc,val/score"
    (tmp_path / "metrics.csv").write_text(f"{header}\n9,0.5,0.9,0.6,0.7\n")
    write_figures(tmp_path, {"model": "lightning_meta.MultiHead", "test/accuracy": 0.9})
    (axes,) = drawn[0].axes
    assert axes.get_ylabel() == shown
    assert [line.get_label() for line in axes.lines] == ["validation"]
    assert axes.get_title() == "MultiHead: training, mean over 2 tasks"
    assert drawn[1].legends, "outside the panels, where it covers no mark"


def test_figures_of_gradients_name_the_method_and_what_was_measured(tmp_path: Path, drawn: list[Figure]) -> None:
    rows = [f"{step},{i},{j},0.5,0.1" for step in (0, 9) for i in "ab" for j in "ab"]
    (tmp_path / "gradient_conflict.csv").write_text("\n".join(["step,task_i,task_j,cosine,affinity", *rows, ""]))
    (tmp_path / "gradient_share.csv").write_text("step,task,norm,share\n0,a,1,0.5\n0,b,1,0.5\n")
    write_conflict_figures(tmp_path, "MultiHead")
    titles = [figure.get_suptitle() or figure.axes[0].get_title() for figure in drawn]
    assert len(titles) == 3
    assert all(title.startswith("MultiHead: ") and "2 tasks, 2 measurements" in title for title in titles)


def test_chance_is_drawn_for_each_number_of_ways() -> None:
    figure = draw_points([Point(5, 1, 0.5, 0.1, 9), Point(20, 1, 0.3, 0.1, 9)], "accuracy")
    levels = [np.asarray(line.get_ydata()) for line in figure.axes[0].lines]
    assert {20.0, 5.0} <= {float(y[0]) for y in levels if len(y) == 2 and y[0] == y[1]}


def test_many_named_tasks_fit_on_a_page(tmp_path: Path, drawn: list[Figure]) -> None:
    rows = [f"school {i},r2,higher,70,0.5,0.4,{i / 1000}," for i in range(139)]
    (tmp_path / "per_task.csv").write_text("\n".join([HEADER, *rows, ""]))
    write_figures(tmp_path)
    (figure,) = drawn
    assert figure.get_figheight() < 16  # inches
    labels = [t.get_text() for t in figure.axes[0].get_yticklabels()]
    assert len(labels) == 41
    assert "99 more,\nby name in\nper_task.csv" in labels
