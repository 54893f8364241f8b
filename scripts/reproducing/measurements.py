"""Figures that other commands of this project print: run the commands, and keep what the last one prints."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import shlex
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lightning_meta.data.files import data_folder
from lightning_meta.errors import UserError
from lightning_meta.run.files import replacing
from lightning_meta.run.results import git_revision
from reproducing.claim import Claim
from reproducing.page import table, versions_of
from reproducing.planning import duration
from reproducing.records import Measured, read_lines, write_lines
from reproducing.rows import ROOT, read_entries
from reproducing.running import End, child, last_line
from reproducing.storing import read_json, write_json

NAME = "measurements"
NOTE = "measured.json"


@dataclass(frozen=True)
class Measurement:
    """Commands that are run one after the other; the output of the last one is kept.

    Attributes:
        name: Name of the row.
        priority: Priority; smaller numbers run first.
        about: What is measured.
        page: Page with the output, relative to the root of the project.
        commands: Arguments of Python for each command. `{1}` is a folder for the files of the first command, and so on;
            `{data}` is `LIGHTNING_META_DATA`.
        hours: Time of all commands in hours on two cores.
        needs: Files in `LIGHTNING_META_DATA`, relative to it.
        pictures: Pictures that the commands make, such as `1/curves.png` for one of the first command.
    """

    name: str
    priority: int
    about: str
    page: str
    commands: tuple[tuple[str, ...], ...]
    hours: float
    needs: tuple[str, ...] = ()
    pictures: tuple[str, ...] = ()

    @property
    def version(self) -> str:
        """Eight hexadecimal digits that identify the commands."""
        return hashlib.sha256(json.dumps(self.commands).encode()).hexdigest()[:8]

    def missing(self) -> str:
        """The first needed file that is missing; "" if there is none."""
        folder = data_folder()
        return next((name for name in self.needs if folder is None or not (folder / name).exists()), "")

    def shown(self, number: int) -> str:
        """A command as a user types it, with DATA for `{data}` and FOLDER1 for `{1}`."""
        folders = {"data": "DATA"} | {str(i + 1): f"FOLDER{i + 1}" for i in range(len(self.commands))}
        return shlex.join(["python", *(_filled(argument, folders) for argument in self.commands[number])])


def read_measurements(only: Sequence[str] = (), file: Path | None = None) -> list[Measurement]:
    """Read the measurements by priority.

    Args:
        only: Names of rows; empty for all.
        file: File of the rows; by default the shipped one.

    Raises:
        UserError: The file is not valid, or has no row of a name.
    """
    file = file or Path(__file__).with_name(f"{NAME}.yaml")
    rows = [_measurement(f"{file.name}, {name}", name, content) for name, content in read_entries(file).items()]
    names = [row.name for row in rows]
    if unknown := [name for name in only if name not in names]:
        raise UserError(f"--only: the table {NAME} has no row {unknown[0]!r}; it has {', '.join(names)}")
    return sorted((row for row in rows if not only or row.name in only), key=lambda row: row.priority)


def _measurement(where: str, name: str, content: Mapping[str, Any]) -> Measurement:
    keys, lists = {field.name for field in fields(Measurement)} - {"name"}, ("needs", "pictures")
    if set(content) | set(lists) != keys:
        raise UserError(f"{where}: expected {', '.join(sorted(keys))}, got {', '.join(sorted(content))}")
    commands = tuple(tuple(shlex.split(command)) for command in content["commands"])
    if not commands or not 0 < content["hours"] < math.inf:
        raise UserError(f"{where}: expected at least one command, and hours above 0")
    files = {key: tuple(content.get(key, ())) for key in lists}
    return Measurement(name=name, **{**content, **files, "commands": commands})


class Found(NamedTuple):
    """A finished measurement.

    Attributes:
        about: When, where and with which versions it was made.
        output: What the last command printed.
        pictures: Files of its pictures.
    """

    about: Measured
    output: str
    pictures: tuple[Path, ...] = ()


class Measuring:
    """The measurements of a folder.

    Args:
        rows: Measurements by priority.
        runs: Folder of all runs.
        machine: Description of the machine, which is recorded.
    """

    def __init__(self, rows: Sequence[Measurement], runs: Path, machine: str) -> None:
        self.rows, self.runs, self.machine = rows, runs.resolve() / NAME, machine

    def folder(self, row: Measurement) -> Path:
        """Folder of a measurement."""
        return self.runs / row.name / row.version

    def output(self, row: Measurement) -> Path:
        """File with the output of the last command."""
        return self.folder(row) / "output.txt"

    def finished(self, row: Measurement) -> bool:
        """Whether all commands of a measurement have ended."""
        return self._done(row) == len(row.commands)

    def plan(self, hours: float) -> tuple[list[Measurement], dict[str, str]]:
        """The missing measurements that fit into a time limit, and why the others are left out.

        Args:
            hours: Time limit in hours.
        """
        chosen, left_out = [], {}
        for row in self.rows:
            if self.finished(row):
                continue
            if file := row.missing():
                left_out[row.name] = f"needs {file} in LIGHTNING_META_DATA"
            elif row.hours > hours:
                left_out[row.name] = f"takes {duration(row.hours)}, and {duration(max(hours, 0.0))} remain"
            else:
                chosen.append(row)
                hours -= row.hours
        return chosen, left_out

    def text(self, hours: float) -> str:
        """The plan for a time limit in Markdown."""
        chosen, left_out = self.plan(hours)
        rows = [[f"`{row.name}`", duration(row.hours), row.about, row.page] for row in chosen]
        lines = [f"Plan: {duration(math.fsum(row.hours for row in chosen))} in {len(chosen)} measurements.", ""]
        lines += [table(["row", "time", "what", "page"], rows)]
        return "\n".join([*lines, *(["", "Left out:", ""] if left_out else []), *_listed(left_out)])

    def run(self, hours: float) -> bool:
        """Run until all is finished or the time limit is reached; returns whether a command failed.

        Args:
            hours: Time limit in hours.

        Raises:
            UserError: The folder cannot be used.
            KeyboardInterrupt: Ctrl-C. Finished commands are not run again.
        """
        deadline, failed, out = time.monotonic() + hours * 3600, False, set()
        while True:
            chosen, left_out = self.plan((deadline - time.monotonic()) / 3600)
            row = next((row for row in chosen if row.name not in out), None)
            if row is None:
                for name, why in left_out.items():
                    print(f"left out: {name}: {why}", flush=True)
                return failed
            out.add(row.name)
            began = time.monotonic()
            end = self._run(row, deadline)
            messages = {
                "finished": f"done in {time.monotonic() - began:.0f} s: {self.output(row)}",
                "held": "another process has it",
                "out of time": "out of time; the same command repeats what was not finished",
                "failed": f"failed: {last_line(self._log(row))} (see {self._log(row)})",
            }
            failed = failed or end == "failed"
            print(f"{row.name}: {messages[end]}", flush=True)

    def _run(self, row: Measurement, deadline: float) -> End:
        folder = self.folder(row)
        with Claim(folder) as claim:
            if not claim.held:
                return "held"
            for number in range(self._done(row), len(row.commands)):
                print(f"{row.name}: {row.shown(number)}", flush=True)
                files = folder / str(number + 1)
                shutil.rmtree(files, ignore_errors=True)  # of a command that was stopped
                files.mkdir()
                places = {"data": str(data_folder())}
                places |= {str(i + 1): str(folder / str(i + 1)) for i in range(len(row.commands))}
                command = [_filled(argument, places) for argument in row.commands[number]]
                began = time.monotonic()
                end = child(command, claim, self._log(row), deadline, output=self.output(row))
                if end != "finished":
                    return end
                self._note(row, number + 1, time.monotonic() - began)
        return "finished"

    def _log(self, row: Measurement) -> Path:
        return self.folder(row) / "log.txt"

    def _noted(self, row: Measurement) -> dict[str, Any]:
        file = self.folder(row) / NOTE
        return read_json(file) if file.is_file() else {"done": 0, "hours": 0.0}

    def _done(self, row: Measurement) -> int:
        return int(self._noted(row)["done"])

    def _note(self, row: Measurement, done: int, seconds: float) -> None:
        about = Measured(
            row=row.name,
            version=row.version,
            hours=f"{self._noted(row)['hours'] + seconds / 3600:.4f}",
            machine=self.machine,
            python=platform.python_version(),
            torch=torch.__version__,
            lightning_meta=version("lightning_meta"),
            revision=git_revision(ROOT) or "",
            data=_hash(row.needs),
        )
        noted = {field.name: getattr(about, field.name) for field in fields(about)}
        write_json(self.folder(row) / NOTE, {**noted, "done": done, "hours": float(about.hours)})

    def collect(self) -> dict[str, Found]:
        """The finished measurements by name, without the paths of this machine in their outputs."""
        found = {}
        for row in self.rows:
            if self.finished(row):
                noted = {field.name: str(self._noted(row)[field.name]) for field in fields(Measured)}
                output = self.output(row).read_text(encoding="utf-8")
                for number in range(1, len(row.commands) + 1):
                    output = output.replace(str(self.folder(row) / str(number)), f"FOLDER{number}")
                lines = [line.rstrip() for line in output.splitlines()]
                pictures = tuple(self.folder(row) / name for name in row.pictures)
                found[row.name] = Found(Measured(**noted), "\n".join(lines).strip("\n"), pictures)
        return found


def _filled(argument: str, places: Mapping[str, str]) -> str:
    for name, place in places.items():
        argument = argument.replace(f"{{{name}}}", place)
    return argument


def _hash(names: Iterable[str]) -> str:
    """Hash of files in the folder of data sets."""
    folder, whole = data_folder(), hashlib.sha256()
    files = [] if folder is None else [folder / name for name in names]
    for file in files:
        whole.update(file.read_bytes())
    return whole.hexdigest() if files else ""


def _listed(left_out: Mapping[str, str]) -> list[str]:
    return [f"- `{name}`: {why}" for name, why in left_out.items()]


def publish(folder: Path, new: Mapping[str, Found]) -> None:
    """Write finished measurements to the folder of published ones, which are kept unless there are new ones.

    Those of other versions of a row are dropped: its commands have changed since.

    Args:
        folder: Folder of published results.
        new: The finished measurements by name.
    """
    known = {row.name: row.version for row in read_measurements()}
    kept = {
        line.row: line for line in read_lines(folder / f"{NAME}.csv", Measured) if known.get(line.row) == line.version
    }
    kept |= {name: found.about for name, found in new.items()}
    (folder / NAME).mkdir(exist_ok=True)
    for name, found in new.items():
        with replacing(folder / NAME / f"{name}.txt") as file:
            file.write(f"{found.output}\n")
        for picture in found.pictures:
            shutil.copyfile(picture, folder / NAME / picture.name)
    write_lines(folder / f"{NAME}.csv", Measured, [kept[name] for name in known if name in kept])


def pages(folder: Path) -> dict[Path, dict[str, str]]:
    """The parts of each page by name: what the published measurements printed.

    Args:
        folder: Folder of published results.
    """
    made: dict[Path, dict[str, str]] = {}
    for row, _ in _published(folder):
        output = (folder / NAME / f"{row.name}.txt").read_text(encoding="utf-8").rstrip()
        in_markdown = any(line.startswith("| ---") for line in output.splitlines())
        shown = "\n\n".join([output if in_markdown else f"```\n{output}\n```", *_pictures(row, folder)])
        made.setdefault(ROOT / row.page, {})[row.name] = shown
    return made


def _pictures(row: Measurement, folder: Path) -> list[str]:
    places = [os.path.relpath(folder / NAME / Path(name).name, (ROOT / row.page).parent) for name in row.pictures]
    return [f"![{row.about}]({place})" for place in places]


def markdown(folder: Path) -> str:
    """The published measurements with their commands and conditions, and those that were not run.

    Args:
        folder: Folder of published results.
    """
    published = _published(folder)
    rows = [
        [f"`{row.name}`", row.about, "; ".join(f"`{row.shown(i)}`" for i in range(len(row.commands)))]
        for row, _ in published
    ]
    details = [
        [f"`{row.name}`", duration(float(line.hours)), line.machine, versions_of(line), line.data[:12] or "made"]
        for row, line in published
    ]
    parts = [table(["row", "what", "commands"], rows)]
    parts.append(table(["row", "time", "machine", "versions", "sha256 of the data"], details))
    known = {row.name for row, _ in published}
    if missing := [f"`{row.name}`" for row in read_measurements() if row.name not in known]:
        parts.append(f"Not run: {', '.join(missing)}.")
    return "\n\n".join(parts)


def _published(folder: Path) -> list[tuple[Measurement, Measured]]:
    lines = {line.row: line for line in read_lines(folder / f"{NAME}.csv", Measured)}
    published = [(row, lines.get(row.name)) for row in read_measurements()]
    return [(row, line) for row, line in published if line is not None and line.version == row.version]
