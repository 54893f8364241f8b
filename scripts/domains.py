"""Evaluate methods on fixed tasks of many domains: images, functions and tables.

    python scripts/domains.py scripts/entries/protonet.py scripts/entries/nearest_mean.py
    python scripts/domains.py my_method.py --only glyphs sinusoid --steps 500

A method is a Python file with `build(domain)`. In each domain it is trained once, and its best checkpoint is tested on
fixed tasks. What is done is not done again, and what was stopped is resumed. The results are in `domains.html` and
`domains.csv` of the folder of runs.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from domain_benchmark.domains import DOMAINS, Domain, named
from domain_benchmark.entry import Entry, read_entry
from domain_benchmark.page import markdown, page
from domain_benchmark.results import Result, finished, folder_of, merged, results_of
from reproducing import machine
from reproducing.claim import Claim
from reproducing.page import with_parts
from reproducing.records import read_lines, write_lines
from reproducing.rows import ROOT, Device
from reproducing.running import ACCELERATOR, child, last_line, terminated_like_interrupted
from reproducing.storing import RunFolder

from lightning_meta.errors import UserError
from lightning_meta.run.files import replacing

PUBLISHED = ROOT / "docs" / "benchmark" / "domains.csv"
PAGE = ROOT / "docs" / "domains.md"


def arguments(args: Sequence[str] | None) -> argparse.Namespace:
    """Parse the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="+", type=Path, metavar="METHOD.py", help="files with build(domain)")
    names = ", ".join(domain.name for domain in DOMAINS)
    parser.add_argument(
        "--only", nargs="+", action="extend", default=[], metavar="DOMAIN", help=f"some of {names}; by default all"
    )
    parser.add_argument("--steps", type=int, help="training steps in each domain, at most those of the method's file")
    parser.add_argument("--hours", type=float, default=math.inf, help="stop after so long; the same command resumes")
    parser.add_argument("--seed", type=int, default=1, help="of weights and training tasks; test tasks are fixed")
    parser.add_argument("--device", choices=("cpu", "gpu"), help="what trains; by default a GPU where there is one")
    parser.add_argument("--runs", type=Path, default=Path("results"), help="folder of the runs; several may share it")
    parser.add_argument("--publish", action="store_true", help="put what the folder holds into docs/, and run nothing")
    return parser.parse_args(args)


def main(args: Sequence[str] | None = None) -> int:
    """Run, and write the page; returns 1 if a method failed, 2 after a mistake of the user."""
    options = arguments(args)
    try:
        if not options.hours > 0 or options.seed < 0 or (options.steps or 0) < 0:
            raise UserError("--hours, --steps, --seed: expected hours above 0, and steps and a seed from 0")
        device: Device = options.device or ("gpu" if torch.cuda.is_available() else "cpu")
        if device == "gpu" and not torch.cuda.is_available():
            raise UserError("--device gpu: torch sees no GPU here; give cpu")
        entries = [read_entry(file) for file in options.methods]
        if len({entry.name for entry in entries}) < len(entries):
            raise UserError("two methods have one file name, by which the page calls them; rename one")
        benchmark = Benchmark(entries, named(options.only), options.steps, options.seed, options.runs, device)
        if options.publish:
            return publish(benchmark.results)
        try:
            with terminated_like_interrupted():
                failed = benchmark.run(options.hours)
        except KeyboardInterrupt:
            print("stopped; the same command resumes", file=sys.stderr)
            failed = None
        write(benchmark.results, options.runs)
        return 130 if failed is None else int(failed)
    except UserError as error:
        print(f"domains: error: {error}", file=sys.stderr)
        return 2


