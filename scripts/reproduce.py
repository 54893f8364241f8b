"""Run shipped configurations beside their published figures, by priority within a time.

    python scripts/reproduce.py --table few_shot --plan --device gpu --hours 1  # what it would run, and nothing else
    python scripts/reproduce.py --table few_shot --hours 1
    python scripts/reproduce.py --table multi_task --only linear_enb multi_head_enb

Each row is trained once for each seed, in a run directory of its own. What is there is not done again, and what was
stopped is resumed. Several may run at once in one folder, on several machines: each run is made by one of them. At its
end every runner collects all that the folder holds.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean

import torch
from reproducing import machine
from reproducing.outcomes import outcomes
from reproducing.page import markdown, with_parts, write_csv
from reproducing.planning import Job, duration, jobs_of, plan, text_of
from reproducing.records import Record, collect, merged, read_records, write_records
from reproducing.rows import ROOT, TABLES, Device, Row, read_rows
from reproducing.running import last_line, run, terminated_like_interrupted
from reproducing.storing import Stored

from lightning_meta.errors import UserError
from lightning_meta.run.files import replacing

PUBLISHED = ROOT / "docs" / "reproduction"
PAGE = ROOT / "docs" / "reproduction.md"


def arguments(args: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", required=True, choices=TABLES, help="which rows")
    parser.add_argument("--only", nargs="+", default=[], metavar="ROW", help="rows by name; by default all")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds of each row, from 1; a verdict needs 3")
    parser.add_argument("--hours", type=float, default=math.inf, help="stop after so long; by default when all is done")
    parser.add_argument("--device", choices=("cpu", "gpu"), help="what trains; by default a GPU where there is one")
    parser.add_argument("--runs", type=Path, default=Path("results"), help="folder of the runs; several may share it")
    parser.add_argument("--plan", action="store_true", help="print what would be run, and run nothing")
    parser.add_argument(
        "--publish",
        action="store_true",
        help="put what the folder holds into docs/, and run nothing",
    )
    return parser.parse_args(args)


def main(args: Sequence[str] | None = None) -> int:
    """Run, and write the tables; the exit status is 1 where a run failed, 2 after a mistake of the user's."""
    options = arguments(args)
    try:
        if not options.seeds >= 1 or not options.hours > 0:
            raise UserError(f"--seeds, --hours: expected numbers above 0, got {options.seeds} and {options.hours}")
        if options.plan and options.publish:
            raise UserError("--publish writes into docs/, and --plan only prints; give one of them")
        rows = read_rows(options.table, options.only)
        if options.publish:
            return publish(options.table, options.runs)
        device: Device = options.device or ("gpu" if torch.cuda.is_available() else "cpu")
        reproduction = Reproduction(rows, options.seeds, options.runs, device)
        if options.plan:
            print(text_of(plan(reproduction.jobs, options.hours), device, options.hours))
            return 0
        if device == "gpu" and not torch.cuda.is_available():
            raise UserError("--device gpu: torch sees no GPU here; give cpu, or --plan for another machine")
        try:
            with terminated_like_interrupted():
                failed = reproduction.run(options.hours)
        except KeyboardInterrupt:
            print("stopped; the same command resumes", file=sys.stderr)
            failed = None
        write(options.table, read_rows(options.table), options.runs, options.runs)
        return 130 if failed is None else int(failed)
    except UserError as error:
        print(f"reproduce: error: {error}", file=sys.stderr)
        return 2


