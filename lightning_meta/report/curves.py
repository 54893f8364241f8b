"""Training curves of several runs in one figure."""

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
    """Draw a metric of several runs against the training step, with its 95 % interval shaded if it was logged.

    Args:
        runs: Run directories.
        out: File of the figure, such as `curves.png`; its suffix sets the format.
        metric: Name of the metric in `metrics.csv`, such as `val/accuracy`.

    Returns:
        The file of the figure.

    Raises:
        UserError: A run has no `metrics.csv` or no finite value of the metric, or the figure cannot be written.
    """
    target = _target(out)
    stage, _, short_name = metric.partition("/")
    scale = scale_of(short_name)
    figure = Figure(SIZE, layout="constrained")
    axes = figure.subplots()
    drawn = []
    for number, run in enumerate(map(Path, runs)):
        file = run / "metrics.csv"
        if not file.is_file():
            raise UserError(f"{run}: there is no metrics.csv; name a run directory, such as runs/protonet_glyphs/0")
        columns = columns_of(file)
        if metric not in columns:
            logged = ", ".join(sorted(name for name in columns if name.startswith("val/") and "_step_" not in name))
            raise UserError(f"--metric {metric}: {file} has no such column; it has {logged or 'no validation metrics'}")
        if not (finite := np.isfinite(columns[metric])).any():
            raise UserError(f"--metric {metric}: {file} has no finite value of it; leave the run out")
        step, value = columns["step"][finite], scale * columns[metric][finite]
        line, marker = LINES[number % len(LINES)]
        shade = str(0.7 * (number // len(LINES) % 3) / 2)
        drawn += axes.plot(step, value, ls=line, marker=marker, ms=3, color=shade)
        if (interval := columns.get(f"{metric}_ci95")) is not None:
            low, high = band(value, scale * interval[finite])
            axes.fill_between(step, low, high, color=shade, alpha=0.12, lw=0)
    axes.set(xlabel="training step", ylabel=label_of(short_name))
    shade = "; shade: 95 % interval over tasks" if axes.collections else ""
    axes.set_title(f"{STAGES.get(stage, stage)}{shade}", fontsize=9)
    # Lines are passed explicitly, since matplotlib leaves out labels that begin with "_".
    axes.legend(drawn, list(map(str, runs)), frameon=False, fontsize=7)
    save_figure(figure, target)
    return target


def _target(out: str | Path) -> Path:
    """Check that the file of the figure can be written: its format and its folder."""
    target = Path(out)
    # PGF needs LaTeX, and raw pixels have no size.
    formats = sorted(set(Figure().canvas.get_supported_filetypes()) - {"pgf", "raw", "rgba"})
    if target.suffix.removeprefix(".").lower() not in formats:
        raise UserError(f"--out {out}: expected a file that ends in one of {', '.join(f'.{f}' for f in formats)}")
    if not target.absolute().parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {target.parent}")
    if target.is_dir():
        raise UserError(f"--out {out}: this is a folder; name a file in it")
    return target
