"""Choose the runs that fit into the time limit, and say why the others are left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from reproducing.rows import Device, Row

# Hours from the start of a process until its training or test begins, and from its end until the process is gone; costs
# of rows leave it out. With one thread on two cores, runs of linear_enb and linear_landmine took 8 to 9 s longer than
# their results record. It is more on a busy machine.
START_UP = 9 / 3600


@dataclass(frozen=True)
class Job:
    """A row with a seed that is not finished.

    Attributes:
        row: The row.
        seed: The value of `seed_everything`.
        hours: Remaining time in hours.
        basis: Whether this time is "measured" or "estimated".
        begun: Whether a run is resumed.
    """

    row: Row
    seed: int
    hours: float
    basis: str = "estimated"
    begun: bool = False

    @property
    def title(self) -> str:
        """Name of the job in messages."""
        return f"{self.row.name}, seed {self.seed}"


@dataclass(frozen=True)
class Plan:
    """The runs within a time limit.

    Attributes:
        jobs: The chosen runs in order.
        left_out: Reasons by run or row that is left out.
    """

    jobs: Sequence[Job]
    left_out: Mapping[str, str]

    @property
    def hours(self) -> float:
        """Total time of all runs in hours."""
        return sum(job.hours for job in self.jobs)


def jobs_of(
    rows: Iterable[Row],
    seeds: int,
    device: Device,
    done: Callable[[Row, int], float],
    measured: Mapping[str, float] | None = None,
    start_up: float = START_UP,
) -> list[Job]:
    """List the missing runs by priority and seed.

    Args:
        rows: Rows by priority.
        seeds: Number of seeds, from 1.
        device: Device of the runs.
        done: Returns the finished share of a run, in [0, 1].
        measured: Measured hours per seed on this machine by row, from the start of the first process to the end of the
            last.
        start_up: Hours for the start and the end of a process, which a resumed run needs again.
    """
    jobs = []
    for row in rows:
        hours, basis = row.cost[device]
        start_ups = row.processes * start_up
        if row.name in (measured or {}):
            hours, basis = max(0.0, (measured or {})[row.name] - start_ups), "measured"
        for seed in range(1, seeds + 1):
            if (share := done(row, seed)) < 1:
                jobs.append(Job(row, seed, hours * (1 - share) + start_ups, basis, share > 0))
    return jobs


def plan(jobs: Sequence[Job], hours: float = math.inf, missing: Callable[[Row], str] = Row.missing) -> Plan:
    """Choose the runs that fit into a time limit.

    A figure is judged over all its seeds. Rows whose missing seeds all fit therefore come first, by priority; single
    seeds by priority then fill the remaining time.

    Args:
        jobs: Runs by priority.
        hours: Time limit in hours.
        missing: Returns a file that a row needs and that is missing, or "".
    """
    lacking = {job.row.name: file for job in jobs if (file := missing(job.row))}
    possible = [job for job in jobs if job.row.name not in lacking]
    chosen: list[Job] = []
    left = hours
    for name in dict.fromkeys(job.row.name for job in possible):
        whole = [job for job in possible if job.row.name == name]
        if (cost := sum(job.hours for job in whole)) <= left + 1e-9:
            chosen += whole
            left -= cost
    for job in possible:
        if job not in chosen and job.hours <= left + 1e-9:  # tolerance for rounding
            chosen.append(job)
            left -= job.hours
    over = [job for job in possible if job not in chosen]
    left_out = {job.title: f"a seed takes {duration(job.hours)}, and {duration(max(left, 0.0))} remain" for job in over}
    left_out |= {name: f"needs {file} in LIGHTNING_META_DATA" for name, file in lacking.items()}
    return Plan(chosen, left_out)


def text_of(plan: Plan, device: Device, hours: float) -> str:
    """A plan in Markdown.

    Args:
        plan: The plan.
        device: Device of the runs.
        hours: Time limit in hours.
    """
    time = "without a limit of time" if math.isinf(hours) else f"of {hours:g} hour{'' if hours == 1 else 's'}"
    lines = [f"Plan {time} on a {device.upper()}: {duration(plan.hours)} in {len(plan.jobs)} runs."]
    lines += [f"The start and the end of each process count as {3600 * START_UP:.0f} s.", ""]
    lines += [
        "| row | seeds | training | time together | which is | published figures |",
        "| --- | --- | --- | ---: | --- | --- |",
    ]
    for name in dict.fromkeys(job.row.name for job in plan.jobs):
        jobs = [job for job in plan.jobs if job.row.name == name]
        row = jobs[0].row
        published = ", ".join(f"{f.name} {f.published}" for f in row.figures if f.published is not None)
        seeds = ", ".join(f"{job.seed}{' (resumed)' if job.begun else ''}" for job in jobs)
        together = sum(job.hours for job in jobs)
        number, unit = row.budget
        training = f"{number:,} {unit if number != 1 else unit.removesuffix('s')}"
        cells = [f"`{name}`", seeds, training, duration(together), jobs[0].basis, published or "none"]
        lines.append(f"| {' | '.join(cells)} |")
    if plan.left_out:
        lines += ["", "Left out:", ""]
        lines += [f"- {what}: {why}" for what, why in _by_row(plan.left_out).items()]
    return "\n".join(lines)


def duration(hours: float) -> str:
    """Format hours, such as "1.50 h", "12 min" or "40 s"."""
    if round(60 * hours) >= 60:  # a sum of times that is an hour but for rounding is one
        return f"{hours:.2f} h"
    return f"{60 * hours:.0f} min" if hours >= 0.05 else f"{3600 * hours:.0f} s"


def _by_row(left_out: Mapping[str, str]) -> dict[str, str]:
    """Merge the seeds of a row that are left out for the same reason."""
    together: dict[tuple[str, str], list[str]] = {}
    for what, why in left_out.items():
        name, _, seed = what.partition(", seed ")
        together.setdefault((name, why), []).extend([seed] if seed else [])
    return {
        f"`{name}`" + (f", seed{'' if len(seeds) == 1 else 's'} {', '.join(seeds)}" if seeds else ""): why
        for (name, why), seeds in together.items()
    }
