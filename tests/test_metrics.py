"""The metrics that a task can be selected by, against scikit-learn and torchmetrics; what each example adds to them."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from sklearn import metrics as reference
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import (
    BinaryAUROC,
    BinaryCohenKappa,
    BinaryFBetaScore,
    MulticlassCalibrationError,
    MulticlassMatthewsCorrCoef,
    MultilabelAccuracy,
)
from torchmetrics.regression import MeanAbsoluteError, PearsonCorrCoef, R2Score

from lightning_meta.building import build
from lightning_meta.describing import describe
from lightning_meta.errors import UserError
from lightning_meta.functional.weighted_metrics import auroc, average_precision, f1, recall
from lightning_meta.import_paths import UntrustedClassError
from lightning_meta.metrics import GROUPS
from lightning_meta.sources import Table
from lightning_meta.sources.table_targets import Target
from lightning_meta.tasks import Binary, Classification, Multilabel, Regression, Task

M = 60
torch.manual_seed(0)
FEW = torch.rand(M) < 0.2
LABELS = torch.randint(3, (M,))
MANY = torch.rand(M, 3) < torch.tensor([0.1, 0.5, 0.9])
VALUES = torch.randn(M, 2, dtype=torch.float64) * torch.tensor([3.0, 0.1]) - 7
# Rounded, so that there are ties, and so large that probabilities of float64 would be all 0 and 1.
LOGITS = (torch.randn(M, 3, dtype=torch.float64) * 3).round()
Case = tuple[Callable[[str], Task], Tensor, Tensor, dict[str, Callable[[Any, Any], float]]]


def one_hot(labels: Any) -> Any:
    return np.eye(3)[labels]


BINARY: dict[str, Callable[[Any, Any], float]] = {
    "accuracy": lambda y, z: reference.accuracy_score(y, z[:, 0] > 0),
    "balanced_accuracy": lambda y, z: reference.balanced_accuracy_score(y, z[:, 0] > 0),
    "auroc": lambda y, z: reference.roc_auc_score(y, z[:, 0]),
    "average_precision": lambda y, z: reference.average_precision_score(y, z[:, 0]),
    "f1": lambda y, z: reference.f1_score(y, z[:, 0] > 0),
    "log_loss": lambda y, z: reference.log_loss(y, 1 / (1 + np.exp(-z[:, 0]))),
}
CASES: dict[str, Case] = {
    "binary": (lambda m: Binary(m), LOGITS[:, :1], FEW.long(), BINARY),
    "multiclass": (
        lambda m: Classification(3, m),
        LOGITS + torch.rand(M, 3) / 9,  # rounding would break ties of probabilities, here and there
        LABELS,
        {
            "accuracy": lambda y, z: reference.accuracy_score(y, z.argmax(1)),
            "balanced_accuracy": lambda y, z: reference.balanced_accuracy_score(y, z.argmax(1)),
            "auroc": lambda y, z: reference.roc_auc_score(
                y, torch.softmax(torch.as_tensor(z), 1).numpy(), multi_class="ovr"
            ),
            "average_precision": lambda y, z: reference.average_precision_score(
                one_hot(y), torch.log_softmax(torch.as_tensor(z), 1).numpy()
            ),
            "f1": lambda y, z: reference.f1_score(y, z.argmax(1), average="macro"),
            "log_loss": lambda y, z: reference.log_loss(y, torch.softmax(torch.as_tensor(z), 1).numpy()),
        },
    ),
    "multilabel": (
        lambda m: Multilabel(3, m),
        LOGITS,
        MANY.long(),
        {
            "accuracy": lambda y, z: (y == (z > 0)).mean(),
            "balanced_accuracy": lambda y, z: np.mean(
                [reference.balanced_accuracy_score(y[:, k], z[:, k] > 0) for k in range(3)]
            ),
            "auroc": lambda y, z: reference.roc_auc_score(y, z),
            "average_precision": lambda y, z: reference.average_precision_score(y, z),
            "f1": lambda y, z: reference.f1_score(y, z > 0, average="macro"),
            "log_loss": lambda y, z: np.mean(
                [reference.log_loss(y[:, k], 1 / (1 + np.exp(-z[:, k]))) for k in range(3)]
            ),
        },
    ),
    "regression": (
        lambda m: Regression(2, metric=m),
        LOGITS[:, :2],
        VALUES,
        {
            "r2": reference.r2_score,
            "rmse": reference.root_mean_squared_error,
            "mae": reference.mean_absolute_error,
        },
    ),
}
EVERY = [(kind, name) for kind, case in CASES.items() for name in case[3]]


def case_of(kind: str, name: str) -> tuple[Task, Tensor, Tensor, float]:
    """A fitted task, its outputs and targets, and the reference's value."""
    make, outputs, targets, references = CASES[kind]
    task = make(name).fitted(targets)
    return task, outputs, targets, float(references[name](targets.numpy(), _as_read(task, outputs)))


