"""Distances, prototypes and losses in half precision, against float64."""

from __future__ import annotations

from collections.abc import Callable

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn import functional as F

from lightning_meta.batches import SPLITS, Split
from lightning_meta.data import EpisodicDataModule, Pool
from lightning_meta.data.source import Source
from lightning_meta.functional import class_means, cosine_similarity, squared_euclidean
from lightning_meta.meta import Baseline, MetaModule, ProtoNet
from lightning_meta.tasks import Binary, Classification, Multilabel, Regression, Task

HALVES = (torch.float16, torch.bfloat16)
NORMS = (1.0, 416.0, 3000.0)  # squares of the last overflow float16
FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "euclidean": squared_euclidean,
    "cosine": cosine_similarity,
    "means": lambda features, others: class_means(features, torch.arange(len(features)) % 3, 3),
}


def features(norm: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Features that differ by a few units around a common centre of that norm, as they are in half precision."""
    generator = torch.Generator().manual_seed(0)
    centre = F.normalize(torch.randn(16, generator=generator), dim=0) * norm
    spread = 0.05 * norm / 4
    x, y = (centre + spread * torch.randn(n, 16, generator=generator) for n in (12, 5))
    return x.to(dtype), y.to(dtype)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_features_are_compared_in_float32(
    name: str, norm: float, dtype: torch.dtype, autocast: bool
) -> None:
    function = FUNCTIONS[name]
    x, y = features(norm, dtype)
    expected = function(x.double(), y.double())
    with torch.autocast("cpu", dtype, enabled=autocast):
        found = function(x, y)
        mapped = vmap(function, (0, None))(torch.stack([x, -x]), y)[0]
        of_sum = grad(lambda x: function(x, y).sum())(x)
    assert found.dtype == torch.float32
    error = (found.double() - expected).abs().max() / expected.abs().max()
    assert error < 1e-5
    torch.testing.assert_close(mapped, found, rtol=1e-5, atol=1e-5 * float(found.abs().max()))
    assert of_sum.dtype == dtype
    expected_gradient = grad(lambda x: function(x, y.double()).sum())(x.double())
    apart = (of_sum.double() - expected_gradient).norm() / expected_gradient.norm().clamp_min(1e-6)
    assert apart < (0.05 if autocast else 0.01)  # a backward pass within autocast is in half precision itself


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wider_features_keep_their_precision(name: str, dtype: torch.dtype) -> None:
    assert FUNCTIONS[name](*features(1.0, dtype)).dtype == dtype


LOSSES: dict[str, tuple[Task, Tensor]] = {
    "classification": (Classification(3), torch.arange(40) % 3),
    "binary": (Binary(), torch.arange(40) % 2),
    "multilabel": (Multilabel(3), (torch.arange(120) % 2).view(40, 3)),
    "regression": (Regression(3, (5.0, 0.0, -3.0), (2.0, 1.0, 0.1)), torch.linspace(-9, 9, 120).view(40, 3)),
}


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("autocast", [False, True])
def test_losses_of_half_precision_outputs_are_float32(name: str, dtype: torch.dtype, autocast: bool) -> None:
    task, targets = LOSSES[name]
    outputs = (20 * torch.randn(40, task.outputs)).to(dtype)
    with torch.autocast("cpu", dtype, enabled=autocast):
        losses = task.losses(outputs, targets)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses.double(), task.losses(outputs.double(), targets), rtol=1e-5, atol=1e-5)
    assert task.readable(outputs).dtype in (torch.float32, dtype)


def test_whole_targets_keep_their_digits_when_they_are_standardised() -> None:
    seconds = 1_700_000_000 + 10 * torch.arange(300).unsqueeze(1)  # float32 tells only every 128th apart
    task = Regression(1).fitted(seconds)
    z = (seconds.double() - seconds.double().mean()) / seconds.double().std(correction=0)
    outputs = z.float()
    assert task.losses(outputs, seconds).dtype == torch.float32
    assert float(task.losses(outputs, seconds).max()) < 1e-9
    assert float(task.example_scores(outputs, seconds).min()) > 1 - 1e-9
    assert float(task.losses(outputs, seconds.double()).max()) < 1e-9


class Close(Source):
    """Classes whose examples differ by little, far from the origin; half precision still tells them apart."""

    def pools(self) -> dict[Split, Pool]:
        return {split: self._pool(split, seed) for seed, split in enumerate(SPLITS)}

    @staticmethod
    def _pool(split: Split, seed: int) -> Pool:
        generator = torch.Generator().manual_seed(seed)
        centre = F.normalize(torch.randn(64, generator=generator), dim=0) * 416
        classes = centre + 2.0 * torch.randn(6, 1, 64, generator=generator)
        x = classes + 0.3 * torch.randn(6, 8, 64, generator=generator)
        names = tuple(f"{split}{c}" for c in range(6))
        return Pool(x.flatten(0, 1), torch.full((6,), 8), names, names)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("name", ["euclidean", "cosine", "baseline++"])
def test_far_features_are_told_apart_in_any_precision(name: str, precision: str) -> None:
    """Features of norm 416 were told apart in two of three cases only."""
    methods: dict[str, Callable[[], MetaModule]] = {
        "euclidean": lambda: ProtoNet(nn.Flatten()),
        "cosine": lambda: ProtoNet(nn.Flatten(), "cosine", 0.001),
        "baseline++": lambda: Baseline(nn.Flatten(), "cosine", scale=10.0, head_steps=500),
    }
    data = EpisodicDataModule(Close(), ways=3, shots=4, queries=4, meta_batch_size=2, test_tasks=20)
    quiet: dict[str, bool] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(accelerator="cpu", precision=precision, enable_checkpointing=False, **quiet)  # type: ignore[arg-type]
    (figures,) = trainer.test(methods[name](), datamodule=data, verbose=False)
    assert figures["test/accuracy"] > 0.98
