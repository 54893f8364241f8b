"""Find run directories `runs/<name>/<version>/` and their checkpoints."""

from __future__ import annotations

import logging
from pathlib import Path

from lightning_meta.errors import UserError
from lightning_meta.reading import check_regular, is_number
from lightning_meta.run.intact import damage
from lightning_meta.run.logger import versions
from lightning_meta.run.naming import Naming, as_argument

_log = logging.getLogger(__name__)


def checkpoint_to_resume(resume: str, runs: str, name: str, say: Naming = as_argument) -> Path:
    """The checkpoint to resume from: the last one of a run, or its best one if the last is damaged.

    Args:
        resume: A checkpoint, a run directory, or `last` for the newest run with the name.
        runs: Folder of all runs.
        name: Name of the run.
        say: Function that formats an argument name for messages.

    Raises:
        UserError: There is no intact checkpoint.
    """
    path, argument = Path(resume), say("resume", resume)
    if resume == "last":
        root = Path(runs) / name
        numbers = versions(root)
        if not numbers:
            raise UserError(f"{argument}: there is no run named {name!r} in {runs}; start one without it")
        path = root / str(numbers[-1])
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except OSError as error:  # a loop of links, a name that is too long, a folder that may not be read
        raise UserError(f"{argument}: it cannot be read ({error.strerror})") from error
    if is_folder:
        folder = path / "checkpoints"
        if not folder.is_dir() and not (path / "config.yaml").is_file():
            raise UserError(f"{argument}: {path} is not a run directory; name one, such as {runs}/{name}/0")
        if not any((folder / file).is_file() for file in ("last.ckpt", "best.ckpt")):
            raise UserError(f"{argument}: {path} stopped before its first checkpoint; start a new run")
        return _intact(folder / "last.ckpt", say)
    if not exists:
        raise UserError(f"{argument}: there is no such file, and no such run directory")
    check_regular(path)
    return _intact(path, say) if path.name == "last.ckpt" and run_directory_of(path) else path


def _intact(last: Path, say: Naming) -> Path:
    """The last checkpoint of a run, or the best if the last is damaged; resuming from either gives the same result."""
    last_damage = damage(last)
    if last_damage is None:
        return last
    best = last.with_name("best.ckpt")
    if (best_damage := damage(best)) is not None:
        raise UserError(
            f"{say('resume')}: {last} {last_damage}, and {best} {best_damage}; restore one of them, or start a new run"
        )
    _log.warning("%s %s: resuming from %s, and repeating the steps after it", last, last_damage, best)
    return best


def run_directory_of(checkpoint: Path) -> Path | None:
    """The run directory of a checkpoint; None if it is not in one."""
    written, real = checkpoint.parent.parent, checkpoint.resolve().parent.parent
    # Prefer the path as written, which is shorter; the folder of checkpoints may be a link.
    named = written if written.parent.name else checkpoint.absolute().parent.parent
    for run, path in ((named, checkpoint.absolute()), (real, checkpoint.resolve())):
        has_files = any((run / file).is_file() for file in ("config.yaml", "metrics.csv"))
        if path.parent.name == "checkpoints" and is_number(run.name) and has_files:
            return run
    return None
