"""Measure the coverage of prediction sets of trained meta-learners: `python scripts/measure_coverage.py RUN...`.

The calibration on 1000 validation tasks is evaluated on 1000 other tasks of the same classes, as the mean over five
random splits of 2000 tasks, and on 1000 test tasks of other classes. It makes the table of docs/evaluation.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch import Trainer

import lightning_meta as lm
from lightning_meta.fitting.calibration import OF_TEMPERATURE, task_logits
from lightning_meta.fitting.checks import QUIET
from lightning_meta.meta.calibration import Calibration, TaskLogits

HEADER = (
    "| method | task | accuracy | coverage, same classes | labels in a set | coverage, other classes "
    "| labels in a set | open-set AUROC |"
)


Measured = dict[str, float | None]


def measured(
    val: TaskLogits, test: TaskLogits, shots: int, coverage: float, count: int
) -> tuple[list[Measured], Measured]:
    """Evaluate calibrations on n tasks of the same classes and on tasks of other classes.

    Args:
        val: 2n tasks, followed by the tasks for the temperature.
        test: n tasks of other classes.
        shots: Number of support examples per class.
        coverage: Requested coverage, 1 − α.
        count: Number of random splits of the 2n tasks.

    Returns:
        The result of `Calibration.measure` for each split, and for the other classes with the first calibration.
    """
    n, same = len(test.logits), []
    first = chosen(val, torch.arange(2 * n, len(val.logits)))
    calibrations = []
    for seed in range(count):
        order = torch.randperm(2 * n, generator=torch.Generator().manual_seed(seed))
        calibrations.append(Calibration.of(shots, coverage, first, chosen(val, order[:n])))
        same.append(calibrations[-1].measure(chosen(val, order[n:])))
    return same, calibrations[0].measure(test)


def chosen(tasks: TaskLogits, rows: torch.Tensor) -> TaskLogits:
    """A subset of the tasks, with all examples of other classes."""
    return TaskLogits(tasks.logits[rows], tasks.labels[rows], tasks.other_classes)


def row(name: str, ways: int, shots: int, same: Sequence[Measured], other: Measured) -> str:
    """Format a line of the table."""

    def mean(measure: str) -> float:
        return sum(float(each[measure] or 0) for each in same) / len(same)

    cells = [f"`{name}`", f"{ways}-way {shots}-shot", f"{100 * mean('accuracy'):.1f}"]
    cells += [f"{100 * mean('coverage'):.1f}", f"{mean('set_size'):.2f}"]
    cells += [f"{100 * float(other['coverage'] or 0):.1f}", f"{other['set_size']:.2f}"]
    return f"| {' | '.join(cells)} | {mean('open_set_auroc'):.2f} |"


def main(args: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="run directories")
    parser.add_argument("--source", default="Glyphs", help="a class of lightning_meta.sources")
    parser.add_argument("--ways", type=int, nargs="+", default=[5])
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--queries", type=int, default=5)
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--coverage", type=float, default=0.9)
    parser.add_argument("--divisions", type=int, default=5)
    options = parser.parse_args(args)
    data = lm.EpisodicDataModule(getattr(lm.sources, options.source)(), queries=options.queries)
    trainer = Trainer(**QUIET, accelerator="cpu")
    print(HEADER)
    print("| --- " * HEADER.count(" | ") + "| --- |")
    for run in options.runs:
        module = lm.load(run)
        for ways in options.ways:
            for shots in options.shots:
                try:
                    module.check_ways(ways)
                except lm.UserError:  # the head has another number of classes
                    continue
                n = options.tasks
                val = task_logits(trainer, module, data, "val", 2 * n + max(1, n // OF_TEMPERATURE), ways, shots)
                test = task_logits(trainer, module, data, "test", n, ways, shots)
                results = measured(val, test, shots, options.coverage, options.divisions)
                print(row(type(module).__name__, ways, shots, *results), flush=True)


if __name__ == "__main__":
    main()
