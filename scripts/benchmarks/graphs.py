"""Training steps on a GPU: eager, compiled, and captured as a CUDA graph."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import lightning as L
import torch
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from benchmarks import peers, work
from benchmarks.measure import Timing
from benchmarks.row import Row, Setting
from lightning_meta.batches import Episode
from lightning_meta.data import EpisodicDataModule
from lightning_meta.data.module import Place
from lightning_meta.meta import MAML, MetaModule, ProtoNet
from lightning_meta.nn import Conv4
from lightning_meta.sources import Glyphs
from lightning_meta.tasks import EpisodeSpec

GRAPH: tuple[Literal["off", "auto"], ...] = ("off", "auto")
PLACES: tuple[Place, ...] = ("accelerator", "cpu")
OMNIGLOT: dict[str, Any] = {"in_channels": 1, "width": 64, "downsample": "stride", "spatial": "mean"}


class Case(NamedTuple):
    """A setting of a paper; `inner` is the learning rate and number of steps of the inner loop, None for ProtoNet."""

    network: dict[str, Any]
    tasks: int
    ways: int
    queries: int
    side: int
    inner: tuple[float, int] | None
    target: float

    def make(self, **options: Any) -> MetaModule:
        """Create a module for this setting."""
        torch.manual_seed(0)
        channels = self.network["in_channels"]
        if self.inner is None:
            spec = EpisodeSpec("classification", (channels, self.side, self.side), 0)
            return ProtoNet(Conv4(**self.network), episodes=spec, **options)
        spec = EpisodeSpec("classification", (channels, self.side, self.side), self.ways)
        return MAML(Conv4(**self.network), *self.inner, episodes=spec, **options)

    def batch(self, device: torch.device) -> Episode:
        """A meta-batch of noise."""
        batch = work.random_images(self.tasks, self.ways, 1, self.queries, self.side, device)
        channels = self.network["in_channels"]
        support, query = (p._replace(x=p.x.repeat(1, 1, channels, 1, 1)) for p in (batch.support, batch.query))
        return batch._replace(support=support, query=query)


CASES = {
    "MAML Omniglot, 32 x 5-way, 1 step": Case(OMNIGLOT, 32, 5, 1, 28, (0.4, 1), 110.0),
    "MAML mini-ImageNet, 4 x 5-way 15 queries, 5 steps": Case(
        {"in_channels": 3, "width": 32}, 4, 5, 15, 84, (0.01, 5), 8.0
    ),
    "ProtoNet Omniglot, 60-way 5 queries": Case({"in_channels": 1, "width": 64}, 1, 60, 5, 28, None, 20.0),
    "ProtoNet Omniglot, 4 x 5-way 5 queries": Case({"in_channels": 1, "width": 64}, 4, 5, 5, 28, None, 10.0),
}


def graphs(setting: Setting) -> Iterator[Row]:
    """Training steps without and with the Trainer, in float32 and with TF32; no rows on a CPU."""
    if setting.device.type != "cuda":
        return
    for tf32 in (False, True):
        torch.backends.cudnn.allow_tf32 = tf32
        for name, case in CASES.items():
            yield from _engine(name, case, setting, tf32)
    torch.backends.cudnn.allow_tf32 = False
    for name, case in CASES.items():
        if case.side == 28:
            yield from _under_the_trainer(name, case, setting)


def _engine(name: str, case: Case, setting: Setting, tf32: bool) -> Iterator[Row]:
    batch = case.batch(setting.device)
    options: dict[str, Any] = {"tf32": tf32} if case.inner is not None else {}
    contestants: dict[str, Callable[[], object]] = {}
    modules = {how: case.make(graph=graph, **options) for how, graph in zip(("eager", "captured"), GRAPH, strict=True)}
    if case.tasks > 1 and not setting.short:
        modules["compiled"] = case.make(compile=True, **options)
    for how, module in modules.items():
        contestants[how] = step(module.train().to(setting.device), batch)
    l2l = peers.peer("learn2learn")
    if l2l is not None and not tf32 and case.inner is not None:
        network = peers.own_network(l2l, modules["eager"])
        learner = l2l.algorithms.MAML(network, lr=case.inner[0], first_order=False)
        optimizer = torch.optim.Adam(learner.parameters(), 0.001)
        steps = case.inner[1]

        def peer_step() -> None:
            optimizer.zero_grad()
            peers.maml_losses(learner, batch, steps, F.cross_entropy).mean().backward()
            optimizer.step()

        contestants["learn2learn"] = peer_step
    took = setting.compare(contestants)
    captured = modules["captured"]._graphs
    busy = ", ".join(f"GPU busy {_busy(contestants[how]):.2f} ms {how}" for how in modules)
    note = busy if captured.replays else f"not captured: {captured.obstacle}; {busy}"
    what = f"{name}, {'TF32' if tf32 else 'float32'}, engine alone"
    if not tf32:
        target = case.target if case.inner is not None else None
        yield Row(what, took["captured"], "learn2learn", took.get("learn2learn"), target, note)
    yield Row(what, took["captured"], "eager", took["eager"], None, note)
    if "compiled" in took:
        yield Row(what, took["captured"], "compiled", took["compiled"])


def step(module: MetaModule, batch: Episode) -> Callable[[], None]:
    """A step of Adam on a meta-batch on the device, without reading results back."""
    optimizer = torch.optim.Adam(module.parameters(), 0.001)
    inputs = module.inputs(batch)
    module.task_map = module._chosen(inputs)

    def one() -> None:
        optimizer.zero_grad()
        with module.exact_arithmetic():
            loss, _ = module.graphed_loss(inputs)
            loss.backward()
        optimizer.step()

    return one


def _busy(function: Callable[[], object]) -> float:
    """Total kernel time of one call in ms."""
    function()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        function()
        torch.cuda.synchronize()
    events = [event for event in profiler.events() if str(event.device_type).endswith("CUDA")]
    return sum(event.device_time for event in events) / 1000


class Clock(L.Callback):
    """Measures the time of a step in seconds, after `warm_up` steps."""

    def __init__(self, warm_up: int) -> None:
        self.warm_up, self.began, self.seconds = warm_up, 0.0, 0.0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Start the clock after the warm-up."""
        if trainer.global_step == self.warm_up:
            torch.cuda.synchronize()
            self.began = time.perf_counter()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Stop the clock."""
        torch.cuda.synchronize()
        self.seconds = (time.perf_counter() - self.began) / (trainer.global_step - self.warm_up)


def _under_the_trainer(name: str, case: Case, setting: Setting) -> Iterator[Row]:
    steps = 200 if setting.short else 600
    for place in PLACES:
        taken = {}
        for graph in GRAPH:
            clock = Clock(100)
            data = EpisodicDataModule(
                Glyphs(), ways=case.ways, shots=1, queries=case.queries, meta_batch_size=case.tasks,
                meta_batches_per_epoch=steps, val_tasks=1, test_tasks=1, pool_on=place, seed=0,
            )  # fmt: skip
            quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
            runs = L.Trainer(
                accelerator="gpu", devices=1, max_steps=steps, limit_val_batches=0, callbacks=[clock],
                enable_model_summary=False, num_sanity_val_steps=0, **quiet,
            )  # fmt: skip
            torch.manual_seed(0)
            runs.fit(case.make(graph=graph), datamodule=data)
            taken[graph] = Timing.of([clock.seconds])
        target = 10.0 if case.inner is not None else None
        note = f"the aim: at most {target:g} ms" if target else ""
        yield Row(f"{name}, under the Trainer, pool on {place}", taken["auto"], "eager", taken["off"], None, note)
