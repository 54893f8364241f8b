"""The images of one test task with their predictions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from lightning_meta.checks import whole
from lightning_meta.data import Episodes
from lightning_meta.errors import UserError
from lightning_meta.meta import MetaModule
from lightning_meta.pictures.base import Picture, class_names, episode_of, learn
from lightning_meta.report.drawing import shortened

INCH = 0.72  # side of an image, in inches


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

    def check(self, module: MetaModule, input_shape: Sequence[int] | None) -> None:
        """Raise an error if examples are not images of 1 or 3 channels."""
        if input_shape is not None and (len(input_shape) != 3 or input_shape[0] not in (1, 3)):
            shape = tuple(input_shape)
            raise UserError(
                f"trainer.callbacks: EpisodeGrid draws images of 1 or 3 channels, and examples have shape {shape}; "
                "leave it out"
            )

    def draw(self, module: MetaModule, dataset: Episodes, folder: Path) -> Figure:
        """Draw one row per class: name, support images, and queries with the predicted class and its probability."""
        episode = episode_of(dataset, self.task, module)
        state, _, query = learn(module, episode)
        with torch.no_grad():
            probabilities = module.predict(state, query.x).softmax(-1).cpu()
        names = class_names(dataset, episode.classes[0]) if episode.classes is not None else []
        right = float((probabilities.argmax(-1) == query.y.cpu()).float().mean())
        # Classes may have different numbers of queries and, in tasks read from a list, of support images.
        support = _by_class(episode.support.x[0], episode.support.y[0], episode.ways)
        queries = _by_class(episode.query.x[0], episode.query.y[0], episode.ways)
        shown = _by_class(probabilities, episode.query.y[0], episode.ways)
        k, q = (min(most, max(map(len, part))) for most, part in ((self.shots, support), (self.queries, queries)))
        n = min(self.ways, episode.ways)
        figure = Figure((1.9 + INCH * (k + q + 0.4), 1.0 + (INCH + 0.2) * n), layout="constrained")
        grid = figure.subplots(n, k + q + 1, squeeze=False, width_ratios=[1] * k + [0.3] + [1] * q)
        for row in range(n):
            grid[row, k].axis("off")
            for axes in [*grid[row, 1:k], *grid[row, k + 1 :]]:
                axes.axis("off")  # `_show` switches used ones on again
            for column in range(min(k, len(support[row]))):
                _show(grid[row, column], support[row][column])
            label = f"{row + 1}: {shortened(names[row])}"
            grid[row, 0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=7)
            for column in range(min(q, len(queries[row]))):
                axes, p = grid[row, k + 1 + column], shown[row][column]
                _show(axes, queries[row][column])
                _mark(axes, int(p.argmax()) + 1, float(p.max()), int(p.argmax()) == row)
        grid[0, 0].set_title("support", fontsize=7, loc="left")
        grid[0, k + 1].set_title("queries", fontsize=7, loc="left")
        part = f"; the first {n} of {episode.ways} classes" if n < episode.ways else ""
        figure.suptitle(
            f"Test task {self.task}: {100 * right:.0f} % of {len(query.y)} queries right{part}\n"
            "below each query the class it was taken for, and its probability; wrong ones on black",
            fontsize=8,
        )
        return figure


def _by_class(x: Tensor, y: Tensor, ways: int) -> list[Tensor]:
    """The rows of each of the `ways` classes."""
    return [x.cpu()[y.cpu() == label] for label in range(ways)]


def _show(axes: Axes, image: Tensor) -> None:
    axes.axis("on")
    pixels = image if image.dtype == torch.uint8 else (255 * image.clamp(0, 1)).byte()
    picture = np.moveaxis(pixels.cpu().numpy(), 0, -1)
    axes.imshow(picture[..., 0] if picture.shape[-1] == 1 else picture, cmap="gray", vmin=0, vmax=255)
    axes.set_xticks([])
    axes.set_yticks([])


def _mark(axes: Axes, number: int, probability: float, right: bool) -> None:
    wrong = {"bbox": {"facecolor": "k", "edgecolor": "k", "pad": 1.5}, "color": "w", "weight": "bold"}
    text = f"{number}: {100 * probability:.0f} %" if right else f"✗ {number}: {100 * probability:.0f} %"
    axes.set_xlabel(text, fontsize=6, labelpad=3, **({} if right else wrong))  # type: ignore[arg-type]
