"""Reads what wandb stores of a run: records in the format of LevelDB's log, each a protocol buffer."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

BLOCK, HEADER, IDENT = 32768, 7, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(folder: Path) -> list[Any]:
    """The records of `folder/run-<id>.wandb`."""
    from wandb.proto import wandb_internal_pb2 as pb

    (file,) = folder.glob("run-*.wandb")
    data, at, parts, found = file.read_bytes(), IDENT, b"", []
    assert data[:4] == b":W&B"
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + HEADER])
        if kind == 0:
            break
        parts = (b"" if kind in (FULL, FIRST) else parts) + data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (FULL, LAST):
            record = pb.Record()  # type: ignore[attr-defined]
            record.ParseFromString(parts)
            found.append(record)
    return found


def _items(items: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in items:
        *parents, last = item.nested_key or [item.key]
        place = found
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = json.loads(item.value_json)
    return found


class Stored:
    """The data of a run stored by wandb: its record, configuration, history, summary and files."""

    def __init__(self, folder: Path) -> None:
        found = records(folder)
        self.run = next(r.run for r in found if r.HasField("run"))
        self.config: dict[str, Any] = _items(self.run.config.update)
        self.history = [_items(r.history.item) for r in found if r.HasField("history")]
        self.summary: dict[str, Any] = {}
        self.files = [f.path for r in found if r.HasField("files") for f in r.files.files]
        self.artifacts = [r.request.log_artifact.artifact for r in found if r.request.HasField("log_artifact")]
        self.artifacts += [r.artifact for r in found if r.HasField("artifact")]
        self.exit_code = next((r.exit.exit_code for r in found if r.HasField("exit")), None)
        for record in found:
            self.config |= _items(record.config.update)
            self.summary |= _items(record.summary.update)


def stored_in(run_directory: Path | str) -> list[Stored]:
    """The offline W&B runs of a run directory, in the order of their start."""
    import wandb

    wandb.teardown()  # its service writes the last of a finished run a moment later, and ends when all is written
    return [Stored(f) for f in sorted(Path(run_directory).glob("wandb/offline-run-*"), key=lambda f: f.stat().st_ctime)]
