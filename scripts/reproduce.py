"""Train shipped configurations by priority within a time limit, and compare them with published figures.

    python scripts/reproduce.py --table few_shot --plan --device gpu --hours 1  # only print the plan
    python scripts/reproduce.py --table few_shot --hours 1
    python scripts/reproduce.py --table multi_task --only linear_enb multi_head_enb
    python scripts/reproduce.py --table measurements  # figures of the pages that other commands print

Each row is trained once per seed in its own run directory. Finished runs are skipped, and interrupted ones are resumed.
Several processes can share a folder, also from several machines; each run is trained by one of them. At its end, every
process collects the results of the whole folder.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean

import torch
from reproducing import machine, measurements
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
    """Parse the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", required=True, choices=(*TABLES, measurements.NAME), help="table of the rows")
    parser.add_argument(
        "--only", nargs="+", action="extend", default=[], metavar="ROW", help="rows by name; by default all"
    )
    parser.add_argument("--seeds", type=int, help="number of seeds per row, from 1; by default 3, as a verdict needs")
    parser.add_argument("--hours", type=float, default=math.inf, help="time limit in hours; by default none")
    parser.add_argument("--device", choices=("cpu", "gpu"), help="device; by default a GPU if available")
    parser.add_argument(
        "--runs", type=Path, default=Path("results"), help="folder of the runs, which several processes can share"
    )
    parser.add_argument("--plan", action="store_true", help="only print the plan")
    parser.add_argument(
        "--publish",
        action="store_true",
        help="only write the results of the folder into docs/",
    )
    return parser.parse_args(args)


def main(args: Sequence[str] | None = None) -> int:
    """Run, and write the tables; returns 1 if a run failed, 2 after a mistake of the user."""
    options = arguments(args)
    try:
        seeds = 3 if options.seeds is None else options.seeds
        if not seeds >= 1 or not options.hours > 0:
            raise UserError(f"--seeds, --hours: expected numbers above 0, got {seeds} and {options.hours}")
        if options.plan and options.publish:
            raise UserError("--publish writes into docs/, and --plan only prints; give one of them")
        if options.table == measurements.NAME:
            return measure(options)
        rows = read_rows(options.table, options.only)
        if options.publish:
            return publish(options.table, options.runs)
        device: Device = options.device or ("gpu" if torch.cuda.is_available() else "cpu")
        reproduction = Reproduction(rows, seeds, options.runs, device)
        if options.plan:
            print(text_of(plan(reproduction.jobs, options.hours), device, options.hours))
            return 0
        if device == "gpu" and not torch.cuda.is_available():
            raise UserError("--device gpu: torch sees no GPU here; give cpu, or --plan for another machine")
        try:
            with terminated_like_interrupted():
                failed = reproduction.run(options.hours)
        except KeyboardInterrupt:
            print("stopped; run the same command again to resume", file=sys.stderr)
            failed = None
        command = shlex.join(["python", "scripts/reproduce.py", *(sys.argv[1:] if args is None else args)])
        write(options.table, read_rows(options.table), options.runs, options.runs, command=command)
        return 130 if failed is None else int(failed)
    except UserError as error:
        print(f"reproduce: error: {error}", file=sys.stderr)
        return 2


def measure(options: argparse.Namespace) -> int:
    """Run the measurements, print their plan, or publish them; returns 1 if a command failed."""
    if options.seeds is not None or options.device == "gpu":
        raise UserError("--seeds, --device gpu: measurements have commands of their own, on the CPU; leave both out")
    rows = measurements.read_measurements(options.only)
    measuring = measurements.Measuring(rows, options.runs, machine.describe("cpu"))
    if options.plan:
        print(measuring.text(options.hours))
        return 0
    if options.publish:
        measurements.publish(PUBLISHED, measuring.collect())
        write_pages()
        return 0
    try:
        with terminated_like_interrupted():
            return int(measuring.run(options.hours))
    except KeyboardInterrupt:
        print("stopped; the same command repeats what was not finished", file=sys.stderr)
        return 130


