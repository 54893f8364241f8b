"""Trains and evaluates on one or two ranks of a real Trainer, and notes what each rank saw and wrote.

    python -m tests.ddp_driver FOLDER WORLD

Every rank writes `rank_<r>.pt` in FOLDER; `tests/test_ddp.py` compares them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from torch import nn

from lightning_meta.batches import SPLITS, Episode, Split
from lightning_meta.cli import main
from lightning_meta.data import Augmentation, EpisodicDataModule, Pool
from lightning_meta.data.source import Source
from lightning_meta.functional import TaskMap
from lightning_meta.functional.ranks import leave_group
from lightning_meta.meta import MAML, MetaModule, ProtoNet, base
from lightning_meta.nn import Conv4

STEPS = 4


class Tiny(Source):
    """Noise around a picture for each class, 16x16 pixels."""

    def pools(self) -> dict[Split, Pool]:
        """12 examples of 10, 6 and 6 classes."""
        generator = torch.Generator().manual_seed(0)
        pools: dict[Split, Pool] = {}
        for split, classes in zip(SPLITS, (10, 6, 6), strict=True):
            picture = torch.rand(classes, 1, 1, 16, 16, generator=generator)
            x = 160 * picture + 95 * torch.rand(classes, 12, 1, 16, 16, generator=generator)
            names = tuple(f"{split} {c}" for c in range(classes))
            pools[split] = Pool(x.flatten(0, 1).byte(), torch.full((classes,), 12), names, names)
        return pools


def data(**options: Any) -> EpisodicDataModule:
    """5 meta-batches of validation and of test tasks, the last one smaller; 9 tasks in all."""
    evaluation = {"val_tasks": 9, "test_tasks": 9, "evaluation_meta_batch_size": 2}
    return EpisodicDataModule(Tiny(), 3, 2, 3, meta_batch_size=4, meta_batches_per_epoch=3, **{**evaluation, **options})


def sgd(parameters: Any) -> torch.optim.Optimizer:
    """SGD, since Adam turns the rounding error of a gradient that should be zero into a step of full size."""
    return torch.optim.SGD(parameters, 0.05, momentum=0.9)


def modules() -> dict[str, MetaModule]:
    """The same initial weights in every process."""

    def backbone() -> nn.Module:
        seed_everything(0, verbose=False)
        return Conv4(1, width=4)

    made: dict[str, MetaModule] = {
        "protonet": ProtoNet(backbone(), optimizer=sgd),
        "protonet_augmented": ProtoNet(backbone(), optimizer=sgd),
        "protonet_inductive": ProtoNet(backbone(), optimizer=sgd, batch_norm="inductive"),
        "maml": MAML(backbone(), inner_lr=0.1, inner_steps=2, optimizer=sgd),
        "maml_inductive": MAML(backbone(), inner_lr=0.1, inner_steps=2, optimizer=sgd, batch_norm="inductive"),
        "maml_measured": MAML(backbone(), inner_lr=0.1, inner_steps=2, optimizer=sgd, strategy="measured"),
    }
    return made


class Seen(Callback):
    """Records the training tasks of this rank."""

    def __init__(self) -> None:
        self.tasks: list[list[int]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Episode, batch_idx: int) -> None:
        self.tasks.append(batch.tasks.tolist())


def trainer(world: int, folder: Path, **options: Any) -> Trainer:
    return Trainer(
        devices=world,
        strategy="ddp" if world > 1 else "auto",
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        **options,
    )


def train(world: int, folder: Path) -> dict[str, Any]:
    """Weights and running statistics after a few steps in float64, over an epoch's end."""
    results: dict[str, Any] = {}
    for name, module in modules().items():
        seen = Seen()
        options: dict[str, Any] = {"max_steps": STEPS, "precision": "64-true", "callbacks": [seen]}
        augmentation = Augmentation(2) if "augmented" in name else None
        trainer(world, folder, limit_val_batches=0, **options).fit(module, datamodule=data(augmentation=augmentation))
        results[name] = {"state": module.state_dict(), "tasks": seen.tasks, "task_map": tuple(module.task_map or ())}
    return results


def evaluate(world: int, folder: Path) -> dict[str, Any]:
    """Validation and test figures of untrained networks."""
    results: dict[str, Any] = {}
    cases = {
        "9 tasks": data(),
        "9 tasks, 2 workers": data(num_workers=2),
        "1 task": data(val_tasks=1, test_tasks=1),
    }
    for case, given in cases.items():
        for name, module in modules().items():
            if "inductive" in name or "measured" in name or "augmented" in name:
                continue
            runner = trainer(world, folder)
            (val,) = runner.validate(module, datamodule=given, verbose=False)
            (test,) = runner.test(module, datamodule=given, verbose=False)
            table = {key: torch.as_tensor(column) for key, column in module.test_report["predictions"].items()}
            table["score"] = torch.tensor([list(row.values())[1:] for row in module.test_report["per_task"]])
            results[f"{name}, {case}"] = {"val": val, "test": test, "table": table}
    return results


def run(world: int, folder: Path) -> list[str]:
    """The command line, with a stop in the middle of an epoch and a resume; what this rank wrote under `runs`."""
    os.chdir(folder)
    written: list[str] = []

    def watch(event: str, args: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
        if (writes or event in ("os.mkdir", "os.rename", "os.remove")) and "runs" in Path(str(args[0])).parts:
            written.append(str(args[0]))

    sys.addaudithook(watch)
    options = [
        "--model=ProtoNet",
        "--model.backbone=lightning_meta.nn.Conv4",
        "--model.backbone.width=4",
        "--model.optimizer=torch.optim.SGD",
        "--model.optimizer.lr=0.05",
        "--data=EpisodicDataModule",
        "--data.source=tests.ddp_driver.Tiny",
        *("--data.ways=3", "--data.shots=2", "--data.queries=3", "--data.meta_batch_size=4"),
        *("--data.meta_batches_per_epoch=3", "--data.evaluation_meta_batch_size=2"),
        *("--data.val_tasks=9", "--data.test_tasks=9"),
        *(
            "--trainer.accelerator=cpu",
            f"--trainer.devices={world}",
            f"--trainer.strategy={'ddp' if world > 1 else 'auto'}",
        ),
        *("--trainer.precision=64-true", "--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false"),
        *("--trainer.enable_model_summary=false", "--name=tiny"),
    ]
    assert main(["fit", *options, "--trainer.max_steps=5"]) == 0
    assert main(["fit", *options, "--trainer.max_steps=8", "--ckpt_path=last"]) == 0
    return written


def ranks_disagree(seconds: Callable[[TaskMap], float], tasks: int) -> TaskMap:
    """A measurement that comes out differently on every rank."""
    seconds(TaskMap("vmap"))
    return TaskMap("loop") if os.environ.get("LOCAL_RANK", "0") == "0" else TaskMap("vmap")


if __name__ == "__main__":
    base.by_measurement = ranks_disagree  # type: ignore[attr-defined]
    folder, world = Path(sys.argv[1]), int(sys.argv[2])
    noted = {"train": train(world, folder), "evaluate": evaluate(world, folder), "written": run(world, folder)}
    torch.save(noted, folder / f"rank_{os.environ.get('LOCAL_RANK', '0')}.pt")
    leave_group()
