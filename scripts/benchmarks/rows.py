"""The rows of the speed table, one function for each kind of work."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import lightning as L
import torch
from torch.nn import functional as F

from benchmarks import peers, work
from benchmarks.measure import Timing, peak_memory, side_by_side
from lightning_meta.batches import Episode
from lightning_meta.data import EpisodicDataModule, Pool
from lightning_meta.data.episodes import EpisodeDataset, EpisodeShape
from lightning_meta.data.sources import Sinusoid
from lightning_meta.meta import MAML, ProtoNet
from lightning_meta.nn import MLP
from lightning_meta.tasks import EpisodeSpec


class Row(NamedTuple):
    """One comparison. `ours` and `theirs` are seconds, but for memory, which is in bytes.

    Attributes:
        work: What was done.
        ours: By this package.
        peer: By what else.
        theirs: Of the peer; None where it is not installed.
        target: What the ratio theirs / ours should reach; None where nothing was promised.
        note: What a reader should know.
    """

    work: str
    ours: Timing
    peer: str
    theirs: Timing | None
    target: float | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """How many times the peer takes what this package takes, by the medians."""
        return None if self.theirs is None else self.theirs.median / self.ours.median


class Setting(NamedTuple):
    """How to measure.

    Attributes:
        device: Where.
        repeats: Measurements of each contestant.
        seconds: What one measurement takes at least.
        short: Whether to leave out what takes long.
    """

    device: torch.device
    repeats: int
    seconds: float
    short: bool

    def compare(self, contestants: dict[str, Callable[[], object]]) -> dict[str, Timing]:
        """Time them in turn."""
        return side_by_side(contestants, self.device, self.repeats, self.seconds)


def check_equal(ours: torch.Tensor, theirs: torch.Tensor, what: str) -> None:
    """Refuse to time two sides that do not do the same.

    Raises:
        RuntimeError: The largest difference.
    """
    apart = float((ours - theirs).detach().abs().max())
    if apart > 1e-4 * float(ours.detach().abs().max()):
        raise RuntimeError(f"{what}: the two sides differ by {apart:.1e}")


def sine(setting: Setting) -> Iterator[Row]:
    """MAML's outer gradient on sine tasks, the engine alone, and what the Trainer adds."""
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

            def losses(learner: Any = learner, batch: Episode = batch, steps: int = steps) -> torch.Tensor:
                return peers.maml_losses(learner, batch, steps, F.mse_loss)

            check_equal(module.meta_batch_loss(batch).loss, losses(), "sine MAML")
            contestants["learn2learn"] = partial(_gradient, losses, trained)
        took = setting.compare(contestants)
        what = f"sine MAML 40-40, {tasks} tasks, {steps} inner step{'s' * (steps > 1)}"
        targets = {25: (7.0, 12.0), 100: (18.0, 25.0)}[tasks] if steps == 1 else (None, None)
        for name, target in zip(("vmap", "compiled"), targets, strict=True):
            yield Row(f"{what}, {name}", took[name], "learn2learn", took.get("learn2learn"), target)
    yield trainer_overhead(setting)


def _gradient(losses: Callable[[], torch.Tensor], trained: list[torch.nn.Parameter]) -> object:
    return torch.autograd.grad(losses().mean(), trained)


def trainer_overhead(setting: Setting) -> Row:
    """A sine step by the Trainer against the same step in a bare loop."""
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


def drawn(pool: Pool, tasks: int, shape: EpisodeShape) -> Callable[[], Episode]:
    """New meta-batches from memory."""
    data = EpisodeDataset(pool, "train", shape, tasks, 10**12, seed=0)
    first = iter(range(0, 10**12, tasks))

    def draw() -> Episode:
        start = next(first)
        return data.__getitems__(range(start, start + tasks))

    return draw


def maml(setting: Setting) -> Iterator[Row]:
    """MAML's training step in the paper's Omniglot setting, data included, and what the data costs of it."""
    source, pool = work.images()
    l2l = peers.peer("learn2learn")
    tasks = 8 if setting.short else 32
    batch = drawn(pool, tasks, EpisodeShape(5, 1, 1))
    contestants: dict[str, Callable[[], object]] = {"data": batch}
    modules = {name: work.image_maml(5, 1, 28, setting.device, strategy=name) for name in ("auto", "loop")}
    for name, module in modules.items():
        contestants[name] = work.training_step(module, batch, setting.device)
    if l2l is not None:
        network = peers.twin(work.image_maml(5, 1, 28, setting.device))
        one = work.moved(modules["loop"].inputs(batch()), setting.device)
        fresh = work.image_maml(5, 1, 28, setting.device, strategy="vmap")
        learner = l2l.algorithms.MAML(peers.twin(fresh), lr=0.4, first_order=False)
        check_equal(fresh.meta_batch_loss(one).loss, peers.maml_losses(learner, one, 1, F.cross_entropy), "MAML")
        contestants["learn2learn"] = peers.maml_step(
            l2l, network, peers.taskset(l2l, pool, 5, 2), tasks, 5, 0.4, setting.device
        )
    took = setting.compare(contestants)
    what = f"MAML on {source}, Conv4-64 strides, {tasks} tasks 5-way 1-shot, 1 query, 1 step, data included"
    target = None if setting.short else (10.0 if setting.device.type == "cuda" else 1.5)
    yield Row(what, took["auto"], "learn2learn", took.get("learn2learn"), target, f"auto: {modules['auto'].task_map}")
    yield Row(what, took["auto"], "our loop", took["loop"])
    yield Row("its data against the whole step", took["data"], "step", took["auto"], 20.0, "20: data is 5 %")


