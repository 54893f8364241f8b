"""Weightings and aggregators against torchjd or their papers' equations, in float64: `pytest -s` prints the table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

import pytest
import torch
import torchjd.aggregation as jd
import torchjd.scalarization as scalar
from torch import Tensor

from lightning_meta.tasks import Regression
from lightning_meta.weightings import (
    DBMTL,
    FAMO,
    IMTLL,
    MGDA,
    STCH,
    CAGrad,
    DynamicWeightAverage,
    Fixed,
    GeometricMean,
    TorchJD,
    Uncertainty,
    Weighting,
)

NAMES = "abcd"
HERE = torch.ones(4, dtype=torch.bool)
STEPS = 20


def made(weighting: Weighting) -> Weighting:
    weighting.configure({name: Regression() for name in NAMES})
    return weighting.double()


def drawn() -> Iterator[tuple[Tensor, Tensor]]:
    """Losses of two tasks that learn and two that do not, and gradients, some of which conflict."""
    generator = torch.Generator().manual_seed(0)
    for t in range(STEPS):
        noise = torch.rand(4, generator=generator, dtype=torch.float64)
        falling = torch.tensor([0.9**t, 3 * 0.8**t, 1.0, 0.2], dtype=torch.float64)
        scale = torch.tensor([[1.0], [5.0], [0.3], [1.0]], dtype=torch.float64)
        yield falling * (0.5 + noise), scale * torch.randn(4, 9, generator=generator, dtype=torch.float64)


def apart(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def gradient(function: Callable[[Tensor], Tensor], losses: Tensor) -> Tensor:
    losses = losses.clone().requires_grad_()
    return torch.autograd.grad(function(losses), losses)[0]


def of_losses(ours: Weighting, theirs: scalar.Scalarizer, factor: float) -> float:
    """The largest difference of the gradient by the losses, which is `factor` times theirs by the deviations."""
    ours = made(ours)
    return max(
        apart(gradient(lambda x: ours(x, HERE), losses), factor * gradient(theirs, losses)) for losses, _ in drawn()
    )


def learned(ours: Weighting, parameter: str, theirs: scalar.Scalarizer, its: str, factor: float) -> float:
    """The largest difference of values and gradients while the learned parameter descends."""
    ours, theirs, worst = made(ours), theirs.double(), 0.0
    ps = getattr(ours, parameter), getattr(theirs, its)
    for losses, _ in drawn():
        x, y = losses.clone().requires_grad_(), losses.clone().requires_grad_()
        values = ours(x, HERE), factor * theirs(y)
        for value, p, of in zip(values, ps, (x, y), strict=True):
            step, of.grad = torch.autograd.grad(value, [p, of])
            p.data -= 0.1 * step
        assert x.grad is not None
        assert y.grad is not None
        worst = max(worst, float((values[0] - values[1]).detach().abs()), apart(x.grad, y.grad))
    return worst


def fixed() -> float:
    given = {"a": 0.1, "b": 2.0, "c": 3.0, "d": 1.0}
    ours = made(Fixed(given))
    theirs = scalar.Constant(ours.weights())
    return max(float((ours(losses, HERE) - theirs(losses)).abs()) for losses, _ in drawn())


def dwa() -> float:
    ours, theirs, worst = made(DynamicWeightAverage(1.3)), scalar.DWA(1.3), 0.0
    for t, (losses, _) in enumerate(drawn()):
        worst = max(worst, float((ours(losses, HERE) - theirs(losses)).abs()))
        ours.observe(losses, HERE)
        if t % 4 == 3:
            ours.end_epoch()
            theirs.step()
    return worst


def famo() -> float:
    ours, theirs, worst = made(FAMO(0.1)), scalar.FAMO(4, lr=0.1).double(), 0.0
    for losses, gradients in drawn():
        found = gradient(lambda x: ours(x, HERE), losses)
        worst = max(worst, apart(found, 4 * gradient(theirs, losses)))
        after = losses * gradients.abs().mean(1)  # some fall and some rise
        ours.observe_step(after, HERE)
        theirs.update(after)
    assert float(found.max() / found.min()) > 2
    return worst


def db_mtl() -> float:
    """Algorithm 1, one task after the other."""
    ours, average, worst = made(DBMTL(0.8)), torch.zeros(4, 9, dtype=torch.float64), 0.0
    assert isinstance(ours, DBMTL)
    for losses, gradients in drawn():
        for i in range(4):
            average[i] = 0.8 * average[i] + (1 - 0.8) * gradients[i] / (losses[i] + 1e-8)
        longest = max(row.norm() for row in average)
        expected = sum((longest * row / (row.norm() + 1e-8) for row in average), torch.zeros(9))
        worst = max(worst, apart(ours.direction(gradients, losses, HERE), expected))
        worst = max(worst, apart(gradient(lambda x: ours(x, HERE), losses), 1 / (losses + 1e-8)))
    return worst


def revised_uncertainty() -> float:
    """Equation 4 in the noise itself."""
    ours, worst = made(Uncertainty(revised=True)), 0.0
    assert isinstance(ours, Uncertainty)
    noise = torch.tensor([0.5, 2.0, 1.0, 0.1], dtype=torch.float64)
    ours.log_variance.data = (noise**2).log()
    for losses, _ in drawn():
        expected = sum(loss / (2 * c**2) + (1 + c**2).log() for loss, c in zip(losses, noise, strict=True))
        worst = max(worst, float((ours(losses, HERE) - expected).detach().abs()))
    return worst


def mgda() -> float:
    """The excess of our squared norm over torchjd's, relative to it; Frank-Wolfe converges to the smallest norm."""
    ours, theirs, worst = made(MGDA()), jd.MGDA(epsilon=1e-7, max_iters=500), 0.0
    assert isinstance(ours, MGDA)
    for losses, gradients in islice(drawn(), 6):
        found, expected = ours.direction(gradients, losses, HERE) / 4, theirs(gradients)
        worst = max(worst, float((found.norm() / expected.norm()) ** 2 - 1))
        assert float((found @ found - gradients @ found).max()) < 1e-10 * float(found @ found)
    return worst


