"""Small tasks whose answers are known, for the tests of multi-task modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import lightning
import torch
from torch import Tensor

from lightning_meta.batches import SPLITS, Examples, Split
from lightning_meta.data import MultiTaskDataModule
from lightning_meta.data.source import TaskSource
from lightning_meta.data.task_set import TaskSet
from lightning_meta.functional.random_bits import name_key
from lightning_meta.multitask import MultiTaskModule
from lightning_meta.nn import MLP
from lightning_meta.tasks import Classification, Regression, Task

SIZES: dict[str, dict[Split, int]] = {
    "sum": {"train": 48, "val": 20, "test": 30},
    "largest": {"train": 64, "val": 20, "test": 30},
    "sign": {"train": 24, "val": 12, "test": 14},
}
TASKS: dict[str, Task] = {"sum": Regression(1), "largest": Classification(3), "sign": Classification(2)}


def answer(name: str, x: Tensor) -> Tensor:
    """The targets of a task."""
    if name == "sum":
        return 3 * x.sum(-1, keepdim=True) + 5
    return x[:, :3].argmax(-1) if name == "largest" else (x[:, 0] > 0).long()


class Toys(TaskSource):
    """Tasks on four numbers; a task's examples do not depend on which others there are."""

    def __init__(self, names: tuple[str, ...] = ("sum", "largest", "sign"), noise: float = 0.0) -> None:
        self.names, self.noise = names, noise

    def tasks(self) -> dict[str, Task]:
        return {name: TASKS[name] for name in self.names}

    def sets(self) -> dict[Split, TaskSet]:
        return {split: TaskSet.of_examples(self.examples(split)) for split in SPLITS}

    def examples(self, split: Split) -> dict[str, Examples]:
        found = {}
        for name in self.names:
            generator = torch.Generator().manual_seed(abs(name_key(name + split)))
            x = torch.randn(SIZES[name][split], 4, generator=generator)
            found[name] = Examples(x, answer(name, x))
        return found


class Given(TaskSource):
    """Tasks and sets as they are given."""

    def __init__(self, tasks: Mapping[str, Task], sets: Mapping[Split, TaskSet]) -> None:
        self._tasks, self._sets = dict(tasks), dict(sets)

    def tasks(self) -> dict[str, Task]:
        return self._tasks

    def sets(self) -> dict[Split, TaskSet]:
        return self._sets


def data(names: tuple[str, ...] = ("sum", "largest", "sign"), **options: Any) -> MultiTaskDataModule:
    """The toys, in batches of eight of each."""
    return MultiTaskDataModule(Toys(names), **{"batch_size": 8, "batches_per_epoch": 5, **options})


def backbone() -> MLP:
    """The same network whatever was drawn before."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return MLP(4, (12, 12))


def trainer(steps: int = 15, folder: Path | None = None, **options: Any) -> lightning.Trainer:
    """A Trainer without output."""
    quiet: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "accelerator": "cpu",
        "default_root_dir": folder,
    }
    return lightning.Trainer(max_steps=steps, **{**quiet, **options})


Method = TypeVar("Method", bound=MultiTaskModule)


def train(
    method: Callable[..., Method], given: MultiTaskDataModule, steps: int = 15, seed: int = 3, **options: Any
) -> Method:
    """Make a module and train it, in double precision; options of the Trainer stand under `trainer`."""
    of_trainer = options.pop("trainer", {})
    lightning.seed_everything(seed, verbose=False)
    module = method(**{"backbone": backbone(), "optimizer": partial(torch.optim.Adam, lr=0.01), **options})
    trainer(steps, precision="64-true", **of_trainer).fit(module, datamodule=given)
    return module


def results_of(module: MultiTaskModule, given: MultiTaskDataModule) -> dict[str, float]:
    """The values that a test logs."""
    return dict(trainer().test(module, datamodule=given, verbose=False)[0])
