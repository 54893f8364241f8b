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
