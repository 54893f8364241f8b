"""Computing many tasks at once gives the same as computing each by itself."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, nan
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_meta.batches import Common, Consecutive
from lightning_meta.multitask import MultiHead
from lightning_meta.multitask.together import predictions, rows_of
from lightning_meta.nn.heads import make_head
from lightning_meta.tasks import Binary, Classification, Multilabel, Regression, Task
from lightning_meta.tasks.evaluating import Evaluation, evaluated
from lightning_meta.tasks.together import LossesTogether
from tests.multitask.toys import data, train, trainer

HERE = torch.arange(6)
ONE = Regression(1)
ROWS: dict[str, Mapping[str, Tensor]] = {
    "of their own": Consecutive({f"t{i}": torch.arange(6 * i, 6 * i + 6) for i in range(5)}),
    "shared": Common.fromkeys([f"t{i}" for i in range(5)], HERE),
    "some": {f"t{i}": torch.tensor([i, 3, 2 * i + 1]) for i in range(5)},
    "unequal": {f"t{i}": torch.arange(i) for i in range(5)},
    "none": {f"t{i}": torch.arange(0) for i in range(5)},
}


@pytest.mark.parametrize("hidden", [(), (7, 3)])
@pytest.mark.parametrize("kind", ROWS)
def test_heads_at_once_are_the_heads_one_by_one(kind: str, hidden: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    rows = ROWS[kind]
    features = torch.randn(6 if kind == "shared" else 30, 4, dtype=torch.float64, requires_grad=True)
    heads = [make_head(4, 2, hidden).double() for _ in rows]
    weights = [p for head in heads for p in head.parameters()]
    together = predictions(heads, features, rows)
    alone = [head(features[i]) for head, i in zip(heads, rows.values(), strict=True)]
    for parts in (rows_of(features, rows), rows_of(features, rows, separately=True)):
        assert all(torch.equal(part, features[i]) for part, i in zip(parts, rows.values(), strict=True))
    gradients = []
    for outputs in (together, alone):
        loss = torch.cat([y.square().sum()[None] * (i + 1) for i, y in enumerate(outputs)]).sum()
        gradients.append(torch.autograd.grad(loss, [features, *weights], materialize_grads=True, allow_unused=True))
    for one, other in ((together, alone), gradients):
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_a_hook_on_a_head_is_called() -> None:
    calls = []
    heads = [make_head(4, 1) for _ in range(5)]
    heads[2][0].register_forward_hook(lambda *args: calls.append(1))  # type: ignore[index]
    predictions(heads, torch.randn(6, 4), ROWS["shared"])
    assert calls == [1]


def test_heads_of_a_type_of_ones_own_are_called() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    heads = [nn.Sequential(Doubled(4, 1)) for _ in range(5)]
    features = torch.randn(6, 4)
    for head, y in zip(heads, predictions(heads, features, ROWS["shared"]), strict=True):
        torch.testing.assert_close(y, head(features))


class Absolute(Regression):
    """A loss of one's own."""

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).abs().mean(-1)


def tasks_with_examples(counts: list[int]) -> tuple[dict[str, Task], dict[str, Tensor], dict[str, Tensor]]:
    """Three tasks of each kind."""
    made: dict[str, Task] = {}
    outputs, targets = {}, {}
    generator = torch.Generator().manual_seed(1)
    for i, count in enumerate(counts):
        real = 1000 + 3 * torch.randn(count + 9, 2, dtype=torch.float64, generator=generator)
        labels = torch.randint(3, (count,), generator=generator)
        kinds: dict[str, tuple[Task, Tensor]] = {
            "real": (Regression(2).fitted(real), real[:count]),
            "plain": (Regression(1), real[:count, :1]),
            "single": (Regression(1).fitted(real[:, :1]), real[:count, :1].float()),
            "whole": (Regression(1).fitted(real[:, :1].long()), real[:count, :1].long()),
            "own": (Absolute(1), real[:count, :1]),
            "class": (Classification(3), labels),
            "weighted": (Classification(3, class_weight=(1.0, 2.0, 3.0)), labels),
            "yes": (Binary(), (labels > 0).long()),
            "labels": (Multilabel(2), torch.stack([labels > 0, labels > 1], 1).long()),
        }
        for kind, (task, of_task) in kinds.items():
            name = f"{kind} {i}"
            made[name], targets[name] = task, of_task
            outputs[name] = torch.randn(count, task.outputs, dtype=torch.float64, generator=generator)
    return made, outputs, targets


