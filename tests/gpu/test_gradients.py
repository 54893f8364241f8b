"""Meta-gradients in two published settings, through the whole path of training, against float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from lightning_meta.batches import SPLITS, Split
from lightning_meta.data import EpisodicDataModule, Pool
from lightning_meta.data.sources.base import Source
from lightning_meta.functional.tf32 import has_tf32
from lightning_meta.meta import MAML
from lightning_meta.nn import Conv4
from lightning_meta.tasks import EpisodeSpec
from tests.gpu.card import SLOW_ON_CPU, on_card, trainer
from tests.meta.oracles import relative_error

CPU = torch.device("cpu")
BATCHES = 3  # at the same weights: a single one may have an input that lies on the kink of a ReLU


class Pictures(Source):
    """Noise, of 8 classes in name alone; pixels are multiples of 1/256, which every precision holds."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def pools(self) -> dict[Split, Pool]:
        generator = torch.Generator().manual_seed(0)
        x = torch.randint(256, (8, 20, *self.shape), generator=generator) / 256
        names = {split: tuple(f"{split}{c}" for c in range(8)) for split in SPLITS}
        return {split: Pool(x.flatten(0, 1), torch.full((8,), 20), names[split], names[split]) for split in SPLITS}


@dataclass(frozen=True)
class Setting:
    """A published experiment of MAML, and the error of its meta-gradient in float32, relative to float64."""

    backbone: Callable[[], nn.Module]
    shape: tuple[int, ...]
    inner_lr: float
    inner_steps: int
    queries: int
    tasks: int


SETTINGS = {
    "omniglot": Setting(lambda: Conv4(1, 64, "stride", "mean"), (1, 28, 28), 0.4, 1, 1, 32),
    "mini-imagenet": Setting(lambda: Conv4(3, 32), (3, 84, 84), 0.01, 5, 15, 4),
}


class Gradients(L.Callback):
    """The outer gradient of each step."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        parts = [p.grad.flatten() for p in pl_module.parameters() if p.grad is not None]
        self.seen.append(torch.cat(parts).double().cpu())


def gradient(name: str, device: torch.device, precision: str = "32-true", **options: Any) -> Tensor:
    """The meta-gradients of a few meta-batches, as one vector."""
    setting = SETTINGS[name]
    torch.manual_seed(0)
    spec = EpisodeSpec("classification", setting.shape, 5, 8, "float32")  # the head is drawn in float32, as the rest
    module = MAML(
        setting.backbone(), setting.inner_lr, setting.inner_steps, episodes=spec,
        optimizer=partial(torch.optim.SGD, lr=0.0), **options,
    )  # fmt: skip
    data = EpisodicDataModule(
        Pictures(setting.shape), ways=5, shots=1, queries=setting.queries, meta_batch_size=setting.tasks,
        meta_batches_per_epoch=BATCHES, val_tasks=1, test_tasks=1, seed=0,
    )  # fmt: skip
    seen = Gradients()
    runs = trainer(device, max_steps=BATCHES, limit_val_batches=0, precision=precision, callbacks=[seen])
    runs.fit(module, datamodule=data)
    assert len(seen.seen) == BATCHES
    return torch.cat(seen.seen)


@cache
def reference(name: str, device: torch.device) -> Tensor:
    return gradient(name, device, "64-true", strategy="loop")


@cache
def error_on_cpu(name: str) -> float:
    """The error of float32 where there is no TF32; the reference is the device's own in its test."""
    device = torch.device("cuda") if torch.cuda.is_available() else CPU
    return relative_error(gradient(name, CPU, strategy="loop"), reference(name, device))


@pytest.mark.parametrize("strategy", ["loop", "vmap"])
@pytest.mark.parametrize("where", SLOW_ON_CPU)
def test_omniglots_meta_gradient_is_that_of_float64(where: str, strategy: str) -> None:
    device = torch.device(where)
    error = relative_error(gradient("omniglot", device, strategy=strategy), reference("omniglot", device))
    print(f"relative error of the meta-gradient, omniglot, {strategy}, {where}: {error:.1e}")
    assert error < 1e-5


@pytest.mark.parametrize("strategy", ["loop", "vmap"])
@pytest.mark.parametrize("where", SLOW_ON_CPU)
def test_mini_imagenets_meta_gradient_is_as_good_as_float32_on_a_cpu(where: str, strategy: str) -> None:
    device = torch.device(where)
    error = relative_error(gradient("mini-imagenet", device, strategy=strategy), reference("mini-imagenet", device))
    print(f"relative error of the meta-gradient, mini-imagenet, {strategy}, {where}: {error:.1e}")
    assert error < 3 * error_on_cpu("mini-imagenet")


@pytest.mark.parametrize("where", [pytest.param("cuda", marks=on_card)])
@pytest.mark.parametrize("asked", ["option", "torch"])
def test_tf32_is_used_where_it_is_asked_for_and_shows(where: str, asked: str) -> None:
    """Where this fails, the tests above cannot: the card has no TF32, or the request is not honoured."""
    device = torch.device(where, 0)
    if not has_tf32(device):
        pytest.skip("this card has no TF32")
    if asked == "torch":
        torch.set_float32_matmul_precision("high")
    found = gradient("omniglot", torch.device(where), strategy="vmap", tf32=asked == "option")
    assert relative_error(found, reference("omniglot", torch.device(where))) > 1e-4
