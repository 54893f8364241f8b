"""Rates of false and correct verdicts of the transfer report, and coverage of its intervals, in simulated comparisons.

`python -m tests.report.verdict_simulation` prints the table of `docs/multi_task_results.md`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lightning_meta.report.transfer.intervals import ALPHA, paired_intervals, state

EXAMPLES, EFFECT, AFFECTED = 30, 1.0, 6
SEEDS = (3, 5, 10)


class Case(NamedTuple):
    """Effects of seeds.

    Attributes:
        each: Standard deviation of the effect on each task.
        alike: Standard deviation of the effect common to all tasks.
        unequal: Largest relative deviation of the common effect between tasks; above 1 its sign differs between tasks.
        noisy: Factor of `each` for every tenth task.
        tasks: Number of tasks.
    """

    each: float = 0.0
    alike: float = 0.0
    unequal: float = 0.0
    noisy: float = 1.0
    tasks: int = 20


CASES = {
    "nothing": Case(),
    "each task alone": Case(0.3),
    "all tasks alike": Case(0.1, 0.3),
    "all tasks, unequally": Case(0.1, 0.3, 0.5),
    "2 tasks 5 times as much": Case(0.2, noisy=5.0),
    "2 tasks 5 times, and all alike": Case(0.2, 0.2, noisy=5.0),
    "14 of 139 tasks 10 times as much": Case(0.2, noisy=10.0, tasks=139),
    "20 of 200 tasks 10 times as much": Case(0.2, noisy=10.0, tasks=200),
    "all tasks, some the other way": Case(0.1, 0.3, 2.0),
}
BEYOND = {"60 tasks strongly, some the other way": Case(0.1, 1.0, 2.0, tasks=60)}
"""Cases that the verdicts are not made for: the effect common to all tasks is as large as those of methods."""


class Rates(NamedTuple):
    """Rates over simulations.

    Attributes:
        false: Rate of at least one false verdict if no task differs.
        power: Rate of correct verdicts for the `AFFECTED` tasks that differ by `EFFECT`.
        coverage: Rate at which a task's 95 % interval contains the true difference.
        method_power: Rate of the verdict "helps" for a method that adds half of `EFFECT` to every task.
        method_coverage: Rate at which the method's interval contains the true difference; the others are false
            verdicts of the method.
    """

    false: float
    power: float
    coverage: float
    method_power: float
    method_coverage: float


def simulate(case: str, seeds: int, trials: int) -> Rates:
    """Simulate comparisons of a method without an effect, and of the same method with effects added."""
    cases = {**CASES, **BEYOND}
    each, alike, unequal, noisy, tasks = cases[case]
    rng = np.random.default_rng([seeds, list(cases).index(case)])
    rows = []
    effect = np.where(np.isin(np.arange(tasks), range(1, 1 + AFFECTED)), EFFECT, 0.0)  # none of the noisy ones
    for _ in range(trials):
        scale = each * np.where(np.arange(tasks) % 10 == 0, noisy, 1.0)
        load = 1 + unequal * rng.uniform(-1, 1, tasks)
        of_seeds = scale * rng.normal(size=(seeds, tasks)) + alike * load * rng.normal(size=(seeds, 1))
        of_examples = 0.4 * rng.normal(size=(tasks, EXAMPLES))
        by_seed = of_seeds[:, :, None] + rng.normal(size=(seeds, tasks, EXAMPLES))
        d = (by_seed + of_examples).transpose(1, 0, 2)
        null = paired_intervals(list(d), [False] * tasks)
        some = paired_intervals(list(d + effect[:, None, None]), [False] * tasks)
        on_these_examples = by_seed.mean(2)  # the statement over seeds is about these test examples
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
    return Rates(*map(float, np.array(rows, dtype=float).mean(0)))


def table(trials: int) -> str:
    """All cases and numbers of seeds, in per cent, as Markdown."""
    lines = [
        "| seeds change | seeds | any false verdict | effect found | covered | method: effect found | covered |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for case in (*CASES, *BEYOND):
        for seeds in SEEDS:
            rates = " | ".join(f"{100 * rate:.1f}" for rate in simulate(case, seeds, trials))
            lines.append(f"| {case} | {seeds} | {rates} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(1000))
