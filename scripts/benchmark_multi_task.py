"""Measure the overhead of multi-task training over plain torch and plain Lightning, as ratios of processor times.

    python scripts/benchmark_multi_task.py

- `steps`: a training step of `MultiHead` including its batch, compared with a loop of plain torch with the same network
  and optimiser, and targets standardised beforehand, and with LibMTL if it is installed. Tasks have separate rows, or
  share them.
- `trainer`: the same with `lightning.Trainer`, compared with a LightningModule without logging and epochs as long.
- `validation`: a validation with the Trainer, including scores, logs and records, compared with the predictions alone.
- `strategies`: a step of `Independent` with `loop`, with `vmap`, and with the choice of `auto`.

The networks are MLPs 64-64 on 16 inputs, except in the last part; each task has one real target.
"""

from __future__ import annotations

import argparse
import copy
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, repeat
from pathlib import Path
from typing import Any
from unittest import mock

import lightning
import torch
from benchmark_independent import NETWORKS, data, made, trained
from benchmarks import libmtl
from benchmarks.measure import Timing, side_by_side
from benchmarks.show import show
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

import lightning_meta as lm
from lightning_meta.batches import SPLITS, Examples
from lightning_meta.run.logger import RunLogger
from lightning_meta.tasks import Regression

INPUTS, ROWS, BATCH = 16, 256, 32
SIZE = 16  # examples of each task of `Independent`
CPU = torch.device("cpu")
QUIET: dict[str, Any] = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
Batch = list[tuple[Tensor, Tensor]]


class Tables(lm.TaskSource):
    """T regression tasks on random numbers: a table for each, or one table with T targets.

    Args:
        count: Number of tasks T.
        shared: Whether tasks share their rows.
        rows: Number of rows of each task in each split.
    """

    def __init__(self, count: int, shared: bool = False, rows: int = ROWS) -> None:
        self.count, self.shared, self.rows = count, shared, rows

    def tasks(self) -> dict[str, lm.tasks.Task]:
        """T regression tasks."""
        return {f"task_{i}": Regression(1) for i in range(self.count)}

    def sets(self) -> dict[Any, lm.TaskSet]:
        """Different random numbers in each split."""
        return {split: self._set(number) for number, split in enumerate(SPLITS)}

    def _set(self, seed: int) -> lm.TaskSet:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(1 if self.shared else self.count, self.rows, INPUTS, generator=generator)
        y = {name: 5 + 3 * x[i % len(x)].sum(-1, keepdim=True) for i, name in enumerate(self.tasks())}
        if self.shared:
            return lm.TaskSet.of_columns(x[0], y, {name: torch.ones(self.rows, dtype=torch.bool) for name in y})
        return lm.TaskSet.of_examples({name: Examples(x[i], of) for i, (name, of) in enumerate(y.items())})


class Plain(nn.Module):
    """The same network in plain torch: a backbone, a head for each task, and a loop over the heads.

    Args:
        module: Module with the initial weights.
    """

    def __init__(self, module: lm.MultiHead) -> None:
        super().__init__()
        self.backbone = lm.nn.MLP(INPUTS, (64, 64))
        self.backbone.load_state_dict(module.backbone.state_dict())
        self.heads = nn.ModuleList(nn.Linear(64, 1) for _ in module.heads)
        for own, head in zip(self.heads, module.heads, strict=True):
            own.load_state_dict({name.removeprefix("0."): value for name, value in head.state_dict().items()})

    def loss(self, batch: Batch) -> Tensor:
        """Sum over tasks of the mean squared errors."""
        if len(batch) > 1:
            features = self.backbone(torch.cat([x for x, _ in batch])).split([len(x) for x, _ in batch])
            targets = [y for _, y in batch]
        else:
            x, y = batch[0]
            features, targets = [self.backbone(x)] * len(self.heads), list(y.unsqueeze(-1).unbind(1))
        losses = [F.mse_loss(head(f), y) for head, f, y in zip(self.heads, features, targets, strict=True)]
        return torch.stack(losses).sum()


class PlainBatches(IterableDataset[Batch]):
    """An epoch of mini-batches with standardised targets: one per task, or one with T targets if rows are shared."""

    def __init__(self, train: lm.TaskSet, shared: bool) -> None:
        y = torch.stack(list(train.targets.values()))
        y = (y - y.mean(1, keepdim=True)) / y.std(1, keepdim=True, correction=0)
        assert isinstance(train.inputs, Tensor)
        x = train.inputs if shared else train.inputs.unflatten(0, (len(y), -1))
        self.tables = [(x, y[..., 0].T)] if shared else list(zip(x, y, strict=True))

    def __iter__(self) -> Iterator[Batch]:
        orders = [torch.randperm(len(x)).split(BATCH) for x, _ in self.tables]
        for rows in zip(*orders, strict=True):
            yield [(x[i], y[i]) for (x, y), i in zip(self.tables, rows, strict=True)]