class Benchmark:
    """Methods to run on this machine in some domains.

    Args:
        entries: The methods.
        domains: The domains.
        steps: Largest number of training steps; None for that of each method.
        seed: The seed.
        runs: Folder of all runs.
        device: Device of the training.

    Raises:
        UserError: A method cannot build its module, or the options of its training tasks are wrong.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        domains: Sequence[Domain],
        steps: int | None,
        seed: int,
        runs: Path,
        device: Device,
    ) -> None:
        self.seed, self.runs, self.device, self.steps = seed, runs, device, steps
        self.jobs = [(entry, domain) for domain in domains for entry in entries]
        self.problems: dict[tuple[str, str], str] = {}
        for entry, domain in self.jobs:
            entry.training(domain)
            if entry.build(domain) is None:
                self.problems[entry.name, domain.name] = "the method does not apply to this domain"

    @property
    def results(self) -> list[Result]:
        """Results of these methods and domains in the folder, with reasons for missing ones."""
        lines = []
        for entry, domain in self.jobs:
            steps, why = self._steps(entry), self.problems.get((entry.name, domain.name)) or _lacks(domain)
            lines += results_of(self._folder(entry, domain), entry, domain, steps, self.seed, why)
        return lines

    def run(self, hours: float) -> bool:
        """Run the missing methods until the time limit; returns whether a method failed.

        Args:
            hours: Time limit in hours.
        """
        deadline, failed = time.monotonic() + hours * 3600, False
        for entry, domain in self.jobs:
            place, folder = (entry.name, domain.name), self._folder(entry, domain)
            if place in self.problems or finished(folder, domain):
                continue
            if why := _lacks(domain):
                pass
            elif time.monotonic() > deadline:
                why = "the time was over"
            else:
                print(f"{entry.name} on {domain.title}: {self._steps(entry):,} steps", flush=True)
                why = self._run(entry, domain, folder, deadline)
                failed |= why.startswith("failed")
            if why:
                self.problems[place] = why
            for result in results_of(folder, entry, domain, self._steps(entry), self.seed, why):
                print(f"{entry.name} on {domain.title}, {result.setting}: {_said(result)}", flush=True)
        return failed

    def _run(self, entry: Entry, domain: Domain, folder: Path, deadline: float) -> str:
        """Train and test in a child process; returns the reason if it did not finish, else ""."""
        options = {"method": entry.file.resolve(), "domain": domain.name, "folder": folder, "seed": self.seed}
        options |= {"steps": self._steps(entry), "accelerator": ACCELERATOR[self.device]}
        command = ["-m", "domain_benchmark.measure", *(f"--{name}={value}" for name, value in options.items())]
        with Claim(folder) as claim:
            if not claim.held:
                return "another runner has it"
            RunFolder(folder).note(machine.describe(self.device))
            end = child(command, claim, folder / "log.txt", deadline)
        if end == "out of time":
            return "the time was over; the same command resumes"
        return f"failed: {last_line(folder / 'log.txt')} (see {folder / 'log.txt'})" if end == "failed" else ""

    def _folder(self, entry: Entry, domain: Domain) -> Path:
        return folder_of(self.runs, entry, domain, self._steps(entry), self.seed)

    def _steps(self, entry: Entry) -> int:
        return entry.steps if self.steps is None else min(self.steps, entry.steps)


def write(results: Sequence[Result], runs: Path) -> None:
    """Write the page and the CSV file, beside the runs.

    Args:
        results: Results to write.
        runs: Folder of the runs.
    """
    write_lines(runs / "domains.csv", Result, results)
    with replacing(runs / "domains.html") as file:
        file.write(page(results, "Made by scripts/domains.py. Intervals are 95 % intervals over tasks, of one seed."))
    print(f"wrote {runs / 'domains.html'} and domains.csv")


def publish(results: Sequence[Result]) -> int:
    """Write results into the page of the documentation, together with those of earlier runs."""
    write_lines(PUBLISHED, Result, merged(read_lines(PUBLISHED, Result), results))
    text = with_parts(PAGE, {"domains": published()})
    with replacing(PAGE) as file:
        file.write(text)
    return 0


def published() -> str:
    """The parts of the page from the published results."""
    return markdown(read_lines(PUBLISHED, Result))


def _lacks(domain: Domain) -> str:
    missing = domain.missing()
    return f"data not at hand: needs {missing} in LIGHTNING_META_DATA" if missing else ""


def _said(result: Result) -> str:
    return f"not run: {result.problem}" if result.problem else f"{result.metric} {result.score} ± {result.half_width}"


if __name__ == "__main__":
    sys.exit(main())
