"""Meta-gradients in two published settings, through the whole path of training, against float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from statistics import median
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from lightning_meta.batches import SPLITS, Split
from lightning_meta.data import EpisodicDataModule, Pool
from lightning_meta.data.source import Source
from lightning_meta.functional.tf32 import has_tf32
from lightning_meta.meta import MAML
from lightning_meta.nn import Conv4
from lightning_meta.tasks import EpisodeSpec
from tests.gpu.card import SLOW_ON_CPU, on_card, trainer
from tests.meta.oracles import relative_error

CPU = torch.device("cpu")


class Pictures(Source):
    """8 classes; pixels are multiples of 1/256, which every precision holds.

    Args:
        shape: Shape of an image.
        alike: Whether images are noise around a picture of their class; else they are noise.
    """

    def __init__(self, shape: tuple[int, ...], alike: bool) -> None:
        self.shape, self.alike = shape, alike

    def pools(self) -> dict[Split, Pool]:
        generator = torch.Generator().manual_seed(0)
        if self.alike:
            picture = torch.randint(128, (8, 1, *self.shape), generator=generator)
            x = (picture + torch.randint(128, (8, 20, *self.shape), generator=generator)) / 256
        else:
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
    alike: bool
    batches: int


SETTINGS = {
    # Not 32 tasks, of which in every second meta-batch one has an input on a kink.
    "omniglot": Setting(lambda: Conv4(1, 64, "stride", "mean"), (1, 28, 28), 0.4, 1, 1, 4, True, 15),
    "mini-imagenet": Setting(lambda: Conv4(3, 32), (3, 84, 84), 0.01, 5, 15, 4, False, 3),
}


class Gradients(L.Callback):
    """The outer gradient of each step."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        parts = [p.grad.flatten() for p in pl_module.parameters() if p.grad is not None]
        self.seen.append(torch.cat(parts).double().cpu())


def gradients(name: str, device: torch.device, precision: str = "32-true", **options: Any) -> list[Tensor]:
    """The meta-gradients of a few meta-batches, at the same weights."""
    setting = SETTINGS[name]
    torch.manual_seed(0)
    spec = EpisodeSpec("classification", setting.shape, 5, 8, "float32")  # the head is drawn in float32, as the rest
    module = MAML(
        setting.backbone(), setting.inner_lr, setting.inner_steps, episodes=spec,
        optimizer=partial(torch.optim.SGD, lr=0.0), **options,
    )  # fmt: skip
    data = EpisodicDataModule(
        Pictures(setting.shape, setting.alike), ways=5, shots=1, queries=setting.queries, meta_batch_size=setting.tasks,
        meta_batches_per_epoch=setting.batches, val_tasks=1, test_tasks=1, seed=0,
    )  # fmt: skip
    seen = Gradients()
    runs = trainer(device, max_steps=setting.batches, limit_val_batches=0, precision=precision, callbacks=[seen])
    runs.fit(module, datamodule=data)
    assert len(seen.seen) == setting.batches
    return seen.seen


@cache
def reference(name: str, device: torch.device) -> list[Tensor]:
    return gradients(name, device, "64-true", strategy="loop")


def error(found: list[Tensor], expected: list[Tensor]) -> float:
    """The median over meta-batches: an input of some may lie on the kink of a ReLU, where rounding decides."""
    return median(relative_error(*pair) for pair in zip(found, expected, strict=True))


def error_on_cpu(name: str, card: torch.device) -> float:
    """The error of float32 without TF32: the larger one of `loop` and `vmap`, which round differently."""
    return max(error(gradients(name, CPU, strategy=way), reference(name, card)) for way in ("loop", "vmap"))


@pytest.mark.parametrize("strategy", ["loop", "vmap"])
@pytest.mark.parametrize("where", SLOW_ON_CPU)
def test_omniglots_meta_gradient_is_that_of_float64(where: str, strategy: str) -> None:
    device = torch.device(where)
    found = error(gradients("omniglot", device, strategy=strategy), reference("omniglot", device))
    print(f"relative error of the meta-gradient, omniglot, {strategy}, {where}: {found:.1e}")
    assert found < 1e-5


def test_mini_imagenets_meta_gradient_is_as_good_as_float32_on_a_cpu(card: torch.device) -> None:
    """Five steps through max-pooling, where rounding decides between neighbours: float32 is about 1e-3 off."""
    on_cpu = error_on_cpu("mini-imagenet", card)
    for strategy in ("loop", "vmap"):
        found = error(gradients("mini-imagenet", card, strategy=strategy), reference("mini-imagenet", card))
        print(f"relative error of the meta-gradient, mini-imagenet, {strategy}: {found:.1e}, on a CPU {on_cpu:.1e}")
        assert found < 3 * on_cpu


@pytest.mark.parametrize("where", [pytest.param("cuda", marks=on_card)])
@pytest.mark.parametrize("asked", ["option", "torch"])
def test_tf32_is_used_where_it_is_asked_for_and_shows(where: str, asked: str) -> None:
    """If this fails, the tests above prove nothing: the card has no TF32, or the request has no effect."""
    device = torch.device(where, 0)
    if not has_tf32(device):
        pytest.skip("this card has no TF32")
    if asked == "torch":
        torch.set_float32_matmul_precision("high")
    found = gradients("omniglot", torch.device(where), strategy="vmap", tf32=asked == "option")
    assert error(found, reference("omniglot", torch.device(where))) > 1e-4
