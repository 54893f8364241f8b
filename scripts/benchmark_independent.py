"""Compare training independent networks together with `vmap` and one after the other in a loop.

    python scripts/benchmark_independent.py

Each row trains T networks without Lightning's Trainer, with `strategy: loop` and `strategy: vmap` alternately, and
shows the median times with their ranges, the ratio of the medians, and the largest difference between the weights in
double precision.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from benchmarks.show import show
from rich.table import Table
from torch import Tensor, nn

from lightning_meta.multitask import Independent
from lightning_meta.nn import MLP, Conv4
from lightning_meta.tasks import Classification, TasksSpec

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "MLP 64-64, 16 inputs": (lambda: MLP(16, (64, 64)), (16,)),
    "MLP 256-256, 784 inputs": (lambda: MLP(784, (256, 256)), (784,)),
    "Conv4-8 with strides, 28x28": (lambda: Conv4(width=8, downsample="stride"), (1, 28, 28)),
    "Conv4-32 with strides, 28x28": (lambda: Conv4(width=32, downsample="stride"), (1, 28, 28)),
}


def made(network: Callable[[], nn.Module], shape: tuple[int, ...], tasks: int, strategy: str) -> Independent:
    """T networks with the same initial weights for both strategies."""
    torch.manual_seed(0)
    names = [f"task_{i}" for i in range(tasks)]
    classes: dict[str, Classification] = {name: Classification(10) for name in names}
    spec = TasksSpec(classes, dict.fromkeys(names, shape), dict.fromkeys(names, 0))
    module = Independent(network(), strategy=strategy, tasks=spec)  # type: ignore[arg-type]
    module.configure_model()
    module.train()
    return module


def trained(module: Independent, x: Tensor, y: dict[str, Tensor], rows: dict[str, Tensor], steps: int) -> float:
    """Train; returns the processor time of a step in seconds."""
    optimizer = torch.optim.Adam(module.parameters(), lr=0.001, fused=True)
    began = time.process_time()
    for _ in range(steps):
        optimizer.zero_grad()
        outputs = module(x, rows)
        torch.stack([nn.functional.cross_entropy(outputs[name], y[name]) for name in rows]).sum().backward()
        optimizer.step()
    return (time.process_time() - began) / steps


def data(tasks: int, size: int, shape: tuple[int, ...]) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """A batch: inputs, and labels and rows by task."""
    torch.manual_seed(1)
    rows = {f"task_{i}": torch.arange(i * size, (i + 1) * size) for i in range(tasks)}
    return torch.rand(tasks * size, *shape), {name: torch.randint(10, (size,)) for name in rows}, rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--tasks", type=int, nargs="+", default=[10, 50], help="numbers of networks")
    parser.add_argument("--batch_size", type=int, default=16, help="examples of each task")
    parser.add_argument("--steps", type=int, default=10, help="training steps per measurement")
    parser.add_argument("--repeats", type=int, default=7, help="measurements of each strategy")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    table = Table(
        "network", "tasks", "loop, ms a step", "vmap, ms a step", "loop / vmap", "largest difference, float64"
    )
    for name, (network, shape) in NETWORKS.items():
        for tasks in options.tasks:
            x, y, rows = data(tasks, options.batch_size, shape)
            pair = {s: made(network, shape, tasks, s) for s in ("loop", "vmap")}
            times: dict[str, list[float]] = {"loop": [], "vmap": []}
            for module in pair.values():
                trained(module, x, y, rows, 3)  # warm-up
            for _ in range(options.repeats):
                for strategy, module in pair.items():
                    times[strategy].append(trained(module, x, y, rows, options.steps))
            exact = [made(network, shape, tasks, s).double() for s in ("loop", "vmap")]
            for module in exact:
                trained(module, x.double(), y, rows, 5)
            weights = [nn.utils.parameters_to_vector(module.parameters()).detach() for module in exact]
            difference = float((weights[0] - weights[1]).abs().max())
            milliseconds = [[1000 * seconds for seconds in measured] for measured in times.values()]
            cells = [f"{statistics.median(ms):.1f} ({min(ms):.1f} to {max(ms):.1f})" for ms in milliseconds]
            ratio = statistics.median(times["loop"]) / statistics.median(times["vmap"])
            table.add_row(name, str(tasks), *cells, f"{ratio:.2f}", f"{difference:.1e}")
    show(table)
    print(f"\n{options.batch_size} examples of each task, {options.threads} thread(s), torch {torch.__version__}")


if __name__ == "__main__":
    main()
