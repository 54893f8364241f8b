"""The timed work of this package."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lightning_meta.batches import Episode, Examples
from lightning_meta.data import Pool
from lightning_meta.data.episodes import EpisodeDataset, EpisodeShape
from lightning_meta.meta import MAML, MetaModule
from lightning_meta.nn import MLP, Conv4
from lightning_meta.sources import Glyphs, Omniglot, Sinusoid
from lightning_meta.tasks import EpisodeSpec


def images() -> tuple[str, Pool]:
    """Name and training images of a source: Omniglot if `LIGHTNING_META_DATA` is set, else the embedded glyphs."""
    source = Omniglot(split="vinyals") if os.environ.get("LIGHTNING_META_DATA") else Glyphs()
    source.prepare()
    return type(source).__name__, source.pools()["train"]


def conv4(**options: Any) -> nn.Module:
    """The network of MAML on Omniglot."""
    return Conv4(**{"in_channels": 1, "width": 64, "downsample": "stride", "spatial": "mean", **options})


def sinusoids(tasks: int, points: int, device: torch.device) -> Episode:
    """A meta-batch of sine tasks, with as many query as support points."""
    data = EpisodeDataset(Sinusoid(), "train", EpisodeShape(0, points, points), tasks, tasks, seed=0)
    return moved(data.__getitems__(range(tasks)), device)


def random_images(tasks: int, ways: int, shots: int, queries: int, size: int, device: torch.device) -> Episode:
    """A meta-batch of noise."""
    generator = torch.Generator().manual_seed(0)

    def examples(each: int) -> Examples:
        y = torch.arange(ways).repeat_interleave(each).expand(tasks, -1)
        return Examples(torch.rand(*y.shape, 1, size, size, generator=generator), y)

    return moved(Episode(examples(shots), examples(queries), ways, torch.arange(tasks)), device)


def moved(batch: Episode, device: torch.device) -> Episode:
    """Move a meta-batch to a device."""
    support, query = (Examples(part.x.to(device), part.y.to(device)) for part in (batch.support, batch.query))
    return Episode(support, query, batch.ways, batch.tasks.to(device), batch.classes)


def sine_maml(steps: int, compile: bool, device: torch.device) -> MAML:
    """MAML of the sine experiment: 40-40, second order."""
    torch.manual_seed(0)
    spec = EpisodeSpec("regression", (1,), 1)
    module = MAML(MLP(1, (40, 40)), 0.01, steps, strategy="vmap", compile=compile, episodes=spec)
    return module.train().to(device)


def image_maml(ways: int, steps: int, size: int, device: torch.device, **options: Any) -> MAML:
    """MAML of the Omniglot experiment, second order."""
    torch.manual_seed(0)
    backbone = conv4(**options.pop("network", {}))
    spec = EpisodeSpec("classification", (1, size, size), ways)
    return MAML(backbone, 0.4, steps, episodes=spec, **options).train().to(device)


def training_step(module: MetaModule, batch: Callable[[], Episode], device: torch.device) -> Callable[[], float]:
    """A step of Adam on a new meta-batch, without the Trainer."""
    optimizer = torch.optim.Adam(module.parameters(), 0.001)
    if module.task_map is None:
        first = batch()
        module.task_map = module._chosen(module.inputs(moved(first, device)))

    def step() -> float:
        optimizer.zero_grad()
        loss, _ = module.graphed_loss(module.inputs(moved(batch(), device)))
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def gradient(module: MetaModule, batch: Episode) -> Callable[[], object]:
    """The outer gradient of a meta-batch, without optimizer and Trainer."""
    parameters = list(module.parameters())
    return lambda: torch.autograd.grad(module.training_loss(batch).loss.mean(), parameters)


def drawn(pool: Pool, tasks: int, shape: EpisodeShape) -> Callable[[], Episode]:
    """Draws new meta-batches from memory."""
    data = EpisodeDataset(pool, "train", shape, tasks, 10**12, seed=0)
    first = iter(range(0, 10**12, tasks))

    def draw() -> Episode:
        start = next(first)
        return data.__getitems__(range(start, start + tasks))

    return draw
