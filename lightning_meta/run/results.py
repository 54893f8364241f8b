"""The result files of a run: `results.json`, `predictions.npz` and `per_task.csv`."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer

import lightning_meta
from lightning_meta.data.module import SourceDataModule
from lightning_meta.errors import UserError
from lightning_meta.functional.tf32 import has_tf32, tf32_in_use
from lightning_meta.import_paths import public_path
from lightning_meta.reading import read_text
from lightning_meta.run.files import replacing
from lightning_meta.run.tables import write_table

BEFORE_RESUME = "results_before_resume.json"
PACKAGES = ("torch", "lightning", "numpy", "matplotlib")

_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_BRANCH = re.compile(r"ref: (refs/[\w./+@-]+)")


def write_results(directory: Path, metrics: Mapping[str, float], facts: Mapping[str, Any]) -> None:
    """Write `results.json`: the logged metrics, of which NaN and infinity become null, and facts about the run."""
    finite = {name: float(v) if np.isfinite(float(v)) else None for name, v in sorted(metrics.items())}
    with replacing(directory / "results.json") as file:
        json.dump({**finite, **facts}, file, indent=2)
        file.write("\n")


def write_report(directory: Path, report: Mapping[str, Any]) -> None:
    """Write a test report to `predictions.npz`, its arrays by name, and `per_task.csv`, a row for each task."""
    with replacing(directory / "predictions.npz", "wb") as file:
        np.savez_compressed(file, **report["predictions"])
    write_per_task(directory / "per_task.csv", report["per_task"])


def write_per_task(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the scores of test tasks."""
    columns = list(rows[0])
    write_table(path, [columns, *([row.get(name) for name in columns] for row in rows)])


def facts(module: LightningModule, data: LightningDataModule | None, trainer: Trainer) -> dict[str, Any]:
    """Facts about a run as plain data: model, data, versions, device and precision.

    `precision` is that of the Trainer. `float32` is the precision of products of float32 numbers: `tf32` if
    convolutions, recurrent layers or matrix products use TF32, else `full`.
    """
    device = trainer.strategy.root_device
    fingerprint = data.fingerprint() if isinstance(data, SourceDataModule) else ""
    exact = getattr(module, "exact_arithmetic", nullcontext)  # learners with an inner loop switch TF32 off
    with exact():
        float32 = "tf32" if has_tf32(device) and tf32_in_use() else "full"
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
        "float32": float32,
    }


def test_facts(data: LightningDataModule | None) -> dict[str, Any]:
    """A description of the sampled test tasks and their chance accuracy; empty for named tasks."""
    conditions, chance = getattr(data, "test_conditions", ""), getattr(data, "test_chance", None)
    return {**({"test_conditions": conditions} if conditions else {}), **({"test_chance": chance} if chance else {})}


def _shared(module: LightningModule) -> dict[str, int | bool]:
    """Number of trained parameters that tasks share, if the module reports them, and whether it has a closed form."""
    shared = getattr(module, "shared_parameters", None)
    without_tasks = getattr(module, "tasks", ()) is None  # it has seen no data yet
    if shared is None or without_tasks:
        return {}
    solved = {"solved": True} if getattr(module, "solved", False) else {}  # solved, not trained, as a linear model
    return {"shared_parameters": sum(p.numel() for p in shared()), **solved}


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that affect results."""
    own = {"python": platform.python_version(), "lightning_meta": lightning_meta.__version__}
    return {**own, **{name: metadata.version(name) for name in PACKAGES}}


def git_revision(folder: Path | None = None) -> str | None:
    """The commit that is checked out in a folder, by default the working directory; None outside a repository.

    Git is not run: it runs programs that the configuration of the folder names, and the folder may not be trusted. So
    this does not tell whether files differ from the commit.
    """
    try:
        here = (folder or Path.cwd()).resolve()
        home = next((place / ".git" for place in (here, *here.parents) if (place / ".git").exists()), None)
        commit = "" if home is None else _commit(home)
    except (OSError, UnicodeDecodeError, UserError):
        return None
    return commit if _HASH.fullmatch(commit) else None


def _commit(home: Path) -> str:
    if home.is_file():  # a worktree or a submodule
        home = home.parent / read_text(home).removeprefix("gitdir: ").strip()
    head = read_text(home / "HEAD").strip()
    branch = _BRANCH.fullmatch(head)
    if branch is None or ".." in branch[1]:
        return head
    shared = home / "commondir"
    common = home / read_text(shared).strip() if shared.is_file() else home
    for place in (home, common):
        if (place / branch[1]).is_file():
            return read_text(place / branch[1]).strip()
    pairs = (line.partition(" ") for line in read_text(common / "packed-refs").splitlines())
    return next((commit for commit, _, name in pairs if name == branch[1]), "")
