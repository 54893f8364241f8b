r"""The two-task toy problem of CAGrad, Nash-MTL and FAMO: which methods reach the Pareto front, and from where.

Two losses of a point $(x_1, x_2)$: in the upper half plane logarithms with steep valleys, in which the sum may stay; in
the lower one paraboloids with minima near (7, -8) and (-7, -8), and the Pareto front between them.

Two settings: that of Liu, Liu, Jin, Stone and Liu, Conflict-Averse Gradient Descent for Multi-task Learning (NeurIPS
2021, https://arxiv.org/abs/2110.14048), figure 2 and appendix, with three starts; and that of Navon et al., Multi-Task
Learning as a Bargaining Game (ICML 2022, https://arxiv.org/abs/2202.01017), figure 1, with five starts and the first
loss at a tenth of its size. Adam with a rate of 0.001 and 100,000 steps, as in the code of Liu et al.

`python -m tests.multitask.two_task_toy` prints the tables of `docs/multi_task_results.md`. It takes minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_meta.tasks import Regression
from lightning_meta.weightings import MGDA, Aggregator, CAGrad, Equal, PCGrad, Weighting


class Setting(NamedTuple):
    """Starts, and the size of each loss."""

    starts: tuple[tuple[float, float], ...]
    sizes: tuple[float, float]


SETTINGS = {
    "Liu et al.": Setting(((-8.5, 7.5), (-8.5, -5.0), (9.0, 9.0)), (1.0, 1.0)),
    "Navon et al.": Setting(((-8.5, 7.5), (0.0, 0.0), (9.0, 9.0), (-7.5, -0.5), (9.0, -1.0)), (0.1, 1.0)),
}
METHODS: dict[str, Callable[[], Weighting]] = {"Adam": Equal, "MGDA": MGDA, "PCGrad": PCGrad, "CAGrad": CAGrad}
STEPS, RATE = 100_000, 0.001
NEAR = 0.05  # a point is on the front if no point is better in both losses by more
LOOKS = 1000  # steps between two looks at which starts have arrived


def losses(x: Tensor, sizes: tuple[float, float] = (1.0, 1.0)) -> Tensor:
    """The two losses of points.

    Args:
        x: `(..., 2)`.
        sizes: Factor of each loss.

    Returns:
        `(..., 2)`.
    """
    x1, x2 = x.unbind(-1)
    valley = torch.stack([(-x1 - 7) / 2 + x2.tanh(), (-x1 + 3) / 2 - x2.tanh() + 2], -1)
    upper = valley.abs().clamp(min=5e-6).log() + 6
    bowl = torch.stack([(x1 - 7) ** 2, (x1 + 7) ** 2], -1)
    lower = (bowl + 0.1 * (x2 + 8).unsqueeze(-1) ** 2) / 10 - 20
    half = (x2 / 2).tanh().unsqueeze(-1)
    return torch.tensor(sizes) * (half.clamp(min=0) * upper - half.clamp(max=0) * lower)


def gradients(x: Tensor, sizes: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """The two losses of points `(S, 2)`, and their gradients `(S, 2, 2)`, a row for each loss."""
    copies = x.detach().unsqueeze(1).repeat(1, 2, 1).requires_grad_()  # of which each has one loss
    value = losses(copies, sizes).diagonal(dim1=1, dim2=2)
    (rows,) = torch.autograd.grad(value.sum(), copies)
    return value.detach(), rows


def excess(x: Tensor) -> Tensor:
    """The amount by which both losses of points could decrease at once, `(S,)`: 0 on the Pareto front.

    Args:
        x: `(S, 2)`.
    """
    axes = torch.linspace(-8, 8, 321), torch.linspace(-10, -6, 201)
    others = losses(torch.cartesian_prod(*axes))
    return (losses(x).unsqueeze(1) - others).amin(-1).amax(-1)


def descend(runs: Sequence[tuple[str, tuple[float, float]]], sizes: tuple[float, float]) -> tuple[Tensor, list[int]]:
    """Follow the directions of methods with Adam, each from its start until it is on the front.

    Args:
        runs: Names in `METHODS`, each with a start.
        sizes: Factor of each loss.

    Returns:
        The points where they end, `(S, 2)`, and the steps taken by each, to the next thousand.
    """
    torch.manual_seed(0)
    weightings = [METHODS[method]() for method, _ in runs]
    for weighting in weightings:
        weighting.configure({"one": Regression(1), "two": Regression(1)})
    x = torch.tensor([start for _, start in runs])
    ends, steps, active = x.clone(), [STEPS] * len(runs), list(range(len(runs)))
    present, optimizer = torch.ones(2, dtype=torch.bool), torch.optim.Adam([x], lr=RATE)
    for step in range(1, STEPS + 1):
        value, rows = gradients(x, sizes)
        directions = rows.sum(1)
        for i in active:
            weighting = weightings[i]
            if isinstance(weighting, Aggregator):
                directions[i] = weighting.direction(rows[i], value[i], present)
        x.grad = directions
        optimizer.step()
        if step % LOOKS == 0:
            arrived = excess(x) <= NEAR
            for i in [i for i in active if arrived[i] or step == STEPS]:
                ends[i] = x[i]
                steps[i] = step
                active.remove(i)
            if not active:
                break
    return ends, steps


if __name__ == "__main__":
    for name, (starts, sizes) in SETTINGS.items():
        print(f"| {name} | " + " | ".join(map(str, starts)) + " |")
        print("| --- |" + " ---: |" * len(starts))
        for method in METHODS:
            ends, steps = descend([(method, start) for start in starts], sizes)
            cells = [
                f"{n:,}" if over <= NEAR else f"at ({x:.1f}, {y:.1f})"
                for n, over, (x, y) in zip(steps, excess(ends).tolist(), ends.tolist(), strict=True)
            ]
            print(f"| {method} | " + " | ".join(cells) + " |", flush=True)
        print()