def protonet(setting: Setting) -> Iterator[Row]:
    """ProtoNet's training episodes, data included, and what the data costs of them."""
    source, pool = work.images()
    l2l = peers.peer("learn2learn")
    for ways, shots, queries, tasks in [(5, 1, 5, 4)] if setting.short else [(60, 1, 5, 1), (5, 1, 5, 4)]:
        batch = drawn(pool, tasks, EpisodeShape(ways, shots, queries))
        torch.manual_seed(0)
        spec = EpisodeSpec("classification", (1, 28, 28), 0)
        network = work.conv4(downsample="max_pool", spatial="flatten")
        module = ProtoNet(network, strategy="auto", episodes=spec).train().to(setting.device)
        contestants: dict[str, Callable[[], object]] = {
            "data": batch,
            "ours": work.training_step(module, batch, setting.device),
        }
        if l2l is not None:
            given = peers.taskset(l2l, pool, ways, shots + queries)
            contestants["learn2learn"] = peers.protonet_step(
                peers.twin(module), given, tasks, ways, shots, setting.device
            )
        took = setting.compare(contestants)
        what = f"ProtoNet on {source}, Conv4-64, {tasks} x {ways}-way {shots}-shot {queries} queries, data included"
        target = 5.0 if setting.device.type == "cuda" else 1.5
        yield Row(what, took["ours"], "learn2learn", took.get("learn2learn"), target)
        yield Row("its data against the whole step", took["data"], "step", took["ours"], 20.0, "20: data is 5 %")


def sampling(setting: Setting) -> Iterator[Row]:
    """Drawing and assembling tasks from memory."""
    _, pool = work.images()
    l2l = peers.peer("learn2learn")
    batch = drawn(pool, 32, EpisodeShape(5, 1, 1))
    contestants: dict[str, Callable[[], object]] = {"ours": batch}
    if l2l is not None:
        tasks = peers.taskset(l2l, pool, 5, 2)
        contestants["learn2learn"] = lambda: [tasks.sample() for _ in range(32)]
    took = setting.compare(contestants)
    note = f"{32 / took['ours'].median:,.0f} tasks a second"
    yield Row("sampling 32 tasks 5-way, 2 a class", took["ours"], "learn2learn", took.get("learn2learn"), 10.0, note)


def memory(setting: Setting) -> Iterator[Row]:
    """What 20 inner steps hold at most, 5-way 5-shot, second order, with recomputation and without."""
    steps = 5 if setting.short else 20
    batch = work.random_images(4, 5, 5, 15, 28, setting.device)
    peaks = {}
    contestants: dict[str, Callable[[], object]] = {}
    for recompute in (True, False):
        module = work.image_maml(5, steps, 28, setting.device, recompute=recompute, strategy="vmap")
        contestants[str(recompute)] = work.gradient(module, batch)
        peaks[recompute] = float(peak_memory(contestants[str(recompute)], setting.device))
    took = setting._replace(repeats=2, seconds=0).compare(contestants)
    seconds = {name: timing.median for name, timing in took.items()}
    note = (
        f"{peaks[True] / 2**20:.0f} of {peaks[False] / 2**20:.0f} MiB; time {seconds['True'] / seconds['False']:.2f}x"
    )
    ours, theirs = Timing.of([peaks[True]]), Timing.of([peaks[False]])
    yield Row(f"peak memory of {steps} inner steps, recomputed (bytes)", ours, "all kept", theirs, 4.0, note)


def evaluation(setting: Setting) -> Iterator[Row]:
    """1000 ProtoNet tasks, 5-way 1-shot 15 queries, from stored embeddings, sampling included."""
    from benchmarks.evaluation import easyfsl_evaluation, features, our_evaluation

    pool = features()
    easyfsl = peers.peer("easyfsl")
    contestants: dict[str, Callable[[], object]] = {"ours": our_evaluation(pool, setting.device)}
    if easyfsl is not None:
        contestants["easyfsl"] = easyfsl_evaluation(pool, setting.device)
        check_close_accuracies(*(float(function()) for function in contestants.values()))  # type: ignore[arg-type]
    took = setting._replace(repeats=3, seconds=0).compare(contestants)
    yield Row("evaluating 1000 ProtoNet tasks from embeddings", took["ours"], "easyfsl", took.get("easyfsl"), 20.0)


def check_close_accuracies(ours: float, theirs: float) -> None:
    """Refuse to time evaluations of other tasks than the peer's: their means over 1000 tasks are close.

    Raises:
        RuntimeError: Both.
    """
    if abs(ours - theirs) > 0.03:
        raise RuntimeError(f"evaluation: accuracy {ours:.3f} here and {theirs:.3f} there")


def imports(setting: Setting) -> Iterator[Row]:
    """Seconds of `import lightning_meta` beyond `import lightning`, in processes of their own, in turn."""
    taken: dict[str, list[float]] = {"lightning": [], "lightning_meta": []}
    code = "import time; t = time.perf_counter(); import lightning, {0}; print(time.perf_counter() - t)"
    for _ in range(4 if setting.short else 8):
        for name, times in taken.items():
            done = subprocess.run([sys.executable, "-c", code.format(name)], capture_output=True, text=True, check=True)
            times.append(float(done.stdout.split()[-1]))
    both, alone = (Timing.of(taken[name][1:]) for name in ("lightning_meta", "lightning"))  # the first fills the cache
    note = f"{both.median - alone.median:.2f} s beyond it; the target is under 0.3 s"
    yield Row("import lightning_meta", both, "import lightning", alone, None, note)


ROWS: dict[str, Callable[[Setting], Iterator[Row]]] = {
    "sine": sine,
    "maml": maml,
    "protonet": protonet,
    "sampling": sampling,
    "memory": memory,
    "evaluation": evaluation,
    "imports": imports,
}
