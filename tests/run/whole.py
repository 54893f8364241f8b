"""Checks of a run directory that must pass at any moment: every file is complete, and the files agree."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from lightning_meta.run import read_checkpoint
from lightning_meta.run.record import KEY
from lightning_meta.staging import STAGED

AT_THE_END = ("per_task.csv", "predictions.npz", "figures/tasks.png", "config.yaml", "metrics.csv")


def rows_of(file: Path) -> list[dict[str, str]]:
    """The rows of a table, each of which is whole."""
    with file.open(newline="") as lines:
        header, *rows = list(csv.reader(lines)) or [[]]
    assert all(len(row) == len(header) for row in rows), f"{file}: a row is torn"
    return [dict(zip(header, row, strict=True)) for row in rows]


def check_files(folder: Path) -> None:
    """Check that every file can be parsed, and that temporary files do not accumulate."""
    staged: Counter[tuple[Path, str]] = Counter()
    for file in folder.rglob("*"):
        if not file.is_file():
            continue
        if found := re.fullmatch(rf"\.(?P<target>.+){STAGED}", file.name):
            staged[file.parent, found["target"]] += 1
            continue
        assert file.stat().st_size or file.name in ("metrics.csv", "run.lock") or file.suffix == ".log", (
            f"{file} is empty"
        )
        if file.suffix == ".json":
            json.loads(file.read_text())
        elif file.suffix == ".yaml":
            assert isinstance(yaml.safe_load(file.read_text()), dict), f"{file} is no configuration"
        elif file.suffix == ".csv":
            rows_of(file)
        elif file.suffix == ".npz":
            with np.load(file) as arrays:
                assert all(arrays[name].size for name in arrays.files), f"{file} has an empty array"
        elif file.suffix == ".png":
            with Image.open(file) as picture:
                picture.load()
        elif file.suffix == ".ckpt":
            read_checkpoint(file)
        elif file.suffix == ".pt2":
            torch.export.load(file)
    assert all(count == 1 for count in staged.values()), f"temporary files pile up: {staged}"


def check_run(run: Path, monitor: str) -> None:
    """Check that configuration, table, checkpoints and results belong to the same training."""
    check_files(run)
    last, best = (run / "checkpoints" / f"{name}.ckpt" for name in ("last", "best"))
    if not last.is_file():
        assert not best.is_file()
        assert not (run / "results.json").is_file()
        return
    reached = read_checkpoint(last)
    config = yaml.safe_load((run / "config.yaml").read_text())
    limit = config["trainer"]["max_steps"]
    assert reached["global_step"] <= limit
    counted = reached["quiet_moment"]["rows"]
    rows = rows_of(run / "metrics.csv") if (run / "metrics.csv").is_file() else []
    assert len(rows) >= counted, "the table lacks rows that the checkpoint counts"
    losses = [int(row["step"]) for row in rows if row.get("train/loss")]
    assert losses == sorted(set(losses)), f"a step twice, or out of order: {losses}"
    every = config["trainer"]["log_every_n_steps"]
    kept = [int(row["step"]) for row in rows[:counted] if row.get("train/loss")]
    assert kept == list(range(every - 1, reached["global_step"], every)), f"rows that are missing: {kept}"
    _check_options(reached, config, ended=(run / "results.json").is_file())
    if best.is_file():
        _check_best(read_checkpoint(best), rows, monitor)
    if (run / "results.json").is_file():
        results = json.loads((run / "results.json").read_text())
        assert results["steps"] == reached["global_step"] == limit, "results of another training"
        assert results["seed"] == config["seed_everything"]
        assert all((run / name).is_file() for name in (*AT_THE_END, results["checkpoint"]))


def _check_options(reached: dict[str, Any], config: dict[str, Any], ended: bool) -> None:
    """Check that a checkpoint has the options it was trained with, and at the end those of `config.yaml`."""
    record = reached[KEY]
    model = record["options"]["model"]["init_args"]
    if "optimizer" in model:  # of the toy, whose rate falls by a tenth every 7 steps
        rate = model["optimizer"]["init_args"]["lr"]
        used = reached["optimizer_states"][0]["param_groups"][0]["lr"]
        assert abs(used / (rate * 0.9 ** (reached["global_step"] // 7)) - 1) < 1e-9, f"{used} was used, not {rate}"
        changes = [resume["changes"]["model.optimizer.lr"] for resume in record["resumes"]]
        assert all(new == rate for _, new in changes[-1:])
    if ended:  # until then a kill may fall between the one file and the other
        assert config["model"] == record["options"]["model"]


def _check_best(best: dict[str, Any], rows: list[dict[str, str]], monitor: str) -> None:
    """Check that it was the best one when written, since the last change of the meaning of scores."""
    counted, since = best["quiet_moment"]["rows"], max([0, *(r["step"] for r in best[KEY]["resumes"])])
    scores = [float(row[monitor]) for row in rows[:counted] if row.get(monitor) and int(row["step"]) >= since]
    (state,) = [state for name, state in best["callbacks"].items() if name.startswith("RunCheckpoint")]
    assert state["best_score"] == scores[-1] == max(scores), f"not the best: {state} of {scores}"
