"""`lightning_meta.evaluate`: a meta-learner on test tasks of several ways and shots, its data read once."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Any, NamedTuple

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer

from lightning_meta.checks import instance, whole
from lightning_meta.data import EpisodicDataModule
from lightning_meta.data.episodes import EpisodeShape
from lightning_meta.errors import UserError
from lightning_meta.fitting.checks import check_machine, check_trainer
from lightning_meta.import_paths import reason
from lightning_meta.meta import MetaModule
from lightning_meta.report.shot_and_way import Point
from lightning_meta.run.naming import naming_arguments

QUIET: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
QUIET |= {"enable_progress_bar": False}
_OF_DATA = re.compile(r"\btest_(ways|shots|queries|tasks)\b")

Numbers = int | Sequence[int]


class Evaluation(NamedTuple):
    """The test tasks of one way and shot.

    Attributes:
        ways: N; 0 in regression, and where the tasks of a list differ.
        shots: K; of a list, the most that a class of a task has.
        queries: Q; of a list, the most that a class of a task has.
        tasks: How many.
        metric: `accuracy`, or `mse` in regression.
        score: The mean of the metric over tasks.
        interval: The half-width of its 95 % interval.
        metrics: All that was logged, by name, as `test/accuracy`.
        per_task: A row a task: its number and its score, or its scores after 0, 1, ... inner steps.
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

    @property
    def point(self) -> Point:
        """What tables and pictures show of it."""
        return Point(self.ways, self.shots, self.score, self.interval, self.tasks)


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
    """Test a meta-learner on tasks of every way with every shot.

    The tasks of one way and shot are those that `data` draws with these as its `test_ways` and `test_shots`, so that
    they are the same in every run. No weight of the module changes, and no file is written. A module that was never
    fitted is tested as it is, with a head of its own for each way where its method has one, and is not bound to the
    ways and shots of the test afterwards::

        model = lm.load("runs/protonet_glyphs/0")
        data = lm.EpisodicDataModule(lm.sources.Glyphs(), queries=5)
        for found in lm.evaluate(model, data, ways=[5, 20], shots=[1, 5], tasks=10_000):
            print(found.ways, found.shots, found.score, found.interval)

    Args:
        module: The meta-learner.
        data: Where the tasks come from.
        ways: N, or several.
        shots: K, or several.
        queries: Q, query examples of a class.
        tasks: How many of each way and shot.
        **trainer: Arguments of `lightning.pytorch.Trainer`, such as `devices`.

    Returns:
        One for each way and shot, ways first. What is left out is as in `data`. The tasks of a `test_task_list` are
        tested as they are listed.

    Raises:
        UserError: The method does not serve one of the ways, or the test split cannot fill the tasks; before the first.
            Or the tasks are listed, and another shape or number is asked for.
    """
    with naming_arguments():
        instance("module", module, MetaModule)
        instance("data", data, EpisodicDataModule)
        check_trainer(trainer, "test")
        check_machine(trainer)
        try:
            runner = Trainer(**{**QUIET, **trainer})
        except (TypeError, ValueError, MisconfigurationException) as error:
            raise UserError(reason(error)) from error
        return evaluate_by(runner, module, data, ways=ways, shots=shots, queries=queries, tasks=tasks)


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
    """As `evaluate`, by a Trainer."""
    with _without_predictions(module), _own_names():
        if ways is None and shots is None and queries is None and tasks is None:
            return [_tested(trainer, module, data)]
        if data.test_task_list is not None:
            raise UserError(
                f"test_task_list: ways, shots, queries and tasks are those of the list {data.test_task_list}; leave "
                "them out, or give data without a list"
            )
        shapes, largest = _shapes(module, data, ways, shots, queries)
        count = data.evaluation_tasks["test"] if tasks is None else tasks
        whole(1, tasks=count)
        found = []
        for shape in shapes:
            with data.testing(shape, count, largest):
                found.append(_tested(trainer, module, data))
        return found


def _shapes(
    module: MetaModule, data: EpisodicDataModule, ways: Numbers | None, shots: Numbers | None, queries: int | None
) -> tuple[list[EpisodeShape], EpisodeShape]:
    """Every way with every shot; and the shape with the most of each."""
    own = data.test_shape
    if ways is not None and data.regression:
        raise UserError("ways: regression tasks have no classes; leave it out")
    every = {"ways": _several("ways", own.ways if ways is None else ways, 2)}
    every["shots"] = _several("shots", own.shots if shots is None else shots, 1)
    queries = own.queries if queries is None else queries
    whole(1, queries=queries)
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
    return numbers


def _tested(trainer: Trainer, module: MetaModule, data: EpisodicDataModule) -> Evaluation:
    if not module.ready_to_build:  # it would keep what these tasks look like
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
    """Keep scores alone: the predictions of many tasks of many classes fill the memory."""
    before, module.test_scores.keep_outputs = module.test_scores.keep_outputs, False
    try:
        yield
    finally:
        module.test_scores.keep_outputs = before


@contextmanager
def _own_names() -> Iterator[None]:
    """Say `ways` for the data module's `test_ways`, and so on, in what is refused."""
    try:
        yield
    except UserError as error:
        error.args = (_OF_DATA.sub(r"\1", str(error)),)
        raise
