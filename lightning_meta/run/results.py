"""What a finished run says about itself: `results.json`, `predictions.npz` and `per_task.csv`."""

from __future__ import annotations

import csv
import json
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, LightningModule

from lightning_meta.data.sources.base import Source
from lightning_meta.run.files import replacing

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


def write_tasks(directory: Path, report: Mapping[str, np.ndarray]) -> None:
    """Write the predictions and the score of every test task.

    Args:
        directory: Where to.
        report: `task` (n,), `score` (n, S+1) after 0 to S inner steps, `output` (n, NQ, out) and `target` (n, NQ).
    """
    with replacing(directory / "predictions.npz", "wb") as file:
        np.savez_compressed(file, task=report["task"], output=report["output"], target=report["target"])
    scores = np.asarray(report["score"])
    scores = scores.reshape(len(scores), -1)
    names = [f"step_{s}" for s in range(scores.shape[1])] if scores.shape[1] > 1 else ["score"]
    with replacing(directory / "per_task.csv") as file:
        writer = csv.writer(file)
        writer.writerow(["task", *names])
        writer.writerows([int(t), *map(float, row)] for t, row in zip(report["task"], scores, strict=True))


def facts(module: LightningModule, data: LightningDataModule | None) -> dict[str, Any]:
    """What was run, and with what."""
    source = getattr(data, "source", None)
    fingerprint = source.fingerprint() if isinstance(source, Source) else ""
    return {
        "parameters": sum(p.numel() for p in module.parameters()),
        "trainable_parameters": sum(p.numel() for p in module.parameters() if p.requires_grad),
        "model": f"{type(module).__module__}.{type(module).__qualname__}",
        "data": None if data is None else f"{type(data).__module__}.{type(data).__qualname__}",
        "data_fingerprint": fingerprint or None,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in VERSIONED}},
        "git_revision": git_revision(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def git_revision() -> str | None:
    """The revision of the working directory, "+" after it where files differ; None outside a repository."""
    try:
        head = _git("rev-parse", "HEAD")
        return head + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
