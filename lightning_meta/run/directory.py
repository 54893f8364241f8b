"""Finding run directories: `runs/<name>/<version>/`, and checkpoints in them."""

from __future__ import annotations

import logging
from pathlib import Path

from lightning_meta.errors import UserError
from lightning_meta.reading import check_regular, is_number
from lightning_meta.run.checksums import damage
from lightning_meta.run.logger import versions
from lightning_meta.run.naming import Naming, as_argument

_log = logging.getLogger(__name__)


def checkpoint_to_resume(resume: str, runs: str, name: str, say: Naming = as_argument) -> Path:
    """The checkpoint to resume from; of a run whose last checkpoint is damaged, the newest that is not.

    Args:
        resume: A checkpoint, a run directory, or `last`: the newest run of the name.
        runs: The folder of all runs.
        name: The run's name.
        say: What an error calls an argument.

    Raises:
        UserError: There is none.
    """
    path, given = Path(resume), say("resume", resume)
    if resume == "last":
        root = Path(runs) / name
        known = versions(root)
        if not known:
            raise UserError(f"{given}: there is no run named {name!r} in {runs}; start one without it")
        path = root / str(known[-1])
    try:
        is_folder, there = path.is_dir(), path.exists()
    except OSError as error:  # a loop of links, a name that is too long, a folder that may not be read
        raise UserError(f"{given}: it cannot be read ({error.strerror})") from error
    if is_folder:
        folder = path / "checkpoints"
        if not folder.is_dir() and not (path / "config.yaml").is_file():
            raise UserError(f"{given}: {path} is no run directory; name one, such as {runs}/{name}/0")
        if not any((folder / file).is_file() for file in ("last.ckpt", "best.ckpt")):
            raise UserError(f"{given}: {path} stopped before its first checkpoint; start a new run")
        return _intact(folder / "last.ckpt", say)
    if not there:
        raise UserError(f"{given}: there is no such file, and no such run directory")
    check_regular(path)
    return _intact(path, say) if path.name == "last.ckpt" and run_directory_of(path) else path


def _intact(last: Path, say: Naming) -> Path:
    """The last checkpoint of a run, or its best where that is damaged: from both a run ends as if it had not stopped.

    Raises:
        UserError: Neither is intact.
    """
    wrong = damage(last)
    if wrong is None:
        return last
    best = last.with_name("best.ckpt")
    if (also := damage(best)) is not None:
        raise UserError(f"{say('resume')}: {last} {wrong}, and {best} {also}; restore one of them, or start a new run")
    _log.warning("%s %s: the run goes on from %s, and repeats the steps after that", last, wrong, best)
    return best


def run_directory_of(checkpoint: Path) -> Path | None:
    """The run directory that a checkpoint lies in; None where it lies elsewhere."""
    given, real = checkpoint.parent.parent, checkpoint.resolve().parent.parent
    named = given if given.parent.name else checkpoint.absolute().parent.parent  # the shorter is the easier to read
    for run, path in ((named, checkpoint.absolute()), (real, checkpoint.resolve())):  # its checkpoints may be a link
        known = any((run / file).is_file() for file in ("config.yaml", "metrics.csv"))
        if path.parent.name == "checkpoints" and is_number(run.name) and known:
            return run
    return None
