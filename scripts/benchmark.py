"""Compare speed and memory of this package with other libraries, and measure how costs scale.

    python scripts/benchmark.py --short            # two minutes
    python scripts/benchmark.py --threads 2        # every row, every curve

Both sides of a row do the same work on the same data in the same process, alternately, after a warm-up. If they compute
a loss, the script first checks that the losses are equal. A ratio is the median time of the other library divided by
that of this package. Freed memory is kept for both sides, as in `fit`; the rows `processes` run each side as users do.
"""

from __future__ import annotations

import argparse
import csv
import logging
import platform
import sys
import warnings
from pathlib import Path

import matplotlib as mpl
import torch
from benchmarks import scaling
from benchmarks.measure import Timing
from benchmarks.row import Row, Setting
from benchmarks.rows import ROWS
from benchmarks.show import show
from rich.console import Console
from rich.progress import track
from rich.table import Table

from lightning_meta.run.files import replacing
from lightning_meta.run.memory import keep_freed_memory


def arguments(args: list[str] | None) -> argparse.Namespace:
    """Parse the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*ROWS, "scaling"]
    parser.add_argument("--rows", nargs="+", choices=names, default=names, help="what to measure; by default all")
    parser.add_argument("--short", action="store_true", help="fewer and smaller cases, in about two minutes")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch on a CPU")
    parser.add_argument("--repeats", type=int, help="measurements of each side; by default 3 if short, else 7")
    parser.add_argument("--out", type=Path, default=Path("benchmark"), help="folder of the CSV files and figures")
    return parser.parse_args(args)


def main(args: list[str] | None = None) -> int:
    """Measure, print and write; returns 1 if a row could not be measured."""
    options = arguments(args)
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    mpl.use("agg")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*")
    repeats = options.repeats or (3 if options.short else 7)
    setting = Setting(torch.device(options.device), repeats, 0.05 if options.short else 0.3, options.short)
    rows: list[Row] = []
    failed = []
    for name in track([name for name in options.rows if name != "scaling"], "measuring", console=Console(stderr=True)):
        try:
            rows += ROWS[name](setting)
        except Exception as error:
            failed.append(f"{name}: {error}")
    machine = f"{options.threads} thread(s), {options.device}, torch {torch.__version__}, {platform.machine()}"
    if rows:
        show(table(rows, machine))
        write(rows, options.out / "table.csv")
    if "scaling" in options.rows:
        points = [*scaling.times(setting), *scaling.memory(setting)]
        with replacing(options.out / "scaling.csv") as file:
            csv.writer(file).writerows([scaling.Point._fields, *points])
        scaling.draw(points, options.out / "scaling.png", f"MAML, Conv4-32 with strides, second order; {machine}")
        for name, (power, spread) in scaling.fitted(points).items():
            print(f"- cost grows with {name} to the power {power:.2f} ± {spread:.2f}")
    print(f"written to {options.out}", file=sys.stderr)
    for line in failed:
        print(f"benchmark: error: {line}", file=sys.stderr)
    return 1 if failed else 0


def table(rows: list[Row], machine: str) -> Table:
    """Format the rows for the terminal."""
    formatted = Table("work", "here", "other", "ratio", "target", "note", title=machine)
    for row in rows:
        unit = _bytes if "(bytes)" in row.work else _milliseconds
        theirs = f"{row.peer}: " + ("not installed" if row.theirs is None else unit(row.theirs))
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        formatted.add_row(
            row.work, unit(row.ours), theirs, ratio, "" if row.target is None else f"{row.target:g}", row.note
        )
    return formatted


def _milliseconds(timing: Timing) -> str:
    return f"{1000 * timing.median:.2f} ms ({1000 * timing.low:.2f} to {1000 * timing.high:.2f})"


def _bytes(timing: Timing) -> str:
    return f"{timing.median / 2**20:.1f} MiB"


def write(rows: list[Row], path: Path) -> None:
    """Write the rows as CSV: medians and ranges in seconds, or bytes for memory."""
    columns = ["work", "ours", "ours_low", "ours_high", "peer", "theirs", "theirs_low", "theirs_high"]
    with replacing(path) as file:
        writer = csv.writer(file)
        writer.writerow([*columns, "ratio", "target", "note"])
        for row in rows:
            theirs = row.theirs or ("", "", "")
            writer.writerow([row.work, *row.ours, row.peer, *theirs, row.ratio, row.target, row.note])


if __name__ == "__main__":
    sys.exit(main())
