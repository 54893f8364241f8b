"""Losses and metrics against torch and torchmetrics, what is learned of training targets, and what is refused."""

from __future__ import annotations

import json
import re
from math import isnan

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import vmap
from torchmetrics import MeanAbsoluteError, Metric
from torchmetrics.classification import (
    BinaryAccuracy,
    BinaryAUROC,
    MulticlassAccuracy,
    MulticlassF1Score,
    MultilabelAccuracy,
    MultilabelF1Score,
)
from torchmetrics.regression import R2Score

from lightning_meta.building import build
from lightning_meta.describing import describe
from lightning_meta.errors import UserError
from lightning_meta.tasks import Binary, Classification, Multilabel, Regression, Task, TasksSpec
from lightning_meta.tasks.evaluating import Evaluation, evaluated

M = 40


def random_numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def regression_targets(dimensions: int = 2) -> Tensor:
    return random_numbers(M, dimensions) * torch.tensor([3.0, 0.01])[:dimensions] + torch.tensor([-7.0, 2])[:dimensions]


CASES: dict[str, tuple[Task, Tensor]] = {}
torch.manual_seed(0)
CASES["classification"] = Classification(4), torch.randint(4, (M,))
CASES["binary"] = Binary(), torch.randint(2, (M,))
CASES["multilabel"] = Multilabel(3), torch.randint(2, (M, 3))
CASES["regression"] = Regression(2), regression_targets()
CASES["fitted regression"] = Regression(2).fitted(regression_targets()), regression_targets()
KINDS = pytest.mark.parametrize("kind", CASES)


def reference_losses(kind: str, outputs: Tensor, targets: Tensor) -> Tensor:
    """The losses of the examples, one by one, by torch's own criteria."""
    if kind == "classification":
        return torch.stack([nn.CrossEntropyLoss()(o[None], t[None]) for o, t in zip(outputs, targets, strict=True)])
    if kind in ("binary", "multilabel"):
        wide = targets.double().reshape(len(targets), -1)
        return torch.stack([nn.BCEWithLogitsLoss()(o, t) for o, t in zip(outputs, wide, strict=True)])
    if kind == "fitted regression":
        task = CASES[kind][0]
        assert isinstance(task, Regression)
        targets = (targets - torch.tensor(task.mean).double()) / torch.tensor(task.scale).double()
    return torch.stack([nn.MSELoss()(o, t) for o, t in zip(outputs, targets, strict=True)])


