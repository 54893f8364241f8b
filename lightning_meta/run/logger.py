"""The run directory and its metrics file."""

from __future__ import annotations

import contextlib
import csv
import os
import shutil
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from lightning_meta.errors import UserError
from lightning_meta.run.directory import lock_run, new_version, refuse_name
from lightning_meta.run.files import check_writable
from lightning_meta.run.tables import read_table, write_table


class RunLogger(Logger):
    """Creates `root/<name>/<version>/` and appends to its `metrics.csv`: one row per step, one column per metric.

    The directory is created when it is first used, so that a run that fails before it starts leaves none. Two runs that
    start at the same time get different versions.

    Args:
        root: Folder of all runs.
        name: Name of the run.
        version: Number of an existing run to continue; by default a new one.
        exclusive: Whether to prevent other exclusive processes from training the run at the same time.
    """

    def __init__(
        self, root: str | Path = "runs", name: str = "run", version: int | None = None, exclusive: bool = False
    ) -> None:
        super().__init__()
        if version is None:
            refuse_name("name", name)
        self._root, self._name, self._version = Path(root) / name, name, version
        self.is_new = version is None
        self.columns: list[str] = []  # of `metrics.csv` so far
        self.rows = 0
        self._row: dict[str, Any] = {}
        self._exclusive = exclusive
        self._lock: FileLock | None = None

    @property
    def name(self) -> str:
        """The run's name."""
        return self._name

    @property
    def version(self) -> int | None:
        """The number of the run under its name; None until the directory exists."""
        return self._version

    @property
    def directory(self) -> Path:
        """The run directory, created by the first call; only for rank 0."""
        if self._version is None:
            self._version = new_version(self._root)
            self.hold()
        return self._root / str(self._version)

    def hold(self) -> None:
        """Lock an exclusive run that has a directory until `release`, so that no other process trains it.

        Raises:
            UserError: Another process trains the run, or the directory cannot be written to.
        """
        # Before there is a Trainer, the first process of another machine looks like rank 0.
        elsewhere = os.environ.get("NODE_RANK", "0") != "0"
        if self._exclusive and self._version is not None and self._lock is None and _is_rank_zero() and not elsewhere:
            check_writable(self.directory)
            self._lock = lock_run(self.directory)

    def release(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    @property
    def save_dir(self) -> str | None:
        """The run directory on rank 0; `Trainer.log_dir` broadcasts it to the other ranks."""
        return str(self.directory) if _is_rank_zero() else None

    @property
    def log_dir(self) -> str | None:
        """The same as `save_dir`."""
        return self.save_dir

    @property
    def file(self) -> Path:
        """Path of `metrics.csv`."""
        return self.directory / "metrics.csv"

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add metrics to the row of a step. The row is written when the next one starts, and by `flush`."""
        new = {"step": step, **metrics}
        if any(self._row.get(key, value) != value for key, value in new.items()):
            self.flush()
        self._row.update(new)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: `config.yaml` has the hyper-parameters."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the last row."""
        self.flush()

    def flush(self) -> None:
        """Write the current row."""
        if not self._row:
            return
        row, self._row = self._row, {}
        unseen = [key for key in row if key not in self.columns]
        if unseen:
            old = self._read(self.rows) if self.rows else []
            self.columns += unseen
            self._rewrite([*old, row])
        else:
            with self.file.open("a", encoding="utf-8", newline="") as file:
                csv.writer(file).writerow([row.get(key) for key in self.columns])
        self.rows += 1

    def cut(self, rows: int, columns: Sequence[str] = ()) -> None:
        """Truncate an existing file after its first rows, and continue there.

        A column without values in these rows is dropped; it is added again when it is logged.

        Args:
            rows: Number of rows to keep.
            columns: The columns that the file had when these rows were written.

        Raises:
            UserError: The file is damaged: a row or column is missing or incomplete.
        """
        self._row = {}
        kept = self._read(rows, columns) if rows else []
        self.columns = [key for key in (kept[0] if kept else ()) if any(row[key] for row in kept)]
        self.rows = len(kept)
        self._rewrite(kept)

    def discard(self) -> None:
        """Remove a directory that this run created and never used, and release the lock."""
        self.release()
        if _is_rank_zero() and self.is_new and self._version is not None:
            shutil.rmtree(self.directory, ignore_errors=True)
            with contextlib.suppress(OSError):  # fails unless they are empty
                self._root.rmdir()
                self._root.parent.rmdir()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None}

    def _read(self, rows: int, columns: Sequence[str] = ()) -> list[dict[str, Any]]:
        # Rows that a killed process left incomplete come after the rows that a checkpoint counts.
        try:
            header, table = read_table(self.file, ["step", *columns], rows)
        except UserError as error:
            raise UserError(
                f"{error}; restore it, or resume from a copy of the checkpoint in another folder"
            ) from error
        return [dict(zip(header, row, strict=True)) for row in table]

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        write_table(self.file, [self.columns, *([row.get(key) for key in self.columns] for row in rows)])


def _is_rank_zero() -> bool:
    return getattr(rank_zero_only, "rank", 0) == 0  # Lightning sets it on the decorator