def _as_read(task: Task, outputs: Tensor) -> Any:
    return (task.readable(outputs) if isinstance(task, Regression) else outputs).numpy()


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_a_metric_is_scikit_learns_in_float64(kind: str, name: str) -> None:
    task, outputs, targets, expected = case_of(kind, name)
    assert task.selection == name
    assert name in task.names
    assert task.evaluate(outputs, targets) == pytest.approx(expected, rel=1e-11, abs=1e-12)
    scores = task.example_scores(outputs, targets)
    assert scores.shape == (M,)
    assert scores.dtype == torch.float64
    assert float(scores.mean()) == pytest.approx(expected, rel=1e-11, abs=1e-12)
    half = task.example_scores(outputs.half(), targets)
    assert half.dtype == torch.float32
    assert float(half.mean()) == pytest.approx(expected, rel=1e-2, abs=1e-2)


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_a_good_value_lies_where_the_task_says(kind: str, name: str) -> None:
    task, _, targets, _ = case_of(kind, name)
    if isinstance(task, Regression):
        right = (targets - torch.tensor(task.mean)) / torch.tensor(task.scale)
    elif kind == "multiclass":
        right = 9 * torch.nn.functional.one_hot(targets, 3).double()
    else:
        right = (18.0 * targets.double() - 9).reshape(M, -1)
    better, worse = task.evaluate(right, targets), task.evaluate(right.flip(0), targets)
    assert (better > worse) == (task.selection_mode == "max")
    assert task.comparable(better) > task.comparable(worse)


WEIGHTED = {
    "auroc": (auroc, reference.roc_auc_score),
    "average_precision": (average_precision, reference.average_precision_score),
    "f1": (
        lambda s, y, w: f1(s[:, None] > 0, y[:, None], w, torch.tensor([True])),
        lambda y, s, sample_weight: reference.f1_score(y, s > 0, sample_weight=sample_weight),
    ),
    "recall": (
        lambda s, y, w: recall(s > 0, y[:, None], w)[0],
        lambda y, s, sample_weight: reference.recall_score(y, s > 0, sample_weight=sample_weight),
    ),
}


@pytest.mark.parametrize("name", WEIGHTED)
def test_examples_count_as_often_as_their_weights_say(name: str) -> None:
    ours, theirs = WEIGHTED[name]
    weights = torch.rand(M, dtype=torch.float64) * 3
    expected = theirs(FEW.numpy(), LOGITS[:, 0].numpy(), sample_weight=weights.numpy())
    assert float(ours(LOGITS[:, 0], FEW, weights)) == pytest.approx(expected, rel=1e-12)


