"""Writing and reading checkpoints."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO
from torch import Tensor

from lightning_meta.errors import UserError
from lightning_meta.reading import check_regular
from lightning_meta.run.files import replacing
from lightning_meta.run.intact import check_before_torch, check_contents, damage
from lightning_meta.signals import delayed_interrupts

_PLAIN = (bool, int, float, complex, str, bytes, bytearray, type(None), torch.dtype, torch.device, torch.Size)


class AtomicCheckpointIO(CheckpointIO):
    """Writes checkpoints atomically, and reads only checkpoints of tensors and plain data.

    Lightning writes a checkpoint to the temporary folder and moves it, which is not atomic if that folder is on another
    file system.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint to a temporary file, then rename it; Ctrl-C is delayed until then.

        Raises:
            UserError: It has a value that `read_checkpoint` would refuse; the message names it.
        """
        with delayed_interrupts(), replacing(path, "wb") as file, _checksums():
            torch.save(checkpoint, file)
            file.flush()
            if torch.serialization.get_unsafe_globals_in_checkpoint(file.name):
                raise UserError(
                    f"checkpoint: {next(_not_plain(checkpoint), 'a value')} is not plain data, so the checkpoint could "
                    "not be loaded; let the `state_dict` or `on_save_checkpoint` that stores it give numbers, strings, "
                    "lists, dictionaries or tensors"
                )

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
        other = {"best.ckpt": "last.ckpt", "last.ckpt": "best.ckpt"}.get(Path(path).name)
        intact = Path(path).with_name(other) if other else None
        hint = "" if intact is None or damage(intact) else f"; {intact} is intact, name it to use that one"
        raise UserError(f"{path} {wrong}{hint}")
    check_before_torch(path)
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # damaged files raise many types of errors
        raise UserError(f"{path} is not a checkpoint, or is damaged") from error
    check_contents(checkpoint, path)
    return dict(checkpoint)


def _not_plain(value: Any, name: str = "") -> Iterator[str]:
    """The places in a checkpoint of values that are neither tensors nor plain data, with their classes."""
    if type(value) in (dict, OrderedDict):
        for key, part in value.items():
            yield from _not_plain(part, f"{name}[{key!r}]" if name else str(key))
    elif type(value) in (list, tuple, set):
        for i, part in enumerate(value):
            yield from _not_plain(part, f"{name}[{i}]")
    elif not isinstance(value, Tensor) and type(value) not in _PLAIN:
        yield f"{name} ({type(value).__module__}.{type(value).__qualname__})"


@contextmanager
def _checksums() -> Iterator[None]:
    """Write checksums even if the process has turned them off."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(True)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)
