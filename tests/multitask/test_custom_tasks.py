"""Custom tasks: targets of any shape, and refusals of what does not fit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor
from torchmetrics import MeanSquaredError, Metric
from torchmetrics.classification import MulticlassAccuracy

from lightning_meta import Examples, UserError
from lightning_meta.batches import SPLITS
from lightning_meta.data import MultiTaskDataModule
from lightning_meta.data.task_set import TaskSet
from lightning_meta.multitask import MultiHead
from lightning_meta.multitask.records import TaskRecords
from lightning_meta.tasks import (
    Classification,
    Regression,
    Task,
)
from lightning_meta.tasks.together import Losses
from lightning_meta.weightings import LossWeighting, Weighting
from tests.multitask.toys import Given, backbone, results_of, trainer

Targets = Callable[[Tensor, torch.Generator], Tensor]
COUNTS = {"train": 160, "val": 60, "test": 61}


def given(tasks: dict[str, Task], targets: dict[str, Targets], **options: Any) -> MultiTaskDataModule:
    """Tasks on four numbers an input, each with its own examples."""
    sets = {}
    for number, split in enumerate(SPLITS):
        x = torch.randn(COUNTS[split], 4, generator=torch.Generator().manual_seed(number))
        made = {n: Examples(x, make(x, torch.Generator().manual_seed(number + 9))) for n, make in targets.items()}
        sets[split] = TaskSet.of_examples(made)
    return MultiTaskDataModule(Given(tasks, sets), **{"batch_size": 16, "seed": 0, **options})


def train(data: MultiTaskDataModule, steps: int = 5, **options: Any) -> MultiHead:
    lightning.seed_everything(0, verbose=False)
    module = MultiHead(backbone(), optimizer=partial(torch.optim.Adam, lr=0.01), **options)
    trainer(steps).fit(module, datamodule=data)
    return module


def numbers(x: Tensor, generator: torch.Generator) -> Tensor:
    return 50 + 4 * x[:, :1] + 3 * torch.randn(len(x), 1, generator=generator)


def labels(x: Tensor, generator: torch.Generator) -> Tensor:
    return x[:, :3].argmax(-1)


# Targets of any shape


class Custom(Task):
    """A custom task with the mean of a function of outputs and targets as its loss and score."""

    selection, selection_mode = "own", "min"

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        raise NotImplementedError

    def example_scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.losses(outputs, targets)

    def check(self, targets: Tensor, outputs: int) -> None:
        pass


class WeightedError(Custom):
    """The last column of the targets weights the error of the first."""

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        assert targets.shape[1:] == (2,)
        return targets[:, 1] * (outputs[:, 0] - targets[:, 0]).square()


class Grid(Custom):
    """Targets of two dimensions, of which every number counts differently."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__(rows * columns)
        self.sizes = (rows, columns)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        assert targets.shape[1:] == self.sizes
        counts = torch.arange(1, self.outputs + 1).view(self.sizes)
        return ((outputs.view(-1, *self.sizes) - targets).abs() * counts).mean((1, 2))


class Density(Custom):
    """No targets: their numbers are missing altogether."""

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        assert targets.shape[1:] == (0,)
        return outputs[:, 0].square() + 1


TASKS: dict[str, Task] = {
    "classes": Classification(3),
    "weighted": WeightedError(1),
    "tall": Grid(3, 2),
    "wide": Grid(2, 3),  # as many numbers as `tall`
    "counts": Grid(1, 4),
    "none": Density(2),
    "number": Regression(1),
}
ANY: dict[str, Targets] = {
    "classes": labels,
    "weighted": lambda x, g: torch.cat([x[:, :1], 10 + torch.rand(len(x), 1, generator=g)], 1),
    "tall": lambda x, g: torch.randn(len(x), 3, 2, generator=g),
    "wide": lambda x, g: torch.randn(len(x), 2, 3, generator=g),
    "counts": lambda x, g: torch.randint(2**60, (len(x), 1, 4), generator=g),
    "none": lambda x, g: torch.zeros(len(x), 0),
    "number": numbers,
}


