"""The confusion matrix of the classes over all test tasks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from torch import Tensor

from lightning_meta.data import Episodes
from lightning_meta.data.pool import Pool
from lightning_meta.meta import MetaModule
from lightning_meta.pictures.base import Picture, class_names
from lightning_meta.report.drawing import shortened
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
    true = classes.gather(1, targets)
    taken = classes.gather(1, outputs.argmax(-1))
    ways = classes.shape[1]
    pairs = (true.unsqueeze(-1) * num_classes + classes.unsqueeze(1)).flatten()
    assert pairs.numel() == true.numel() * ways

    def counted(at: Tensor) -> Tensor:
        return torch.bincount(at, minlength=num_classes**2).reshape(num_classes, num_classes)

    return counted((true * num_classes + taken).flatten()), counted(pairs)


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
        tasks = stored["task"].tolist()
        size = dataset.meta_batch_size
        drawn = [dataset.classes([t for t in tasks if t // size == m]) for m in sorted({t // size for t in tasks})]
        count = dataset.origin.num_classes
        taken, possible = confusion(stored["output"], stored["target"], torch.cat(drawn).cpu(), count)
        names = class_names(dataset, torch.arange(count))
        rows = [[names[i], names[j], int(taken[i, j]), int(possible[i, j])] for i, j in taken.nonzero().tolist()]
        write_table(folder / "confusion.csv", [["class", "taken_for", "queries", "of"], *rows])
        figure = _matrix(taken, possible, names) if count <= MATRIX else _hardest(taken, possible, names)
        figure.suptitle(f"{type(module).__name__}: {len(tasks)} test tasks", fontsize=9)
        return figure


def _matrix(taken: Tensor, possible: Tensor, names: list[str]) -> Figure:
    share = (100 * taken / possible).numpy()  # NaN, drawn white, for classes that were never in the same task
    side = max(4.0, 1.6 + 0.28 * len(names))
    figure = Figure((side + 0.9, side), layout=ConstrainedLayoutEngine(w_pad=0.1))
    axes = figure.subplots()
    image = axes.imshow(share, cmap="Greys", vmin=0, vmax=100)
    names = list(map(shortened, names))
    if len(names) <= PRINTED:
        for (i, j), value in np.ndenumerate(share):
            if np.isfinite(value):
                axes.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=7, color="w" if value > 55 else "k")
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set(xlabel="taken for", ylabel="class")
    figure.colorbar(image, label="% of the queries whose task held both", shrink=0.8)
    return figure


def _hardest(taken: Tensor, possible: Tensor, names: list[str]) -> Figure:
    seen = possible.diagonal()
    tested = seen.nonzero().flatten()
    accuracy = taken.diagonal()[tested] / seen[tested]
    order = tested[accuracy.argsort(stable=True)][:HARDEST]
    figure = Figure((6.5, 1.2 + 0.2 * len(order)), layout="constrained")
    axes = figure.subplots()
    values = (100 * taken.diagonal()[order] / seen[order]).tolist()
    axes.barh(range(len(order)), values, color="0.6", edgecolor="k", lw=0.5)
    names = list(map(shortened, names))
    axes.set_yticks(range(len(order)), [names[i] for i in order.tolist()], fontsize=7)
    beside = axes.secondary_yaxis("right")
    beside.set_yticks(range(len(order)), [_counts(taken[i], i, seen[i], names) for i in order.tolist()], fontsize=6)
    beside.tick_params(length=0)
    axes.set(xlim=(0, 100), ylim=(len(order) - 0.4, -0.6), xlabel="accuracy of the class's queries, %")
    axes.set_title(
        f"The {len(order)} hardest of {len(tested)} test classes; mean {100 * accuracy.mean():.1f} %", fontsize=9
    )
    return figure


def _counts(taken: Tensor, number: int, seen: Tensor, names: list[str]) -> str:
    """Number of correct queries of a class, and the class most often predicted for the others."""
    wrong = taken.clone()
    wrong[number] = 0
    most = int(wrong.argmax())
    return f"{taken[number]} of {seen}" + (f"; {wrong[most]} as {names[most]}" if wrong[most] else "")