class Reproduction:
    """Rows to run on this machine.

    Args:
        rows: Rows by priority.
        seeds: Number of seeds per row.
        runs: Folder of all runs.
        device: Device of the training.
    """

    def __init__(self, rows: Sequence[Row], seeds: int, runs: Path, device: Device) -> None:
        self.rows, self.seeds, self.runs, self.device = rows, seeds, runs, device
        self.out: set[tuple[str, int]] = set()  # locked by another process, or failed
        self.machine = "" if device == "gpu" and not torch.cuda.is_available() else machine.describe(device)

    @property
    def jobs(self) -> list[Job]:
        """Missing runs by priority, with the measured costs of finished seeds on this machine if there are any."""
        jobs = jobs_of(self.rows, self.seeds, self.device, lambda r, s: Stored(self.runs, r, s).share, self._measured())
        return [job for job in jobs if (job.row.name, job.seed) not in self.out]

    def run(self, hours: float) -> bool:
        """Run until all is finished or the time limit is reached; returns whether a run failed.

        Args:
            hours: Time limit in hours.
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
            messages = {"held": "another process has it", "out of time": "out of time; the same command resumes it"}
            if end == "finished":
                messages["finished"] = f"done in {time.monotonic() - began:.0f} s: {_figures(stored)}"
            else:
                self.out.add((job.row.name, job.seed))
            if end == "failed":
                failed = True
                messages["failed"] = f"failed: {last_line(stored.folder / 'log.txt')} (see {stored.folder / 'log.txt'})"
            print(f"{job.title}: {messages[end]}", flush=True)

    def _measured(self) -> dict[str, float]:
        """Mean hours per seed by row, over the seeds that this machine trained completely."""
        seconds: dict[str, list[float]] = {}
        for row in self.rows:
            for stored in (Stored(self.runs, row, seed) for seed in range(1, self.seeds + 1)):
                if stored.trained and stored.machines == [self.machine]:
                    seconds.setdefault(row.name, []).append(stored.spent)
        return {name: fmean(durations) / 3600 for name, durations in seconds.items()}


def write(
    table: str, rows: Sequence[Row], runs: Path, folder: Path, before: Iterable[Record] = (), command: str = ""
) -> None:
    """Write the results of a folder of runs: CSV files by seed and by figure, and the table of a page.

    Args:
        table: Name of the table.
        rows: All rows of the table.
        runs: Folder of the runs.
        folder: Output folder.
        before: Records of earlier runs, which are kept unless there are new ones.
        command: Command that the page names; none for a folder that has a page already.
    """
    records = merged(before, collect(runs, rows), rows)
    figures = outcomes(rows, records)
    write_records(folder / f"{table}_seeds.csv", records)
    write_csv(folder / f"{table}.csv", figures)
    if folder != PUBLISHED:  # has a page
        with replacing(folder / f"{table}.md") as file:
            file.write(f"{markdown(command, figures)}\n")
    print(f"wrote {folder / table}.csv with {len({(r.row, r.figure) for r in records})} measured figures")


def publish(table: str, runs: Path) -> int:
    """Write the results of a folder into the pages, together with those of earlier runs."""
    before = read_records(PUBLISHED / f"{table}_seeds.csv")
    write(table, read_rows(table), runs, PUBLISHED, before)
    write_pages()
    return 0


def write_pages() -> None:
    """Write the published results into the pages."""
    for page, content in parts().items():
        text = with_parts(page, content)
        with replacing(page) as file:
            file.write(text)


def parts() -> dict[Path, dict[str, str]]:
    """The parts of each page by name: the published results, and the plan for one hour on a GPU."""
    content = {measurements.NAME: measurements.markdown(PUBLISHED)}
    for table in TABLES:
        rows = read_rows(table)
        command = f"python scripts/reproduce.py --table {table} --publish"
        content[table] = markdown(command, outcomes(rows, read_records(PUBLISHED / f"{table}_seeds.csv")))
    jobs = jobs_of(read_rows("few_shot"), 3, "gpu", lambda row, seed: 0.0)
    content["plan"] = text_of(plan(jobs, 1.0, lambda row: ", ".join(row.needs)), "gpu", 1.0)
    return {**measurements.pages(PUBLISHED), PAGE: content}


def _figures(stored: Stored) -> str:
    shown = []
    for figure in stored.row.figures:
        value = (stored.results(figure) or {}).get(figure.metric)
        shown.append(f"{figure.name} {'not finite' if value is None else f'{value * figure.scale:.4g}{figure.unit}'}")
    return ", ".join(shown)


if __name__ == "__main__":
    sys.exit(main())
