"""How the cost of a training step scales with each size, and peak memory with the inner steps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, StrMethodFormatter

from benchmarks import work
from benchmarks.measure import exponent, peak_memory
from benchmarks.row import Setting

BASE = {"tasks": 8, "ways": 5, "shots": 1, "inner steps": 1, "image size": 28}
SIZES = {
    "tasks": (2, 4, 8, 16, 32),
    "ways": (5, 10, 20, 40),
    "shots": (1, 2, 5, 10, 20),
    "inner steps": (1, 2, 5, 10),
    "image size": (14, 28, 56, 84),
}
MEMORY_STEPS = (1, 2, 5, 10, 20, 50)


class Point(NamedTuple):
    """One measurement of a curve."""

    curve: str
    by: str
    size: int
    value: float


def times(setting: Setting) -> Iterator[Point]:
    """Time of MAML's second-order outer gradient in ms: Conv4-32 with strides, 5 queries per class."""
    for by, sizes in SIZES.items():
        for size in sizes[: 3 if setting.short else None]:
            at = {**BASE, by: size}
            module = work.image_maml(
                at["ways"], at["inner steps"], at["image size"], setting.device, network={"width": 32}
            )
            batch = work.random_images(at["tasks"], at["ways"], at["shots"], 5, at["image size"], setting.device)
            module.task_map = module._chosen(batch)
            took = setting.compare({"step": work.gradient(module, batch)})
            yield Point(str(module.task_map), by, size, 1000 * took["step"].median)


def memory(setting: Setting) -> Iterator[Point]:
    """Peak memory of second-order inner steps in MiB: Conv4-32 with strides, 4 tasks."""
    for recompute in (False, True):
        for steps in MEMORY_STEPS[: 3 if setting.short else None]:
            module = work.image_maml(
                5, steps, 28, setting.device, network={"width": 32}, recompute=recompute, strategy="vmap"
            )
            batch = work.random_images(4, 5, 1, 5, 28, setting.device)
            peak = peak_memory(work.gradient(module, batch), setting.device)
            yield Point("recomputed" if recompute else "all kept", "inner steps, memory", steps, peak / 2**20)


def fitted(points: list[Point]) -> dict[str, tuple[float, float]]:
    """The exponent of each curve and its standard error."""
    exponents = {}
    for by in dict.fromkeys(point.by for point in points):
        curves = {point.curve for point in points} if "memory" in by else {None}
        for curve in sorted(curves, key=str):
            on = [point for point in points if point.by == by and curve in (None, point.curve)]
            if len(on) > 2:
                name = by if curve is None else f"{by}, {curve}"
                exponents[name] = exponent([p.size for p in on], [p.value for p in on])
    return exponents


def draw(points: list[Point], file: Path, title: str) -> None:
    """Draw a panel for each size, with logarithmic axes and the exponent in the title."""
    sizes = list(dict.fromkeys(point.by for point in points))
    figure, panels = plt.subplots(2, (len(sizes) + 1) // 2, figsize=(11, 6.5), layout="constrained")
    exponents = fitted(points)
    markers: dict[str, Any] = {}
    for panel, by in zip(panels.flat, sizes, strict=False):
        if "memory" not in by:
            whole = [point for point in points if point.by == by]
            panel.plot([p.size for p in whole], [p.value for p in whole], ":", color="grey")
        for curve in dict.fromkeys(point.curve for point in points if point.by == by):
            on = [point for point in points if point.by == by and point.curve == curve]
            style = markers.setdefault(curve, "os^D"[len(markers) % 4])
            line = "--" if curve in ("loop", "recomputed") else "-"
            panel.loglog([p.size for p in on], [p.value for p in on], line, marker=style, color="black", label=curve)
        powers = ", ".join(f"{fit[0]:.2f} ± {fit[1]:.2f}" for name, fit in exponents.items() if name.startswith(by))
        memory = "memory" in by
        own = [f"{fit[0]:.2f} ± {fit[1]:.2f}" for name, fit in exponents.items() if name == by]
        panel.set_title(f"exponent {powers if memory else ', '.join(own)}", fontsize=9)
        panel.set_xlabel(by.removesuffix(", memory"))
        panel.set_ylabel("peak memory, MiB" if memory else "ms a step")
        ticks = sorted({point.size for point in points if point.by == by})
        panel.set_xticks(ticks, [str(tick) for tick in ticks])
        panel.minorticks_off()
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    for panel in panels.flat[len(sizes) :]:
        panel.remove()
    figure.suptitle(title, fontsize=10)
    figure.savefig(file, dpi=150)
    plt.close(figure)
