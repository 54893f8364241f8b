"""`lightning_meta.calibrate`: calibrate a trained meta-learner on validation tasks."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from lightning_meta.batches import Episode, Examples, Split
from lightning_meta.checks import instance, share, whole
from lightning_meta.data import EpisodicDataModule
from lightning_meta.errors import UserError, one_of
from lightning_meta.fitting.checks import quiet_trainer
from lightning_meta.fitting.conversion import keeping_weights
from lightning_meta.fitting.evaluation import own_names
from lightning_meta.fitting.quiet import quiet_lightning
from lightning_meta.fitting.trained_data import warn_of_other_training_data
from lightning_meta.meta import MetaModule
from lightning_meta.meta.calibration import Calibration, TaskLogits, predicts_together
from lightning_meta.meta.scores import TaskScores
from lightning_meta.run.naming import naming_arguments

TASKS = 1000
OF_TEMPERATURE = 5  # tasks per additional task for the temperature, which must be independent of the others


class Calibrated(NamedTuple):
    """A calibration and its measured coverage.

    Attributes:
        calibration: The calibration, from validation tasks.
        measured: Results of `Calibration.measure` by split: `val` on the tasks of the calibration, `test` on as many
            tasks of the test split, which has other classes.
    """

    calibration: Calibration
    measured: dict[str, dict[str, float | None]]


@quiet_lightning()
def calibrate(
    module: MetaModule,
    data: EpisodicDataModule,
    *,
    coverage: float = 0.9,
    ways: int | None = None,
    shots: int | None = None,
    queries: int | None = None,
    tasks: int = TASKS,
    **trainer: Any,
) -> Calibrated:
    """Calibrate a meta-learner on validation tasks: temperature, prediction sets and abstention.

    A calibration is for tasks with these ways and shots. Its guarantee is for tasks of the validation classes; the
    coverage for other classes is measured on the test split::

        model = lm.load("runs/protonet_glyphs/0")
        data = lm.EpisodicDataModule(lm.sources.Glyphs(), queries=5)
        calibration, measured = lm.calibrate(model, data, ways=5, shots=1)
        measured["test"]["coverage"]  # near 0.9, without a guarantee
        logits = model.predictor(images, labels).outputs(new_images)  # of 5 classes with one image each
        calibration.sets(calibration.probabilities(logits))  # (M, 5) bool

    Args:
        module: The meta-learner.
        data: The data module that draws the tasks.
        coverage: 1 − α in (0, 1), the share of examples whose set contains their label.
        ways: N; by default as in validation tasks.
        shots: K; by default as in validation tasks.
        queries: Q, query examples per class; by default as in validation tasks.
        tasks: n, number of tasks; a fifth of n is drawn in addition, for the temperature.
        **trainer: Arguments of `lightning.pytorch.Trainer`, such as `devices`.

    Returns:
        The calibration and the measured coverage.

    Raises:
        UserError: The tasks are regression, predictions depend on the other queries, or a split is too small.
    """
    with naming_arguments():
        share(0.9, coverage=coverage)
        instance("module", module, MetaModule)
        instance("data", data, EpisodicDataModule)
        runner = quiet_trainer(trainer)
        calibrated = calibrate_by(
            runner, module, data, coverage=coverage, ways=ways, shots=shots, queries=queries, tasks=tasks
        )
    if runner.is_global_zero:
        warn_of_other_training_data(module.run_record, data)
    return calibrated


def calibrate_by(
    trainer: Trainer,
    module: MetaModule,
    data: EpisodicDataModule,
    *,
    coverage: float,
    ways: int | None,
    shots: int | None,
    queries: int | None,
    tasks: int,
) -> Calibrated:
    """Calibrate with an existing Trainer; the other arguments are those of `calibrate`."""
    whole(1, tasks=tasks)
    sizes = {"ways": ways, "shots": shots, "queries": queries}
    more = max(1, tasks // OF_TEMPERATURE)
    predicted = task_logits(trainer, module, data, "val", tasks + more, **sizes)
    if len(predicted.logits) < tasks + more:
        raise UserError(
            f"limit_val_batches: {len(predicted.logits)} of {tasks + more} validation tasks were predicted, and a "
            "calibration needs all; leave it out, as well as fast_dev_run and overfit_batches, or lower tasks"
        )
    # The temperature is fitted on separate tasks: the guarantee of the quantiles needs tasks that it is independent of.
    n = len(predicted.logits) - more
    then = TaskLogits(predicted.logits[:n], predicted.labels[:n], predicted.other_classes)
    first = TaskLogits(predicted.logits[n:], predicted.labels[n:], predicted.other_classes[:0])
    shape = data.test_shape
    calibration = Calibration.of(shape.shots if shots is None else shots, coverage, first, then)  # type: ignore[arg-type]
    test = task_logits(trainer, module, data, "test", tasks, **sizes)
    val = {**calibration.measure(then), "coverage_ci95": None}  # the sets were fitted to the coverage of these tasks
    return Calibrated(calibration, {"val": val, "test": calibration.measure(test)})


def task_logits(
    trainer: Trainer,
    module: MetaModule,
    data: EpisodicDataModule,
    split: Split,
    tasks: int,
    ways: int | None = None,
    shots: int | None = None,
    queries: int | None = None,
) -> TaskLogits:
    """Predict the queries of balanced tasks; the result is the same at any number of ranks.

    Args:
        trainer: The Trainer that runs the evaluation.
        module: The meta-learner.
        data: The data module that draws the tasks.
        split: `val` or `test`.
        tasks: Number of tasks n.
        ways: Number of classes N.
        shots: Support examples per class K.
        queries: Query examples per class Q.

    Returns:
        Logits on the CPU, in the order of the task numbers.

    Raises:
        UserError: The tasks are regression, predictions depend on the other queries, or the split is too small.
    """
    one_of("split", split, Split)
    if data.regression:
        raise UserError("data: regression tasks have no classes; calibrate a classifier")
    if module.transductive:
        raise predicts_together(module, "module" if module.uses_query_set else "batch_norm")
    chosen: dict[str, Any] = {
        name: n for name, n in (("ways", ways), ("shots", shots), ("queries", queries)) if n is not None
    }
    for least, name in ((2, "ways"), (1, "shots"), (1, "queries")):
        whole(least, **{name: chosen.get(name)})
    chosen = {name: int(n) for name, n in chosen.items()}
    shape = data.test_shape._replace(dirichlet=None, support_dirichlet=None, **chosen)
    assert isinstance(shape.ways, int)
    if module.episodes is not None:
        module.check_ways(shape.ways)
    if not module.ready_to_build:  # it would store the shape of these tasks
        module = copy.deepcopy(module)
    recorder = _Recorder()
    trainer.callbacks.append(recorder)  # type: ignore[attr-defined]  # Lightning makes it a list
    try:
        with own_names(), keeping_weights(module), data.testing(shape, tasks, None, split):
            run = trainer.test if split == "test" else trainer.validate
            run(module, datamodule=data, verbose=False)
    finally:
        trainer.callbacks.remove(recorder)  # type: ignore[attr-defined]
    assert recorder.table is not None
    outputs, targets = recorder.table.outputs.double(), recorder.table.targets.long()
    if bad := int((~outputs.isfinite()).flatten(1).any(1).sum()):
        raise UserError(
            f"module: its predictions for {bad} of {len(outputs)} tasks of the {split} split are NaN or infinite, so "
            "they cannot be calibrated; retrain, or adapt with a smaller inner_lr or fewer steps"
        )
    return TaskLogits(outputs[:, :-1], targets[:, :-1], outputs[targets[:, -1] == 0, -1])


class _Recorder(Callback):
    """Collects, over all ranks, the logits of the queries of each task and of one example of none of its classes."""

    def __init__(self) -> None:
        self.scores = TaskScores(keep_outputs=True)
        self.table: Any = None

    def record(self, trainer: Trainer, module: MetaModule, batch: Episode) -> None:
        """Predict a batch of tasks, with one example of another class per task."""
        x, known = queries_of_other_classes(batch)
        count = batch.query.y.shape[1]
        y = torch.cat([batch.query.y, torch.zeros_like(batch.query.y[:, :1])], 1)  # the additional example has no label
        with trainer.precision_plugin.forward_context():
            query = Examples(torch.cat([batch.query.x, x], 1), y)
            outputs = module.predict_step(batch._replace(query=query), 0)
        y[:, count] = torch.where(known, 0, -1)
        nothing = outputs.new_zeros(len(y))
        self.scores.to(module.device).update(batch.tasks, nothing, nothing.unsqueeze(1), outputs, y)

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        """After validation tasks."""
        self.record(trainer, pl_module, batch)

    def on_test_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        """After test tasks."""
        self.record(trainer, pl_module, batch)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Gather the tasks of all ranks."""
        self.table = self.scores.compute()

    on_test_epoch_end = on_validation_epoch_end


def queries_of_other_classes(batch: Episode) -> tuple[Tensor, Tensor]:
    """For each task, choose a query of another task in the batch whose class the task does not have.

    Args:
        batch: T tasks of N classes.

    Returns:
        Inputs `(T, 1, *input_shape)`, and whether such a query exists, `(T,)` bool; if not, the input is arbitrary.
    """
    assert batch.classes is not None
    tasks, count = batch.query.y.shape
    class_of = batch.classes.gather(1, batch.query.y).flatten()  # (T M,)
    # Start with the queries of the next task, so that not all tasks get the same one.
    turns = torch.arange(tasks * count, device=class_of.device).unsqueeze(0)
    order = (turns + count * torch.arange(1, tasks + 1, device=class_of.device).unsqueeze(1)) % (tasks * count)
    other = (class_of[order].unsqueeze(-1) != batch.classes.unsqueeze(1)).all(-1)  # (T, T M)
    first = other.int().argmax(1, keepdim=True)
    x = batch.query.x.flatten(0, 1)[order.gather(1, first)]
    return x, other.any(1)