@KINDS
def test_losses_are_torchs(kind: str) -> None:
    task, targets = CASES[kind]
    outputs = random_numbers(M, task.outputs) * 3
    losses = task.losses(outputs, targets)
    expected = reference_losses(kind, outputs, targets)
    assert losses.shape == (M,)
    torch.testing.assert_close(losses, expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(task.loss(outputs, targets), losses.mean())


@KINDS
def test_gradients_are_those_of_finite_differences(kind: str) -> None:
    task, targets = CASES[kind]
    outputs = random_numbers(M, task.outputs).requires_grad_()
    assert torch.autograd.gradcheck(lambda o: task.losses(o, targets), outputs)


@KINDS
def test_the_loss_maps_over_tasks(kind: str) -> None:
    task, targets = CASES[kind]
    outputs, together = random_numbers(3, M, task.outputs), torch.stack([targets, targets.flip(0), targets])
    expected = [task.loss(o, t) for o, t in zip(outputs, together, strict=True)]
    torch.testing.assert_close(vmap(task.loss)(outputs, together), torch.stack(expected))


@KINDS
def test_a_share_without_examples_adds_nothing(kind: str) -> None:
    task, targets = CASES[kind]
    outputs = random_numbers(0, task.outputs).requires_grad_()
    losses = task.losses(outputs, targets[:0])
    assert losses.shape == (0,)
    losses.sum().backward()
    assert outputs.grad is not None


@KINDS
def test_the_mean_of_what_examples_score_is_torchmetrics(kind: str) -> None:
    task, targets = CASES[kind]
    outputs = random_numbers(M, task.outputs)
    references: dict[str, Metric] = {
        "classification": MulticlassAccuracy(4, average="micro"),
        "binary": BinaryAccuracy(),
        "multilabel": MultilabelAccuracy(3, average="micro"),
        "regression": R2Score(),
        "fitted regression": R2Score(),
    }
    expected = references[kind].set_dtype(torch.float64)(task.readable(outputs).double(), targets)
    scores = task.example_scores(outputs, targets)
    assert scores.shape == (M,)
    assert scores.dtype == torch.float64
    assert float(scores.mean()) == pytest.approx(float(expected), abs=1e-6)
    assert task.selection == ("r2" if "regression" in kind else "accuracy")


@KINDS
def test_right_answers_score_1(kind: str) -> None:
    task, targets = CASES[kind]
    outputs = targets.double()
    if kind == "classification":
        outputs = nn.functional.one_hot(targets, 4).double()
    elif kind in ("binary", "multilabel"):
        outputs = (2 * outputs - 1).reshape(M, -1)
    elif isinstance(task, Regression) and task.scale:
        outputs = (targets - torch.tensor(task.mean).double()) / torch.tensor(task.scale).double()
    torch.testing.assert_close(task.example_scores(outputs, targets).mean(), torch.tensor(1.0).double())


@KINDS
def test_further_metrics_take_what_people_read(kind: str) -> None:
    task, targets = CASES[kind]
    outputs = random_numbers(M, task.outputs)
    references: dict[str, tuple[str, Metric]] = {
        "classification": ("f1", MulticlassF1Score(4, average="macro")),
        "binary": ("auroc", BinaryAUROC()),
        "multilabel": ("f1", MultilabelF1Score(3, average="macro")),
    }
    name, reference = references.get(kind, ("mae", MeanAbsoluteError()))
    assert name in task.beside
    expected = reference(task.readable(outputs), targets)
    assert task.evaluate(outputs, targets, name) == pytest.approx(float(expected), rel=1e-5)


@given(st.integers(2, 30), st.floats(-1e4, 1e4), st.floats(1e-3, 1e3))
def test_a_constant_shift_and_scale_of_targets_changes_nothing_once_fitted(n: int, shift: float, scale: float) -> None:
    torch.manual_seed(n)
    y, outputs = random_numbers(n, 1), random_numbers(n, 1)
    moved = y * scale + shift
    task, same = Regression(1).fitted(y), Regression(1).fitted(moved)
    torch.testing.assert_close(same.losses(outputs, moved), task.losses(outputs, y), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(same.readable(outputs), task.readable(outputs) * scale + shift, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        same.example_scores(outputs, moved), task.example_scores(outputs, y), rtol=1e-5, atol=1e-5
    )


# What regression learns of its training targets


def test_standardised_training_targets_have_mean_0_and_variance_1() -> None:
    y = regression_targets()
    task = Regression(2).fitted(y)
    standard = (y - torch.tensor(task.mean).double()) / torch.tensor(task.scale).double()
    torch.testing.assert_close(standard.mean(0), torch.zeros(2).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(standard.var(0, correction=0), torch.ones(2).double(), atol=1e-5, rtol=0)
    # The mean of the training targets, which is an output of 0, has loss 1 and R² 0.
    assert float(task.loss(torch.zeros(M, 2).double(), y)) == pytest.approx(1, abs=1e-5)
    assert float(task.example_scores(torch.zeros(M, 2), y).mean()) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("targets", [[1, 2, 4, 70], [5, 1, 3], [0.5, 8.0]])
def test_the_best_constant_of_the_absolute_error_is_the_median_of_numpy(targets: list[float]) -> None:
    task = Regression(1, metric="mae").fitted(torch.tensor(targets)[:, None])
    constant = task.constant()
    assert constant is not None
    assert task.readable(constant[None]).item() == pytest.approx(float(np.median(targets)), rel=1e-9)


def test_predictions_are_read_in_the_units_of_the_targets() -> None:
    task = Regression(2, mean=(10, -1), scale=(2, 0.5))
    outputs, targets = torch.tensor([[1.0, 2.0]]), torch.tensor([[12.0, 0.0]])
    assert torch.equal(task.readable(outputs), targets)
    assert float(task.loss(outputs, targets)) == 0
    assert float(MeanAbsoluteError()(task.readable(outputs), targets + 3)) == 3
    assert torch.equal(Regression(2).readable(outputs), outputs)


def test_fitting_leaves_the_task_and_other_kinds_alone() -> None:
    task = Regression(1)
    task.fitted(torch.tensor([[1.0], [3.0]]))
    assert task.mean == task.scale == ()
    for kind in ("classification", "binary", "multilabel"):
        before = describe(CASES[kind][0])
        again = CASES[kind][0].fitted(CASES[kind][1])
        assert describe(CASES[kind][0]) == before
        assert again.selection == "accuracy", "labels are balanced"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 3, 7, 100])
def test_targets_that_are_all_equal_have_scale_1_and_no_score(n: int, dtype: torch.dtype) -> None:
    # The mean of three times 0.1 is not 0.1.
    y = torch.full((n, 1), 0.1, dtype=dtype)
    assert Regression(1).fitted(y).scale == (1.0,)
    assert Regression(1).example_scores(torch.zeros(n, 1), y).isnan().all()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float32])
def test_whole_numbers_are_targets_like_others(dtype: torch.dtype) -> None:
    y = torch.tensor([[1], [2], [2], [4]]).to(dtype)
    task = Regression(1).fitted(y)
    standard = torch.tensor([-1.25, -0.25, -0.25, 1.75])[:, None] / torch.tensor(1.1875).sqrt()
    assert float(task.loss(standard, y)) == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
def test_labels_are_whole_numbers_of_any_width(dtype: torch.dtype) -> None:
    outputs = torch.randn(2, 3)
    expected = Classification(3).losses(outputs, torch.tensor([2, 0]))
    assert torch.equal(Classification(3).losses(outputs, torch.tensor([2, 0], dtype=dtype)), expected)


# What is refused


@KINDS
def test_what_fits_is_let_through(kind: str) -> None:
    task, targets = CASES[kind]
    task.check(targets, task.outputs)
    task.check(targets[:0], task.outputs)


