"""Recorded affinities between tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_meta.errors import UserError
from lightning_meta.report.transfer.reading import run_directories
from lightning_meta.run.gradient_table import PAIRS, mean_pairs


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
    paths = [runs] if isinstance(runs, str | Path) else runs
    directories = run_directories(paths)
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
        if sorted(own_names) != sorted(names):
            unshared = sorted({*own_names} ^ {*names})[0]
            raise UserError(f"{directory} and {directories[0]} have different tasks: {unshared!r} is in one only")
        order = [own_names.index(name) for name in names]
        run_means.append(means[:, order][:, :, order])
    stacked = np.stack(run_means)
    finite = np.isfinite(stacked)
    sums, counts = np.where(finite, stacked, 0).sum(0), finite.sum(0)
    cosine, affinity = torch.from_numpy(np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0))
    return TaskAffinity(tuple(names), affinity, cosine)
