"""The images of one test task with their predictions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from lightning_meta.checks import whole
from lightning_meta.data import Episodes
from lightning_meta.meta import MetaModule
from lightning_meta.pictures.base import Picture, class_names, learn
from lightning_meta.report.drawing import shortened

INCH = 0.72  # side of an image, in inches
WRONG = {"bbox": {"facecolor": "k", "edgecolor": "k", "pad": 1.5}, "color": "w", "weight": "bold"}


class EpisodeGrid(Picture):
    """Draws a test task: support and query images of each class, and the prediction of each query.

    Args:
        task: Number of the test task, >= 0.
        shots: Largest number of support images shown per class, >= 1.
        queries: Largest number of query images shown per class, >= 1.
        ways: Largest number of classes shown, >= 1.
    """

    file = "episode"

    def __init__(self, task: int = 0, shots: int = 5, queries: int = 6, ways: int = 10) -> None:
        whole(0, task=task)
        whole(1, shots=shots, queries=queries, ways=ways)
        self.task, self.shots, self.queries, self.ways = task, shots, queries, ways

    def check(self, module: MetaModule, input_shape: Sequence[int]) -> None:
        """Raise an error if examples are not images of 1 or 3 channels."""
        if len(input_shape) != 3 or input_shape[0] not in (1, 3):
            raise self.refusal(f"images of 1 or 3 channels, and examples have shape {tuple(input_shape)}")

    def draw(self, module: MetaModule, dataset: Episodes, folder: Path) -> Figure:
        """Draw one row per class: name, support images, and queries with the predicted class and its probability."""
        episode, state, _, query = learn(module, dataset, self.task)
        with torch.no_grad():
            probabilities = module.predict(state, query.x).softmax(-1).cpu()
        names = class_names(dataset, episode)
        labels = query.y.cpu()
        right = float((probabilities.argmax(-1) == labels).float().mean())
        # Classes may have different numbers of queries and, in tasks read from a list, of support images.
        k = min(self.shots, int(episode.support.y.flatten().bincount().max()))
        q = min(self.queries, int(labels.bincount().max()))
        n = min(self.ways, episode.ways)
        figure = Figure((1.9 + INCH * (k + q + 0.4), 1.0 + (INCH + 0.2) * n), layout="constrained")
        grid = figure.subplots(n, k + q + 1, squeeze=False, width_ratios=[1] * k + [0.3] + [1] * q)
        for axes in grid[:, 1:].flat:
            axes.axis("off")  # `_show` switches used ones on again
        for row in range(n):
            for axes, image in zip(grid[row, :k], _of_class(episode.support.x, episode.support.y, row), strict=False):
                _show(axes, image)
            grid[row, 0].set_ylabel(
                f"{row + 1}: {shortened(names[row])}", rotation=0, ha="right", va="center", fontsize=7
            )
            images, shown = _of_class(episode.query.x, episode.query.y, row), probabilities[labels == row]
            for axes, image, probability in zip(grid[row, k + 1 :], images, shown, strict=False):
                _show(axes, image)
                largest, taken = probability.max(0)
                style: dict[str, Any] = {} if taken == row else WRONG
                mark = "" if taken == row else "✗ "
                axes.set_xlabel(f"{mark}{taken + 1}: {100 * largest:.0f} %", fontsize=6, labelpad=3, **style)
        grid[0, 0].set_title("support", fontsize=7, loc="left")
        grid[0, k + 1].set_title("queries", fontsize=7, loc="left")
        part = f"; the first {n} of {episode.ways} classes" if n < episode.ways else ""
        figure.suptitle(
            f"Test task {self.task}: {100 * right:.0f} % of {len(labels)} queries right{part}\n"
            "below each query the class it was taken for, and its probability; wrong ones on black",
            fontsize=8,
        )
        return figure


def _of_class(x: Tensor, y: Tensor, label: int) -> Tensor:
    """The examples of a class in a meta-batch of one task."""
    return x[0].cpu()[y[0].cpu() == label]


def _show(axes: Axes, image: Tensor) -> None:
    axes.axis("on")
    pixels = image if image.dtype == torch.uint8 else (255 * image.clamp(0, 1)).byte()
    axes.imshow(pixels.movedim(0, -1).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=255)
    axes.set(xticks=[], yticks=[])
