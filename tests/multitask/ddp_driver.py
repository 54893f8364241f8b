"""Trains and evaluates multi-task modules on one or two ranks of a real Trainer, and notes what each rank has.

    python -m tests.multitask.ddp_driver FOLDER WORLD

Every rank writes `rank_<r>.pt` in FOLDER; `tests/multitask/test_ddp.py` compares them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, seed_everything
from torch import Tensor, nn
from torchjd.aggregation import GradDrop, GradVac

from lightning_meta.batches import SPLITS, Examples, Split, TaskBatch
from lightning_meta.data import MultiTaskDataModule
from lightning_meta.data.task_set import TaskSet
from lightning_meta.functional.ranks import leave_group
from lightning_meta.multitask import Conditioned, CrossStitch, Independent, MixtureOfExperts, MultiHead, MultiTaskModule
from lightning_meta.nn import MLP, Conv4, TabularMLP
from lightning_meta.sources import Table
from lightning_meta.tasks import Binary, Classification, Regression, Task
from lightning_meta.weightings import DBMTL, FAMO, DynamicWeightAverage, PCGrad, TorchJD, Uncertainty, Weighting
from tests.multitask import test_custom_tasks as custom
from tests.multitask.toys import Given, trainer

STEPS = 5
TASKS: dict[str, Task] = {"sum": Regression(1), "largest": Classification(3), "sign": Binary(), "first": Regression(1)}
SIZES = {"sum": 40, "largest": 17, "sign": 1, "first": 9}  # the one example of `sign` is on one rank alone


def targets(name: str, x: Tensor) -> Tensor:
    found = {"largest": x[:, :3].argmax(-1), "sign": (x[:, 0] > 0).long(), "first": x[:, :1]}
    return found.get(name, x.sum(-1, keepdim=True))


def numbers(shared: bool) -> Given:
    """Four numbers an input; a data set of its own for each task, or inputs with some labels missing."""
    generator = torch.Generator().manual_seed(0)
    sets: dict[Split, TaskSet] = {}
    for split in SPLITS:
        if shared:
            x = torch.randn(22, 4, generator=generator, dtype=torch.float64)
            present = {n: torch.rand(22, generator=generator) < s / 40 for n, s in SIZES.items()}
            for mask in present.values():
                mask[:2] = True
            sets[split] = TaskSet.of_columns(x, {n: targets(n, x) for n in TASKS}, present)
        else:
            inputs = {n: torch.randn(s, 4, generator=generator, dtype=torch.float64) for n, s in SIZES.items()}
            sets[split] = TaskSet.of_examples({n: Examples(x, targets(n, x)) for n, x in inputs.items()})
    return Given(TASKS, sets)


def pictures() -> Given:
    """Two tasks of 16x16 pixels, of 30 and 7 examples."""
    generator = torch.Generator().manual_seed(1)
    sets: dict[Split, TaskSet] = {}
    for split in SPLITS:
        made = {}
        for name, n in {"many": 30, "few": 7}.items():
            y = torch.randint(3, (n,), generator=generator)
            x = 60 * y[:, None, None, None] + 100 * torch.rand(n, 1, 16, 16, generator=generator)
            made[name] = Examples(x.byte(), y)
        sets[split] = TaskSet.of_examples(made)
    return Given({"many": Classification(3), "few": Classification(3)}, sets)


def few_pictures() -> MultiTaskDataModule:
    """Pictures of which a batch has one example of `few`, on one rank only, and an odd number of evaluation batches."""
    few = pictures()
    train = few.sets()["train"]
    one = {name: torch.arange(1 if name == "few" else n) for name, n in train.counts.items()}
    batch = train.batch(one)
    sets = {**few.sets(), "train": TaskSet(batch.inputs, batch.targets, batch.rows)}
    options: dict[str, Any] = {"batch_size": 8, "batches_per_epoch": 4, "evaluation_batch_size": 13, "seed": 0}
    return MultiTaskDataModule(Given(few.tasks(), sets), **options)


DATA: dict[str, Callable[[], MultiTaskDataModule]] = {
    # Six examples of each task, the one of `sign` in every batch.
    "all tasks": lambda: MultiTaskDataModule(numbers(False), batch_size=6, batches_per_epoch=3, seed=0),
    # Two of four tasks a batch, so that some are absent.
    "some tasks": lambda: MultiTaskDataModule(
        numbers(False), batch_size=5, tasks_per_batch=2, task_exponent=0.5, batches_per_epoch=7, seed=0
    ),
    "missing labels": lambda: MultiTaskDataModule(numbers(True), batch_size=7, batches_per_epoch=3, seed=0),
}


def network(kind: type[nn.Module] = MLP) -> nn.Module:
    seed_everything(0, verbose=False)
    return MLP(4, (8, 8)) if kind is MLP else Conv4(1, width=4, spatial="mean")


MODULES: dict[str, Callable[..., MultiTaskModule]] = {
    "multi_head": MultiHead,
    "branches": lambda net, **options: MultiHead(net, 1, **options),
    "uncertainty": lambda net, **options: MultiHead(net, weighting=Uncertainty(), **options),
    "dynamic": lambda net, **options: MultiHead(net, weighting=DynamicWeightAverage(), **options),
    "pcgrad": lambda net, **options: MultiHead(net, weighting=PCGrad(), **options),
    "one_hot": lambda net, **options: Conditioned(net, enters="film", at=(1, 2), **options),
    "embedding": lambda net, **options: Conditioned(net, "embedding", at=(1,), **options),
    "independent": lambda net, **options: Independent(net, "vmap", **options),
    "independent_loop": lambda net, **options: Independent(net, "loop", **options),
    "mixture_of_experts": MixtureOfExperts,
    "cross_stitch": CrossStitch,
}
# Of these, training alone.
WEIGHTINGS: dict[str, Callable[[], Weighting]] = {
    "torchjd": lambda: TorchJD(GradDrop()),  # it draws for each parameter
    "torchjd with state": lambda: TorchJD(GradVac()),
    "dbmtl": DBMTL,
    "famo": FAMO,
}


TRAINED = [
    *(f"{kind}, some tasks" for kind in MODULES),
    *(f"{kind}, all tasks" for kind in ("multi_head", "branches", "one_hot", "independent", "mixture_of_experts")),
    *(f"{kind}, missing labels" for kind in ("multi_head", "uncertainty", "embedding", "independent", "cross_stitch")),
    *(f"{kind}, accumulated" for kind in ("multi_head", "independent", "embedding", "pcgrad")),
    *(f"pcgrad, {case}" for case in ("all tasks", "missing labels", "accumulated and clipped")),
    "torchjd, accumulated",
    "dbmtl, accumulated",
    "famo, some tasks",
    "torchjd with state, all tasks",
]


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, 0.01)


class Watch(Callback):
    """The gradient of every step, the tasks of every batch, and each task's own parameters before and after it."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, Tensor]] = []
        self.tasks: list[list[str]] = []
        self.inputs: list[int] = []
        self.own: list[list[Tensor]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: TaskBatch, batch_idx: int) -> None:
        self.tasks.append(list(batch.targets))
        self.inputs.append(len(batch.inputs))
        if not self.own:
            self.own.append(own(pl_module))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.own.append(own(pl_module))

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        found = {name: p for name, p in pl_module.named_parameters() if p.requires_grad}
        self.gradients.append({n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in found.items()})