class PlainLightning(lightning.LightningModule):
    """The plain network as a LightningModule."""

    def __init__(self, network: Plain) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Sum of the losses."""
        return self.network.loss(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam with the defaults, as in the other module."""
        return torch.optim.Adam(self.parameters())


def parts(tasks: int, shared: bool, rows: int = ROWS) -> tuple[lm.MultiHead, lm.MultiTaskDataModule, Plain]:
    """Create both networks with equal weights."""
    lightning.seed_everything(0, verbose=False)
    module = lm.MultiHead(lm.nn.MLP(INPUTS, (64, 64)))
    datamodule = lm.MultiTaskDataModule(Tables(tasks, shared, rows), batch_size=BATCH)
    trainer = lightning.Trainer(logger=False, log_every_n_steps=0, accelerator="cpu", **QUIET)
    datamodule.setup("fit")
    module.tasks = datamodule.spec
    module.trainer = trainer
    module.configure_model()
    return module.train(), datamodule, Plain(module)


def step_of(module: lm.MultiHead, datamodule: lm.MultiTaskDataModule) -> Callable[[], Tensor]:
    """A training step of the module without the loop of the Trainer."""
    batches, number = datamodule.train_batches(), iter(range(10**9))
    optimizer = module.configure_optimizers()

    def step() -> Tensor:
        batch = batches[next(number)]
        module.on_train_batch_start(batch, 0)
        loss = module.training_step(batch, 0)
        optimizer.zero_grad()
        loss.backward()
        module.on_before_optimizer_step(optimizer)
        optimizer.step()
        return loss.detach()

    return step


def plain_step_of(network: Plain, batches: PlainBatches) -> Callable[[], Tensor]:
    """A training step of plain torch."""
    optimizer, drawn = torch.optim.Adam(network.parameters()), chain.from_iterable(repeat(batches))

    def step() -> Tensor:
        loss = network.loss(next(drawn))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def check_same(module: lm.MultiHead, datamodule: lm.MultiTaskDataModule, network: Plain, shared: bool) -> None:
    """Check that both sides have the same loss on a batch.

    Raises:
        RuntimeError: The losses differ.
    """
    batch, train = datamodule.train_batches()[0], PlainBatches(datamodule.sets["train"], shared)
    x, y = zip(*train.tables, strict=True)
    ids = list(batch.ids.values())
    plain = [(x[0][ids[0]], y[0][ids[0]])] if shared else [(x[i][rows], y[i][rows]) for i, rows in enumerate(ids)]
    ours, theirs = module.training_step(batch, 0).item(), network.loss(plain).item()
    if shared:  # in another order of the rows
        ours = sum(loss.item() for loss in module.task_losses(batch).values())
    if abs(ours - theirs) > 1e-4 * abs(ours):
        raise RuntimeError(f"the losses of one batch are {ours} here and {theirs} in plain torch")


