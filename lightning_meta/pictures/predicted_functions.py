"""The predicted functions of regression tasks with one input, with their uncertainty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_meta.batches import Examples
from lightning_meta.checks import whole
from lightning_meta.data import Episodes
from lightning_meta.functional.inference import outside_inference_mode
from lightning_meta.meta import MetaModule
from lightning_meta.pictures.base import Picture, learn
from lightning_meta.sources.gaussian_process import GaussianProcess
from lightning_meta.tasks import GaussianRegression

POINTS, COLUMNS = 200, 3


class PredictedFunctions(Picture):
    """Draws the first test tasks of regression on one input: support set, queries, and the predicted function.

    A shaded band of two predicted standard deviations is drawn if the method predicts them. For tasks drawn from a
    `GaussianProcess`, the exact posterior mean is drawn dashed, and two standard deviations from it dotted.

    Args:
        tasks: Number of test tasks, >= 1; the first ones are drawn.
    """

    file = "predicted_functions"
    regression = True

    def __init__(self, tasks: int = 6) -> None:
        whole(1, tasks=tasks)
        self.tasks = tasks

    def check(self, module: MetaModule, input_shape: Sequence[int]) -> None:
        """Raise an error if examples have more than one input."""
        if math.prod(input_shape) != 1:
            raise self.refusal(f"functions of one input, these have {tuple(input_shape)}")

    def draw(self, module: MetaModule, dataset: Episodes, folder: Path) -> Figure:
        """Draw one panel per task."""
        count = min(self.tasks, len(dataset))
        rows, columns = -(-count // COLUMNS), min(count, COLUMNS)
        figure = Figure((3.2 * columns, 0.4 + 2.4 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
        for task, axes in enumerate(panels[:count]):
            _draw_task(axes, module, dataset, task)
        for axes in panels[count:]:
            axes.set_axis_off()
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=7)
        return figure


def _draw_task(axes: Axes, module: MetaModule, dataset: Episodes, task: int) -> None:
    episode, state, _, _ = learn(module, dataset, task)
    support, query = (Examples(part.x[0].cpu(), part.y[0].cpu()) for part in (episode.support, episode.query))
    seen = torch.cat([support.x, query.x])
    x = torch.linspace(float(seen.min()), float(seen.max()), POINTS).view(POINTS, *support.x.shape[1:])
    with torch.no_grad():
        predicted = outside_inference_mode(module.predict, state, module.inputs(x.to(module.device)))
    outputs = module.task.readable(predicted).double().cpu()
    on, mean = x.flatten(), outputs[:, 0]
    if isinstance(module.task, GaussianRegression):
        half = 2 * outputs.chunk(2, -1)[1][:, 0]
        axes.fill_between(on, mean - half, mean + half, color="0.8", lw=0, label="two standard deviations")
    axes.plot(on, mean, color="k", lw=1.2, label=type(module).__name__)
    if isinstance(dataset.origin, GaussianProcess):
        exact, deviation = (part.flatten() for part in dataset.origin.posterior(support, x))
        axes.plot(on, exact, color="k", lw=0.9, ls="--", label="exact Gaussian process")
        axes.plot(on, exact - 2 * deviation, color="k", lw=0.6, ls=":", label="its two standard deviations")
        axes.plot(on, exact + 2 * deviation, color="k", lw=0.6, ls=":")
    axes.plot(query.x.flatten(), query.y[:, 0], "o", ms=2, mfc="w", mec="0.4", label="queries")
    axes.plot(support.x.flatten(), support.y[:, 0], "ko", ms=4, label="support")
    axes.set_title(f"Test task {task}", fontsize=8)
    axes.tick_params(labelsize=7)