def own(module: MultiTaskModule) -> list[Tensor]:
    """The parameters of each task alone, flat."""
    of = [[p.detach().flatten() for m in module.own_modules(i) for p in m.parameters()] for i in range(len(TASKS))]
    return [torch.cat(parts) if parts else torch.zeros(0) for parts in of]


def train(world: int, folder: Path, kind: str, name: str, **options: Any) -> dict[str, Any]:
    if kind in WEIGHTINGS:
        module: MultiTaskModule = MultiHead(network(), weighting=WEIGHTINGS[kind](), optimizer=adam)
    else:
        module = MODULES[kind](network(), optimizer=adam)
    watch = Watch()
    strategy = {"devices": world, "strategy": "ddp" if world > 1 else "auto", "limit_val_batches": 0}
    trainer(STEPS, folder, precision="64-true", callbacks=[watch], **strategy, **options).fit(
        module, datamodule=DATA[name]()
    )
    noted = {"gradients": watch.gradients, "tasks": watch.tasks, "inputs": watch.inputs, "own": watch.own}
    return {"state": tensors(module), **noted}


def tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: t.detach() for name, t in (*module.named_parameters(), *module.named_buffers())}


def evaluate(world: int, folder: Path, module: MultiTaskModule, given: MultiTaskDataModule) -> dict[str, Any]:
    runner = trainer(1, folder, devices=world, strategy="ddp" if world > 1 else "auto")
    (val,) = runner.validate(module, datamodule=given, verbose=False)
    logged: dict[str, float] = {}
    for of_split in runner.test(module, datamodule=given, verbose=False):
        logged |= of_split
    predictions = {k: torch.as_tensor(v) for k, v in module.test_report["predictions"].items() if k != "names"}
    return {"val": val, "test": logged, "predictions": predictions, "per_task": module.test_report["per_task"]}


