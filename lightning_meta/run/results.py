"""What a finished run says about itself: `results.json`, `predictions.npz` and `per_task.csv`."""

from __future__ import annotations

import csv
import json
import platform
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from lightning_meta.cells import as_cell
from lightning_meta.configuration import public_path
from lightning_meta.data.module import SourceDataModule
from lightning_meta.functional.tf32 import has_tf32, tf32_in_use
from lightning_meta.run.files import replacing
from lightning_meta.run.revision import git_revision

BEFORE_RESUME = "results_before_resume.json"
VERSIONED = ("torch", "lightning", "lightning_meta", "numpy", "matplotlib")


def write_results(directory: Path, metrics: Mapping[str, float], facts: Mapping[str, Any]) -> None:
    """Write `results.json`: metrics by their logged names, beside the facts of the run.

    Args:
        directory: Where to.
        metrics: What was logged. A number that is not finite becomes null, as JSON has none.
        facts: What else to note; plain data.
    """
    finite = {name: float(v) if np.isfinite(float(v)) else None for name, v in sorted(metrics.items())}
    with replacing(directory / "results.json") as file:
        json.dump({**finite, **facts}, file, indent=2)
        file.write("\n")


def write_report(directory: Path, report: Mapping[str, Any]) -> None:
    """Write the predictions and the scores of every test task: `predictions.npz` and `per_task.csv`.

    Args:
        directory: Where to.
        report: `predictions`, arrays by name, and `per_task`, one row of values by name for each task.
    """
    with replacing(directory / "predictions.npz", "wb") as file:
        np.savez_compressed(file, **report["predictions"])
    write_per_task(directory / "per_task.csv", report["per_task"])


def write_per_task(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the scores of test tasks.

    Args:
        path: The CSV file.
        rows: Values by name, one row a task.
    """
    with replacing(path) as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({name: as_cell(value) for name, value in row.items()} for row in rows)


def facts(module: LightningModule, data: LightningDataModule | None, trainer: Trainer) -> dict[str, Any]:
    """What was run, with what and where.

    Args:
        module: The model.
        data: Its data, if they are a data module.
        trainer: What ran it.

    Returns:
        Plain data. `precision` is the Trainer's, `float32` what products of float32 numbers used: `full`, or `tf32` if
        convolutions, recurrent layers or matrix products did.
    """
    device = trainer.strategy.root_device
    fingerprint = data.fingerprint() if isinstance(data, SourceDataModule) else ""
    return {
        "parameters": sum(p.numel() for p in module.parameters()),
        "trainable_parameters": sum(p.numel() for p in module.parameters() if p.requires_grad),
        **_shared(module),
        "model": public_path(type(module)),
        "data": None if data is None else public_path(type(data)),
        "data_fingerprint": fingerprint or None,
        **(data.provenance() if isinstance(data, SourceDataModule) else {}),
        "versions": versions(),
        "git_revision": git_revision(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "precision": str(trainer.precision),
        "float32": _float32(module, device),
    }


def test_facts(data: LightningDataModule | None) -> dict[str, Any]:
    """What a drawn test task is, in words and by the accuracy of guessing; nothing where tasks have names."""
    conditions, chance = getattr(data, "test_conditions", ""), getattr(data, "test_chance", None)
    return {**({"test_conditions": conditions} if conditions else {}), **({"test_chance": chance} if chance else {})}


def _shared(module: LightningModule) -> dict[str, int | bool]:
    """How many trained parameters several tasks share, for a module that says which; whether it is solved."""
    shared = getattr(module, "shared_parameters", None)
    untold = getattr(module, "tasks", ()) is None  # of what, as it has met no data
    if shared is None or untold:
        return {}
    solved = {"solved": True} if getattr(module, "solved", False) else {}  # and not trained, as a linear model is
    return {"shared_parameters": sum(p.numel() for p in shared()), **solved}


def _float32(module: LightningModule, device: torch.device) -> str:
    """What products of float32 numbers use within the steps of a module."""
    exact = getattr(module, "exact_arithmetic", nullcontext)  # learners with an inner loop switch TF32 off
    with exact():
        return "tf32" if has_tf32(device) and tf32_in_use() else "full"


def versions() -> dict[str, str | None]:
    """The versions of Python and of the packages that decide what comes out."""
    return {"python": platform.python_version(), **{name: _version(name) for name in VERSIONED}}


def set_aside_results(directory: Path) -> None:
    """Rename the results of a run that is about to become another, so that they are not taken for the new one's."""
    results = directory / "results.json"
    if results.is_file():
        results.replace(directory / BEFORE_RESUME)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
