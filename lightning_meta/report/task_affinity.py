"""How tasks help each other, as runs have recorded it."""

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
    r"""What runs of tasks that train together recorded of every two tasks.

    Attributes:
        tasks: Their names, T of them.
        affinity: The mean inter-task affinity $Z_{i \to j}$, `(T, T)` float64, a row for each task that steps; NaN for
            two tasks that were never in a batch together.
        cosine: The mean cosine of their gradients, `(T, T)` float64.
    """

    tasks: tuple[str, ...]
    affinity: Tensor
    cosine: Tensor


def recorded_affinity(runs: str | Path | Sequence[str | Path]) -> TaskAffinity:
    """Read what `GradientConflict` recorded: the mean over the measurements of a run, then over runs.

    With `task_groups` it says which tasks to train together::

        recorded = lm.recorded_affinity("runs/ladder_glyphs/multi_head")
        groups = lm.task_groups(recorded.affinity, groups=3).groups

    Args:
        runs: Run directories, such as `runs/multi_head/0`, or folders of them, which stand for all their versions.

    Raises:
        UserError: A run recorded nothing or is damaged, or runs have different tasks.
    """
    paths = [runs] if isinstance(runs, str | Path) else runs
    directories = run_directories(paths)
    if not directories:
        raise UserError("runs: name a run directory, such as runs/multi_head/0")
    names: list[str] = []
    found = []
    for directory in directories:
        if not (directory / PAIRS).is_file():
            raise UserError(
                f"{directory} has no {PAIRS}; train it with --trainer.callbacks+=lightning_meta.GradientConflict and "
                "two tasks or more that share parameters"
            )
        own, means, _ = mean_pairs(directory)
        names = names or own
        if sorted(own) != sorted(names):
            odd = sorted({*own} ^ {*names})[0]
            raise UserError(f"{directory} and {directories[0]} have different tasks: {odd!r} is in one only")
        order = [own.index(name) for name in names]
        found.append(means[:, order][:, :, order])
    stacked = np.stack(found)
    known = np.isfinite(stacked)
    sums, counts = np.where(known, stacked, 0).sum(0), known.sum(0)
    cosine, affinity = torch.from_numpy(np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0))
    return TaskAffinity(tuple(names), affinity, cosine)