@pytest.mark.parametrize("names", [[*TASKS], ["weighted"], ["tall"], ["tall", "wide"], ["none"]], ids="+".join)
def test_evaluation_is_on_the_targets_as_they_are(names: list[str]) -> None:
    chosen = {n: TASKS[n] for n in names}
    data = given(chosen, {n: ANY[n] for n in names}, evaluation_batch_size=7)
    module = train(data)
    logged = results_of(module, data)
    assert module.test_report is not None
    stored = module.test_report["predictions"]
    (batch,) = given(chosen, {n: ANY[n] for n in names}).predict_dataloader()
    outputs = {n: y.detach() for n, y in module.outputs(batch).items()}
    for number, name in enumerate(names):
        task, targets = module.spec.tasks[name], batch.targets[name]
        losses = task.losses(outputs[name], targets)
        assert logged[f"test/loss/{name}"] == pytest.approx(float(losses.double().mean()), rel=1e-5)
        score = task.evaluate(outputs[name].double(), targets)
        assert logged[f"test/{task.selection}/{name}"] == pytest.approx(score, rel=1e-5)
        rows, flat = stored["target"][stored["task"] == number], targets.flatten(1) if targets.dim() > 1 else targets
        width = flat.shape[1] if flat.dim() > 1 else 1
        assert torch.equal(torch.from_numpy(rows[:, :width]), flat.double().view(len(flat), width))
        assert torch.from_numpy(rows[:, width:]).isnan().all()


@pytest.mark.parametrize("names", [[*TASKS], ["tall"]], ids="+".join)
def test_records_out_of_order_and_twice_are_exact(names: list[str]) -> None:
    """As ranks give them: an example may occur twice, and tasks take turns."""
    generator = torch.Generator().manual_seed(0)
    tasks, records = {n: TASKS[n] for n in names}, TaskRecords({n: TASKS[n] for n in names}, joined=True)
    targets = {n: ANY[n](torch.randn(9, 4, generator=generator), generator) for n in names}
    outputs = {n: torch.randn(9, task.outputs, generator=generator) for n, task in tasks.items()}
    for ids in (torch.tensor([8, 1, 5]), torch.tensor([0, 2, 3, 4]), torch.tensor([1, 6, 7])):
        for n in reversed(names):
            losses = Losses([n], [len(ids)], ids.float())
            records.update([losses], {n: ids}, {n: outputs[n][ids]}, {n: targets[n][ids]})
    table = records.compute()
    for n in names:
        found = table.of[n]
        assert found.ids.tolist() == [*range(9)]
        assert found.targets.dtype == targets[n].dtype
        assert torch.equal(found.targets, targets[n])
        assert torch.equal(found.outputs, outputs[n])


# Refusals


class Returns(Custom):
    """Returns losses or scores of a wrong shape."""

    def __init__(self, method: str, wrong: str) -> None:
        super().__init__(2 if wrong == "columns" else 1)
        self.method, self.wrong = method, wrong

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.made("losses", outputs, targets)

    def example_scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.made("example_scores", outputs, targets)

    def made(self, method: str, outputs: Tensor, targets: Tensor) -> Any:
        errors = (outputs - targets[:, : self.outputs]).square()
        if method != self.method:
            return errors.mean(-1)
        mean = errors.mean()
        return {"column": errors, "columns": errors, "scalar": mean, "number": float(mean.detach())}[self.wrong]


@pytest.mark.parametrize("method", ["losses", "example_scores"])
@pytest.mark.parametrize(
    ("wrong", "received"),
    [
        ("column", r"a tensor of shape \(\d+, 1\)"),
        ("columns", r"a tensor of shape \(\d+, 2\)"),
        ("scalar", r"a tensor of shape \(\)"),
        ("number", "float"),
    ],
)
def test_other_than_one_number_for_each_example_is_refused(method: str, wrong: str, received: str) -> None:
    data = given({"a": Returns(method, wrong)}, {"a": lambda x, g: x[:, :2]})
    expected = rf"Returns\.{method} returned {received}; expected one number for each example, \(\d+,\)"
    with pytest.raises(UserError, match=expected):
        results_of(train(data), data)


