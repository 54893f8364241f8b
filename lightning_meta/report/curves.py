"""Training curves of several runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from lightning_meta.errors import UserError
from lightning_meta.report.figures import SIZE, columns_of, label_of

STYLES = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"), ((0, (5, 1)), "v"), ((0, (1, 1)), "P"))


def compare_training(runs: Sequence[str | Path], out: str | Path, metric: str = "val/accuracy") -> Path:
    """Draw a metric of several runs against the training step; the shade is its 95 % interval where it was logged.

    Args:
        runs: Run directories.
        out: The picture.
        metric: As it is named in `metrics.csv`.

    Returns:
        The picture.

    Raises:
        UserError: A run without `metrics.csv`, or one that did not log the metric.
    """
    figure = Figure(SIZE, layout="constrained")
    axes = figure.subplots()
    for number, run in enumerate(map(Path, runs)):
        file = run / "metrics.csv"
        if not file.is_file():
            raise UserError(f"{run}: there is no metrics.csv; name a run directory, such as runs/protonet_glyphs/0")
        columns = columns_of(file)
        if metric not in columns:
            known = ", ".join(sorted(name for name in columns if name.startswith("val/") and "_step_" not in name))
            raise UserError(f"--metric {metric}: {file} has no such column; it has {known or 'nothing of validation'}")
        there = np.isfinite(columns[metric])
        step, value = columns["step"][there], columns[metric][there]
        line, marker = STYLES[number % len(STYLES)]
        shade = str(0.7 * (number // len(STYLES) % 3) / 2)
        axes.plot(step, value, ls=line, marker=marker, ms=3, color=shade, label=str(run))
        if (interval := columns.get(f"{metric}_ci95")) is not None:
            axes.fill_between(step, value - interval[there], value + interval[there], color=shade, alpha=0.12, lw=0)
    stage, _, of = metric.partition("/")
    axes.set(xlabel="training step", ylabel=f"{label_of(of)} ({stage})")
    axes.legend(frameon=False, fontsize=7)
    target = Path(out)
    if not target.absolute().parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {target.parent}")
    figure.savefig(target, dpi=150)
    return target
