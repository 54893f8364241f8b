"""`lightning_meta.evaluate`: test a meta-learner for several ways and shots, reading its data once."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Any, NamedTuple

from lightning.pytorch import Trainer

from lightning_meta.checks import instance, whole
from lightning_meta.data import EpisodicDataModule
from lightning_meta.data.episodes import EpisodeShape
from lightning_meta.errors import UserError
from lightning_meta.fitting.checks import quiet_trainer
from lightning_meta.fitting.conversion import keeping_weights
from lightning_meta.fitting.quiet import quiet_lightning
from lightning_meta.fitting.trained_data import warn_of_other_training_data
from lightning_meta.meta import MetaModule
from lightning_meta.report.figures import Point
from lightning_meta.run.naming import naming_arguments

_OF_DATA = re.compile(r"\btest_(ways|shots|queries|tasks)\b")

Numbers = int | Sequence[int]


class Evaluation(NamedTuple):
    """Test results for one number of ways and shots.

    Attributes:
        ways: N; 0 in regression, and if the tasks of a list differ in N.
        shots: K; for a list of tasks, the largest number of support examples of a class.
        queries: Q; for a list of tasks, the largest number of queries of a class.
        tasks: Number of test tasks.
        metric: `accuracy`, or `mse` in regression.
        score: Mean of the metric over tasks.
        interval: Half-width of the 95 % interval of the score.
        metrics: All logged metrics by name, such as `test/accuracy`.
        per_task: One row per task: its number and its score, or its scores after 0, 1, ... inner steps.
    """

    ways: int
    shots: int
    queries: int
    tasks: int
    metric: str
    score: float
    interval: float
    metrics: dict[str, float]
    per_task: list[dict[str, float]]

    def __repr__(self) -> str:
        """One line without the tasks, of which there may be thousands: what a notebook shows."""
        shape = f"ways={self.ways}, shots={self.shots}, queries={self.queries}, tasks={self.tasks}"
        around = "" if math.isnan(self.interval) else f" ± {self.interval:.4f}"  # of a single task there is none
        return f"Evaluation({shape}, {self.metric}={self.score:.4f}{around})"

    @property
    def point(self) -> Point:
        """The values that tables and figures show."""
        return Point(self.ways, self.shots, self.score, self.interval, self.tasks)


@quiet_lightning()
def evaluate(
    module: MetaModule,
    data: EpisodicDataModule,
    *,
    ways: Numbers | None = None,
    shots: Numbers | None = None,
    queries: int | None = None,
    tasks: int | None = None,
    **trainer: Any,
) -> list[Evaluation]:
    """Test a meta-learner for every combination of ways and shots.

    The tasks of one combination are those that `data` draws with these `test_ways` and `test_shots`, so they are the
    same in every run. The weights of the module do not change, and no file is written. If a loaded module was trained
    on other examples of the same source, a warning says so. A module that was never fitted is tested as a copy, with a
    new head for each number of ways if its method has one. It can still be trained with any ways and shots afterwards::

        model = lm.load("runs/protonet_glyphs/0")
        data = lm.EpisodicDataModule(lm.sources.Glyphs(), queries=5)
        for result in lm.evaluate(model, data, ways=[5, 20], shots=[1, 5], tasks=10_000):
            print(result.ways, result.shots, result.score, result.interval)

    Args:
        module: The meta-learner.
        data: The data module that draws the tasks.
        ways: N, one number or several.
        shots: K, one number or several.
        queries: Q, query examples per class.
        tasks: Number of tasks for each combination.
        **trainer: Arguments of `lightning.pytorch.Trainer`, such as `devices`.

    Returns:
        One result for each combination; shots vary fastest. Arguments that are left out are taken from `data`. The
        tasks of a `test_task_list` are tested as listed.

    Raises:
        UserError: The method does not support one of the ways, or the test split has too few examples; raised before
            the first task. Or `data` has a list of tasks, and `ways`, `shots`, `queries` or `tasks` are given.
    """
    with naming_arguments():
        instance("module", module, MetaModule)
        instance("data", data, EpisodicDataModule)
        runner = quiet_trainer(trainer)
        results = evaluate_by(runner, module, data, ways=ways, shots=shots, queries=queries, tasks=tasks)
    if runner.is_global_zero:
        warn_of_other_training_data(module.run_record, data)
    return results


def evaluate_by(
    trainer: Trainer,
    module: MetaModule,
    data: EpisodicDataModule,
    *,
    ways: Numbers | None,
    shots: Numbers | None,
    queries: int | None,
    tasks: int | None,
) -> list[Evaluation]:
    """The same as `evaluate`, with a given Trainer."""
    with _without_predictions(module), own_names(), keeping_weights(module):
        if ways is None and shots is None and queries is None and tasks is None:
            return [_tested(trainer, module, data)]
        if data.test_task_list is not None:
            raise UserError(
                f"test_task_list: the list {data.test_task_list} determines ways, shots, queries and tasks; leave them "
                "out, or give data without a list"
            )
        shapes, largest = _shapes(module, data, ways, shots, queries)
        count = data.evaluation_tasks["test"] if tasks is None else tasks
        whole(1, tasks=count)
        count = int(count)
        found = []
        for shape in shapes:
            with data.testing(shape, count, largest):
                found.append(_tested(trainer, module, data))
        return found


def _shapes(
    module: MetaModule, data: EpisodicDataModule, ways: Numbers | None, shots: Numbers | None, queries: int | None
) -> tuple[list[EpisodeShape], EpisodeShape]:
    """Every combination of ways and shots; and the shape with the largest number of each."""
    own = data.test_shape
    if ways is not None and data.regression:
        raise UserError("ways: regression tasks have no classes; leave it out")
    every = {"ways": _several("ways", own.ways if ways is None else ways, 2)}
    every["shots"] = _several("shots", own.shots if shots is None else shots, 1)
    queries = own.queries if queries is None else queries
    whole(1, queries=queries)
    queries = int(queries)
    if module.episodes is not None and not data.regression:
        for n in every["ways"]:
            module.check_ways(n)
    own = own._replace(queries=queries)
    shapes = [own._replace(ways=n, shots=k) for n, k in product(every["ways"], every["shots"])]
    return shapes, own._replace(ways=max(every["ways"]), shots=max(every["shots"]))


def _several(name: str, given: Any, least: int) -> list[int]:
    numbers = list(dict.fromkeys(given)) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    if not numbers:
        raise UserError(f"{name}: a number from {least} up, or several of them, is needed; got {given!r}")
    for number in numbers:
        whole(least, **{name: number})
    return [int(number) for number in numbers]


def _tested(trainer: Trainer, module: MetaModule, data: EpisodicDataModule) -> Evaluation:
    if not module.ready_to_build:  # it would store the shape of these tasks
        module = copy.deepcopy(module)
    trainer.test(module, datamodule=data, verbose=False)
    metrics = {name: float(v) for name, v in trainer.callback_metrics.items() if name.startswith("test/")}
    shape, metric = data.datasets["test"].shape, module.task.metric
    ways = shape.ways if isinstance(shape.ways, int) and not data.regression else 0
    score, interval = metrics[f"test/{metric}"], metrics[f"test/{metric}_ci95"]
    assert isinstance(shape.shots, int)
    sizes = ways, shape.shots, shape.queries, int(metrics["test/tasks"])
    return Evaluation(*sizes, metric, score, interval, metrics, module.test_report["per_task"])


@contextmanager
def _without_predictions(module: MetaModule) -> Iterator[None]:
    """Store only scores: the predictions of many tasks with many classes would fill the memory."""
    before, module.test_scores.keep_outputs = module.test_scores.keep_outputs, False
    try:
        yield
    finally:
        module.test_scores.keep_outputs = before


@contextmanager
def own_names() -> Iterator[None]:
    """Replace `test_ways` of the data module by `ways`, and so on, in error messages."""
    try:
        yield
    except UserError as error:
        error.args = (_OF_DATA.sub(r"\1", str(error)),)
        raise
