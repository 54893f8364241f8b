"""The confusion matrix of the classes over all test tasks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from torch import Tensor

from lightning_meta.data import Episodes, Pool
from lightning_meta.meta import MetaModule
from lightning_meta.pictures.base import Picture
from lightning_meta.report.drawing import panel, shortened
from lightning_meta.run.tables import write_table

# Largest number of classes drawn as a matrix; number of bars otherwise; largest matrix with values in its cells.
MATRIX, HARDEST, PRINTED = 30, 20, 12


def confusion(outputs: Tensor, targets: Tensor, classes: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Count over tasks how often each class was predicted for queries of each class.

    Args:
        outputs: Logits of the queries of T tasks, `(T, M, N)`.
        targets: Labels `(T, M)` in [0, N).
        classes: Class of each label in each task, `(T, N)`, in [0, C).
        num_classes: Number of classes C.

    Returns:
        Number of queries of class i (row) predicted as class j (column), `(C, C)`, and number of those queries of class
        i whose task also had class j, so that they could have been, `(C, C)`.
    """
    true = num_classes * classes.gather(1, targets)
    pairs = (true + classes.gather(1, outputs.argmax(-1)), true.unsqueeze(-1) + classes.unsqueeze(1))
    taken, possible = (
        at.flatten().bincount(minlength=num_classes**2).reshape(num_classes, num_classes) for at in pairs
    )
    return taken, possible


class ConfusionByClass(Picture):
    """Draws the confusion matrix of the test classes, or for more than 30 classes those with the lowest accuracy.

    Each task contains only some of the classes, so shares are relative to the queries whose task contained both
    classes. All pairs with at least one query, correct ones included, are written to `confusion.csv`.
    """

    file = "confusion"

    def draw(self, module: MetaModule, dataset: Episodes, folder: Path) -> Figure:
        """Draw the matrix of shares, or bars of the lowest accuracies."""
        assert isinstance(dataset.origin, Pool)
        stored = {name: torch.as_tensor(value) for name, value in module.test_report["predictions"].items()}
        # The classes are drawn again, meta-batch by meta-batch.
        _, sizes = (stored["task"] // dataset.meta_batch_size).unique_consecutive(return_counts=True)
        drawn = torch.cat([dataset.classes(tasks.tolist()).cpu() for tasks in stored["task"].split(sizes.tolist())])
        count = dataset.origin.num_classes
        taken, possible = confusion(stored["output"], stored["target"], drawn, count)
        names = dataset.origin.class_names(range(count))
        rows = [[names[i], names[j], int(taken[i, j]), int(possible[i, j])] for i, j in taken.nonzero().tolist()]
        write_table(folder / "confusion.csv", [["class", "taken_for", "queries", "of"], *rows])
        names = list(map(shortened, names))
        figure = _matrix(taken, possible, names) if count <= MATRIX else _hardest(taken, possible, names)
        figure.suptitle(f"{type(module).__name__}: {len(stored['task'])} test tasks", fontsize=9)
        return figure


def _matrix(taken: Tensor, possible: Tensor, names: list[str]) -> Figure:
    share = (100 * taken / possible).numpy()  # NaN, drawn white, for classes that were never in the same task
    side = max(4.0, 1.6 + 0.28 * len(names))
    figure = Figure((side + 0.9, side), layout=ConstrainedLayoutEngine(w_pad=0.1))
    axes = figure.subplots()
    image = axes.imshow(share, cmap="Greys", vmin=0, vmax=100)
    for (i, j), value in np.ndenumerate(share) if len(names) <= PRINTED else ():
        if np.isfinite(value):
            axes.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=7, color="w" if value > 55 else "k")
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set(xlabel="taken for", ylabel="class")
    figure.colorbar(image, label="% of the queries whose task held both", shrink=0.8)
    return figure


def _hardest(taken: Tensor, possible: Tensor, names: list[str]) -> Figure:
    accuracy = 100 * taken.diagonal() / possible.diagonal()
    tested = accuracy.isfinite().nonzero().flatten()
    order = tested[accuracy[tested].argsort(stable=True)][:HARDEST].tolist()
    counts = []
    for i in order:  # correct queries, and the class most often predicted for the others
        wrong = taken[i].clone()
        wrong[i] = 0
        most = int(wrong.argmax())
        more = f"; {wrong[most]} as {names[most]}" if wrong[most] else ""
        counts.append(f"{taken[i, i]} of {possible[i, i]}{more}")
    figure, axes = panel((6.5, 1.2 + 0.2 * len(order)))
    axes.barh(range(len(order)), accuracy[order].tolist(), color="0.6", edgecolor="k", lw=0.5)
    axes.set_yticks(range(len(order)), [names[i] for i in order], fontsize=7)
    beside = axes.secondary_yaxis("right")
    beside.set_yticks(range(len(order)), counts, fontsize=6)
    beside.tick_params(length=0)
    axes.set(xlim=(0, 100), ylim=(len(order) - 0.4, -0.6), xlabel="accuracy of the class's queries, %")
    title = f"The {len(order)} hardest of {len(tested)} test classes; mean {accuracy[tested].mean():.1f} %"
    axes.set_title(title, fontsize=9)
    return figure