def test_yes_and_no_may_be_said_by_any_kind_of_number() -> None:
    for dtype in (torch.bool, torch.uint8, torch.int64, torch.float32):
        Binary().check(torch.tensor([0, 1, 1]).to(dtype), 1)
        Multilabel(2).check(torch.tensor([[0, 1], [1, 1]]).to(dtype), 2)


@pytest.mark.parametrize(
    ("task", "targets", "says"),
    [
        (Classification(3), torch.tensor([0, 3]), "labels 0 to 3 are out of range: a task of 3 ways has labels 0 to 2"),
        (Classification(3), torch.tensor([-1, 2]), "labels -1 to 2 are out of range"),
        (Classification(3), torch.tensor([0.0, 1.0]), "labels are whole numbers, these are torch.float32"),
        (Binary(), torch.tensor([0, 2]), "labels are 0 or 1, these hold 2"),
        (Binary(), torch.tensor([0, -1]), "labels are 0 or 1, these hold -1"),
        (Binary(), torch.tensor([0, float("nan")]), "labels are 0 or 1, these hold nan"),
        (Binary(), torch.zeros(4, 1), "labels of an example have shape (), these have (1,)"),
        (Multilabel(2), torch.zeros(4), "labels of an example have shape (2,), these have ()"),
        (Multilabel(2), torch.zeros(4, 3), "labels of an example have shape (2,), these have (3,)"),
        (Multilabel(2), torch.tensor([[0, 1], [1, 7]]), "labels are 0 or 1, these hold 7"),
        (Regression(2), torch.zeros(4, 3), "regression targets end in a dimension of 2, these are (4, 3)"),
        (Regression(1), torch.zeros(4), "regression targets end in a dimension of 1, these are (4,)"),
        (Regression(1), torch.zeros(1), "regression targets end in a dimension of 1, these are (1,)"),
        (Regression(1), torch.tensor([[0.0], [float("nan")]]), "finite numbers, these hold NaN or infinity"),
        (Regression(1), torch.tensor([[0.0], [float("inf")]]), "finite numbers, these hold NaN or infinity"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(task: Task, targets: Tensor, says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)) as raised:
        task.check(targets, task.outputs)
    assert "\n" not in str(raised.value)


def test_tasks_that_have_no_episodes_say_so() -> None:
    for task in (Binary(), Multilabel(2)):
        with pytest.raises(UserError, match=f"{type(task).__name__} is not a task of episodes"):
            task.score(torch.zeros(1, task.outputs), torch.zeros(1))


# As plain data, for checkpoints


def plain(value: object) -> object:
    """The description as JSON, in which tuples become lists."""
    return json.loads(json.dumps(describe(value)))


@KINDS
def test_a_task_is_made_again_of_its_description(kind: str) -> None:
    task, targets = CASES[kind]
    again = build(plain(task))
    outputs = random_numbers(M, task.outputs)
    assert type(again) is type(task)
    assert again.outputs == task.outputs
    assert torch.equal(again.losses(outputs, targets), task.losses(outputs, targets))
    assert torch.equal(again.readable(outputs), task.readable(outputs))


def test_what_a_module_must_know_of_its_tasks_is_made_again() -> None:
    tasks = {kind: task for kind, (task, _) in CASES.items()}
    names = list(tasks)
    spec = TasksSpec(tasks, dict.fromkeys(names, (1, 28, 28)), dict.fromkeys(names, M), {names[1]: (0.5, 1.0)})
    again = build(plain(spec))
    assert list(again.tasks) == names
    assert (again.input_shapes, again.train_examples) == (spec.input_shapes, spec.train_examples)
    assert again.descriptors == spec.descriptors
    assert describe(again) == describe(spec)


@pytest.mark.parametrize(
    ("task", "targets"),
    [
        (Classification(3), torch.tensor([0, 0, 0, 1, 2, 0])),
        (Binary(), torch.tensor([0, 0, 1, 0, 0, 1])),
        (Multilabel(2), torch.tensor([[0, 1]] * 3 + [[1, 0]] * 3)),
        (Regression(1), torch.arange(6.0)[:, None]),
    ],
    ids=["classes", "binary", "labels", "numbers"],
)
def test_no_metric_takes_nan_for_a_prediction(task: Task, targets: Tensor) -> None:
    outputs = torch.linspace(-1, 1, 6 * task.outputs, dtype=torch.float64).reshape(6, task.outputs)
    outputs[2, -1] = float("nan")
    for metric in task.names:
        assert isnan(task.evaluate(outputs, targets, metric)), metric
    together = evaluated([Evaluation(outputs, targets, task, list(task.names))] * 2)
    assert all(isnan(value) for values in together for value in values.values())


def test_in_an_episode_a_prediction_of_nan_is_wrong() -> None:
    logits = torch.tensor([[[2.0, 0.0], [float("nan"), 0.0]], [[float("nan")] * 2] * 2])
    assert Classification().score(logits, torch.zeros(2, 2, dtype=torch.long)).tolist() == [0.5, 0.0]
