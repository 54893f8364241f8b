"""Accuracy by the number of examples per class and the number of classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure

from lightning_meta.checks import whole
from lightning_meta.data import EpisodeDataset, Episodes, Pool
from lightning_meta.errors import UserError
from lightning_meta.meta import MetaModule
from lightning_meta.meta.scores import mean_and_interval
from lightning_meta.pictures.base import Picture
from lightning_meta.report.figures import Point, draw_points, write_points


class ShotAndWay(Picture):
    """Draws accuracy against shots for several ways, with 95 % intervals over additional tasks of the test split.

    Ways that the method does not support, and shots for which classes have too few examples, are left out and named in
    the title. The values are written to `shot_and_way.csv`.

    Args:
        shots: Numbers of shots K, each >= 1.
        ways: Numbers of ways N, each >= 2; by default that of the test tasks, 10 and 20.
        tasks: Number of tasks for each pair of shots and ways, >= 2.
        queries: Number of query examples Q per class, >= 1.
    """

    file = "shot_and_way"

    def __init__(
        self, shots: Sequence[int] = (1, 2, 5), ways: Sequence[int] | None = None, tasks: int = 200, queries: int = 5
    ) -> None:
        whole(2, tasks=tasks)
        whole(1, queries=queries)
        if not shots or min(shots) < 1 or (ways is not None and (not ways or min(ways) < 2)):
            raise UserError(f"ShotAndWay: shots from 1 and ways from 2 up are needed, got {shots} and {ways}")
        self.shots, self.ways, self.tasks, self.queries = tuple(sorted(shots)), ways, tasks, queries

    def draw(self, module: MetaModule, dataset: Episodes, folder: Path) -> Figure:
        """Measure the accuracies and draw one line per number of ways."""
        own, _ = dataset.shape.largest()
        points, left_out = [], []
        for ways in sorted(set(self.ways or (own, 10, 20))):
            for shots in self.shots:
                try:
                    points.append(self._measure(module, dataset, ways, shots))
                except UserError:
                    left_out.append(f"{ways}-way {shots}-shot")
        write_points(points, "accuracy", folder / "shot_and_way.csv")
        return draw_points(points, "accuracy", left_out, type(module).__name__)

    def _measure(self, module: MetaModule, dataset: Episodes, ways: int, shots: int) -> Point:
        module.check_ways(ways)
        pool = dataset.origin
        assert isinstance(pool, Pool)
        shape = dataset.shape._replace(ways=ways, shots=shots, queries=self.queries)
        size = max(1, dataset.meta_batch_size * dataset.shape.largest()[0] // ways)
        drawn = EpisodeDataset(pool, "test", shape, size, self.tasks, 0)
        scores = []
        for tasks in torch.arange(self.tasks).split(size):
            batch = drawn.__getitems__(tasks.tolist())
            batch = module.transfer_batch_to_device(batch, module.device, 0)
            outputs = module.predict_step(batch, 0)
            scores.append((outputs.argmax(-1) == batch.query.y).cpu().double().mean(-1))
        return Point(ways, shots, *mean_and_interval(torch.cat(scores), 1 / (ways * self.queries)), self.tasks)