@pytest.mark.parametrize("counts", [[4, 4, 4], [5, 1, 3], [2, 0, 2], [0, 0, 0]])
def test_losses_at_once_are_those_of_each_task(counts: list[int]) -> None:
    tasks, outputs, targets = tasks_with_examples(counts)
    together = LossesTogether(tasks)
    for _ in range(2):  # with what was kept of the first call
        groups = together(outputs, targets)
        assert sorted(len(group.names) for group in groups) == [1] * 9 + [3] * 6
        for group in groups:
            own = [tasks[name].losses(outputs[name], targets[name]) for name in group.names]
            torch.testing.assert_close(group.values, torch.cat(own), rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(group.sums(), torch.stack([of.sum() for of in own]), rtol=1e-12, atol=1e-12)
            means = torch.stack([of.sum() / max(len(of), 1) for of in own])
            torch.testing.assert_close(group.means(), means, rtol=1e-12, atol=1e-12)
    few = {name: outputs[name] for name in ("single 2", "single 0")}
    (group,) = together(few, targets)
    own = [tasks[name].losses(outputs[name], targets[name]) for name in few]
    torch.testing.assert_close(group.values, torch.cat(own), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("counts", [[4], [4, 4], [5, 1, 3], [2, 0, 2], [3, 3, 3, 3], [0]])
def test_mean_losses_at_once_are_those_of_each_task(counts: list[int], outputs: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    y = {f"t{i}": 100 + 3 * torch.randn(20, outputs, generator=generator) for i in range(len(counts))}
    tasks = {name: Regression(outputs).fitted(of_task) for name, of_task in y.items()}
    targets = {name: y[name][:count] for name, count in zip(tasks, counts, strict=True)}
    predicted = {n: torch.randn(len(t), outputs, generator=generator).to(dtype) for n, t in targets.items()}
    ((names, means),) = LossesTogether(tasks).means(predicted, targets)
    assert names == list(tasks)
    alone = [tasks[n].losses(predicted[n], targets[n]) for n in tasks]
    torch.testing.assert_close(means, torch.stack([of.sum() / max(len(of), 1) for of in alone]))


def test_metrics_at_once_are_those_of_each_task() -> None:
    wanted = []
    # One task in turn with outputs of two dtypes, and with and without examples.
    for rows in (8, 0, 8):
        targets_of_one = torch.randn(rows, 1, generator=torch.Generator().manual_seed(0))
        for dtype in (torch.float32, torch.float64):
            wanted.append(Evaluation(targets_of_one.to(dtype) / 3, targets_of_one, ONE, ["r2"]))
    for counts in ([0, 1, 4], [5, 40, 7]):
        tasks, outputs, targets = tasks_with_examples(counts)
        for name, task in tasks.items():
            wanted.append(Evaluation(outputs[name].float(), targets[name], task, task.names))
            for spoilt in (nan, inf):
                wanted.append(Evaluation(outputs[name] * spoilt, targets[name], task, [task.selection]))
            if len(targets[name]):
                equal = targets[name][:1].expand_as(targets[name])
                wanted.append(Evaluation(outputs[name], equal, task, [task.selection, *task.beside]))
    alone = [{m: one.task.evaluate(one.outputs.double(), one.targets, m) for m in one.metrics} for one in wanted]
    for found, expected in zip(evaluated(wanted), alone, strict=True):
        assert found == pytest.approx(expected, rel=1e-12, abs=1e-12, nan_ok=True)
    assert sum(value == value for of in alone for value in of.values()) > 100


def test_training_logs_what_a_validation_of_the_same_weights_returns() -> None:
    given = data()
    module = train(MultiHead, given, 5)
    logged = {name: float(v) for name, v in module.trainer.callback_metrics.items() if name.startswith("val/")}
    (validated,) = trainer(precision="64-true").validate(module, datamodule=given, verbose=False)
    assert logged == pytest.approx(validated)
    assert {"val/score", "val/loss", "val/loss/sum", "val/r2/sum", "val/accuracy/sign"} <= logged.keys()


def test_standards_are_not_copied_to_the_device_in_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy would make the host wait for a GPU; the tasks are of two kinds, with missing labels."""
    tasks: dict[str, Task] = {f"{kind}{i}": Regression(kind) for kind in (1, 2) for i in range(3)}
    together = LossesTogether(tasks)

    def step(rows: int) -> None:
        counts = {name: 4 + (rows if name.endswith("0") else 0) for name in tasks}
        outputs = {name: torch.zeros(n, tasks[name].outputs) for name, n in counts.items()}
        together(outputs, {name: y + 1 for name, y in outputs.items()})

    for rows in range(3):
        step(rows)
    made: list[Any] = []
    tensor = torch.tensor

    def noted(*args: Any, **options: Any) -> Tensor:
        made.append(args)
        return tensor(*args, **options)

    monkeypatch.setattr(torch, "tensor", noted)
    for _ in range(3):
        step(0)
    assert not made  # equal counts
    for rows in (1, 2, 1, 2):
        step(rows)
    assert len(made) <= 4 * 2  # the numbers of rows of both kinds, and nothing that names tasks
