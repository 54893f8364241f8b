"""MAML on sine waves: the outer gradient alone, and the overhead of the Trainer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import lightning as L
import torch
from torch.nn import functional as F

from benchmarks import peers, work
from benchmarks.measure import Timing
from benchmarks.row import Row, Setting, check_equal
from lightning_meta.batches import Episode
from lightning_meta.data import EpisodicDataModule
from lightning_meta.data.episodes import EpisodeDataset, EpisodeShape
from lightning_meta.meta import MAML
from lightning_meta.nn import MLP
from lightning_meta.sources import Sinusoid


def sine(setting: Setting) -> Iterator[Row]:
    """MAML's outer gradient on sine tasks alone, and the overhead of the Trainer."""
    l2l = peers.peer("learn2learn")
    cases = [(25, 1)] if setting.short else [(25, 1), (25, 5), (100, 1), (100, 5)]
    for tasks, steps in cases:
        batch = work.sinusoids(tasks, 10, setting.device)
        contestants: dict[str, Callable[[], object]] = {}
        for name in ("vmap", "compiled"):
            contestants[name] = work.gradient(work.sine_maml(steps, name == "compiled", setting.device), batch)
        if l2l is not None:
            module = work.sine_maml(steps, False, setting.device)
            learner = l2l.algorithms.MAML(module.network, lr=0.01, first_order=False)
            trained = list(learner.parameters())

            losses = partial(peers.maml_losses, learner, batch, steps, F.mse_loss)
            check_equal(module.meta_batch_loss(batch).loss, losses(), "sine MAML")
            contestants["learn2learn"] = partial(_gradient, losses, trained)
        others = {"torchopt": peers.torchopt_losses, "higher": peers.higher_losses}
        for name in [name for name in others if not setting.short and peers.peer(name) is not None]:
            module = work.sine_maml(steps, False, setting.device)
            losses = partial(others[name], module.network, batch, steps, 0.01, F.mse_loss)
            check_equal(module.meta_batch_loss(batch).loss, losses(), f"sine MAML by {name}")
            contestants[name] = partial(_gradient, losses, list(module.parameters()))
        took = setting.compare(contestants)
        what = f"sine MAML 40-40, {tasks} tasks, {steps} inner step{'s' * (steps > 1)}"
        targets = {25: (7.0, 12.0), 100: (18.0, 25.0)}[tasks] if steps == 1 else (None, None)
        for name, target in zip(("vmap", "compiled"), targets, strict=True):
            yield Row(f"{what}, {name}", took[name], "learn2learn", took.get("learn2learn"), target)
        for name in sorted(others.keys() & took.keys()):
            yield Row(f"{what}, vmap", took["vmap"], name, took[name])
    yield trainer_overhead(setting)


def _gradient(losses: Callable[[], torch.Tensor], trained: list[torch.nn.Parameter]) -> object:
    return torch.autograd.grad(losses().mean(), trained)


def trainer_overhead(setting: Setting) -> Row:
    """Compare a sine step with the Trainer with the same step in a bare loop."""
    steps = 200
    data = EpisodicDataModule(Sinusoid(), shots=10, queries=10, meta_batch_size=25, meta_batches_per_epoch=steps)
    bare = work.sine_maml(1, False, torch.device("cpu"))
    number = iter(range(10**9))
    dataset = EpisodeDataset(Sinusoid(), "train", EpisodeShape(0, 10, 10), 25, 10**9, seed=0)

    def batch() -> Episode:
        first = 25 * next(number)
        return dataset.__getitems__(range(first, first + 25))

    step = work.training_step(bare, batch, torch.device("cpu"))

    def by_trainer() -> float:
        module = MAML(MLP(1, (40, 40)), 0.01, 1, strategy="vmap")
        trainer = L.Trainer(
            max_steps=steps,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
        )
        clock = _Clock()
        trainer.callbacks.append(clock)  # type: ignore[attr-defined]
        trainer.fit(module, datamodule=data)
        return clock.seconds / (steps - 20)

    def in_a_loop() -> float:
        began = time.perf_counter()
        for _ in range(steps):
            step()
        return (time.perf_counter() - began) / steps

    by_trainer(), in_a_loop()
    both = [(by_trainer(), in_a_loop()) for _ in range(setting.repeats)]
    ours, loop = (Timing.of(column) for column in zip(*both, strict=True))
    note = f"the Trainer adds {1000 * (ours.median - loop.median):.2f} ms a step"
    return Row("sine MAML, 25 tasks, data included, by the Trainer", ours, "bare loop", loop, None, note)


class _Clock(L.Callback):
    """Times training steps from the 20th on."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 20:
            self.began = time.perf_counter()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.seconds = time.perf_counter() - self.began
