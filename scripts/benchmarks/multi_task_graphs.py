"""Multi-task training steps on a GPU, under the Trainer: eager, and captured as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import lightning as L
import torch
from benchmark_multi_task import INPUTS, Tables

from benchmarks.graphs import GRAPH, Clock
from benchmarks.measure import Timing
from benchmarks.row import Row, Setting
from lightning_meta.data import MultiTaskDataModule
from lightning_meta.multitask import Independent, MultiHead, MultiTaskModule
from lightning_meta.nn import MLP
from lightning_meta.weightings import FAMO

TASKS = 30
CASES: dict[str, Callable[..., MultiTaskModule]] = {
    "MultiHead": lambda **options: MultiHead(MLP(INPUTS, (64, 64)), **options),
    "MultiHead, FAMO": lambda **options: MultiHead(MLP(INPUTS, (64, 64)), weighting=FAMO(), **options),
    "Independent": lambda **options: Independent(MLP(INPUTS, (64, 64)), **options),
}


def multi_task_graphs(setting: Setting) -> Iterator[Row]:
    """Training steps of 30 regression tasks, each with its own rows; no rows on a CPU."""
    if setting.device.type != "cuda":
        return
    for name in CASES:
        (eager, _, _), (captured, replays, obstacle) = (
            seconds(name, graph, setting.device, 200 if setting.short else 600, 100) for graph in GRAPH
        )
        note = "" if replays else f"not captured: {obstacle}"
        what = f"{name}, {TASKS} tasks, under the Trainer"
        yield Row(what, Timing.of([captured]), "eager", Timing.of([eager]), None, note)


def seconds(name: str, graph: Any, device: torch.device, steps: int, warm_up: int) -> tuple[float, int, str]:
    """The time of a training step in seconds, the number of replays, and why steps were not captured.

    Args:
        name: Name of a case.
        graph: Option of the module.
        device: Device of the training.
        steps: Number of training steps.
        warm_up: Number of steps before the measurement.
    """
    clock = Clock(warm_up)
    pool: Any = "accelerator" if device.type == "cuda" else "cpu"
    data = MultiTaskDataModule(Tables(TASKS), batch_size=32, batches_per_epoch=steps, pool_on=pool, seed=0)
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    runs = L.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu", devices=1, max_steps=steps, limit_val_batches=0,
        callbacks=[clock], enable_model_summary=False, num_sanity_val_steps=0, **quiet,
    )  # fmt: skip
    torch.manual_seed(0)
    module = CASES[name](graph=graph)
    runs.fit(module, datamodule=data)
    return clock.seconds, module._graphs.replays, module._graphs.obstacle