def test_what_examples_add_to_the_auroc_are_delongs_placements() -> None:
    y, scores = FEW.numpy(), LOGITS[:, 0].numpy()
    pairs = (scores[y][:, None] > scores[~y]) + 0.5 * (scores[y][:, None] == scores[~y])
    values = Binary("auroc").example_scores(LOGITS[:, :1], FEW.long())
    placements = np.empty(M)
    placements[y], placements[~y] = pairs.mean(1), pairs.mean(0)
    share = np.where(y, y.mean(), 1 - y.mean())
    area = pairs.mean()
    np.testing.assert_allclose(values, area + (placements - area) / share, rtol=1e-12)
    delong = placements[y].var() / y.sum() + placements[~y].var() / (~y).sum()
    assert float(values.var(correction=0)) / M == pytest.approx(delong, rel=1e-12)


@pytest.mark.parametrize(("kind", "name"), [pair for pair in EVERY if pair[1] != "r2"])
def test_what_examples_add_is_how_the_metric_changes_with_them(kind: str, name: str) -> None:
    """The scores approach those of the jackknife, which leaves out each example, as M grows."""
    task, outputs, targets, value = case_of(kind, name)
    rows = torch.arange(M)
    left_out = np.array([task.evaluate(outputs[rows != j], targets[rows != j]) for j in range(M)])
    jackknife = value + (M - 1) * (left_out.mean() - left_out)
    values = task.example_scores(outputs, targets).numpy()
    assert np.corrcoef(values, jackknife)[0, 1] > 0.99
    assert values.std() == pytest.approx(jackknife.std(), rel=0.15)


@pytest.mark.parametrize("name", ["balanced_accuracy", "auroc", "average_precision", "f1"])
@pytest.mark.parametrize("label", [0, 1])
def test_labels_that_are_all_the_same_have_no_score(name: str, label: int) -> None:
    y = torch.full((M,), label)
    for task, outputs, targets in (
        (Binary(name), LOGITS[:, :1], y),
        (Multilabel(3, name), LOGITS, y[:, None].expand(M, 3)),
    ):
        assert math.isnan(task.evaluate(outputs, targets))
        assert task.example_scores(outputs, targets).isnan().all()
    if name != "f1":  # of which classes that were predicted wrongly have one
        assert math.isnan(Classification(3, name).evaluate(LOGITS, y))


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_no_examples_have_no_score(kind: str, name: str) -> None:
    task, outputs, targets, _ = case_of(kind, name)
    assert math.isnan(task.evaluate(outputs[:0], targets[:0]))


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_predictions_that_are_not_finite_are_not_ranked(kind: str, name: str) -> None:
    task, outputs, targets, _ = case_of(kind, name)
    broken = outputs.index_fill(0, torch.tensor([3]), math.nan)
    value = task.evaluate(broken, targets)
    assert math.isnan(value) or name == "accuracy"


def test_classes_that_are_not_there_are_left_out_of_the_mean() -> None:
    two = LABELS.clamp_max(1)
    expected = np.mean([reference.roc_auc_score(two == k, LOGITS.log_softmax(1)[:, k]) for k in (0, 1)])
    assert Classification(3, "auroc").evaluate(LOGITS, two) == pytest.approx(expected, rel=1e-12)


def test_scores_do_not_tie_where_probabilities_are_1() -> None:
    logits, y = torch.tensor([[60.0], [50.0], [40.0], [45.0]], dtype=torch.float64), torch.tensor([1, 1, 0, 0])
    assert Binary("auroc").evaluate(logits, y) == 1
    assert Classification(2, "auroc").evaluate(torch.cat([0 * logits, logits], 1), y) == 1


def test_r2_of_few_examples_is_not_known() -> None:
    y, outputs = VALUES[:, :1], LOGITS[:, :1]
    assert math.isnan(Regression(1).evaluate(outputs[:4], y[:4]))
    assert math.isfinite(Regression(1).evaluate(outputs[:5], y[:5]))
    assert math.isfinite(Regression(1, metric="rmse").evaluate(outputs[:1], y[:1]))


# Classes