def fit_with_running_statistics(world: int, folder: Path) -> dict[str, Any]:
    """The last validation of a training whose running statistics follow the batches of all ranks."""
    found: dict[str, Any] = {}
    for kind in ("multi_head", "branches", "independent", "independent_loop"):
        module = MODULES[kind](network(Conv4), optimizer=adam)
        given = few_pictures()
        strategy = {"devices": world, "strategy": "ddp" if world > 1 else "auto"}
        runner = trainer(8, folder, **strategy)
        runner.fit(module, datamodule=given)
        logged = {name: float(value) for name, value in runner.callback_metrics.items() if name.startswith("val/")}
        found[kind] = {"val": logged, "state": {k: v.clone() for k, v in tensors(module).items()}}
    return found


def validate(folder: Path, kind: str, state: dict[str, Tensor]) -> dict[str, float]:
    """The validation of the given weights in one process."""
    module, given = MODULES[kind](network(Conv4)), few_pictures()
    given.setup("fit")
    module.tasks = given.spec
    module.configure_model()
    for name, tensor in tensors(module).items():
        tensor.copy_(state[name])
    (found,) = trainer(1, folder).validate(module, datamodule=given, verbose=False)
    return dict(found)


def train_embeddings(world: int, folder: Path) -> dict[str, Tensor]:
    """The weights after some steps on a table whose categories are codes; some of them are on one rank alone."""
    rows = [f"{i % 7 - 3},{'pqrstuvw'[i * i % 8]},{i * i % 11},{'yes' if i % 3 else 'no'}" for i in range(60)]
    file = folder / f"table_{os.environ.get('LOCAL_RANK', '0')}.csv"
    file.write_text("\n".join(["a,town,y,z", *rows]))
    source = Table(file, {"y": "regression", "z": "binary"}, categories="codes")
    seed_everything(0, verbose=False)
    module = MultiHead(TabularMLP((8,)), optimizer=adam)
    strategy = {"devices": world, "strategy": "ddp" if world > 1 else "auto", "limit_val_batches": 0}
    data = MultiTaskDataModule(source, batch_size=6, seed=0)
    trainer(STEPS, folder, precision="64-true", **strategy).fit(module, datamodule=data)
    return {name: p.detach() for name, p in module.named_parameters()}


def run(world: int, folder: Path) -> dict[str, Any]:
    noted: dict[str, Any] = {"train": {}, "evaluate": {}}
    for name in TRAINED:
        kind, drawn = name.split(", ")
        if drawn == "accumulated":
            noted["train"][name] = train(world, folder, kind, "some tasks", accumulate_grad_batches=2)
        elif drawn == "accumulated and clipped":
            options = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}
            noted["train"][name] = train(world, folder, kind, "some tasks", **options)
        else:
            noted["train"][name] = train(world, folder, kind, drawn)
    for kind in MODULES:
        given = MultiTaskDataModule(pictures(), batch_size=8, evaluation_batch_size=13, train_subset=20, seed=0)
        noted["evaluate"][kind] = evaluate(world, folder, MODULES[kind](network(Conv4)), given)
    noted["evaluate"]["missing labels"] = evaluate(world, folder, MultiHead(network()), DATA["missing labels"]())
    one = MultiTaskDataModule(pictures(), evaluation_batch_size=100, seed=0)  # the second rank has nothing to do
    noted["evaluate"]["one batch"] = evaluate(world, folder, MultiHead(network(Conv4)), one)
    shapes = custom.given(custom.TASKS, custom.ANY, evaluation_batch_size=13)
    noted["evaluate"]["targets of any shape"] = evaluate(world, folder, MultiHead(network()), shapes)
    noted["fit"] = fit_with_running_statistics(world, folder)
    noted["embeddings"] = train_embeddings(world, folder)
    return noted


if __name__ == "__main__":
    folder, world = Path(sys.argv[1]), int(sys.argv[2])
    torch.save(run(world, folder), folder / f"rank_{os.environ.get('LOCAL_RANK', '0')}.pt")
    leave_group()
