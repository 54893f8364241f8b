"""One verdict for each method against the baseline, corrected for the number of methods."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import stdtrit

from lightning_meta.report.transfer.intervals import holm
from lightning_meta.report.transfer.results import MethodTransfer
from lightning_meta.report.transfer.statements import LEVEL, smallest_shown


@dataclass(frozen=True)
class MethodVerdict:
    """What stands for a method over its seeds, in a family of methods.

    Attributes:
        method: Its name.
        mean: The mean over seeds of each seed's mean Δ over tasks; above 0 is an improvement.
        low: The lower end of its 95 % interval over seeds, of this method alone; NaN where there is none.
        high: The upper end.
        p_holm: The p-value of no difference, corrected for the number of methods; NaN where there is none.
        smallest: The difference that would have been shown in 4 of 5 cases, at the level of the first step of Holm's
            procedure; NaN below three seeds.
        verdict: "better" or "worse" where `p_holm` is below 5 %, from three seeds on.
    """

    method: str
    mean: float
    low: float
    high: float
    p_holm: float
    smallest: float
    verdict: Literal["better", "worse", "no difference shown", "too few seeds", "seeds do not differ"]


def method_verdicts(methods: Sequence[MethodTransfer]) -> list[MethodVerdict]:
    """A verdict for each method; in a family without differences one is false in at most 5 % of cases.

    Args:
        methods: All that are compared with the baseline, in any order.
    """
    p = np.array([m.for_method.p for m in methods], dtype=float)
    tested = np.isfinite(p)
    corrected = np.full(len(p), np.nan)
    corrected[tested] = holm(p[tested])
    alpha = (1 - LEVEL) / max(int(tested.sum()), 1)
    return [_verdict(method, float(of), alpha) for method, of in zip(methods, corrected, strict=True)]


def _verdict(method: MethodTransfer, p_holm: float, alpha: float) -> MethodVerdict:
    of, smallest = method.for_method, math.nan
    verdict: Literal["better", "worse", "no difference shown", "too few seeds", "seeds do not differ"]
    if of.verdict in ("too few seeds", "seeds do not differ"):
        verdict = of.verdict
    else:
        error = (of.high - of.low) / 2 / float(stdtrit(of.seeds - 1, (1 + LEVEL) / 2))
        smallest = smallest_shown(error, of.seeds - 1, alpha)
        verdict = "no difference shown" if p_holm >= 1 - LEVEL else "better" if of.mean > 0 else "worse"
    return MethodVerdict(method.method, of.mean, of.low, of.high, p_holm, smallest, verdict)