class Clock(lightning.Callback):
    """Records the processor time at the end of each step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(self, *args: Any) -> None:
        """Record the time."""
        self.times.append(time.process_time())


def seconds_under(fit: Callable[[lightning.Trainer], None], steps: int) -> float:
    """Time of a step with the Trainer in seconds, after the first five."""
    clock = Clock()
    options: dict[str, Any] = {"limit_val_batches": 0, "logger": False, "callbacks": [clock], "accelerator": "cpu"}
    fit(lightning.Trainer(max_steps=steps + 5, **options, **QUIET))
    return (clock.times[-1] - clock.times[4]) / steps


def steps(table: Table, options: argparse.Namespace) -> None:
    """Compare training steps with plain torch, and with LibMTL where it is installed."""
    for tasks in options.tasks:
        for shared in (False, True):
            module, datamodule, network = parts(tasks, shared, options.rows)
            check_same(module, datamodule, network, shared)
            batches, copied = PlainBatches(datamodule.sets["train"], shared), copy.deepcopy(network)
            sides = {
                "ours": step_of(module, datamodule),
                "plain torch": plain_step_of(network, batches),
                "LibMTL": libmtl.step_of(copied.backbone, copied.heads, batches),
            }
            there = {name: step for name, step in sides.items() if step is not None}
            took = side_by_side(there, CPU, options.repeats, options.seconds, time.process_time)
            for peer in list(there)[1:]:
                add(table, f"step, {tasks} tasks, {kind(shared)}", took["ours"], peer, took[peer])


def trainer(table: Table, options: argparse.Namespace) -> None:
    """Compare training steps with the Trainer with plain Lightning."""
    for tasks in options.tasks:
        for shared in (False, True):
            taken: dict[str, list[float]] = {"ours": [], "plain": []}
            count = max(10, int(options.seconds * 1000 / (2 + tasks)))
            for _ in range(options.repeats):
                module, datamodule, network = parts(tasks, shared, options.rows)
                loader = DataLoader(PlainBatches(datamodule.sets["train"], shared), batch_size=None)
                plain = PlainLightning(network)
                taken["ours"].append(seconds_under(lambda t: t.fit(module, datamodule=datamodule), count))  # noqa: B023
                taken["plain"].append(seconds_under(lambda t: t.fit(plain, loader), count))  # noqa: B023
            took = {name: Timing.of(seconds) for name, seconds in taken.items()}
            add(table, f"under the Trainer, {tasks} tasks, {kind(shared)}", took["ours"], "Lightning", took["plain"])


def validation(table: Table, options: argparse.Namespace) -> None:
    """Compare a validation with its predictions alone."""
    for tasks in options.validated:
        for shared in (False, True):
            module, datamodule, _ = parts(tasks, shared)
            with tempfile.TemporaryDirectory() as folder:
                logger = RunLogger(Path(folder), "benchmark")
                runs = lightning.Trainer(logger=logger, accelerator="cpu", max_steps=1, limit_val_batches=0, **QUIET)
                runs.fit(module, datamodule=datamodule)
                runs.limit_val_batches = 1.0
                module.trainer = runs
                loop = runs.fit_loop.epoch_loop.val_loop
                runs.training = True  # as in `fit`
                loop.setup_data()

                def predicted() -> None:
                    module.eval()  # noqa: B023
                    with torch.no_grad():
                        for batch in datamodule.val_dataloader():  # noqa: B023
                            module.outputs(batch)  # noqa: B023
                    module.train()  # noqa: B023

                def validated() -> None:
                    runs.validating = True  # noqa: B023
                    loop.run()  # noqa: B023
                    runs.training = True  # noqa: B023

                def only_predicted() -> None:
                    step = lambda batch, batch_idx: module.outputs(batch) and None  # noqa: B023, E731
                    nothing = mock.patch.multiple(module, validation_step=step, on_validation_epoch_end=lambda: None)  # noqa: B023
                    with nothing:
                        validated()

                sides = {"all": validated, "predictions": predicted, "Trainer, predictions": only_predicted}
                took = side_by_side(sides, CPU, options.repeats, 0, time.process_time)
            for name in ("predictions", "Trainer, predictions"):
                add(table, f"validation, {tasks} tasks, {kind(shared)}", took["all"], name, took[name])


def strategies(table: Table, options: argparse.Namespace) -> None:
    """Compare the strategy of `Independent` that `auto` chooses with the other."""
    for name, (network, shape) in NETWORKS.items():
        for tasks in (2, 10, 50):
            modules = {strategy: made(network, shape, tasks, strategy) for strategy in ("vmap", "loop", "auto")}
            chosen = modules["auto"]._strategy_for(tasks, SIZE)
            other = "loop" if chosen == "vmap" else "vmap"
            batch = data(tasks, SIZE, shape)
            sides = {s: (lambda s=s: trained(modules[s], *batch, 1)) for s in ("vmap", "loop")}  # noqa: B023
            took = side_by_side(sides, CPU, options.repeats, options.seconds, time.process_time)
            add(table, f"Independent, {tasks} tasks, {name}, {chosen}", took[chosen], other, took[other])


def kind(shared: bool) -> str:
    """Description of the tasks' rows."""
    return "rows shared" if shared else "own rows"


def add(table: Table, work: str, ours: Timing, peer: str, theirs: Timing) -> None:
    """Add a line: milliseconds with their range, and the ratio of the medians."""
    cells = [f"{1000 * t.median:.2f} ({1000 * t.low:.2f} to {1000 * t.high:.2f})" for t in (ours, theirs)]
    table.add_row(work, cells[0], peer, cells[1], f"{ours.median / theirs.median:.2f}")
    print(work, *cells, f"{ours.median / theirs.median:.2f}", file=sys.stderr, flush=True)


PARTS: Mapping[str, Callable[[Table, argparse.Namespace], None]] = {
    "steps": steps,
    "trainer": trainer,
    "validation": validation,
    "strategies": strategies,
}


def main(args: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure")
    parser.add_argument("--tasks", nargs="+", type=int, default=[2, 10, 50], help="numbers of tasks for the training")
    parser.add_argument(
        "--validated", nargs="+", type=int, default=[139, 1000], help="numbers of tasks for the validation"
    )
    parser.add_argument(
        "--rows", type=int, default=ROWS, help="rows of each task in the training, 32 of them in a batch"
    )
    parser.add_argument("--repeats", type=int, default=7, help="measurements of each side")
    parser.add_argument("--seconds", type=float, default=0.3, help="minimum duration of a measurement")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    options = parser.parse_args(args)
    torch.set_num_threads(options.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    table = Table("work", "ms here", "against", "ms there", "here / there")
    for name in options.parts:
        PARTS[name](table, options)
    show(table)
    print(f"\nMedians (lowest to highest of {options.repeats}), {options.threads} thread(s), torch {torch.__version__}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
