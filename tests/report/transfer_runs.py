"""Run directories as a multi-task fit leaves them, made of random numbers."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

HEADER = (
    "task,metric,better,train_examples,test_examples,best_step,train,val,test,train_loss,val_loss,test_loss,joint,"
    "gradient_share,constant"
)


@dataclass(frozen=True)
class Simulated:
    """A task in one run: `(n,)` scores by test example, and what per_task.csv says beside them."""

    scores: np.ndarray
    train_examples: int = 100
    train: float = 0.9
    val: float = 0.7
    train_loss: float = 0.5
    joint: float | None = None
    gradient_share: float | None = None
    metric: str = "accuracy"
    better: str = "higher"
    constant: float | None = None
    targets: np.ndarray | None = None
    best_step: int = 9
    best_val: float | None = None

    def but(self, **changes: Any) -> Simulated:
        return replace(self, **changes)


def write_run(
    directory: Path,
    tasks: Mapping[str, Simulated],
    seed: int = 1,
    config: Mapping[str, Any] | None = None,
    steps: int = 20,
    **results: Any,
) -> Path:
    """Write a finished run."""
    directory.mkdir(parents=True, exist_ok=True)
    content = {"seed_everything": seed, "model": {"class_path": directory.parent.name}, **(config or {})}
    directory.joinpath("config.yaml").write_text(yaml.safe_dump(content))
    found = {
        "test/accuracy": 0.5,
        "test/score": 0.5,
        "seed": seed,
        "data_fingerprint": "abc",
        "model": "M",
        "shared_parameters": 100,
    }
    directory.joinpath("results.json").write_text(json.dumps({**found, **results}))
    best = {f"val/{t.metric}/{n}": t.val if t.best_val is None else t.best_val for n, t in tasks.items()}
    with directory.joinpath("metrics.csv").open("w", newline="") as file:
        validations = [[step, 0.5, "", *best.values()] for step in range(4, steps, 5)]  # steps count from 0
        csv.writer(file).writerows([["step", "val/score", "test/score", *best], *validations])
        csv.writer(file).writerow([steps, "", 0.5, *("" for _ in best)])
    with directory.joinpath("per_task.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER.split(","))
        for name, t in tasks.items():
            test = t.scores.mean() if len(t.scores) else "nan"
            row: list[Any] = [name, t.metric, t.better, t.train_examples, len(t.scores), t.best_step]
            row += [t.train, t.val, test, t.train_loss, 1, 1]
            row += ["" if v is None else v for v in (t.joint, t.gradient_share, t.constant)]
            writer.writerow(row)
    write_predictions(directory / "predictions.npz", tasks)
    return directory


def write_predictions(file: Path, tasks: Mapping[str, Simulated]) -> None:
    """Write the test examples in random order."""
    number = np.concatenate([np.full(len(t.scores), i) for i, t in enumerate(tasks.values())])
    ids = np.concatenate([np.arange(len(t.scores)) for t in tasks.values()])
    score = np.concatenate([t.scores for t in tasks.values()]).astype(float)
    targets = [np.arange(len(t.scores)) % 3 if t.targets is None else t.targets for t in tasks.values()]
    order = np.random.default_rng(len(ids)).permutation(len(ids))
    target = np.concatenate(targets).astype(float)[:, None]
    np.savez_compressed(
        file,
        names=np.array(list(tasks)),
        task=number[order],
        id=ids[order],
        score=score[order],
        output=np.zeros((len(ids), 2)),
        target=target[order],
    )


def draw(rng: np.random.Generator, level: float, difficulty: np.ndarray) -> np.ndarray:
    """Right answers at a level of skill, on the logit scale."""
    skill = level + rng.normal(0, 0.15) - difficulty
    return (rng.random(len(difficulty)) < 1 / (1 + np.exp(-skill))).astype(float)