class Gain(Metric):
    """The share of labels that are 1 among the upper half of the scores."""

    higher_is_better = True

    def __init__(self) -> None:
        super().__init__()
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("labels", [], dist_reduce_fx="cat")

    def update(self, preds: Tensor, target: Tensor) -> None:
        cast(list[Tensor], self.scores).append(preds)
        cast(list[Tensor], self.labels).append(target)

    def compute(self) -> Tensor:
        scores, labels = torch.cat(cast(list[Tensor], self.scores)), torch.cat(cast(list[Tensor], self.labels))
        labels = labels[scores.argsort(descending=True)]
        return labels[: len(labels) // 2].double().mean()


class Pearson(PearsonCorrCoef):
    """torchmetrics' own does not say that more is better."""

    higher_is_better = True


@pytest.mark.parametrize(
    ("task", "outputs", "targets", "name", "expected"),
    [
        (
            Binary(BinaryCohenKappa),
            LOGITS[:, :1],
            FEW.long(),
            "binary_cohen_kappa",
            lambda: reference.cohen_kappa_score(FEW, LOGITS[:, 0] > 0),
        ),
        (
            Classification(3, MulticlassMatthewsCorrCoef),
            LOGITS,
            LABELS,
            "multiclass_matthews_corr_coef",
            lambda: reference.matthews_corrcoef(LABELS, LOGITS.argmax(1)),
        ),
        (
            Regression(1, metric=Pearson).fitted(VALUES[:, :1]),
            LOGITS[:, :1],
            VALUES[:, :1],
            "pearson",
            lambda: np.corrcoef(LOGITS[:, 0], VALUES[:, 0])[0, 1],
        ),
        (
            Binary(Gain),
            LOGITS[:, :1] + torch.arange(M)[:, None] / 1000,
            FEW.long(),
            "gain",
            lambda: FEW[(LOGITS[:, 0] + torch.arange(M) / 1000).argsort(descending=True)][: M // 2].double().mean(),
        ),
    ],
)
def test_a_class_of_torchmetrics_or_ones_own_is_a_metric(
    task: Task, outputs: Tensor, targets: Tensor, name: str, expected: Callable[[], float]
) -> None:
    assert task.selection == name
    assert task.evaluate(outputs, targets) == pytest.approx(float(expected()), rel=1e-6)
    assert float(task.example_scores(outputs, targets).mean()) == pytest.approx(float(expected()), rel=1e-6)
    assert task.example_scores(outputs, targets).std() > 0


def test_many_examples_are_left_out_in_groups() -> None:
    """The groups are within classes, and their values vary as those of single examples do."""
    n, calls = 1000, 0
    generator = torch.Generator().manual_seed(0)
    y = (torch.rand(n, generator=generator) < 0.03).long()
    outputs = torch.randn(n, 1, generator=generator, dtype=torch.float64) + 2 * y[:, None] - 1

    class Counted(BinaryCohenKappa):
        def compute(self) -> Tensor:
            nonlocal calls
            calls += 1
            return super().compute()

    values = Binary(Counted).example_scores(outputs, y)
    assert calls <= GROUPS + 1
    whole = Binary(BinaryCohenKappa).evaluate(outputs, y)
    assert float(values.mean()) == pytest.approx(whole, rel=1e-9)
    rows = torch.arange(n)
    left_out = [Binary(BinaryCohenKappa).evaluate(outputs[rows != j], y[rows != j]) for j in range(n)]
    single = (n - 1) * (whole - torch.tensor(left_out))
    for label in (0, 1):
        spread = float(values[y == label].std())
        assert spread == pytest.approx(float(single[y == label].std()), rel=0.25 if label == 0 else 1e-6)
        assert float((values - whole)[y == label].mean()) == pytest.approx(float(single[y == label].mean()), abs=0.02)


@pytest.mark.parametrize("n", [7, 1003])
def test_what_a_mean_over_examples_adds_as_a_class_is_each_examples_own(n: int) -> None:
    generator = torch.Generator().manual_seed(0)
    outputs, y = torch.randn(2, n, 1, generator=generator, dtype=torch.float64)
    values = Regression(1, metric=MeanAbsoluteError).example_scores(outputs, y)
    own = (outputs - y).abs()[:, 0]
    assert float(values.mean()) == pytest.approx(float(own.mean()), rel=1e-9)
    if n == 7:
        torch.testing.assert_close(values, own)
    else:
        assert float(values.std()) == pytest.approx(float(own.std()), rel=0.2)


@pytest.mark.filterwarnings("ignore:The variance of predictions or target is close to zero")
def test_a_class_that_has_no_value_without_an_example_has_no_interval() -> None:
    y = torch.zeros(8, 1)
    y[3] = 1
    task = Regression(1, metric=Pearson)
    scores = task.example_scores(LOGITS[:8, :1], y)
    assert torch.equal(scores, torch.full_like(scores, task.evaluate(LOGITS[:8, :1], y)))


class Fails(Gain):
    """A metric that cannot be computed."""

    def compute(self) -> Tensor:
        raise RuntimeError("no\nway")


def test_an_error_of_a_class_names_it() -> None:
    for ask in (Binary(Fails).evaluate, Binary(Fails).example_scores):
        with pytest.raises(UserError, match=r"^metric: Fails fails on 60 examples: RuntimeError: no way$"):
            ask(LOGITS[:, :1], FEW.long())


@pytest.mark.parametrize("low", [0.1, -3.0])
def test_a_class_is_given_probabilities_whatever_the_logits(low: float) -> None:
    """torchmetrics would take logits of 0.1 to 0.4 for probabilities, and say no to them."""
    logits, y = torch.full((10, 3), 0.4, dtype=torch.float64), torch.ones(10, 3).long()
    logits[0], y[0] = low, 0
    assert Multilabel(3, MultilabelAccuracy).evaluate(logits, y) == pytest.approx(Multilabel(3).evaluate(logits, y))
    labels = torch.arange(10) % 3
    error = MulticlassCalibrationError(num_classes=3)
    expected = float(error(logits.softmax(-1), labels))
    assert Classification(3, MulticlassCalibrationError).evaluate(logits, labels) == pytest.approx(expected)


def namesake(name: str) -> type[Metric]:
    """A user's metric of a name."""
    return cast(type[Metric], type(name, (Gain,), {"__module__": __name__}))


@pytest.mark.parametrize("name", ["Accuracy", "LogLoss", "MAE", "R2", "F1", "Score", "Loss", "AUROC", "AurocTasks"])
def test_a_class_with_the_name_of_something_else_is_refused(name: str) -> None:
    makes: list[Callable[[Any], Task]] = [Binary, lambda m: Regression(1, metric=m), lambda m: Classification(3, m)]
    for make in makes:
        with pytest.raises(UserError, match=f"^metric: the class {name} would be logged as .*in use; rename it$"):
            make(namesake(name))


def test_torchmetrics_auroc_is_that_of_the_name() -> None:
    assert Binary(BinaryAUROC).selection == "auroc"
    assert math.isnan(Binary(BinaryAUROC).evaluate(LOGITS[:, :1], torch.zeros(M)))


class Unsaid(Metric):
    """A metric that does not say whether higher is better."""


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Binary("r2"), "metric: Binary has accuracy, balanced_accuracy, auroc.*got 'r2'"),
        (lambda: Classification(3, "acuracy"), "did you mean accuracy"),
        (lambda: Regression(1, metric="auroc"), "metric: Regression has r2, rmse, mae.*got 'auroc'"),
        (lambda: Binary(cast(Any, BinaryCohenKappa())), "got BinaryCohenKappa .give the class, not an object of it."),
        (lambda: Binary(BinaryFBetaScore), "BinaryFBetaScore cannot be made: .*beta.*derived class whose"),
        (lambda: Binary(cast(Any, dict)), "got <class 'dict'>"),
        (lambda: Binary(Unsaid), "Unsaid"),
    ],
)
def test_another_metric_is_refused(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


# Checkpoints and tables


@pytest.mark.parametrize("kind", CASES)
def test_plain_data_says_the_metric(kind: str) -> None:
    make, _, targets, references = CASES[kind]
    for name in references:
        task = make(name).fitted(targets)
        again = build(json.loads(json.dumps(describe(task))))
        assert describe(again) == describe(task)
        assert (again.selection, again.selection_mode) == (task.selection, task.selection_mode)


def test_tasks_of_before_are_selected_as_they_were() -> None:
    for name, init_args in (("Binary", {}), ("Classification", {"outputs": 3}), ("Multilabel", {"outputs": 3})):
        task = build({"class_path": f"lightning_meta.tasks.{name}", "init_args": init_args})
        assert task.selection == "accuracy"
    regression = {"outputs": 1, "mean": [2.0], "scale": [1.0]}
    assert build({"class_path": "lightning_meta.tasks.Regression", "init_args": regression}).selection == "r2"


def test_a_class_in_a_checkpoint_is_torchmetrics_or_allowed() -> None:
    described = json.loads(json.dumps(describe(Binary(BinaryCohenKappa))))
    assert build(described).selection == "binary_cohen_kappa"
    own = json.loads(json.dumps(describe(Binary(Gain))))
    with pytest.raises(UntrustedClassError, match="Gain is not trusted"):
        build(own)
    assert build(own, [Gain]).selection == "gain"
    for path in ("os.system", "torchmetrics.text.bert.BERTScore", "torchmetrics.utilities.data.dim_zero_cat"):
        hostile = {"class_path": "lightning_meta.tasks.Binary", "init_args": {"metric": {"import_path": path}}}
        with pytest.raises(UserError, match=re.escape(path)):
            build(hostile)
    with pytest.raises(UserError, match=r"got 'os.system'"):  # text is no path there
        build({"class_path": "lightning_meta.tasks.Binary", "init_args": {"metric": "os.system"}})


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., Table]:
    rows = ["a,y,z,c"] + [f"{i % 7},{i % 2},{i * i % 11},{'rst'[i % 3]}" for i in range(60)]
    (tmp_path / "t.csv").write_text("\n".join(rows) + "\n")
    return functools.partial(Table, tmp_path / "t.csv")


