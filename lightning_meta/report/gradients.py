"""The records of `GradientConflict`: which tasks agree, how often they conflict, and their affinities."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform
from torch import Tensor

from lightning_meta.errors import UserError
from lightning_meta.report.drawing import About, number_of, panel, plain_text, save_figure, shortened
from lightning_meta.report.transfer.reading import run_directories
from lightning_meta.run.gradient_table import PAIRS, mean_pairs

# From dark blue through grey to light yellow: hue shows the sign, and so does lightness in black and white.
COLOURS = "cividis"
PRINTED = 16  # maximum number of tasks for which the values are printed in the cells


@plain_text
def write_conflict_figures(directory: str | Path, method: str = "") -> list[Path]:
    """Draw `figures/gradient_cosine.png`, `affinity.png` and `conflict_share.png` from `gradient_conflict.csv`.

    Values are means over the measurements of a run with both tasks in the batch. In both matrices, tasks are in the
    order of a hierarchical clustering of their cosines (average linkage of 1 − cosine). Cells are white on the diagonal
    of the cosines, which is always 1, and for pairs of tasks that were never in a batch together.

    Returns the files: none without a measurement of two tasks, and no affinity if it was not measured.
    """
    directory = Path(directory)
    if not (directory / PAIRS).is_file():
        return []
    names, (cosines, affinity), conflicts = mean_pairs(directory)
    off_diagonal = ~np.eye(len(names), dtype=bool)
    if not np.isfinite(cosines[off_diagonal]).any():
        return []
    distance = 1 - np.clip(np.where(np.isfinite(cosines), cosines, 0), -1, 1)  # rounding may exceed 1
    distance = np.where(off_diagonal, (distance + distance.T) / 2, 0)
    order = leaves_list(linkage(squareform(distance, checks=False), "average", optimal_ordering=True))
    labels = [shortened(names[i]) for i in order]
    np.fill_diagonal(cosines, np.nan)  # always 1
    about = About(method)
    over = f"{len(names)} tasks, {number_of(len(conflicts), 'measurement')}"
    title = about.title(f"mean cosine between task gradients\n{over}")
    figures = {"gradient_cosine.png": _heatmap(cosines[np.ix_(order, order)], labels, title)}
    if np.isfinite(affinity[off_diagonal]).any():
        title = about.title(f"mean inter-task affinity\n{over}")
        axes = ("relative fall of the loss of task j", "after a gradient step of task i")
        figures["affinity.png"] = _heatmap(affinity[np.ix_(order, order)], labels, title, *axes)
    figures["conflict_share.png"] = _over_steps(conflicts, about.title(f"tasks in conflict, {over}"))
    files = {directory / "figures" / name: figure for name, figure in figures.items()}
    for file, figure in files.items():
        save_figure(figure, file)
    return list(files)


def _heatmap(values: np.ndarray, names: list[str], title: str, across: str = "", down: str = "") -> Figure:
    """Draw a matrix of tasks `(T, T)`, with colours scaled to the values off the diagonal and symmetric about 0.

    Cells with NaN are white; `across` and `down` are labels of the columns and rows.
    """
    count = len(names)
    printed = count <= PRINTED
    side = max(count * (0.45 if printed else 0.16), 1.8)
    margin = 0.08 * max(map(len, names)) + 0.6
    figure, axes = panel((max(side + margin + 1.1, 4.5), side + margin + 0.4))
    off_diagonal = np.abs(values[~np.eye(count, dtype=bool)])
    # The 98 % quantile, so that a few large values do not make all others pale; with few values it is the largest.
    limit = float(np.quantile(off_diagonal[np.isfinite(off_diagonal)], 0.98, method="higher")) or 1.0
    exponent = int(np.floor(np.log10(limit))) if limit < 0.01 else 0
    shown, limit = values / 10.0**exponent, limit / 10.0**exponent
    image = axes.imshow(shown, COLOURS, vmin=-limit, vmax=limit, interpolation="nearest")
    extend = "both" if np.nanmax(np.abs(shown)) > limit else "neither"
    figure.colorbar(image, ax=axes, extend=extend, shrink=0.8 if count > 4 else 1.0).ax.tick_params(labelsize=7)
    axes.set_xticks(range(count), names, rotation=90, fontsize=8 if printed else 6.5)
    axes.set_yticks(range(count), names, fontsize=8 if printed else 6.5)
    axes.set_xlabel(across, fontsize=8)
    axes.set_ylabel(down, fontsize=8)
    figure.suptitle(title + (f", × 1e{exponent}" if exponent else ""), fontsize=9)
    digits = 3 if limit < 0.1 else 2
    for (i, j), value in np.ndenumerate(shown) if printed else ():
        if np.isfinite(value):
            value = round(value, digits) + 0.0  # avoids −0.00
            text = f"{value:.{digits}f}" if abs(value) < 10 else f"{value:.0f}"
            colour = "w" if value < 0.1 * limit else "k"
            axes.text(j, i, text.replace("-", "−"), ha="center", va="center", fontsize=7, color=colour)
    return figure


def _over_steps(conflicts: dict[int, float], title: str) -> Figure:
    """Draw the share of pairs in conflict (a cosine below 0) by training step, and its moving average."""
    figure, axes = panel()
    steps, shares = np.array(list(conflicts)), np.array(list(conflicts.values()))
    axes.plot(steps, shares, ".", color="0.65", markersize=4, label="a measurement")
    if (window := len(steps) // 10) > 1:
        kernel = np.full(window, 1 / window)
        middle = np.convolve(steps, kernel, "valid"), np.convolve(shares, kernel, "valid")
        axes.plot(*middle, "k", label=f"mean of {window}")
    axes.axhline(shares.mean(), color="k", ls="--", lw=0.8, label=f"mean {shares.mean():.2f}")
    axes.set(xlabel="training step", ylabel="share of pairs with cosine < 0", ylim=(-0.03, 1.03))
    axes.set_title(title, fontsize=9)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


class TaskAffinity(NamedTuple):
    r"""Mean affinities and gradient cosines of jointly trained tasks.

    Attributes:
        tasks: Names of the T tasks.
        affinity: Mean inter-task affinity $Z_{i \to j}$, `(T, T)` float64, with a row for each task i that takes the
            gradient step; NaN for pairs of tasks that were never in a batch together.
        cosine: Mean cosine of the gradients of each pair of tasks, `(T, T)` float64.
    """

    tasks: tuple[str, ...]
    affinity: Tensor
    cosine: Tensor


def recorded_affinity(runs: str | Path | Sequence[str | Path]) -> TaskAffinity:
    """Read the records of `GradientConflict`: means over the measurements of each run, then over runs.

    With them, `task_groups` proposes which tasks to train together::

        recorded = lm.recorded_affinity("runs/ladder_glyphs/multi_head")
        groups = lm.task_groups(recorded.affinity, groups=3).groups

    Args:
        runs: Run directories, such as `runs/multi_head/0`, or folders with the runs of one method.

    Raises:
        UserError: A run has no records or is damaged, or runs have different tasks.
    """
    directories = run_directories([runs] if isinstance(runs, str | Path) else runs)
    if not directories:
        raise UserError("runs: name a run directory, such as runs/multi_head/0")
    names: list[str] = []
    run_means = []
    for directory in directories:
        if not (directory / PAIRS).is_file():
            raise UserError(
                f"{directory} has no {PAIRS}; train it with --trainer.callbacks+=lightning_meta.GradientConflict and "
                "two tasks or more that share parameters"
            )
        own_names, means, _ = mean_pairs(directory)
        names = names or own_names
        if unshared := sorted({*own_names} ^ {*names}):
            raise UserError(f"{directory} and {directories[0]} have different tasks: {unshared[0]!r} is in one only")
        order = [own_names.index(name) for name in names]
        run_means.append(means[:, order][:, :, order])
    stacked = np.ma.masked_invalid(np.stack(run_means))
    cosine, affinity = torch.from_numpy(stacked.mean(0).filled(np.nan))
    return TaskAffinity(tuple(names), affinity, cosine)