class Reproduction:
    """Rows to run on this machine.

    Args:
        rows: By priority.
        seeds: How many of each.
        runs: The folder of all runs.
        device: What trains.
    """

    def __init__(self, rows: Sequence[Row], seeds: int, runs: Path, device: Device) -> None:
        self.rows, self.seeds, self.runs, self.device = rows, seeds, runs, device
        self.out: set[tuple[str, int]] = set()  # held by another runner, or failed
        self.machine = "" if device == "gpu" and not torch.cuda.is_available() else machine.describe(device)

    @property
    def jobs(self) -> list[Job]:
        """What is missing, by priority; costs are those of finished seeds of this machine where there are any."""
        jobs = jobs_of(self.rows, self.seeds, self.device, lambda r, s: Stored(self.runs, r, s).share, self._measured())
        return [job for job in jobs if (job.row.name, job.seed) not in self.out]

    def run(self, hours: float) -> bool:
        """Run until all is done or the time is over; whether a run failed.

        Args:
            hours: The time.
        """
        deadline, failed = time.monotonic() + hours * 3600, False
        while True:
            left = plan(self.jobs, max(0.0, deadline - time.monotonic()) / 3600)
            if not left.jobs:
                for what, why in left.left_out.items():
                    print(f"left out: {what}: {why}", flush=True)
                return failed
            job, began = left.jobs[0], time.monotonic()
            stored = Stored(self.runs, job.row, job.seed)
            begins = f"{job.title} {'is resumed' if job.begun else 'begins'}: {duration(job.hours)} ({job.basis})"
            end = run(stored, self.device, self.machine, deadline, partial(print, begins, flush=True))
            said = {"held": "another runner has it", "out of time": "the time is over; the same command resumes it"}
            if end == "finished":
                said["finished"] = f"done in {time.monotonic() - began:.0f} s: {_figures(stored)}"
            else:
                self.out.add((job.row.name, job.seed))
            if end == "failed":
                failed = True
                said["failed"] = f"failed: {last_line(stored.folder / 'log.txt')} (see {stored.folder / 'log.txt'})"
            print(f"{job.title}: {said[end]}", flush=True)

    def _measured(self) -> dict[str, float]:
        """By row, the mean hours of the seeds that this machine ran from their beginning to their end."""
        seconds: dict[str, list[float]] = {}
        for row in self.rows:
            for stored in (Stored(self.runs, row, seed) for seed in range(1, self.seeds + 1)):
                if stored.trained and stored.machines == [self.machine]:
                    seconds.setdefault(row.name, []).append(stored.spent)
        return {name: fmean(found) / 3600 for name, found in seconds.items()}


def write(table: str, rows: Sequence[Row], runs: Path, folder: Path, before: Iterable[Record] = ()) -> None:
    """Write what a folder of runs holds: a line a seed, a line a figure, and the table of a page.

    Args:
        table: The name of the table.
        rows: All of its rows.
        runs: The folder of runs.
        folder: Where to.
        before: Records of earlier runs, which are kept where there are no new ones.
    """
    records = merged(before, collect(runs, rows), rows)
    found = outcomes(rows, records)
    write_records(folder / f"{table}_seeds.csv", records)
    write_csv(folder / f"{table}.csv", found)
    if folder != PUBLISHED:  # which has a page
        with replacing(folder / f"{table}.md") as file:
            file.write(f"{markdown(table, found)}\n")
    print(f"wrote {folder / table}.csv with {len({(r.row, r.figure) for r in records})} measured figures")


def publish(table: str, runs: Path) -> int:
    """Put what a folder holds into the pages, beside what they hold of earlier runs."""
    before = read_records(PUBLISHED / f"{table}_seeds.csv")
    write(table, read_rows(table), runs, PUBLISHED, before)
    text = with_parts(PAGE, parts())
    with replacing(PAGE) as file:
        file.write(text)
    return 0


def parts() -> dict[str, str]:
    """What the page shows, by name: the tables of what is published, and the plan of one hour on a GPU."""
    found = {}
    for table in TABLES:
        rows = read_rows(table)
        found[table] = markdown(table, outcomes(rows, read_records(PUBLISHED / f"{table}_seeds.csv")))
    jobs = jobs_of(read_rows("few_shot"), 3, "gpu", lambda row, seed: 0.0)
    found["plan"] = text_of(plan(jobs, 1.0, lambda row: ", ".join(row.needs)), "gpu", 1.0)
    return found


def _figures(stored: Stored) -> str:
    shown = []
    for figure in stored.row.figures:
        value = (stored.results(figure) or {}).get(figure.metric)
        shown.append(f"{figure.name} {'not finite' if value is None else f'{value * figure.scale:.4g}{figure.unit}'}")
    return ", ".join(shown)


if __name__ == "__main__":
    sys.exit(main())