def test_a_table_says_the_metric_of_a_target(table: Callable[..., Table]) -> None:
    targets = {
        "y": Target("binary", metric="torchmetrics.classification.BinaryCohenKappa"),
        "z": Target("regression", metric="rmse"),
        "c": Target(metric="auroc"),
    }
    found = {name: task.selection for name, task in table(targets=targets).tasks().items()}
    assert found == {"y": "binary_cohen_kappa", "z": "rmse", "c": "auroc"}


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("rmse", "Table targets: y: metric: Binary has accuracy"),
        ("no.such.Metric", "Table targets: y: the class no.such.Metric cannot be found"),
        ("json.dumps", "Table targets: y: metric: Binary has"),
    ],
)
def test_a_wrong_metric_of_a_target_is_named(table: Callable[..., Table], metric: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        table(targets={"y": Target("binary", metric=metric)}).tasks()


def test_r2_by_its_class_is_bounded_and_needs_rows_as_by_its_name() -> None:
    by_name, by_class = (Regression(1, metric=metric) for metric in ("r2", R2Score))
    assert (by_class.selection, by_class.floor) == (by_name.selection, by_name.floor)
    assert by_class.comparable(-435.0) == by_name.comparable(-435.0) > -435
    assert Binary(metric=MeanAbsoluteError).selection == "mean_absolute_error"  # has no built-in one of this name
