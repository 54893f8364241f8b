"""Run directories `runs/<name>/<version>/`: their names, numbers, locks and checkpoints."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from filelock import FileLock, Timeout

from lightning_meta.errors import UserError
from lightning_meta.reading import check_regular, is_number
from lightning_meta.run.intact import damage
from lightning_meta.run.naming import Naming, as_argument

LOCK = "run.lock"
LONGEST = 150  # bytes; file systems allow 255, and file names are derived from it
# Windows reserves names of devices, and removes a dot or space at the end.
_NAME = re.compile(r'(?!\s|(con|prn|aux|nul|com\d|lpt\d)(\.|$))[^/\\<>:"|?*]*[^/\\<>:"|?*\s.]', re.IGNORECASE)

_log = logging.getLogger(__name__)


def refuse_name(option: str, name: str) -> None:
    """Refuse the value of an option, such as "--name", that is not the name of a single folder on every system."""
    if not (_NAME.fullmatch(name) and name.isprintable() and len(name.encode("utf-8", "replace")) <= LONGEST):
        shown = name if len(name) <= 60 else f"{name[:60]}..."
        raise UserError(
            f"{option}: {shown!r} is not the name of one folder; letters, digits, '_', '-' and '.' make a name"
        )


def versions(root: Path) -> list[int]:
    """The numbers of the runs with a name, in order."""
    return sorted(int(d.name) for d in root.glob("*") if is_number(d.name)) if root.is_dir() else []


def new_version(root: Path) -> int:
    """Create the directory of the next version; `mkdir` fails for one of two runs that start at the same time.

    Raises:
        UserError: The folder cannot be written to.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        version = max(versions(root), default=-1) + 1
        while True:
            try:
                (root / str(version)).mkdir()
            except FileExistsError:
                version += 1
            else:
                return version
    except OSError as error:
        raise UserError(f"runs: {root} cannot be written to ({error.strerror}); name another folder") from error


def lock_run(directory: Path) -> FileLock:
    """Lock a run, so that no other process trains it, until `release` of the result or the end of this process.

    It is a lock of the operating system on a file in the directory; nothing waits for it. Forked processes, such as
    workers of a loader, do not hold it. If the file system has no locks or the directory is not writable, nothing is
    locked.

    Raises:
        UserError: Another process holds the lock.
    """
    lock = FileLock(directory / LOCK, blocking=False, fallback_to_soft=False)
    try:
        if directory.is_dir():  # filelock would create it
            lock.acquire()
    except Timeout as error:
        raise UserError(
            f"{directory}: another process is training this run, or has it open; wait for its end, or stop it first"
        ) from error
    except OSError:
        pass
    return lock


def is_held(directory: Path) -> bool:
    """Whether a process is training the run in a directory; false if there is no such directory."""
    try:
        lock_run(directory).release()
    except UserError:
        return True
    return False


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
        numbers = versions(Path(runs) / name)
        if not numbers:
            raise UserError(f"{argument}: there is no run named {name!r} in {runs}; start one without it")
        path = Path(runs) / name / str(numbers[-1])
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
    best = last.with_name("best.ckpt")
    if (last_damage := damage(last)) is None:
        return last
    if (best_damage := damage(best)) is not None:
        raise UserError(
            f"{say('resume')}: {last} {last_damage}, and {best} {best_damage}; restore one of them, or start a new run"
        )
    _log.warning("%s %s: resuming from %s, and repeating the steps after it", last, last_damage, best)
    return best


def run_directory_of(checkpoint: Path) -> Path | None:
    """The run directory of a checkpoint, as short as the checkpoint is written; None if it is not in one."""
    for path in (checkpoint, checkpoint.absolute(), checkpoint.resolve()):  # the folder of checkpoints may be a link
        run = path.parent.parent
        has_files = any((run / file).is_file() for file in ("config.yaml", "metrics.csv"))
        if path.parent.name == "checkpoints" and is_number(run.name) and run.parent.name and has_files:
            return run
    return None
