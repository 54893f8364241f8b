"""The cost of augmentation relative to a training step."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from benchmarks import work
from benchmarks.row import Row, Setting
from lightning_meta.batches import Episode
from lightning_meta.data import Augmentation, Pool
from lightning_meta.data.augmented import augmented
from lightning_meta.data.episodes import EpisodeShape
from lightning_meta.meta import Baseline, MetaModule, ProtoNet
from lightning_meta.nn import Conv4, ResNet12
from lightning_meta.tasks import EpisodeSpec

CLASSES, EACH, SIZE = 64, 100, 32


def photographs() -> Pool:
    """Noise of the size of CIFAR-FS images; the time does not depend on the content."""
    x = torch.randint(0, 256, (CLASSES * EACH, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(0))
    names = tuple(f"class {c}" for c in range(CLASSES))
    return Pool(x.byte(), torch.full((CLASSES,), EACH), names, names)


def augmentation(setting: Setting) -> Iterator[Row]:
    """Compare augmenting the images of a step with the whole step, for a small and a large network."""
    spec = EpisodeSpec("classification", (3, SIZE, SIZE), 0, CLASSES, "uint8")
    torch.manual_seed(0)
    protonet = ProtoNet(Conv4(3), strategy="vmap", episodes=spec)
    baseline = Baseline(ResNet12(), strategy="vmap", episodes=spec)
    cases: dict[str, tuple[MetaModule, EpisodeShape]] = {
        "ProtoNet, Conv4-64, 20-way 1-shot 15 queries": (protonet, EpisodeShape(20, 1, 15)),
        "Baseline, ResNet12, 128 images": (baseline, EpisodeShape(16, 1, 7)),
    }
    if setting.short:
        del cases["Baseline, ResNet12, 128 images"]
    pool = photographs()
    for name, (module, shape) in cases.items():
        draw, number = work.drawn(pool, 1, shape), iter(range(10**9))
        fixed = work.moved(draw(), setting.device)

        def augment(batch: Episode = fixed, number: Iterator[int] = number) -> Episode:
            return augmented(batch, Augmentation(), 0, next(number))

        contestants: dict[str, Callable[[], object]] = {
            "augmentation": augment,
            "step": work.training_step(module.train().to(setting.device), draw, setting.device),
        }
        took = setting.compare(contestants)
        what = f"crops, flips and colours of images of {SIZE} pixels against the step: {name}"
        share = took["augmentation"].median / took["step"].median
        note = f"{100 * share:.1f} % of a step without it; 20: it is 5 %"
        yield Row(what, took["augmentation"], "step", took["step"], 20.0, note)
