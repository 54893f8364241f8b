"""Training on images including data, and the share of the data in the time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch.nn import functional as F

from benchmarks import peers, work
from benchmarks.measure import floor, operations, traffic
from benchmarks.row import Row, Setting, check_equal
from lightning_meta.data import Pool
from lightning_meta.data.episodes import EpisodeShape
from lightning_meta.meta import ProtoNet
from lightning_meta.tasks import EpisodeSpec


def maml(setting: Setting) -> Iterator[Row]:
    """MAML's training step in the paper's Omniglot setting including data, and the share of the data."""
    source, pool = work.images()
    l2l = peers.peer("learn2learn")
    tasks = 8 if setting.short else 32
    batch = work.drawn(pool, tasks, EpisodeShape(5, 1, 1))
    contestants: dict[str, Callable[[], object]] = {"data": batch}
    modules = {
        "auto": work.image_maml(5, 1, 28, setting.device, graph=graphs_on(setting.device)),
        "loop": work.image_maml(5, 1, 28, setting.device, strategy="loop"),
    }
    for name, module in modules.items():
        contestants[name] = work.training_step(module, batch, setting.device)
    if l2l is not None:
        one = work.moved(modules["loop"].inputs(batch()), setting.device)
        fresh = work.image_maml(5, 1, 28, setting.device, strategy="vmap")
        learner = l2l.algorithms.MAML(peers.own_network(l2l, fresh), lr=0.4, first_order=False)
        check_equal(fresh.meta_batch_loss(one).loss, peers.maml_losses(learner, one, 1, F.cross_entropy), "MAML")
        contestants["learn2learn"] = peers.maml_step(
            l2l, peers.own_network(l2l, fresh), peers.taskset(l2l, pool, 5, 2), tasks, 5, 0.4, setting.device
        )
    took = setting.compare(contestants)
    what = f"MAML on {source}, Conv4-64 strides, {tasks} tasks 5-way 1-shot, 1 query, 1 step, data included"
    target = None if setting.short else (10.0 if setting.device.type == "cuda" else 1.5)
    # Operations are counted in the loop: torch's counter is wrong for the grouped convolutions of `vmap`.
    work_floor = floor(operations(contestants["loop"]), traffic(contestants["auto"]), setting.device)
    note = f"auto: {modules['auto'].task_map}; {work_floor}"
    yield Row(what, took["auto"], "learn2learn", took.get("learn2learn"), target, note)
    yield Row(what, took["auto"], "our loop", took["loop"])
    yield Row("its data against the whole step", took["data"], "step", took["auto"], 20.0, "20: data is 5 %")


def graphs_on(device: torch.device) -> Literal["off", "auto"]:
    """The option `graph`: capture steps on a GPU."""
    return "auto" if device.type == "cuda" else "off"


def protonet_module(device: torch.device) -> ProtoNet:
    """ProtoNet with the paper's network for Omniglot, in training mode."""
    torch.manual_seed(0)
    spec = EpisodeSpec("classification", (1, 28, 28), 0)
    network = work.conv4(downsample="max_pool", spatial="flatten")
    return ProtoNet(network, graph=graphs_on(device), episodes=spec).train().to(device)


def protonet_steps(
    pool: Pool, tasks: int, shape: EpisodeShape, device: torch.device
) -> dict[str, Callable[[], object]]:
    """ProtoNet's data and training steps: `data`, `ours` and, if installed, `learn2learn`."""
    batch, module, l2l = work.drawn(pool, tasks, shape), protonet_module(device), peers.peer("learn2learn")
    made: dict[str, Callable[[], object]] = {"data": batch, "ours": work.training_step(module, batch, device)}
    if l2l is not None:
        ways, examples = shape.largest()
        taskset = peers.taskset(l2l, pool, ways, examples)
        shots = examples - shape.queries
        made["learn2learn"] = peers.protonet_step(peers.own_network(l2l, module), taskset, tasks, ways, shots, device)
    return made


def protonet(setting: Setting) -> Iterator[Row]:
    """ProtoNet's training step including data, and the share of the data."""
    source, pool = work.images()
    for ways, shots, queries, tasks in [(5, 1, 5, 4)] if setting.short else [(60, 1, 5, 1), (5, 1, 5, 4)]:
        contestants = protonet_steps(pool, tasks, EpisodeShape(ways, shots, queries), setting.device)
        took = setting.compare(contestants)
        what = f"ProtoNet on {source}, Conv4-64, {tasks} x {ways}-way {shots}-shot {queries} queries, data included"
        target = 5.0 if setting.device.type == "cuda" else 1.5
        note = floor(operations(contestants["ours"]), traffic(contestants["ours"]), setting.device)
        yield Row(what, took["ours"], "learn2learn", took.get("learn2learn"), target, note)
        yield Row("its data against the whole step", took["data"], "step", took["ours"], 20.0, "20: data is 5 %")


def steps(name: str, device: torch.device) -> dict[str, Callable[[], object]]:
    """Training steps including data: MAML on Omniglot as in its paper, or ProtoNet with one 60-way or four 5-way tasks.

    Args:
        name: The case: `MAML`, `60-way` or `5-way`.
        device: Device of the training.

    Returns:
        The steps `ours` and, if installed, `learn2learn`.
    """
    l2l, (_, pool) = peers.peer("learn2learn"), work.images()
    if name != "MAML":
        tasks, ways = {"60-way": (1, 60), "5-way": (4, 5)}[name]
        return protonet_steps(pool, tasks, EpisodeShape(ways, 1, 5), device)
    module = work.image_maml(5, 1, 28, device)
    batch = work.drawn(pool, 32, EpisodeShape(5, 1, 1))
    made: dict[str, Callable[[], object]] = {"ours": work.training_step(module, batch, device)}
    if l2l is not None:
        network = peers.own_network(l2l, module)
        made["learn2learn"] = peers.maml_step(l2l, network, peers.taskset(l2l, pool, 5, 2), 32, 5, 0.4, device)
    return made


def sampling(setting: Setting) -> Iterator[Row]:
    """Sampling tasks from memory."""
    _, pool = work.images()
    l2l = peers.peer("learn2learn")
    batch = work.drawn(pool, 32, EpisodeShape(5, 1, 1))
    contestants: dict[str, Callable[[], object]] = {"ours": batch}
    if l2l is not None:
        tasks = peers.taskset(l2l, pool, 5, 2)
        contestants["learn2learn"] = lambda: [tasks.sample() for _ in range(32)]
    took = setting.compare(contestants)
    note = f"{32 / took['ours'].median:,.0f} tasks a second"
    yield Row("sampling 32 tasks 5-way, 2 a class", took["ours"], "learn2learn", took.get("learn2learn"), 10.0, note)
