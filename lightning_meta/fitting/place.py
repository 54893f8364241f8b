"""The location of a run, and the checkpoint from which it is resumed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_meta.errors import UserError
from lightning_meta.reading import refuse_links_out
from lightning_meta.run.directory import checkpoint_to_resume, refuse_name, run_directory_of
from lightning_meta.run.logger import RunLogger
from lightning_meta.run.naming import Naming, as_argument
from lightning_meta.run.record import seed_of


@dataclass(frozen=True)
class Place:
    """The location of a run.

    Attributes:
        runs: Folder of all runs.
        name: Name of the run.
        logger: Logger that creates the run directory and writes to it.
        checkpoint: Checkpoint to resume from; None for a new run.
    """

    runs: str
    name: str
    logger: RunLogger
    checkpoint: Path | None = None

    def seed(self) -> Any:
        """The `seed_everything` of the resumed run; True, which means any seed, if it is unknown or the run is new."""
        return True if self.checkpoint is None else seed_of(self.checkpoint)


def find_place(
    runs: str, name: str | None, resume: str | None, say: Naming = as_argument, default: str = "run"
) -> Place:
    """Find the run directory to resume, or the folder of a new run, whose directory is created later.

    Args:
        runs: Folder of all runs.
        name: Name of the run; None for the default.
        resume: Checkpoint or run directory to resume, or `last`, the newest run of this name; None for a new run.
        say: Formats the name of an argument in the error.
        default: Default name.

    Raises:
        UserError: The name is not valid, or there is no such checkpoint.
    """
    if not runs.strip():
        raise UserError(f"{say('runs')}: name a folder, such as runs")
    chosen = default if name is None else name
    refuse_name(say("name"), chosen)
    if resume is None:
        return Place(runs, chosen, RunLogger(runs, chosen, exclusive=True))
    checkpoint = checkpoint_to_resume(resume, runs, chosen, say)
    run = run_directory_of(checkpoint)
    if run is None:
        return Place(runs, chosen, RunLogger(runs, chosen, exclusive=True), checkpoint)
    refuse_links_out(run)
    if name is not None and name != run.parent.name:
        raise UserError(
            f"{say('name', name)}: {run} is resumed in its own folder; leave {say('name')} out, or move the folder"
        )
    logger = RunLogger(run.parent.parent, run.parent.name, int(run.name), exclusive=True)
    return Place(str(run.parent.parent), run.parent.name, logger, checkpoint)
