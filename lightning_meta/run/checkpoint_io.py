"""Writing and reading checkpoints."""

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
    """Writes checkpoints atomically, and reads only checkpoints of tensors and plain data.

    Lightning writes a checkpoint to the temporary folder and moves it, which is not atomic if that folder is on another
    file system.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint to a temporary file, then rename it; Ctrl-C is delayed until then."""
        with delayed_interrupts(), replacing(path, "wb") as file, _checksums():
            torch.save(checkpoint, file)

    def load_checkpoint(
        self, path: str | PathLike[str], map_location: Any | None = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read a checkpoint; code in it is never run, whatever `weights_only` is."""
        return read_checkpoint(path, map_location)

    def remove_checkpoint(self, path: str | PathLike[str]) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)


def read_checkpoint(path: str | PathLike[str], map_location: Any | None = "cpu") -> dict[str, Any]:
    """Read a checkpoint of tensors and plain data.

    Args:
        path: The file.
        map_location: Device for the tensors, as in `torch.load`.

    Raises:
        UserError: The file does not exist, is not a checkpoint, is damaged, or contains code.
    """
    check_regular(path)
    if wrong := damage(path):
        raise UserError(f"{path} {wrong}{_way_out(Path(path))}")
    check_before_torch(path)
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # damaged files raise many types of errors
        raise UserError(f"{path} is not a checkpoint, or is damaged") from error
    check_contents(checkpoint, path)
    return dict(checkpoint)


def _way_out(file: Path) -> str:
    """A hint at the other checkpoint of the run, if that is intact."""
    name = {"best.ckpt": "last.ckpt", "last.ckpt": "best.ckpt"}.get(file.name)
    if name is None or damage(other := file.with_name(name)):
        return ""
    return f"; {other} is intact, name it to use that one"


@contextmanager
def _checksums() -> Iterator[None]:
    """Write checksums even if the process has turned them off."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(True)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)
