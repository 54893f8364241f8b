"""The data module of multi-task learning: what it serves, what it tells a module, and what it refuses."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import lightning
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lightning_meta as lm
from lightning_meta.batches import SPLITS, Examples, Split
from lightning_meta.data import EpisodicDataModule, MultiTaskDataModule, Pool
from lightning_meta.data.source import Source, TaskSource
from lightning_meta.data.task_draws import DrawnInputs, DrawnTasks
from lightning_meta.data.task_set import TaskSet
from lightning_meta.errors import UserError
from lightning_meta.multitask import MultiHead
from lightning_meta.run import RunCheckpoint
from lightning_meta.sources import Sinusoid
from lightning_meta.tasks import Binary, Classification, Multilabel, Regression, Task
from tests.multitask.toys import SIZES, TASKS, Given, Toys, backbone, trainer

X = torch.arange(24.0).view(6, 4)
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
NAN = float("nan")
ONE_TASK = {"a": LABELS}, {"a": torch.arange(6)}


class Grouped(Source):
    """Classes in two groups, three examples of each in every split."""

    def pools(self) -> dict[Split, Pool]:
        raise NotImplementedError

    def held_out(self) -> dict[Split, Pool]:
        names, groups = ("a1", "b1", "a2", "a3", "b2"), ("a", "b", "a", "a", "b")
        pools = {}
        for s, split in enumerate(SPLITS):
            x = (100 * s + 10 * torch.arange(5).repeat_interleave(3) + torch.arange(3).repeat(5))[:, None].float()
            pools[split] = Pool(x, torch.full((5,), 3), names, groups)
        return pools


def sets_of(tasks: Mapping[str, Tensor], **splits: Mapping[str, Tensor]) -> dict[Split, TaskSet]:
    """The same targets in every split, but for those given."""
    return {
        split: TaskSet.of_examples({n: Examples(X[: len(y)], y) for n, y in splits.get(split, tasks).items()})
        for split in SPLITS
    }


def columns(*names: str) -> Given:
    """Inputs with several targets."""
    present = torch.ones(6, dtype=torch.bool)
    made = {
        split: TaskSet.of_columns(X, dict.fromkeys(names, LABELS), dict.fromkeys(names, present)) for split in SPLITS
    }
    return Given({name: Classification(3) for name in names}, made)


def ready(source: Source | TaskSource, **options: Any) -> MultiTaskDataModule:
    module = MultiTaskDataModule(source, **options)
    module.prepare_data()
    module.setup("fit")
    return module


def test_what_a_module_must_know_of_the_tasks() -> None:
    spec = ready(Toys()).spec
    assert spec is not None
    assert list(spec.tasks) == ["sum", "largest", "sign"]
    assert {n: t.outputs for n, t in spec.tasks.items()} == {"sum": 1, "largest": 3, "sign": 2}
    assert spec.input_shapes == dict.fromkeys(spec.tasks, (4,))
    assert spec.train_examples == {name: sizes["train"] for name, sizes in SIZES.items()}
    assert spec.descriptors == {}


def test_targets_are_standardised_on_training_data_only() -> None:
    y = torch.tensor([[1.0], [2], [3], [4], [5], [6]])
    far = {"a": y + 1000}
    module = ready(Given({"a": Regression(1)}, sets_of({"a": y}, val=far, test=far)))
    assert module.spec is not None
    task = module.spec.tasks["a"]
    assert isinstance(task, Regression)
    assert task.mean == (3.5,)
    assert task.scale == pytest.approx((math.sqrt(35 / 12),))
    (batch,) = module.val_dataloader()
    assert batch.targets["a"].flatten().tolist() == (y + 1000).flatten().tolist(), "targets stay as they are"


def test_a_group_of_classes_is_a_task() -> None:
    module = ready(Grouped(), batch_size=9, seed=0)
    assert module.spec is not None
    assert {name: task.outputs for name, task in module.spec.tasks.items()} == {"a": 3, "b": 2}
    batch = next(iter(module.train_dataloader()))
    assert isinstance(batch.inputs, Tensor)
    for name, tens in (("a", [0, 20, 30]), ("b", [10, 40])):
        first = [tens[label] for label in batch.targets[name].tolist()]
        x = batch.inputs[batch.rows[name]].flatten()
        assert (x - x % 10).tolist() == first


def test_tasks_are_chosen_by_name_and_in_order() -> None:
    module = ready(Toys(), tasks=["sign", "sum"])
    assert module.spec is not None
    assert list(module.spec.tasks) == ["sign", "sum"]
    assert [module.sets[split].names for split in SPLITS] == [["sign", "sum"]] * 3


def test_descriptors_are_those_of_the_tasks_in_use() -> None:
    class Described(Toys):
        def descriptors(self) -> Mapping[str, tuple[float, ...]]:
            return {"sum": (1.0,), "largest": (2.0,), "sign": (3.0,)}

    spec = ready(Described(), tasks=["sign"]).spec
    assert spec is not None
    assert spec.descriptors == {"sign": (3.0,)}


def test_shared_inputs_are_drawn_as_inputs_and_data_sets_as_tasks() -> None:
    assert isinstance(ready(columns("a", "b")).train_batches(), DrawnInputs)
    assert isinstance(ready(columns("a")).train_batches(), DrawnTasks)
    assert isinstance(ready(Toys(), tasks_per_batch=2, task_exponent=0.5).train_batches(), DrawnTasks)


def test_a_test_visits_the_test_split_the_validation_split_and_a_training_subset() -> None:
    loaders = ready(Toys(), train_subset=30).test_dataloader()
    counts = []
    for loader in loaders:
        batches = list(loader)
        counts.append({name: sum(len(b.ids.get(name, [])) for b in batches) for name in SIZES})
    tests, validations = ({n: s[split] for n, s in SIZES.items()} for split in ("test", "val"))
    assert counts == [tests, validations, {"sum": 30, "largest": 30, "sign": 24}]


def test_the_seed_is_that_of_the_run_by_default() -> None:
    lightning.seed_everything(5, verbose=False)
    run = ready(Toys()).train_batches().ids(0)
    given, other = (ready(Toys(), seed=seed).train_batches().ids(0) for seed in (5, 6))
    assert all(torch.equal(run[name], given[name]) for name in run)
    assert not all(torch.equal(run[name], other[name]) for name in run)


def test_epochs_of_the_length_asked_for() -> None:
    assert len(ready(Toys(), batches_per_epoch=7).train_dataloader()) == 7
    # 136 examples, 8 of each of three tasks a batch.
    assert len(ready(Toys(), batch_size=8).train_dataloader()) == math.ceil(136 / 24)


# What is refused


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch_size": 0}, "batch_size: at least 1 is needed, got 0"),
        ({"tasks_per_batch": 0}, "tasks_per_batch: at least 1 is needed, got 0"),
        ({"batches_per_epoch": -1}, "batches_per_epoch: at least 1 is needed, got -1"),
        ({"evaluation_batch_size": 0}, "evaluation_batch_size: at least 1 is needed, got 0"),
        ({"train_subset": 0}, "train_subset: at least 1 is needed, got 0"),
        ({"task_exponent": -0.5}, "task_exponent: 0 (uniform) to 10, got -0.5"),
        ({"task_exponent": NAN}, "task_exponent: 0 (uniform) to 10, got nan"),
        ({"num_workers": -1}, "num_workers: at least 0 is needed, got -1"),
        ({"num_workers": 2, "pool_on": "accelerator"}, "num_workers: 2 loader processes cannot reach a pool"),
        ({"pool_on": "gpu"}, "pool_on: expected 'cpu' or 'accelerator', got 'gpu'"),
        ({"tasks": ["sum", "sign", "sum"]}, "tasks: 'sum' is named twice"),
        ({"tasks": []}, "tasks: name at least one"),
        ({"tasks": ["sum", "sine"]}, "tasks: there is no task 'sine'; expected 'sum', 'largest', 'sign'"),
        ({"tasks_per_batch": 4}, "tasks_per_batch: 1 to 3 tasks can be drawn, got 4"),
        ({"source": columns("a", "b"), "tasks_per_batch": 1}, "tasks_per_batch: these tasks share inputs"),
        ({"source": columns("a", "b"), "task_exponent": 0.5}, "task_exponent: these tasks share inputs"),
    ],
)
def test_options_that_do_not_fit_end_in_one_line(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as raised:
        fit({"source": Toys(), **options})
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


ONE = {"a": LABELS}
TWO = {"a": LABELS, "b": LABELS}
EMPTY = {"a": LABELS[:0]}


@pytest.mark.parametrize(
    ("task", "sets", "says"),
    [
        (Classification(2), sets_of(ONE), "task 'a', train split: labels 0 to 2 are out of range"),
        (Classification(3), sets_of(ONE, test={"a": LABELS - 1}), "task 'a', test split: labels -1 to 1 are out of"),
        (Classification(3), sets_of({"a": LABELS * 1.0}), "task 'a', train split: labels are whole numbers"),
        (Classification(3), sets_of({"a": LABELS[:, None]}), "task 'a', train split: labels are one number for each"),
        (Binary(), sets_of(ONE), "task 'a', train split: labels are 0 or 1, these hold 2"),
        (Multilabel(2), sets_of(ONE), "task 'a', train split: labels of an example have shape (2,), these have ()"),
        (
            Regression(1),
            sets_of({"a": LABELS[:, None] * 1.0}, val={"a": torch.tensor([[NAN]])}),
            "task 'a', val split: regression targets are finite numbers, these hold NaN",
        ),
        (Regression(2), sets_of({"a": torch.zeros(6, 3)}), "task 'a', train split: regression targets end in"),
        (Classification(3), sets_of(ONE, train=EMPTY), "source: the train split is empty"),
        (Classification(3), sets_of(ONE, val=EMPTY), "source: the val split is empty"),
        (Classification(3), sets_of(ONE, test=EMPTY), "source: the test split is empty"),
        (Classification(3), sets_of(ONE, val=TWO), "source: the val split has tasks 'a', 'b', expected 'a'"),
        (Classification(3), sets_of(TWO), "source: the train split has tasks 'a', 'b', expected 'a'"),
    ],
)
@pytest.mark.parametrize("only", [None, ["a"]])
def test_data_that_does_not_fit_ends_in_one_line(
    task: Task, sets: dict[Split, TaskSet], says: str, only: list[str] | None
) -> None:
    with pytest.raises(UserError) as raised:
        fit({"source": Given({"a": task}, sets), "tasks": only})
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_task_without_training_data_is_refused_until_it_is_left_out() -> None:
    tasks: dict[str, Task] = {name: Classification(3) for name in TWO}
    source = Given(tasks, sets_of(TWO, train={"a": LABELS, "b": LABELS[:0]}))
    with pytest.raises(UserError, match="task 'b' has no training example; leave it out with `tasks`"):
        fit({"source": source})
    fit({"source": source, "tasks": ["a"]})


def test_a_task_without_validation_data_is_trained_and_has_no_score(caplog: pytest.LogCaptureFixture) -> None:
    tasks: dict[str, Task] = {name: Classification(3) for name in TWO}
    few = {"a": LABELS, "b": LABELS[:0]}
    module = MultiHead(backbone())
    runner = trainer(2)
    runner.fit(module, datamodule=MultiTaskDataModule(Given(tasks, sets_of(TWO, val=few)), batches_per_epoch=2))
    logged = {name: float(value) for name, value in runner.callback_metrics.items()}
    assert math.isnan(logged["val/accuracy/b"])
    assert logged["val/score"] == logged["val/accuracy/a"]
    (said,) = [message for message in caplog.messages if message.startswith("examples: ")]
    assert "1 of 2 tasks" in said
    assert "'b' 6/0/6" in said


def test_a_task_with_a_single_label_in_training_is_named(caplog: pytest.LogCaptureFixture) -> None:
    tasks: dict[str, Task] = {name: Classification(3) for name in TWO}
    alike = {"a": LABELS, "b": torch.full_like(LABELS, 2)}
    fit({"source": Given(tasks, sets_of(TWO, train=alike))})
    (said,) = [message for message in caplog.messages if message.startswith("targets: ")]
    assert "1 of 2 tasks have a single label or number in training" in said
    assert "('b')" in said


def test_a_task_with_a_single_class_in_validation_is_named_before_training(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    tasks: dict[str, Task] = {name: Binary("auroc") for name in TWO}
    both, none = (LABELS > 0).long(), torch.zeros_like(LABELS)
    labels = {"train": {"a": both, "b": both}, "val": {"a": both, "b": none}, "test": {"a": both, "b": both}}
    data = MultiTaskDataModule(Given(tasks, sets_of(TWO, **labels)), batches_per_epoch=2)
    lm.fit(MultiHead(backbone()), data, name="one", runs=tmp_path, max_epochs=1)
    (said,) = [message for message in caplog.messages if message.startswith("scores: ")]
    assert "1 of 2 tasks have a target with a single label or number in the val split" in said
    assert "'b' auroc" in said
    labels["val"]["a"] = none
    data = MultiTaskDataModule(Given(tasks, sets_of(TWO, **labels)), batches_per_epoch=2)
    message = r"val/score is undefined, as the validation rows of 'a', 'b' have a target with.*or monitor val/loss"
    with pytest.raises(UserError, match=message):
        lm.fit(MultiHead(backbone()), data, name="none", runs=tmp_path, max_epochs=1)
    data = MultiTaskDataModule(Given(tasks, sets_of(TWO, **labels)), batches_per_epoch=2)
    by_loss = RunCheckpoint(monitor="val/loss")
    lm.fit(MultiHead(backbone()), data, name="loss", runs=tmp_path, max_epochs=1, checkpoint=by_loss)


def test_a_class_without_a_training_example_is_named(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    tasks: dict[str, Task] = {name: Classification(3) for name in TWO}
    ready(Given(tasks, sets_of(TWO, train={"a": LABELS, "b": LABELS.clamp(max=1)})))
    (said,) = [message for message in caplog.messages if message.startswith("classes: ")]
    assert said.startswith("classes: no training example has class 2 of 'b', so the model cannot")
    caplog.clear()
    rows = [f"{i},{'ABC'[i % 3 if i > 40 else i % 2]},{'train' if i <= 40 else SPLITS[1 + i % 2]}" for i in range(80)]
    tmp_path.joinpath("t.csv").write_text("\n".join(["x,p,split", *rows]) + "\n")
    ready(lm.sources.Table(tmp_path / "t.csv", {"p": "multiclass"}, split_column="split"))
    (said,) = [message for message in caplog.messages if message.startswith("classes: ")]
    assert said.startswith("classes: no training example has class 'C' of 'p', so the model cannot")
    caplog.clear()
    rows = [f"{i},{'ABC'[i % 3]},{SPLITS[i % 4 // 2 + i % 4 // 3]},{int(i % 3 < 2)}" for i in range(80)]
    tmp_path.joinpath("w.csv").write_text("\n".join(["x,p,split,w", *rows]) + "\n")
    ready(lm.sources.Table(tmp_path / "w.csv", {"p": "multiclass"}, split_column="split", weights="w"))
    (said,) = [message for message in caplog.messages if message.startswith("classes: ")]
    assert said.startswith("classes: no training example has class 'C' of 'p', so the model cannot")
    caplog.clear()
    ready(Given(tasks, sets_of(TWO)))
    assert "classes: " not in caplog.text


def test_a_task_of_one_test_example_does_not_count_in_the_mean() -> None:
    tasks: dict[str, Task] = {name: Classification(3) for name in TWO}
    few = {"a": LABELS, "b": LABELS[:1]}
    given = MultiTaskDataModule(Given(tasks, sets_of(TWO, val=few, test=few)), batches_per_epoch=2)
    module, runner = MultiHead(backbone()), trainer(2)
    runner.fit(module, datamodule=given)
    runner.test(module, datamodule=given, verbose=False)
    logged = {name: float(value) for name, value in runner.callback_metrics.items()}
    assert logged["test/score"] == logged["test/accuracy"] == logged["test/accuracy/a"]
    assert logged["test/accuracy_tasks"] == 1
    assert [row["mark"] for row in module.test_report["per_task"]][1] == "1 test example, not in the means"


class Unusual(Grouped, TaskSource):
    """Returns what is given, of whatever kind."""

    def __init__(self, tasks: Any, sets: Any) -> None:
        self._tasks, self._sets = tasks, sets

    def tasks(self) -> Any:
        return self._tasks

    def sets(self) -> Any:
        return self._sets

    def pools(self) -> Any:
        return self._sets


@pytest.mark.parametrize(
    ("tasks", "sets", "says"),
    [
        ([Binary()], sets_of(ONE), "tasks() must return tasks by name, such as {'rain': Binary()}, got list"),
        (
            {1: Binary()},
            sets_of(ONE),
            "tasks() must return tasks by name, such as {'rain': Binary()}; the name 1 is int",
        ),
        ({"a": Binary}, sets_of(ONE), "source: task 'a': a Task is needed, got the class Binary; give an instance"),
        ({}, [], "source: sets() must return a TaskSet for each of train, val, test, got list"),
        (
            {},
            {"train": sets_of(ONE)["train"]},
            "sets() must return a TaskSet for each of train, val, test; val is missing",
        ),
        (
            {},
            {split: {} for split in SPLITS},
            "sets() must return a TaskSet for each of train, val, test; train is dict",
        ),
        (
            {"a": Classification(3)},
            {split: TaskSet(X[:5], {"a": LABELS}, {"a": torch.arange(6)}) for split in SPLITS},
            "task 'a', train split: rows 0 to 5 are out of range, as there are 5 inputs",
        ),
        (
            {"a": Classification(3)},
            {split: TaskSet(X.log(), {"a": LABELS}, {"a": torch.arange(6)}) for split in SPLITS},
            "source: train split: 1 of 6 inputs have values that are NaN or infinite; replace these values",
        ),
        (
            {"a": Classification(3)},
            {split: TaskSet(X[:, 0].log(), {"a": LABELS}, {"a": torch.arange(6)}) for split in SPLITS},
            "source: train split: 1 of 6 inputs have values that are NaN or infinite; replace these values",
        ),
        (
            {"a": Classification(3)},
            {split: TaskSet(cast(Any, X.numpy()), {"a": LABELS}, {"a": torch.arange(6)}) for split in SPLITS},
            "source: train split: inputs: a Tensor is needed, got ndarray",
        ),
        (
            {"a": Classification(3)},
            {split: TaskSet(X, {"a": LABELS}, {"a": torch.arange(6.0)}) for split in SPLITS},
            "task 'a', train split: rows are numbers of inputs, int64; got torch.float32",
        ),
        (
            {"a": Classification(3)},
            {split: TaskSet(torch.ones_like(X, requires_grad=True), *ONE_TASK) for split in SPLITS},
            "source: train split: inputs require a gradient; give x.detach()",
        ),
        (
            {"a": Regression(1)},
            {split: TaskSet.of_examples({"a": Examples(X, X[:, :1] * nn.Parameter(X[0, 1]))}) for split in SPLITS},
            "task 'a', train split: targets require a gradient; give x.detach()",
        ),
        *(
            (
                {"a": Classification(3)},
                {split: TaskSet(X, *ONE_TASK, {"a": weights}) for split in SPLITS},
                f"task 'a', train split: weights{says}",
            )
            for weights, says in (
                (LABELS - 1.0, " are finite numbers of at least 0; 2 of 6 are not"),
                (X[:, 0].log(), " are finite numbers of at least 0; 1 of 6 are not"),
                (torch.ones(6, 1), " are one number for each example, (6,); got (6, 1)"),
                (cast(Any, np.ones(6)), ": a Tensor is needed, got ndarray"),
            )
        ),
    ],
)
def test_what_a_users_source_returns_is_checked(tasks: Any, sets: Any, says: str) -> None:
    with pytest.raises(UserError) as raised:
        MultiTaskDataModule(Unusual(tasks, sets)).setup("fit")
    assert says in str(raised.value)


@pytest.mark.parametrize(
    ("pools", "says"),
    [
        ({}, "source: pools() must return a Pool for each of train, val, test; train is missing"),
        (
            {s: Pool(torch.full((2, 3), NAN), torch.tensor([2]), (s,), ("",)) for s in SPLITS},
            "source: train split: 2 of 2 inputs have values that are NaN or infinite; replace these values",
        ),
    ],
)
def test_what_a_users_source_of_classes_returns_is_checked(pools: Any, says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        EpisodicDataModule(Unusual({}, pools)).setup("fit")


def test_targets_of_episodes_with_a_gradient_are_refused() -> None:
    class Regressed(Unusual):
        regression = True

    targets = X[:, :1] * nn.Parameter(X[0, 1])
    pools = {split: Pool(X, torch.tensor([6]), (split,), ("",), y=targets) for split in SPLITS}
    with pytest.raises(UserError, match="source: train split: targets require a gradient"):
        EpisodicDataModule(Regressed({}, pools), shots=2, queries=2).setup("fit")


def test_labels_may_be_booleans() -> None:
    labels = {"a": LABELS > 0, "b": LABELS}
    ready(Given({name: Classification(3) for name in TWO}, sets_of(TWO, **dict.fromkeys(SPLITS, labels))))


def test_examples_of_no_tensors_are_refused() -> None:
    with pytest.raises(UserError, match="a TaskSet needs one task at least"):
        TaskSet.of_examples({})
    arrays: Any = Examples(X.numpy(), LABELS)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="inputs of task 'a': a Tensor is needed, got ndarray"):
        TaskSet.of_examples({"a": arrays})


def test_a_source_without_tasks_says_so() -> None:
    with pytest.raises(UserError, match="source: it has no tasks"):
        fit({"source": Given({}, {split: TaskSet(X, {}, {}) for split in SPLITS})})


def test_episodes_are_not_tasks() -> None:
    class Episodes(Source):
        def pools(self) -> dict[Split, Pool]:
            raise NotImplementedError

    with pytest.raises(UserError, match="source: Episodes does not divide the examples of a class"):
        fit({"source": Episodes()})
    with pytest.raises(UserError, match="MultiHead learns from a MultiTaskDataModule; the data has episodes"):
        trainer(1).fit(MultiHead(backbone()), datamodule=EpisodicDataModule(Sinusoid(), 5, 1, 1))


def fit(options: dict[str, Any]) -> None:
    """A training of one step; what is refused is refused before it."""
    trainer(1, limit_val_batches=0).fit(MultiHead(backbone()), datamodule=MultiTaskDataModule(**options))


def test_the_tasks_of_the_toys_are_trained() -> None:
    fit({"source": Toys()})
    assert list(TASKS) == ["sum", "largest", "sign"]


@pytest.mark.parametrize(
    ("inputs", "tasks", "option", "batches"),
    [
        (torch.zeros(9000, 16), 1, None, [8192, 808]),
        (torch.zeros(9000, 40), 1, None, [3276, 3276, 2448]),
        (torch.zeros(1200, 2000), 1, None, [512, 512, 176]),
        (torch.zeros(9000, 16), 16, None, [4096, 4096, 808]),
        (torch.zeros(1200, 16), 200, None, [512, 512, 176]),
        (torch.zeros(1200, 1, 2, 2), 1, None, [512, 512, 176]),
        (torch.zeros(1200, 16, dtype=torch.int64), 1, None, [512, 512, 176]),
        (torch.zeros(9000, 0), 1, None, [8192, 808]),
        (torch.zeros(9000, 16), 1, 5000, [5000, 4000]),
    ],
    ids=["short rows", "rows", "long rows", "some tasks", "many tasks", "images", "ids", "no columns", "as asked"],
)
def test_short_rows_of_few_tasks_are_evaluated_in_larger_batches(
    inputs: Tensor, tasks: int, option: int | None, batches: list[int]
) -> None:
    names, y = [f"t{i}" for i in range(tasks)], torch.randn(len(inputs), 1)
    labelled = dict.fromkeys(names, torch.ones(len(y), dtype=torch.bool))
    sets = {split: TaskSet.of_columns(inputs, dict.fromkeys(names, y), labelled) for split in SPLITS}
    data = MultiTaskDataModule(Given({n: Regression(1) for n in names}, sets), evaluation_batch_size=option)
    data.setup("fit")
    loaded = list(data.val_dataloader())
    assert [len(batch.inputs) for batch in loaded] == batches
    assert torch.equal(torch.cat([batch.targets["t0"] for batch in loaded]), y)


def test_the_progress_bar_has_the_score_of_the_last_validation() -> None:
    runs = trainer(3, val_check_interval=1)
    runs.fit(MultiHead(backbone()), datamodule=MultiTaskDataModule(Toys(), batch_size=8, batches_per_epoch=3))
    assert runs.progress_bar_metrics["val/score"] == pytest.approx(float(runs.callback_metrics["val/score"]))
