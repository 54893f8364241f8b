"""The cost of methods other than MAML and ProtoNet: a training step, and 1000 test tasks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

from benchmarks import peers, work
from benchmarks.evaluation import TASKS, easyfsl_evaluation, features, our_evaluation
from benchmarks.images import protonet_module
from benchmarks.measure import Timing, side_by_side
from benchmarks.row import Row, Setting
from lightning_meta import meta
from lightning_meta.batches import Episode
from lightning_meta.meta import MetaModule
from lightning_meta.nn import MLP
from lightning_meta.tasks import EpisodeSpec

OTHERS = {"SimpleShot": 1000, "FEAT": 1000, "BDCSPN": 200, "LaplacianShot": 200, "TIM": 20, "PTMAP": 4}
"""Methods that easyfsl has as well, with the number of tasks for which it is timed."""


def evaluations(setting: Setting) -> Iterator[Row]:
    """Evaluate 1000 tasks with other methods, 5-way 1-shot with 15 queries, from stored embeddings.

    Each library uses its defaults, so algorithms differ: TIM uses gradient descent in easyfsl and alternating updates
    here, PT-MAP uses Sinkhorn's iteration in easyfsl and Newton's method here. The notes give both accuracies.
    """
    if peers.peer("easyfsl") is None:
        return
    pool, on_cpu = features(), setting.device.type == "cpu"
    clock, kind = (time.process_time, "processor time") if on_cpu else (time.perf_counter, "time")
    for name in ["BDCSPN"] if setting.short else OTHERS:
        here, there = min(TASKS, 10 * OTHERS[name] if OTHERS[name] < 100 else TASKS), OTHERS[name]
        ours = our_evaluation(pool, setting.device, getattr(meta, name), tasks=here)
        theirs = easyfsl_evaluation(pool, setting.device, name, there)
        took = side_by_side({"ours": ours, "easyfsl": theirs}, setting.device, min(setting.repeats, 3), 0, clock)
        note = f"{kind}, of {here} tasks here and {there} there; accuracies {ours():.2f}, {theirs():.2f}"
        scaled = [
            Timing(*(TASKS / count * s for s in took[side])) for side, count in (("ours", here), ("easyfsl", there))
        ]
        yield Row(f"evaluating 1000 {name} tasks from embeddings", scaled[0], "easyfsl", scaled[1], None, note)


def method_steps(setting: Setting) -> Iterator[Row]:
    """Training steps without sampling, compared with the method from which each is derived."""
    device = setting.device
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    sines, few = work.sinusoids(25, 10, device), work.random_images(4, 5, 1, 5, 28, device)
    of_sines, of_images = EpisodeSpec("regression", (1,), 1), EpisodeSpec("classification", (1, 28, 28), 5)
    network = {"width": 32}
    works: dict[str, tuple[Episode, MetaModule, MetaModule]] = {
        "CAVIA, sine waves, 25 tasks, 1 inner step; MAML": (
            sines,
            meta.CAVIA(MLP(6, (40, 40)), inner_lr=1.0, inner_steps=1, episodes=of_sines),
            work.sine_maml(1, False, device),
        ),
        "FEAT, Conv4-64, 4 tasks 5-way 1-shot, 5 queries; ProtoNet": (
            few,
            meta.FEAT(work.conv4(downsample="max_pool", spatial="flatten"), episodes=of_images),
            protonet_module(device),
        ),
        "iMAML, Conv4-32 with strides, 4 tasks 5-way 1-shot, 5 queries, 10 inner steps; MAML": (
            few,
            meta.IMAML(work.conv4(**network), inner_lr=0.1, inner_steps=10, episodes=of_images),
            work.image_maml(5, 10, 28, device, network=network),
        ),
    }
    for name, (batch, ours, other) in works.items():
        steps: dict[str, Callable[[], object]] = {
            side: work.training_step(module.train().to(device), partial(work.moved, batch, device), device)
            for side, module in (("ours", ours), ("other", other))
        }
        took = side_by_side(steps, device, setting.repeats, setting.seconds, clock)
        what, peer = name.split("; ")
        yield Row(f"a training step of {what}", took["ours"], f"{peer} here", took["other"])
