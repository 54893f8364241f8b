"""The folder of a row and a seed, `<runs>/<table>/<row>/<version>/seed_<n>/`, with its run directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning_meta.errors import UserError
from lightning_meta.run import read_checkpoint
from lightning_meta.run.directory import versions
from lightning_meta.run.files import replacing
from reproducing.rows import Figure, Row

NOTE = "reproduce.json"
LAST = "checkpoints/last.ckpt"


class RunFolder:
    """A folder with a run directory of `fit`, or several if one could not be resumed.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def run(self) -> Path | None:
        """The newest run directory with results, else the newest that can be resumed; None if there is none."""
        directories = [self.folder / str(version) for version in reversed(versions(self.folder))]
        for file in ("results.json", LAST):
            for directory in directories:
                if (directory / file).is_file():
                    return directory
        return None

    @property
    def trained(self) -> bool:
        """Whether `fit` is finished."""
        return self.run is not None and (self.run / "results.json").is_file()

    @property
    def seconds(self) -> float:
        """Duration of `fit` over all its processes in seconds; 0 if it is not finished."""
        if self.run is None or not self.trained:
            return 0.0
        return float(read_json(self.run / "results.json")["wall_time_s"])

    @property
    def machines(self) -> list[str]:
        """Descriptions of the machines of the run."""
        return list(self._noted["machines"])

    @property
    def spent(self) -> float:
        """Total duration of all processes in seconds, except those whose parent was killed."""
        return max(self.seconds, float(self._noted["seconds"]))

    def note(self, machine: str, seconds: float = 0.0) -> None:
        """Record the machine and the duration."""
        recorded = self._noted
        machines = list(dict.fromkeys([*recorded["machines"], machine]))
        write_json(self.folder / NOTE, {"machines": machines, "seconds": recorded["seconds"] + seconds})

    @property
    def _noted(self) -> dict[str, Any]:
        noted = read_json(self.folder / NOTE) if (self.folder / NOTE).is_file() else {}
        return {"machines": [], "seconds": 0.0, **noted}


class Stored(RunFolder):
    """The folder of one row and seed.

    Args:
        runs: Folder of all tables.
        row: The row.
        seed: The seed.
    """

    def __init__(self, runs: Path, row: Row, seed: int) -> None:
        super().__init__(runs.resolve() / row.table / row.name / row.version / f"seed_{seed}")
        self.row, self.seed = row, seed

    @property
    def finished(self) -> bool:
        """Whether all figures have results."""
        return self.trained and all(self.results(figure) is not None for figure in self.row.figures)

    @property
    def share(self) -> float:
        """Finished share of the training: 1 if all is finished, less if the run can be resumed."""
        if self.finished:
            return 1.0
        if self.run is None:
            return 0.0
        number, unit = self.row.budget
        try:
            at = read_checkpoint(self.run / LAST)
        except UserError:  # damaged: `fit` reports it, or resumes from the best checkpoint
            return 0.0
        return min(0.95, float(at["global_step" if unit == "steps" else "epoch"]) / max(1, number))

    def results(self, figure: Figure) -> dict[str, Any] | None:
        """The `results.json` with a figure; None if it does not exist yet."""
        if not self.trained or self.run is None:
            return None
        directory = self.run if not figure.test else self.test_of(figure)
        return None if directory is None else read_json(directory / "results.json")

    def test_of(self, figure: Figure) -> Path | None:
        """Directory of the test of a figure."""
        tests = Path() if self.run is None else self.run / "tests"
        for version in versions(tests):
            note = tests / str(version) / NOTE
            if note.is_file() and read_json(note).get("test") == list(figure.test):
                return tests / str(version)
        return None

    def note_test(self, directory: Path, figure: Figure) -> None:
        """Record the figure of a test."""
        write_json(directory / NOTE, {"test": list(figure.test)})


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object."""
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Write a JSON object atomically."""
    with replacing(file) as stream:
        json.dump(content, stream)
