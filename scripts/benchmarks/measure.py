"""Alternating time measurements, peak memory, and scaling exponents."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from scipy.stats import linregress
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry


class Timing(NamedTuple):
    """Time of one call in seconds: median, smallest and largest of several measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        """Summarise measurements."""
        return cls(statistics.median(seconds), min(seconds), max(seconds))


def side_by_side(
    contestants: Mapping[str, Callable[[], object]],
    device: torch.device,
    repeats: int,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time functions alternately after a warm-up, with enough calls per measurement.

    Args:
        contestants: Functions by name.
        device: Device to synchronise with.
        repeats: Number of measurements of each function.
        seconds: Minimum duration of a measurement in seconds.
        clock: The clock; `time.process_time` on a machine with other load.

    Returns:
        The time of one call by name.
    """
    calls = {}
    for name, function in contestants.items():
        function()
        function()
        calls[name] = max(1, math.ceil(seconds / _time(function, 1, device, clock)))
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, function in contestants.items():
            taken[name].append(_time(function, calls[name], device, clock))
    return {name: Timing.of(seconds_per_call) for name, seconds_per_call in taken.items()}


def _time(
    function: Callable[[], object],
    calls: int,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    _wait_for(device)
    began = clock()
    for _ in range(calls):
        function()
    _wait_for(device)
    return (clock() - began) / calls


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def operations(function: Callable[[], object]) -> int:
    """Floating-point operations of the convolutions and matrix products of one call.

    torch's counter counts the grouped convolutions of `vmap` like full convolutions: pass a loop over tasks instead.
    """
    with FlopCounterMode(display=False) as counter:
        function()
    return int(counter.get_total_flops())


def traffic(function: Callable[[], object]) -> int:
    """Bytes read and written by the other operations of one call, with each tensor of an operation once."""
    with _Traffic() as counter:
        function()
    return counter.bytes


class _Traffic(TorchDispatchMode):
    """Adds up the tensor sizes of all operations except views and those that `operations` counts."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket
        if not (func.is_view or name in flop_registry or name.__name__.startswith(("empty", "new_empty"))):
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
            self.bytes += sum(min(t.numel() * t.element_size(), t.untyped_storage().nbytes()) for t in tensors)
        return result


def floor(count: int, moved: int, device: torch.device, size: int = 2048) -> str:
    """Describe the shortest possible time, at the measured rates of a product and a copy of large matrices.

    Args:
        count: Number of floating-point operations, see `operations`.
        moved: Number of bytes, see `traffic`; those in the processor's caches can be faster.
        device: Device of the measurement.
        size: Rows and columns of the multiplied matrices; copied matrices have 16 times as many elements.
    """
    a, b = torch.rand(size, size, device=device), torch.rand(16, size, size, device=device)
    to = b.clone()
    a @ a
    operations_rate = 2 * size**3 / min(_time(lambda: a @ a, 1, device) for _ in range(5))
    bytes_rate = 2 * b.nbytes / min(_time(lambda: to.copy_(b), 1, device) for _ in range(5))
    return (
        f"{count / 1e9:.1f} GFLOP, {1000 * count / operations_rate:.0f} ms at the {operations_rate / 1e9:.0f} GFLOP/s "
        f"of a matrix product; beside them {moved / 1e9:.2f} GB, {1000 * moved / bytes_rate:.0f} ms at the "
        f"{bytes_rate / 1e9:.0f} GB/s of a copy"
    )


def peak_memory(function: Callable[[], object], device: torch.device) -> int:
    """Peak size in bytes of the tensors that a function allocates."""
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> tuple[float, float]:
    """The power p of cost = c * size^p by least squares of the logarithms, and its standard error."""
    fit = linregress([math.log(size) for size in sizes], [math.log(cost) for cost in costs])
    return float(fit.slope), float(fit.stderr)
