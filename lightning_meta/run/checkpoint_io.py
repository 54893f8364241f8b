"""How a checkpoint is written and read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO

from lightning_meta.errors import UserError
from lightning_meta.reading import check_regular
from lightning_meta.run.checksums import damage
from lightning_meta.run.files import replacing
from lightning_meta.run.intact import check_before_torch, check_contents
from lightning_meta.signals import delayed_interrupts


class AtomicCheckpointIO(CheckpointIO):
    """Checkpoints that are whole or not there, and that hold plain data only.

    Lightning stages a checkpoint in the temporary folder and moves it, which is not atomic where that folder is
    on another file system.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint beside its target, then rename it; Ctrl-C waits for it."""
        with delayed_interrupts(), replacing(path, "wb") as file, _checksums():
            torch.save(checkpoint, file)

    def load_checkpoint(
        self, path: str | PathLike[str], map_location: Any | None = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read a checkpoint; code in it is never run, whatever `weights_only` says."""
        return read_checkpoint(path, map_location)

    def remove_checkpoint(self, path: str | PathLike[str]) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)


def read_checkpoint(path: str | PathLike[str], map_location: Any | None = "cpu") -> dict[str, Any]:
    """Read a checkpoint file that holds tensors and plain data.

    Args:
        path: The file.
        map_location: The device to put its tensors on, as for `torch.load`.

    Raises:
        UserError: There is no such file, it is no checkpoint, it is damaged, or it holds code.
    """
    check_regular(path)
    if wrong := damage(path):
        raise UserError(f"{path} {wrong}{_way_out(Path(path))}")
    check_before_torch(path)
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # whatever its parts raise for what they do not take
        raise UserError(f"{path} is not a checkpoint, or is damaged") from error
    check_contents(checkpoint, path)
    return dict(checkpoint)


def _way_out(file: Path) -> str:
    """The run's other checkpoint, where it has one that is intact."""
    name = {"best.ckpt": "last.ckpt", "last.ckpt": "best.ckpt"}.get(file.name)
    if name is None or damage(other := file.with_name(name)):
        return ""
    return f"; {other} is intact, name it to use that one"


@contextmanager
def _checksums() -> Iterator[None]:
    """Write checksums, whatever the process has set."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(True)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)