class Weights(Weighting):
    """Weights of any shape."""

    def __init__(self, *, sizes: tuple[int, ...] | None) -> None:
        super().__init__()
        self.sizes = sizes

    def configure(self, tasks: Any) -> None:
        pass

    def weights(self) -> Tensor:
        return [1.0, 1.0] if self.sizes is None else torch.ones(self.sizes)  # type: ignore[return-value]


class LossWeights(LossWeighting):
    """Weights of a wrong shape, of the losses."""

    def weigh(self, losses: Tensor, present: Tensor) -> Tensor:
        return torch.ones(2, 2)


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [
        (Weights(sizes=(2, 2)), r"Weights\.weights returned a tensor of shape \(2, 2\)"),
        (Weights(sizes=(1,)), r"Weights\.weights returned a tensor of shape \(1,\)"),
        (Weights(sizes=()), r"Weights\.weights returned a tensor of shape \(\)"),
        (Weights(sizes=None), r"Weights\.weights returned list"),
        (LossWeights(), r"LossWeights\.weigh returned a tensor of shape \(2, 2\)"),
    ],
)
def test_other_than_one_weight_for_each_task_is_refused(weighting: Weighting, expected: str) -> None:
    data = given({"a": Regression(1), "b": Classification(3)}, {"a": numbers, "b": labels})
    with pytest.raises(UserError, match=expected + r"; expected one number for each task, \(2,\)"):
        train(data, weighting=weighting)


class Inverse(Weighting):
    """Each weight is the inverse of the task's last loss, kept in a buffer that is changed in place."""

    weight: Tensor

    def configure(self, tasks: Any) -> None:
        self.register_buffer("weight", torch.ones(len(tasks)))

    def weights(self) -> Tensor:
        return self.weight

    def observe(self, losses: Tensor, present: Tensor) -> None:
        self.weight.copy_(torch.where(present, 1 / (losses + 0.1), self.weight))


class CopiedInverse(Inverse):
    """The same, which returns a copy."""

    def weights(self) -> Tensor:
        return self.weight.clone()


def test_observe_may_change_the_weights_in_place() -> None:
    data = given({"a": Regression(1), "b": Classification(3)}, {"a": numbers, "b": labels})
    module, expected = (train(data, weighting=weighting) for weighting in (Inverse(), CopiedInverse()))
    assert not torch.equal(module.weighting.weights(), torch.ones(2))
    for found, wanted in zip(module.parameters(), expected.parameters(), strict=True):
        assert torch.equal(found, wanted)


class NoSelection(Task):
    """It does not name its score."""

    losses = WeightedError.losses
    example_scores = WeightedError.losses

    def check(self, targets: Tensor, outputs: int) -> None:
        pass


class NoConstructor(WeightedError):
    """Its constructor does not call that of its base."""

    def __init__(self) -> None:
        self.factor = 2


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (NoSelection(1), "task 'a': NoSelection does not name its score; set the class attribute selection"),
        (NoConstructor(), r"task 'a': the constructor of NoConstructor must call super\(\)\.__init__\(outputs\)"),
        (
            type("Least", (WeightedError,), {"selection_mode": "least"})(1),
            "task 'a': Least.selection_mode is 'least'; expected 'max' if a larger own is better, or 'min'",
        ),
        (
            type("Loss", (WeightedError,), {"selection": "loss"})(1),
            "task 'a': Loss.selection is 'loss', by which something else is logged; choose another name",
        ),
        *(
            (
                type("Further", (WeightedError,), {"metrics": lambda self, name=name: {name: MeanSquaredError()}})(1),
                rf"task 'a': Further.metrics\(\) has a metric '{name}', by which something else is logged",
            )
            for name in ("own", "score", "counted_tasks")
        ),
    ],
)
def test_a_custom_task_that_lacks_something_is_refused(task: Task, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        given({"a": task}, {"a": ANY["weighted"]}).setup("fit")


class ByClass(Classification):
    """A further metric that is not a single number."""

    def metrics(self) -> dict[str, Metric]:
        return {"recalls": MulticlassAccuracy(self.outputs, average=None)}


def test_a_further_metric_of_several_numbers_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"ByClass.metrics\(\): 'recalls' gives shape \(3,\); a single number is needed"
    ):
        train(given({"a": ByClass(3)}, {"a": labels}), steps=10)
