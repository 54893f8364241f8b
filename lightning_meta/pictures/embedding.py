"""The embedding of one test task, in two dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lightning_meta.checks import whole
from lightning_meta.data import Episodes
from lightning_meta.meta import MetaModule, ProtoNet
from lightning_meta.pictures.base import Picture, class_names, learn
from lightning_meta.report.drawing import panel, shortened

MARKERS = "osD^vP<>XpH"  # without the star, which marks prototypes
ROWS = 25  # class names per column of the legend


def principal(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The plane of the two largest principal components of features `(M, D)`, D ≥ 2.

    Returns:
        The centre `(D,)`, the two axes `(D, 2)` and the shares of the variance along them `(2,)`, in [0, 1]. The
        entry of each axis with the largest magnitude is positive, so that the orientation is deterministic.
    """
    centre = features.mean(0)
    _, singular, axes = torch.linalg.svd(features - centre, full_matrices=False)
    plane = axes[:2].T
    largest = plane.gather(0, plane.abs().argmax(0, keepdim=True))
    return centre, plane * largest.sign(), (singular.square() / singular.square().sum())[:2]


class EpisodeEmbedding(Picture):
    """Draws the embedding of a test task by its two principal components: support, queries and prototypes.

    Args:
        task: Number of the test task, >= 0.
    """

    file = "embedding"

    def __init__(self, task: int = 0) -> None:
        whole(0, task=task)
        self.task = task

    def check(self, module: MetaModule, input_shape: Sequence[int]) -> None:
        """Raise an error if the method is not `ProtoNet`."""
        if not isinstance(module, ProtoNet):
            raise self.refusal(f"prototypes, {type(module).__name__} has none")

    def draw(self, module: MetaModule, dataset: Episodes, folder: Path) -> Figure:
        """Draw filled markers for support examples, hollow markers for queries, and stars for prototypes."""
        assert isinstance(module, ProtoNet)
        episode, state, support, query = learn(module, dataset, self.task)
        with torch.no_grad():
            parts = [module.features(state, support.x), module.features(state, query.x), state["prototypes"]]
        parts = [part.cpu().double() for part in parts]
        centre, plane, shares = principal(torch.cat(parts[:2]))
        in_support, in_query, prototypes = ((part - centre) @ plane for part in parts)
        figure, axes = panel((7.0, 4.8))
        handles, legend = [], []
        for label, name in enumerate(class_names(dataset, episode)):
            shade = str(0.6 * (label % 4) / 3)
            style: dict[str, Any] = {"marker": MARKERS[label % len(MARKERS)], "ls": "", "color": shade, "ms": 5}
            handles += axes.plot(*in_query[query.y.cpu() == label].T, **style, mfc="none")
            axes.plot(*in_support[support.y.cpu() == label].T, **style, mec="w", zorder=3)
            at = prototypes[label].tolist()
            axes.plot(*at, marker="*", ms=15, mec="k", mfc=shade, mew=0.8)
            axes.annotate(str(label + 1), at, xytext=(7, 6), textcoords="offset points", fontsize=8, weight="bold")
            legend.append(f"{label + 1}: {shortened(name)}")
        x, y = (f"principal component {i + 1} ({100 * share:.0f} % of the variance)" for i, share in enumerate(shares))
        title = f"{type(module).__name__}, test task {self.task}: ★ prototypes, filled support, hollow queries"
        axes.set(xlabel=x, ylabel=y, title=title)
        axes.set_aspect("equal", adjustable="datalim")
        # Handles are passed, since matplotlib's automatic legend omits labels that begin with "_".
        columns = -(-len(legend) // ROWS)
        figure.legend(handles, legend, fontsize=7, frameon=False, loc="outside right center", ncols=columns)
        return figure