def cagrad() -> float:
    """The deficit of the worst task against torchjd's direction, or the excess over the ball's radius, if larger."""
    ours, theirs, worst = made(CAGrad(0.5)), jd.CAGrad(0.5, norm_eps=1e-12), 0.0
    assert isinstance(ours, CAGrad)
    for losses, gradients in drawn():
        found, mean = ours.direction(gradients, losses, HERE) / 4, gradients.mean(0)
        least = (gradients @ theirs(gradients)).min() - (gradients @ found).min()
        outside = (found - mean).norm() / (0.5 * mean.norm()) - 1
        worst = max(worst, float(least / (mean @ mean)), float(outside))
    return worst


def through_torchjd() -> float:
    """The aggregators that have a closed form; `test_torchjd.py` has all of them."""
    worst = 0.0
    for theirs in (jd.AlignedMTL(), jd.ConFIG(), jd.IMTLG(), jd.Mean(), jd.Sum(), jd.TrimmedMean(1)):
        ours = made(TorchJD(theirs))
        assert isinstance(ours, TorchJD)
        worst = max(worst, *(apart(ours.direction(g, losses, HERE), theirs(g)) for losses, g in drawn()))
    return worst


TABLE: dict[str, tuple[str, Callable[[], float], float]] = {
    "Fixed": ("torchjd Constant", fixed, 1e-10),
    "DynamicWeightAverage": ("torchjd DWA", dwa, 1e-10),
    "GeometricMean": (
        "T times torchjd's",
        lambda: of_losses(GeometricMean(), scalar.GeometricMean(), 4),
        1e-10,
    ),
    "STCH": ("T² times torchjd STCH", lambda: of_losses(STCH(0.3), scalar.STCH(0.3), 16), 1e-10),
    "FAMO": ("T times torchjd FAMO", famo, 1e-10),
    "IMTLL": ("torchjd IMTLL", lambda: learned(IMTLL(), "log_scale", scalar.IMTLL(4), "log_scale", 1), 1e-10),
    "Uncertainty": ("torchjd UW", lambda: learned(Uncertainty(), "log_variance", scalar.UW(4), "log_var", 1), 1e-10),
    "Uncertainty, revised": ("its equation 4", revised_uncertainty, 1e-10),
    "DBMTL": ("its algorithm 1", db_mtl, 1e-10),
    "MGDA": ("torchjd MGDA, squared length", mgda, 1e-6),
    "CAGrad": ("torchjd CAGrad, least improvement", cagrad, 1e-6),
    "TorchJD, closed forms": ("torchjd", through_torchjd, 1e-10),
}


@pytest.mark.parametrize("method", TABLE)
def test_parity(method: str) -> None:
    oracle, error, tolerance = TABLE[method]
    found = error()
    print(f"\n| {method} | {oracle} | {found:.0e} |")
    assert found < tolerance
