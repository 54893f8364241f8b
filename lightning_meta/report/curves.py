"""Training curves of several runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from lightning_meta.errors import UserError
from lightning_meta.report.figures import LINES, SIZE, band, columns_of
from lightning_meta.report.labels import label_of, scale_of
from lightning_meta.report.saving import save_figure

STAGES = {"train": "Training", "val": "Validation", "test": "Test"}


@matplotlib.rc_context({"text.parse_math": False})  # names of runs are text
def compare_training(runs: Sequence[str | Path], out: str | Path, metric: str = "val/accuracy") -> Path:
    """Draw a metric of several runs against the training step; the shade is its 95 % interval where it was logged.

    Args:
        runs: Run directories.
        out: The picture.
        metric: As it is named in `metrics.csv`.

    Returns:
        The picture.

    Raises:
        UserError: A run without `metrics.csv`, one that did not log the metric, or a picture that cannot be written.
    """
    target = _target(out)
    stage, _, of = metric.partition("/")
    scale = scale_of(of)
    figure = Figure(SIZE, layout="constrained")
    axes = figure.subplots()
    drawn = []
    for number, run in enumerate(map(Path, runs)):
        file = run / "metrics.csv"
        if not file.is_file():
            raise UserError(f"{run}: there is no metrics.csv; name a run directory, such as runs/protonet_glyphs/0")
        columns = columns_of(file)
        if metric not in columns:
            known = ", ".join(sorted(name for name in columns if name.startswith("val/") and "_step_" not in name))
            raise UserError(f"--metric {metric}: {file} has no such column; it has {known or 'nothing of validation'}")
        if not (there := np.isfinite(columns[metric])).any():
            raise UserError(f"--metric {metric}: {file} holds no finite value of it; leave the run out")
        step, value = columns["step"][there], scale * columns[metric][there]
        line, marker = LINES[number % len(LINES)]
        shade = str(0.7 * (number // len(LINES) % 3) / 2)
        drawn += axes.plot(step, value, ls=line, marker=marker, ms=3, color=shade)
        if (interval := columns.get(f"{metric}_ci95")) is not None:
            low, high = band(value, scale * interval[there])
            axes.fill_between(step, low, high, color=shade, alpha=0.12, lw=0)
    axes.set(xlabel="training step", ylabel=label_of(of))
    shade = "; shade: 95 % interval over tasks" if axes.collections else ""
    axes.set_title(f"{STAGES.get(stage, stage)}{shade}", fontsize=9)
    # By the lines that were drawn: matplotlib's own list leaves out names that begin with "_".
    axes.legend(drawn, list(map(str, runs)), frameon=False, fontsize=7)
    save_figure(figure, target)
    return target


def _target(out: str | Path) -> Path:
    """The file of the picture."""
    target = Path(out)
    known = sorted(set(Figure().canvas.get_supported_filetypes()) - {"pgf", "raw", "rgba"})  # pictures without more
    if target.suffix.removeprefix(".").lower() not in known:
        raise UserError(f"--out {out}: expected a file that ends in one of {', '.join(f'.{f}' for f in known)}")
    if not target.absolute().parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {target.parent}")
    if target.is_dir():
        raise UserError(f"--out {out}: this is a folder; name a file in it")
    return target
