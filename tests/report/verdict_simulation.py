"""How often the report's verdicts are wrong and right, and what its intervals cover, in made-up comparisons.

`python -m tests.report.verdict_simulation` prints the table of `docs/multi_task.md`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lightning_meta.report.transfer.intervals import ALPHA, paired_intervals
from lightning_meta.report.transfer.results import state

TASKS, EXAMPLES, EFFECT, AFFECTED = 20, 30, 1.0, 6
SEEDS = (3, 5, 10)
# What seeds do: to a task (standard deviation), to all tasks alike, how unequally to them, to two noisier tasks.
CASES = {
    "nothing": (0.0, 0.0, 0.0, 1.0),
    "each task alone": (0.3, 0.0, 0.0, 1.0),
    "all tasks alike": (0.1, 0.3, 0.0, 1.0),
    "all tasks, unequally": (0.1, 0.3, 0.5, 1.0),
    "2 tasks 5 times as much": (0.2, 0.0, 0.0, 5.0),
    "2 tasks 5 times, and all alike": (0.2, 0.2, 0.0, 5.0),
}


class Found(NamedTuple):
    """Rates over simulations.

    Attributes:
        false: At least one false verdict among tasks that do not differ.
        power: A right verdict for a task that differs by `EFFECT`, 6 of 20 do.
        coverage: A task's 95 % interval holds the truth.
        method_power: "Helps" of one that adds a half of `EFFECT` to every task.
        method_coverage: The method's interval holds the truth; the rest are false verdicts of the method.
    """

    false: float
    power: float
    coverage: float
    method_power: float
    method_coverage: float


def simulate(case: str, seeds: int, trials: int) -> Found:
    """Compare methods that do nothing, then the same with effects added."""
    each, alike, unequal, noisy = CASES[case]
    rng = np.random.default_rng([seeds, list(CASES).index(case)])
    rows = []
    effect = np.where(np.isin(np.arange(TASKS), range(1, 1 + AFFECTED)), EFFECT, 0.0)  # none of the noisy ones
    for _ in range(trials):
        scale = each * np.where(np.arange(TASKS) % 10 == 0, noisy, 1.0)
        load = 1 + unequal * rng.uniform(-1, 1, TASKS)
        of_seeds = scale * rng.normal(size=(seeds, TASKS)) + alike * load * rng.normal(size=(seeds, 1))
        of_examples = 0.4 * rng.normal(size=(TASKS, EXAMPLES))
        by_seed = of_seeds[:, :, None] + rng.normal(size=(seeds, TASKS, EXAMPLES))
        d = (by_seed + of_examples).transpose(1, 0, 2)
        null = paired_intervals(list(d), [False] * TASKS)
        some = paired_intervals(list(d + effect[:, None, None]), [False] * TASKS)
        on_these_examples = by_seed.mean(2)  # of which the statement is
        method, helped = state(on_these_examples)[1], state(on_these_examples + EFFECT / 2)[1]
        rows.append(
            (
                (null.p_holm < ALPHA).any(),
                (some.p_holm < ALPHA)[effect > 0].mean(),
                ((null.low <= 0) & (null.high >= 0)).mean(),
                helped.verdict == "helps",
                method.low <= 0 <= method.high,
            )
        )
    return Found(*map(float, np.array(rows, dtype=float).mean(0)))


def table(trials: int) -> str:
    """All cases and numbers of seeds, in per cent, as Markdown."""
    lines = [
        "| seeds change | seeds | any false verdict | effect found | covered | method: effect found | covered |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for case in CASES:
        for seeds in SEEDS:
            rates = " | ".join(f"{100 * rate:.1f}" for rate in simulate(case, seeds, trials))
            lines.append(f"| {case} | {seeds} | {rates} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(1000))
