"""Δm, the mean relative change of a method's metrics over tasks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_meta.errors import UserError

FLOOR = 0.05


class DeltaM(NamedTuple):
    """The result of `delta_m`.

    Attributes:
        relative: Δm `(...)`, higher is better, 0.1 for 10 %; NaN if every task is excluded.
        absolute: Mean of $s_i (M_i - B_i)$ over all T tasks, excluded ones included, in the units of the metrics,
            `(...)`.
        excluded: Number of tasks excluded from Δm, `(...)` int64.
    """

    relative: Tensor
    absolute: Tensor
    excluded: Tensor


def delta_m(metrics: Tensor, baseline: Tensor, higher_is_better: Tensor | bool = True, floor: float = FLOOR) -> DeltaM:
    r"""The mean relative change against a baseline (Maninis et al. 2019, section 4).

    $$\Delta_m = \frac{1}{|U|} \sum_{i \in U} s_i \frac{M_i - B_i}{B_i}, \qquad U = \{i : B_i \ge \text{floor}\}$$

    with $s_i = 1$ if higher values of the metric are better and −1 otherwise, so that a positive Δm is always an
    improvement; papers that report a drop use the opposite sign. A ratio is meaningless if the baseline is near zero or
    negative, as R² may be: such tasks are excluded and counted, and the mean absolute change is returned as well.

    Args:
        metrics: Metrics M, `(..., T)`.
        baseline: Metrics B of the baseline, `(..., T)`.
        higher_is_better: Whether higher values are better; one for all metrics, or `(T,)` bool.
        floor: Smallest baseline for which a ratio is computed, > 0.

    Raises:
        UserError: The numbers of tasks differ or are 0, or the floor is not positive.
    """
    if metrics.shape[-1:] != baseline.shape[-1:] or not metrics.numel():
        raise UserError(
            f"delta_m: metrics {tuple(metrics.shape)} and baseline {tuple(baseline.shape)} end in the same number of "
            "tasks, at least 1"
        )
    if not floor > 0:
        raise UserError(f"delta_m: floor is above 0, got {floor}")
    sign = torch.where(torch.as_tensor(higher_is_better, device=metrics.device), 1.0, -1.0).to(metrics.dtype)
    change = sign * (metrics - baseline)
    used = (baseline >= floor).expand(change.shape)
    relative = torch.where(used, change / torch.where(baseline >= floor, baseline, 1.0), 0.0)
    mean = relative.sum(-1) / used.sum(-1)
    return DeltaM(mean, change.mean(-1), (~used).sum(-1))
