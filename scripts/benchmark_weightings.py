"""Measure the cost of weightings and aggregators: time and memory of a training step relative to the plain sum.

    python scripts/benchmark_weightings.py

All tasks have labels for all images, as in CelebA. Each case trains in a child process with a Trainer on one thread.
Time is the median processor time of a step after the first two. Memory is the peak of the process above that of `Equal`
and the size of the T x P or T x N·F gradients that an aggregator combines.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import lightning
import torch
import torchjd.aggregation as jd
from benchmarks.show import show
from rich.table import Table

import lightning_meta as lm
from lightning_meta import weightings
from lightning_meta.batches import SPLITS
from lightning_meta.nn.features import output_size
from lightning_meta.run.memory import keep_freed_memory
from lightning_meta.tasks import Classification
from lightning_meta.weightings import Aggregator, TorchJD, Weighting

BATCH = 64

METHODS: dict[str, Callable[[int], Weighting]] = {
    "Equal": lambda tasks: weightings.Equal(),
    "Uncertainty": lambda tasks: weightings.Uncertainty(),
    "STCH": lambda tasks: weightings.STCH(),
    "FAMO": lambda tasks: weightings.FAMO(),
    "GradNorm": lambda tasks: weightings.GradNorm(),
    "DBMTL": lambda tasks: weightings.DBMTL(),
    "PCGrad": lambda tasks: weightings.PCGrad(),
    "MGDA": lambda tasks: weightings.MGDA(),
    "CAGrad": lambda tasks: weightings.CAGrad(),
    "torchjd UPGrad": lambda tasks: TorchJD(jd.UPGrad()),
    "torchjd NashMTL": lambda tasks: TorchJD(jd.NashMTL(tasks)),
    "PCGrad, rep_grad": lambda tasks: weightings.PCGrad(rep_grad=True),
    "MGDA, rep_grad": lambda tasks: weightings.MGDA(rep_grad=True),
    "CAGrad, rep_grad": lambda tasks: weightings.CAGrad(rep_grad=True),
    "torchjd UPGrad, rep_grad": lambda tasks: TorchJD(jd.UPGrad(), rep_grad=True),
}


class Labels(lm.TaskSource):
    """Random images with a random label for each of T tasks."""

    def __init__(self, count: int, size: int) -> None:
        self.count, self.size = count, size

    def tasks(self) -> dict[str, lm.tasks.Task]:
        """T binary classification tasks."""
        return {f"task_{i}": Classification(2) for i in range(self.count)}

    def sets(self) -> dict[Any, lm.TaskSet]:
        """The same images in each split."""
        generator = torch.Generator().manual_seed(0)
        x = torch.randint(256, (256, 3, self.size, self.size), generator=generator, dtype=torch.uint8)
        y = {name: torch.randint(2, (256,), generator=generator) for name in self.tasks()}
        everyone = {name: torch.ones(256, dtype=torch.bool) for name in y}
        return {split: lm.TaskSet.of_columns(x, y, everyone) for split in SPLITS}


class Clock(lightning.Callback):
    """Records the processor time at the end of each step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(self, *args: Any) -> None:
        """Record the time."""
        self.times.append(time.process_time())


def held(module: lm.MultiHead, size: int) -> int:
    """Size in bytes of the float32 gradients that an aggregator combines; 0 for other weightings."""
    if not isinstance(module.weighting, Aggregator):
        return 0
    columns = sum(p.numel() for p in module.shared_parameters())
    if module.weighting.rep_grad:
        columns = BATCH * output_size(module.backbone, (3, size, size), "uint8")
    return 4 * len(module.names) * columns


def seconds(method: str, tasks: int, steps: int, size: int) -> tuple[float, int]:
    """The median time of a step, and the result of `held`."""
    lightning.seed_everything(0, verbose=False)
    data = lm.MultiTaskDataModule(Labels(tasks, size), batch_size=BATCH, batches_per_epoch=steps)
    network = lm.nn.Conv4(in_channels=3, width=64, downsample="stride")
    module, clock = lm.MultiHead(network, weighting=METHODS[method](tasks)), Clock()
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    options: dict[str, Any] = {"limit_val_batches": 0, "callbacks": [clock], "accelerator": "cpu"}
    lightning.Trainer(max_steps=steps, **options, **quiet).fit(module, datamodule=data)
    times = zip(clock.times[1:], clock.times[2:], strict=False)
    return statistics.median(b - a for a, b in times), held(module, size)


def measured(method: str, tasks: int, steps: int, size: int) -> tuple[float, float, float]:
    """Run one case in a child process; returns seconds per step, peak memory in MB and gradient memory in MB."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)
            keep_freed_memory()  # as the commands do
            os.write(write, json.dumps(seconds(method, tasks, steps, size)).encode())
            os._exit(0)
        except BaseException as error:
            print(error, file=sys.stderr)
            os._exit(1)
    os.close(write)
    _, status, usage = os.wait4(child, 0)
    result = os.read(read, 100)
    os.close(read)
    if status:
        raise SystemExit(f"{method} failed at {tasks} tasks")
    step_time, gradients = json.loads(result)
    return step_time, usage.ru_maxrss / 1024, gradients / 1e6


def main(args: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", type=int, default=[2, 10, 40], help="numbers of tasks")
    parser.add_argument("--steps", type=int, default=12, help="steps of each case, at least 4")
    parser.add_argument("--size", type=int, default=32, help="pixels of an image's side")
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=list(METHODS), help="methods to measure, after Equal"
    )
    options = parser.parse_args(args)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    table = Table("weighting", *(f"{tasks} tasks" for tasks in options.tasks))
    base: dict[int, tuple[float, float]] = {}
    for method in dict.fromkeys(["Equal", *options.methods]):
        cells = []
        for tasks in options.tasks:
            step_time, memory, gradients = measured(method, tasks, options.steps, options.size)
            equal_time, equal_memory = base.setdefault(tasks, (step_time, memory))
            ms = f" ({1000 * step_time:.0f} ms)" if method == "Equal" else ""
            note = f" ({gradients:.1f} MB of gradients)" if gradients else ""
            cells.append(f"{step_time / equal_time:.2f} x{ms}, {memory - equal_memory:+.0f} MB{note}")
        table.add_row(method, *cells)
    show(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
