"""Accuracy against the number of examples and of classes."""

from __future__ import annotations

import csv
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure

from lightning_meta.data import EpisodeDataset, EpisodeShape, Pool
from lightning_meta.errors import UserError
from lightning_meta.meta import MetaModule
from lightning_meta.meta.scores import mean_and_interval
from lightning_meta.pictures.base import Picture
from lightning_meta.report.figures import LINES
from lightning_meta.run.files import replacing


class Point(NamedTuple):
    """Accuracy at one way and shot.

    Attributes:
        ways: N.
        shots: K.
        accuracy: The mean over tasks, in [0, 1].
        interval: The half-width of its 95 % interval.
    """

    ways: int
    shots: int
    accuracy: float
    interval: float


class ShotAndWay(Picture):
    """Draws accuracy against shot for several ways, with 95 % intervals over tasks drawn for it from the test split.

    Ways that the method does not serve, and shots that the classes cannot fill, are left out, which the title says.
    The numbers go to `shot_and_way.csv`.

    Args:
        shots: K's.
        ways: N's; by default that of the test tasks, and 10 and 20.
        tasks: Tasks of each.
        queries: Q, query examples of a class in them.
    """

    file = "shot_and_way"

    def __init__(
        self, shots: Sequence[int] = (1, 2, 5), ways: Sequence[int] | None = None, tasks: int = 200, queries: int = 5
    ) -> None:
        if (
            not shots
            or min(shots) < 1
            or tasks < 2
            or queries < 1
            or (ways is not None and (not ways or min(ways) < 2))
        ):
            raise UserError(
                "ShotAndWay: shots and queries from 1, ways and tasks from 2 up are needed; "
                f"got {shots}, {queries}, {ways} and {tasks}"
            )
        self.shots, self.ways, self.tasks, self.queries = tuple(sorted(shots)), ways, tasks, queries

    def draw(self, module: MetaModule, dataset: EpisodeDataset, folder: Path) -> Figure:
        """A line for each way."""
        own, _ = dataset.shape.largest()
        points, left_out = [], []
        for ways in sorted(set(self.ways or (own, 10, 20))):
            for shots in self.shots:
                try:
                    points.append(self._measure(module, dataset, ways, shots))
                except UserError:
                    left_out.append(f"{ways}-way {shots}-shot")
        with replacing(folder / "shot_and_way.csv") as file:
            writer = csv.writer(file)
            writer.writerow(["ways", "shots", "accuracy", "accuracy_ci95", "tasks"])
            writer.writerows([*point, self.tasks] for point in points)
        return _draw(points, left_out, self.tasks)

    def _measure(self, module: MetaModule, dataset: EpisodeDataset, ways: int, shots: int) -> Point:
        module.check_ways(ways)
        pool = dataset.origin
        assert isinstance(pool, Pool)
        shape = EpisodeShape(ways, shots, self.queries)
        size = max(1, dataset.meta_batch_size * dataset.shape.largest()[0] // ways)
        drawn = EpisodeDataset(pool, "test", shape, size, self.tasks, 0)
        scores = []
        for start in range(0, self.tasks, size):
            batch = drawn.__getitems__(range(start, min(start + size, self.tasks)))
            batch = module.transfer_batch_to_device(batch, module.device, 0)
            outputs = module.predict_step(batch, 0)
            scores.append((outputs.argmax(-1) == batch.query.y).cpu().double().mean(-1))
        return Point(ways, shots, *mean_and_interval(torch.cat(scores)))


def _draw(points: Sequence[Point], left_out: Sequence[str], tasks: int) -> Figure:
    figure = Figure((6.0, 4.0), layout="constrained")
    axes = figure.subplots()
    for (line, marker), ways in zip(LINES * len(points), sorted({p.ways for p in points}), strict=False):
        mine = [p for p in points if p.ways == ways]
        shots, accuracy, interval = (
            [p.shots for p in mine],
            [100 * p.accuracy for p in mine],
            [p.interval for p in mine],
        )
        axes.errorbar(
            shots,
            accuracy,
            [100 * i for i in interval],
            ls=line,
            marker=marker,
            color="k",
            ms=4,
            capsize=3,
            label=f"{ways}-way (chance {100 / ways:.0f} %)",
        )
    axes.set_xscale("log")
    known = sorted({p.shots for p in points})
    axes.set_xticks(known, [str(k) for k in known])
    axes.minorticks_off()
    axes.set(xlabel="support examples of a class (shot)", ylabel="accuracy, %")
    title = f"Mean and 95 % interval over {tasks} test tasks each"
    missing = textwrap.wrap(f"not served: {', '.join(left_out)}", 90) if left_out else []
    axes.set_title("\n".join([title, *missing]), fontsize=8)
    if points:
        axes.legend(frameon=False, fontsize=8)
    return figure
