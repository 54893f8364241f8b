"""One verdict for each method against the baseline, corrected for the number of methods."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from lightning_meta.report.transfer.intervals import holm
from lightning_meta.report.transfer.statements import LEVEL, ForTheMethod, smallest_shown

VERDICTS = {"helps": "better", "hurts": "worse"}  # the baseline may share parameters as well


@dataclass(frozen=True)
class MethodVerdict:
    """The difference between one of several methods and the baseline, over seeds.

    Attributes:
        mean: Mean over seeds of each seed's mean Δ over tasks; above 0 is an improvement.
        low: Lower end of its 95 % interval over seeds, without correction; NaN if there is no interval.
        high: Upper end of the interval.
        p_holm: p-value of no difference, corrected for the number of methods; NaN if there is no interval.
        smallest: Smallest true difference that would be shown with a probability of 80 %, at the level of the first
            step of Holm's procedure; NaN below three seeds, or if seeds do not differ.
        verdict: "better" or "worse" if `p_holm` is below 5 %, from three seeds on; else "no difference shown", "too few
            seeds" or "seeds do not differ".
    """

    mean: float
    low: float
    high: float
    p_holm: float
    smallest: float
    verdict: str


def method_verdicts(methods: Mapping[str, ForTheMethod]) -> dict[str, MethodVerdict]:
    """Give a verdict for each method, corrected for their number.

    If no method differs from the baseline, the probability that any is called better or worse is at most 5 %.

    Args:
        methods: Statement over seeds by name of the method.

    Returns:
        Verdicts by name of the method.
    """
    p = np.array([statement.p for statement in methods.values()], dtype=float)
    tested = np.isfinite(p)
    corrected = np.full(len(p), np.nan)
    corrected[tested] = holm(p[tested])
    alpha = (1 - LEVEL) / max(int(tested.sum()), 1)  # the level of Holm's first step, for the smallest p-value
    return {name: _verdict(one, float(p), alpha) for (name, one), p in zip(methods.items(), corrected, strict=True)}


def _verdict(statement: ForTheMethod, p_holm: float, alpha: float) -> MethodVerdict:
    smallest, verdict = math.nan, statement.verdict
    if verdict not in ("too few seeds", "seeds do not differ"):
        # The standard error, from the half-width of the t interval.
        error = (statement.high - statement.low) / 2 / float(stdtrit(statement.seeds - 1, (1 + LEVEL) / 2))
        smallest = smallest_shown(error, statement.seeds - 1, alpha)
        verdict = "no difference shown" if p_holm >= 1 - LEVEL else "helps" if statement.mean > 0 else "hurts"
    return MethodVerdict(
        statement.mean, statement.low, statement.high, p_holm, smallest, VERDICTS.get(verdict, verdict)
    )
