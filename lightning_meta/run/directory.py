"""Finding run directories: `runs/<name>/<version>/`, and checkpoints in them."""

from __future__ import annotations

from pathlib import Path

from lightning_meta.errors import UserError
from lightning_meta.run.logger import versions


def checkpoint_to_resume(ckpt_path: str, runs: str, name: str) -> Path:
    """The checkpoint that `--ckpt_path` means.

    Args:
        ckpt_path: A checkpoint, a run directory, or `last`: the newest run of the name.
        runs: The folder of all runs.
        name: The run's name.

    Raises:
        UserError: There is none.
    """
    path = Path(ckpt_path)
    if ckpt_path == "last":
        root = Path(runs) / name
        known = versions(root)
        if not known:
            raise UserError(f"--ckpt_path last: there is no run named {name!r} in {runs}; start one without it")
        path = root / str(known[-1])
    if path.is_dir():
        last = path / "checkpoints" / "last.ckpt"
        if not last.parent.is_dir() and not (path / "config.yaml").is_file():
            raise UserError(f"--ckpt_path {ckpt_path}: {path} is no run directory; name one, such as {runs}/{name}/0")
        if not last.is_file():
            raise UserError(f"--ckpt_path {ckpt_path}: {path} stopped before its first checkpoint; start a new run")
        return last
    if not path.is_file():
        raise UserError(f"--ckpt_path {ckpt_path}: there is no such file, and no such run directory")
    return path


def run_directory_of(checkpoint: Path) -> Path | None:
    """The run directory that a checkpoint lies in; None where it lies elsewhere."""
    run = checkpoint.resolve().parent.parent
    if checkpoint.resolve().parent.name != "checkpoints" or not run.name.isdigit():
        return None
    if not (run / "config.yaml").is_file():
        return None
    given = checkpoint.parent.parent  # shorter to read, where it names the run
    return given if given.parent.name else run
