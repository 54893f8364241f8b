"""One verdict for each method against the baseline, corrected for the number of methods."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from lightning_meta.report.transfer.intervals import holm
from lightning_meta.report.transfer.statements import LEVEL, ForTheMethod, smallest_shown

VERDICTS = {"helps": "better", "hurts": "worse"}  # a method that is weighed against a baseline that shares, too


@dataclass(frozen=True)
class MethodVerdict:
    """What stands for a method over its seeds, in a family of methods.

    Attributes:
        mean: The mean over seeds of each seed's mean Δ over tasks; above 0 is an improvement.
        low: The lower end of its 95 % interval over seeds, of this method alone; NaN where there is none.
        high: The upper end.
        p_holm: The p-value of no difference, corrected for the number of methods; NaN where there is none.
        smallest: The difference that would have been shown in 4 of 5 cases, at the level of the first step of Holm's
            procedure; NaN below three seeds.
        verdict: "better" or "worse" where `p_holm` is below 5 %, from three seeds on; else "no difference shown", "too
            few seeds" or "seeds do not differ".
    """

    mean: float
    low: float
    high: float
    p_holm: float
    smallest: float
    verdict: str


def method_verdicts(methods: Mapping[str, ForTheMethod]) -> dict[str, MethodVerdict]:
    """A verdict for each method; where none differs from the baseline, one of them is false in at most 5 % of cases.

    Args:
        methods: What stands over seeds, by the name of each method that is compared with the baseline.
    """
    p = np.array([of.p for of in methods.values()], dtype=float)
    tested = np.isfinite(p)
    corrected = np.full(len(p), np.nan)
    corrected[tested] = holm(p[tested])
    alpha = (1 - LEVEL) / max(int(tested.sum()), 1)
    return {name: _verdict(of, float(p), alpha) for (name, of), p in zip(methods.items(), corrected, strict=True)}


def _verdict(of: ForTheMethod, p_holm: float, alpha: float) -> MethodVerdict:
    smallest, verdict = math.nan, of.verdict
    if verdict not in ("too few seeds", "seeds do not differ"):
        error = (of.high - of.low) / 2 / float(stdtrit(of.seeds - 1, (1 + LEVEL) / 2))
        smallest = smallest_shown(error, of.seeds - 1, alpha)
        verdict = "no difference shown" if p_holm >= 1 - LEVEL else "helps" if of.mean > 0 else "hurts"
    return MethodVerdict(of.mean, of.low, of.high, p_holm, smallest, VERDICTS.get(verdict, verdict))
