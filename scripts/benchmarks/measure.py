"""Times side by side, peak memory, and how a cost grows."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from scipy.stats import linregress
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode


class Timing(NamedTuple):
    """Seconds of one call: the median of several measurements, the smallest and the largest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        """Of measurements."""
        return cls(statistics.median(seconds), min(seconds), max(seconds))


def side_by_side(
    contestants: Mapping[str, Callable[[], object]], device: torch.device, repeats: int, seconds: float
) -> dict[str, Timing]:
    """Time functions in turn, each called often enough to be measured, after a warm-up.

    Args:
        contestants: Functions by name.
        device: What is waited for.
        repeats: Measurements of each.
        seconds: What one measurement takes at least.

    Returns:
        The time of one call, by name.
    """
    calls = {}
    for name, function in contestants.items():
        function()
        function()
        calls[name] = max(1, math.ceil(seconds / _time(function, 1, device)))
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, function in contestants.items():
            taken[name].append(_time(function, calls[name], device))
    return {name: Timing.of(of) for name, of in taken.items()}


def _time(function: Callable[[], object], calls: int, device: torch.device) -> float:
    _wait_for(device)
    began = time.perf_counter()
    for _ in range(calls):
        function()
    _wait_for(device)
    return (time.perf_counter() - began) / calls


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def operations(function: Callable[[], object]) -> int:
    """Floating-point operations of the convolutions and matrix products of one call.

    torch's counter takes a grouped convolution, as `vmap` makes them of weights of one task, for a whole one: count a
    loop over tasks.
    """
    with FlopCounterMode(display=False) as counter:
        function()
    return int(counter.get_total_flops())


def floor(count: int, device: torch.device, size: int = 2048) -> str:
    """How fast so many operations can be, in words: at the rate of a product of two large matrices."""
    a = torch.rand(size, size, device=device)
    a @ a
    rate = 2 * size**3 / min(_time(lambda: a @ a, 1, device) for _ in range(5))
    ms = 1000 * count / rate
    return f"{count / 1e9:.1f} GFLOP, {ms:.0f} ms at the {rate / 1e9:.0f} GFLOP/s of a matrix product"


def peak_memory(function: Callable[[], object], device: torch.device) -> int:
    """Bytes of tensors that a function holds at most, beyond those that are there when it begins."""
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
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> tuple[float, float]:
    """The power p of cost = c * size^p by least squares of the logarithms, and its standard error."""
    fit = linregress([math.log(size) for size in sizes], [math.log(cost) for cost in costs])
    return float(fit.slope), float(fit.stderr)
