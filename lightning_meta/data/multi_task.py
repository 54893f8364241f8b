"""The data module of multi-task learning: batches of several tasks from any source."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_meta.batches import SPLITS, Split, TaskBatch
from lightning_meta.checks import instance, names_in_list, whole
from lightning_meta.data.group_tasks import tasks_of_groups
from lightning_meta.data.hashes import Hashes, of_sets
from lightning_meta.data.loader import EvaluationSampler, TaskBatchSampler, the_only
from lightning_meta.data.module import Place, SourceDataModule
from lightning_meta.data.pool import Pool
from lightning_meta.data.source import Source, TaskSource, check_detached, check_inputs, check_parts
from lightning_meta.data.task_batches import AllExamples, TaskBatches, evaluated_at_once, subset
from lightning_meta.data.task_draws import DrawnInputs, DrawnTasks
from lightning_meta.data.task_set import TaskSet
from lightning_meta.data.undefined_scores import Undefined, undefined_scores
from lightning_meta.errors import UserError, some_of
from lightning_meta.metrics import is_reserved
from lightning_meta.tasks import Classification, Task, TasksSpec
from lightning_meta.tasks.few_rows import FEWEST_ROWS, enough_rows
from lightning_meta.tasks.table import TableSpec, refuse_shared_predictions

_log = logging.getLogger(__name__)


class MultiTaskDataModule(SourceDataModule):
    r"""Batches of a fixed set of tasks: an endless stream for training, and each validation and test example once.

    If tasks have separate inputs, a batch is a mini-batch of tasks and a mini-batch of examples of each; drawing task i
    with probability $p_i$ minimises $\sum_i p_i L_i$. If tasks share inputs, a batch is a mini-batch of inputs with all
    their targets. A batch is a pure function of (seed, number), so it does not depend on the number of workers and
    ranks and is the same after a resume.

    Example:
        >>> import lightning_meta as lm
        >>> data = lm.MultiTaskDataModule(lm.testing.RareTasks(), batch_size=8)
        >>> data.setup("fit")
        >>> batch = next(iter(data.train_dataloader()))
        >>> batch.inputs.shape, len(batch.targets)
        (torch.Size([8, 10]), 100)

    Args:
        source: Source of the examples: a `TaskSource`, or groups of classes (`Glyphs`, `Omniglot`, ...), where each
            group is a task.
        tasks: Names of the tasks to use; by default all.
        batch_size: Number of examples per drawn task, over all ranks; number of inputs if tasks share them.
        tasks_per_batch: Number of tasks drawn for a batch; by default all.
        task_exponent: Exponent α in [0, 10]: a task of n examples is drawn with a probability proportional to n^α; 0
            draws uniformly.
        batches_per_epoch: Number of batches per epoch; by default that of one pass over the data.
        evaluation_batch_size: Number of inputs evaluated at a time; by default 512, and up to 8192 for short rows of
            real numbers that few tasks share.
        train_subset: Number of training examples per task that are evaluated in a test, to measure overfitting.
        seed: Seed of the training batches; by default that of `seed_everything`, or 0.
        num_workers: Number of loader processes; 0 draws in the training process, which is fastest for stored tensors.
        pool_on: Location of the stored examples: RAM, or the accelerator (requires `num_workers` 0).
    """

    def __init__(
        self,
        source: Source | TaskSource,
        tasks: Sequence[str] | None = None,
        batch_size: int = 32,
        tasks_per_batch: int | None = None,
        task_exponent: float = 0.0,
        batches_per_epoch: int | None = None,
        evaluation_batch_size: int | None = None,
        train_subset: int = 200,
        seed: int | None = None,
        num_workers: int = 0,
        pool_on: Place = "cpu",
    ) -> None:
        super().__init__(seed, num_workers, pool_on)
        instance("source", source, (Source, TaskSource))
        names_in_list(tasks=tasks)
        whole(
            1,
            batch_size=batch_size,
            tasks_per_batch=tasks_per_batch,
            batches_per_epoch=batches_per_epoch,
            evaluation_batch_size=evaluation_batch_size,
            train_subset=train_subset,
        )
        if not 0 <= task_exponent <= 10:
            raise UserError(f"task_exponent: 0 (uniform) to 10, got {task_exponent}; 1 is in proportion to size")
        if tasks is not None and not tasks:
            raise UserError("tasks: name at least one, or leave it out to use all")
        if tasks is not None and len(set(tasks)) < len(tasks):
            raise UserError(f"tasks: {next(n for n in tasks if list(tasks).count(n) > 1)!r} is named twice")
        self.source = source
        self.only = None if tasks is None else list(tasks)
        self.batch_size, self.tasks_per_batch, self.task_exponent = batch_size, tasks_per_batch, task_exponent
        self.batches_per_epoch = batches_per_epoch
        self.evaluation_batch_size, self.train_subset = evaluation_batch_size, train_subset
        self.sets: dict[Split, TaskSet] = {}
        self.spec: TasksSpec | None = None
        self.undefined_scores: dict[Split, Undefined] = {}
        self._by_inputs = False
        self._known_hashes: Hashes | None = None

    def prepare_data(self) -> None:
        """Download and decode, once per machine."""
        if isinstance(self.source, TaskSource):
            self.source.prepare()
        else:
            self.source.prepare_held_out()

    def setup(self, stage: str) -> None:
        """Open and check the sets, and describe the tasks in `spec`."""
        self.undo_reset()
        if self.spec is not None:
            # The first call may have had no Trainer.
            self.sets = {s: data.to(self.pool_device, self.has_float64) for s, data in self.sets.items()}
            self.configure_module()
            return
        parts: Mapping[Split, Pool] | Mapping[Split, TaskSet]
        table = None
        if isinstance(self.source, TaskSource):
            tasks, sets, descriptors = self.source.tasks(), self.source.sets(), dict(self.source.descriptors())
            check_tasks(tasks)
            check_parts(sets, TaskSet, "sets()")
            parts, table = sets, self.source.table()
        else:
            parts = pools = self.source.held_out()
            (tasks, sets), descriptors = tasks_of_groups(pools), {}
        if self.only is None and self.source.task_hashes is not None:
            self._known_hashes = self.source.task_hashes.of(parts)
        check_names(tasks, sets)
        self._by_inputs = sets["train"].overlapping  # before the selection, so that a task alone gets the same batches
        if self.only is not None:
            for name in self.only:
                if name not in tasks:
                    raise UserError(f"tasks: there is no task {name!r}; expected {some_of(map(repr, tasks))}")
            tasks = {name: tasks[name] for name in self.only}
            sets = {split: data.select(self.only) for split, data in sets.items()}
            descriptors = {name: z for name, z in descriptors.items() if name in tasks}
        check_sets(tasks, sets)
        if self._by_inputs and (self.tasks_per_batch is not None or self.task_exponent):
            option = "tasks_per_batch" if self.tasks_per_batch is not None else "task_exponent"
            raise UserError(
                f"{option}: these tasks share inputs, and a batch holds every task of its inputs; leave it out"
            )
        if stage == "fit" and table is not None:
            refuse_shared_predictions(table.targets, table.task_column)
        train = sets["train"].weighing()
        sets = {**sets, "train": train}
        fitted = {name: _fitted(name, task, train.targets[name]) for name, task in tasks.items()}
        if self.trainer is None or self.trainer.is_global_zero:
            say_metrics(tasks, fitted)
            say_few_rows(sets)
            say_single_values(train)
        self.undefined_scores = undefined_scores(fitted, sets)
        if self.trainer is None or self.trainer.is_global_zero:
            say_undefined_scores(fitted, self.undefined_scores)
            say_unseen_classes(fitted, sets, table)
        self.spec = TasksSpec(
            fitted,
            train.input_shapes,
            train.counts,
            descriptors,
            train.input_dtypes,
            train.statistics_without([] if table is None else [i for i, codes in enumerate(table.codes) if codes]),
            table,
        )
        if not self.has_float64:  # the hash of the data does not depend on the accelerator
            self._known_hashes = self._known_hashes or of_sets(sets)
        self.sets = {split: data.to(self.pool_device, self.has_float64) for split, data in sets.items()}
        self.configure_module()

    def train_dataloader(self) -> DataLoader[TaskBatch]:
        """Return a loader of the share of this rank of the training batches."""
        self._set_up("fit")
        counted = {
            "batch_size": self.batch_size,
            "tasks_per_batch": self.tasks_per_batch or len(self.sets["train"].names),
        }
        sampler = TaskBatchSampler(self.train_batches(), {**counted, "task_exponent": self.task_exponent})
        return self.training_loader(sampler)

    def val_dataloader(self) -> DataLoader[TaskBatch]:
        """Return a loader of the share of this rank of the validation examples."""
        self._set_up("validate")
        return self._evaluation_loader(self.sets["val"])

    def test_dataloader(self) -> list[DataLoader[TaskBatch]]:
        """Return loaders of the test examples, the validation examples, and a fixed training subset."""
        self._set_up("test")
        train = subset(self.sets["train"], self.train_subset)
        return [self._evaluation_loader(data) for data in (self.sets["test"], self.sets["val"], train)]

    def predict_dataloader(self) -> DataLoader[TaskBatch]:
        """Return a loader of the share of this rank of the test examples."""
        self._set_up("predict")
        return self._evaluation_loader(self.sets["test"])

    def train_batches(self) -> TaskBatches:
        """Return the training batches of one epoch, with the share of this rank of each."""
        data, (ranks, rank) = self.sets["train"], self.ranks
        if self._by_inputs:
            return DrawnInputs(data, self.train_seed, self.batch_size, self.batches_per_epoch, rank, ranks)
        return DrawnTasks(
            data,
            self.train_seed,
            self.batch_size,
            self.tasks_per_batch,
            self.task_exponent,
            self.batches_per_epoch,
            rank,
            ranks,
        )

    def fingerprint(self) -> str:
        """Return a hash of the examples of all splits, recorded with the results."""
        return self._hashes.whole

    def division(self) -> dict[Split, str]:
        """Return a hash of the inputs and targets of each split."""
        return self._hashes.splits

    @cached_property
    def _hashes(self) -> Hashes:
        self._set_up("fit")
        return self._known_hashes or of_sets(self.sets)

    def _set_up(self, stage: str) -> None:
        """Prepare and set up, if no Trainer has."""
        if self.spec is None:
            self.prepare_data()
            self.setup(stage)

    def _evaluation_loader(self, data: TaskSet) -> DataLoader[TaskBatch]:
        inputs, labels = data.inputs, data.counts
        if isinstance(inputs, dict):
            at_once = min(evaluated_at_once(x, labels[name]) for name, x in inputs.items())
        else:
            at_once = evaluated_at_once(inputs, sum(labels.values()))
        dataset = AllExamples(data, self.evaluation_batch_size or at_once)
        sampler = EvaluationSampler(dataset, *self.ranks)
        return DataLoader(dataset, batch_size=1, sampler=sampler, collate_fn=the_only, **self.loader_options())


def check_tasks(tasks: Any) -> None:
    """Refuse anything but tasks by name.

    Raises:
        UserError: The argument is not a dictionary, a name is not a string, a task is not a `Task`, or its class lacks
            what a custom task must define.
    """
    expected = "source: tasks() must return tasks by name, such as {'rain': Binary()}"
    if not isinstance(tasks, Mapping):
        raise UserError(f"{expected}, got {type(tasks).__name__}")
    for name, task in tasks.items():
        if not isinstance(name, str):
            raise UserError(f"{expected}; the name {name!r} is {type(name).__name__}")
        instance(f"source: task {name!r}", task, Task)
        kind = type(task).__name__
        if not hasattr(task, "outputs"):
            raise UserError(f"task {name!r}: the constructor of {kind} must call super().__init__(outputs)")
        if not isinstance(getattr(task, "selection", None), str) or not task.selection:
            raise UserError(
                f"task {name!r}: {kind} does not name its score; set the class attribute selection, such as "
                'selection = "nll", the mean of example_scores'
            )
        if is_reserved(task.selection):
            raise UserError(
                f"task {name!r}: {kind}.selection is {task.selection!r}, by which something else is logged; choose "
                "another name"
            )
        further = task.metrics()
        if taken := [metric for metric in further if is_reserved(metric) or metric in (task.selection, *task.beside)]:
            raise UserError(
                f"task {name!r}: {kind}.metrics() has a metric {taken[0]!r}, by which something else is logged; choose "
                "another name"
            )
        if task.selection_mode not in ("min", "max"):
            raise UserError(
                f"task {name!r}: {kind}.selection_mode is {task.selection_mode!r}; expected 'max' if a larger "
                f"{task.selection} is better, or 'min'"
            )


def check_names(tasks: dict[str, Task], sets: dict[Split, TaskSet]) -> None:
    """Refuse sets that do not have exactly the given tasks.

    Raises:
        UserError: There is no task, or the tasks of a split differ.
    """
    if not tasks:
        raise UserError("source: it has no tasks")
    for split in SPLITS:
        if set(sets[split].names) != set(tasks):
            names, expected = some_of(map(repr, sets[split].names)), some_of(map(repr, tasks))
            raise UserError(f"source: the {split} split has tasks {names}, expected {expected}")


def check_sets(tasks: dict[str, Task], sets: dict[Split, TaskSet]) -> None:
    """Refuse sets that do not fit the tasks.

    Raises:
        UserError: A task has no training example, a split is empty, targets do not fit, or inputs are not finite.
    """
    for split in SPLITS:
        data = sets[split]
        for name, task in tasks.items():
            try:
                task.check(data.targets[name], task.outputs)
            except UserError as error:
                raise UserError(f"task {name!r}, {split} split: {error}") from error
            check_detached(data.targets[name], f"task {name!r}, {split} split: targets")
            if data.weights is not None:
                _check_weights(data.weights[name], len(data.targets[name]), f"task {name!r}, {split} split: weights")
            inputs, rows = data.inputs[name] if isinstance(data.inputs, dict) else data.inputs, data.rows[name]
            instance(f"task {name!r}, {split} split: rows", rows, Tensor)
            if rows.dtype != torch.int64:
                raise UserError(f"task {name!r}, {split} split: rows are numbers of inputs, int64; got {rows.dtype}")
            if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(inputs):
                raise UserError(
                    f"task {name!r}, {split} split: rows {int(rows.min())} to {int(rows.max())} are out of range, as "
                    f"there are {len(inputs)} inputs"
                )
        for name, inputs in data.inputs.items() if isinstance(data.inputs, dict) else [("", data.inputs)]:
            check_inputs(inputs, f"task {name!r}, {split} split" if name else f"source: {split} split")
        if data.input_shapes != sets["train"].input_shapes:
            name = next(n for n, shape in data.input_shapes.items() if shape != sets["train"].input_shapes[n])
            shapes = f"{data.input_shapes[name]} in the {split} split and {sets['train'].input_shapes[name]} in train"
            raise UserError(f"task {name!r}: inputs have shape {shapes}")
        if not any(data.counts.values()):
            most = max(sets["train"].counts.values(), default=0)
            raise UserError(
                f"source: the {split} split is empty, while the train split has {most} labelled examples of a task; "
                f"every split needs 1 at least: give more data, or another division"
            )
    for name, count in sets["train"].counts.items():
        if not count:
            raise UserError(f"task {name!r} has no training example; leave it out with `tasks`, or give it some")
    weights = sets["train"].weights or {}
    if zero := [name for name, of_task in weights.items() if name in tasks and not bool((of_task > 0).any())]:
        kept = len(zero) < len(tasks)
        advice = "leave them out with `tasks` (--data.tasks), or change the weights" if kept else "change the weights"
        raise UserError(f"weights: all training rows of {some_of(map(repr, zero))} have the weight 0; {advice}")


def _check_weights(weights: Any, count: int, what: str) -> None:
    """Refuse weights that are not a finite number of at least 0 for each example."""
    instance(what, weights, Tensor)
    if weights.shape != (count,):
        raise UserError(f"{what} are one number for each example, ({count},); got {tuple(weights.shape)}")
    wrong = ~weights.isfinite() | (weights < 0)
    if wrong.any():
        raise UserError(f"{what} are finite numbers of at least 0; {int(wrong.sum())} of {count} are not")


def _fitted(name: str, task: Task, targets: Tensor) -> Task:
    try:
        return task.fitted(targets)
    except UserError as error:
        raise UserError(f"task {name!r}: {error}") from error


def say_metrics(tasks: Mapping[str, Task], fitted: Mapping[str, Task]) -> None:
    """Log the tasks whose default metric changed because one class is rare."""
    moved = [name for name, task in tasks.items() if fitted[name].selection != task.selection]
    if moved:
        new, old = fitted[moved[0]].selection, tasks[moved[0]].selection
        _log.info(
            "metric: %d of %d tasks are selected and compared by %s and not by %s, since one class has more than 80 %% "
            "of their training labels (%s); give a task its metric to choose another",
            *(len(moved), len(tasks), new, old, some_of(map(repr, moved), 3)),
        )


def say_few_rows(sets: Mapping[Split, TaskSet]) -> None:
    """Warn of tasks with too few examples in a split, in one line with the number of examples in each."""
    names = sets["train"].names
    counts = {name: [sets[split].counts[name] for split in SPLITS] for name in names}
    in_val, in_test = (enough_rows([sets[split].counts[name] for name in names]) for split in ("val", "test"))
    few = [name for name, *counting in zip(names, in_val, in_test, strict=True) if not all(counting)]
    if few:
        shown = [f"{name!r} {'/'.join(map(str, counts[name]))}" for name in few]
        _log.warning(
            "examples: %d of %d tasks have fewer than %d for validation or test, where their scores do not count in "
            "means over tasks (train/val/test): %s",
            *(len(few), len(counts), FEWEST_ROWS, some_of(shown, 5)),
        )


def say_single_values(train: TaskSet) -> None:
    """Warn of tasks with a single label or number in training, in one line."""
    alike = [name for name in train.names if bool((train.targets[name] == train.targets[name][:1]).all())]
    if alike:
        _log.warning(
            "targets: %d of %d tasks have a single label or number in training, so there is nothing to learn (%s); "
            "leave them out with `tasks`",
            *(len(alike), len(train.names), some_of(map(repr, alike), 5)),
        )


def say_undefined_scores(tasks: Mapping[str, Task], undefined: Mapping[Split, Undefined]) -> None:
    """Warn of tasks whose score is undefined in validation or testing, in one line for each."""
    for split, of_split in undefined.items():
        names = [name for name, metrics in of_split.items() if tasks[name].selection in metrics]
        if names:
            shown = [f"{name!r} {tasks[name].selection}" for name in names]
            _log.warning(
                "scores: %d of %d tasks have a target with a single label or number in the %s split, where their score "
                "is undefined and does not count in means over tasks: %s; use more data or another division, or leave "
                "them out with `tasks`",
                *(len(names), len(tasks), split, some_of(shown, 5)),
            )


def say_unseen_classes(tasks: Mapping[str, Task], sets: Mapping[Split, TaskSet], table: TableSpec | None) -> None:
    """Warn of classes that occur in validation or testing, but in no training example, in one line."""
    unseen: list[str] = []
    for name, task in tasks.items():
        if isinstance(task, Classification):
            train, *others = (sets[split].targets[name].long().unique() for split in SPLITS)
            of_task = torch.cat(others).unique()
            for number in of_task[~torch.isin(of_task, train)].tolist():
                unseen.append(f"class {_class_name(number, name, table)!r} of {name!r}")
    if unseen:
        _log.warning(
            "classes: no training example has %s, so the model cannot learn to predict it, but validation or testing "
            "examples do; use more data or another division",
            some_of(unseen, 5),
        )


def _class_name(number: int, task: str, table: TableSpec | None) -> str | int:
    """The label of a class in a table; otherwise its number."""
    targets = [] if table is None else [t for t in table.targets if table.task_column or t.name == task]
    return targets[0].classes[number] if targets else number
