"""Choosing how a meta-learner computes the tasks of a meta-batch: by a rule, or by a short measurement."""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lightning_meta.batches import Episode
from lightning_meta.errors import reason_of
from lightning_meta.functional.task_map import TaskMap
from lightning_meta.nn.checks import CANNOT_BE_MAPPED, SLOWLY_MAPPED
from lightning_meta.nn.stateless import own_buffers, untouched

Strategy = Literal["auto", "measured", "vmap", "loop"]

CROWDED = 100_000  # pixels in all images of a task; see `by_rule`
CHUNK = 8  # tasks at a time, in the third variant that is measured
REPEATS = 3


def by_rule(network: nn.Module, inner_gradients: bool, batch: Episode) -> TaskMap:
    """The strategy that is usually faster, as measured on CPUs with `scripts/benchmark.py`.

    With one task there is nothing to vectorise. On a CPU, `vmap` turns adapted convolutions into grouped convolutions,
    which are slower than a loop if a task has many or large images; convolutions that all tasks share gain nothing from
    a larger batch, and lose the fused kernel of batch normalisation.

    Args:
        network: The network.
        inner_gradients: Whether the inner loop adapts weights of the network for each task.
        batch: A meta-batch.
    """
    if len(batch.tasks) == 1:
        return TaskMap("loop")
    vectors = batch.support.x.dim() == 3  # also features of a frozen backbone, whose convolutions are not run
    convolves = not vectors and any(isinstance(module, _ConvNd) for module in network.modules())
    images = batch.support.x.shape[1] + batch.query.x.shape[1]
    crowded = images * math.prod(batch.support.x.shape[3:]) > CROWDED
    on_cpu = batch.support.x.device.type == "cpu"
    return TaskMap("loop" if on_cpu and convolves and (crowded or not inner_gradients) else "vmap")


def first_tasks(batch: Episode, count: int = 2) -> Episode:
    """The first few tasks of a meta-batch."""
    support, query = (part._replace(x=part.x[:count], y=part.y[:count]) for part in (batch.support, batch.query))
    classes = None if batch.classes is None else batch.classes[:count]
    return batch._replace(support=support, query=query, tasks=batch.tasks[:count], classes=classes)


def obstacle(run: Callable[[TaskMap], Any], module: nn.Module, slow_too: bool) -> str | None:
    """Why `vmap` cannot run a function of tasks; None if it can.

    Recurrent layers, some random layers, value-dependent control flow, and buffers that a forward pass changes cannot
    be vectorised.

    Args:
        run: Runs the function for a few tasks with a given `TaskMap`.
        module: The module that it runs; its buffers and the random state are restored.
        slow_too: Whether layers count that torch itself runs in a loop: correct, but no faster.
    """
    before = own_buffers(module)
    with untouched(module):
        try:
            with warnings.catch_warnings():
                if slow_too:
                    warnings.filterwarnings("error", message=SLOWLY_MAPPED)
                run(TaskMap("vmap"))
        except torch.OutOfMemoryError:
            raise
        except (*CANNOT_BE_MAPPED, UserWarning) as error:
            return reason_of(error, 200)
        after = dict(module.named_buffers())
        changed = [name for name, buffer in before.items() if not _same(after[name], buffer)]
        return f"a forward pass changes the buffer {changed[0]!r}" if changed else None


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or not one.is_floating_point():
        return torch.equal(one, other)
    return torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)


def by_measurement(seconds: Callable[[TaskMap], float], tasks: int) -> TaskMap:
    """The fastest of the loop, `vmap`, and `vmap` in chunks, by the median of alternating runs after a warm-up.

    Args:
        seconds: Runs a training step with a given `TaskMap` and returns its duration in seconds.
        tasks: Number of tasks T.
    """
    ways = [TaskMap("loop")]
    if tasks > 1:
        ways.append(TaskMap("vmap"))
    if tasks > CHUNK:
        ways.append(TaskMap("vmap", CHUNK))
    for way in ways:
        seconds(way)
    taken: dict[TaskMap, list[float]] = {way: [] for way in ways}
    for _ in range(REPEATS):
        for way in ways:
            taken[way].append(seconds(way))
    return min(ways, key=lambda way: statistics.median(taken[way]))


def timed(loss: Callable[[], Tensor], parameters: list[nn.Parameter]) -> float:
    """Seconds for a loss and its gradient; the parameters' `grad` and the random state are not changed."""
    device = parameters[0].device
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.enable_grad():
        _synchronise(device)
        began = time.perf_counter()
        torch.autograd.grad(loss(), parameters, allow_unused=True)
        _synchronise(device)
        return time.perf_counter() - began


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def as_options(how: TaskMap) -> dict[str, Any]:
    """The constructor's arguments for a `TaskMap`."""
    return {"strategy": how.strategy, "chunk_size": how.chunk_size}
