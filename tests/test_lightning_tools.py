"""Every public callback, tuner and Trainer flag of Lightning 2.6 with a module of each family, by what users want.

`pytest -s tests/test_lightning_tools.py` prints the table: works, or refused with which line.
"""

from __future__ import annotations

import copy
import inspect
import math
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import pytest
import torch
import torch.distributed
import yaml
from lightning.pytorch import callbacks
from lightning.pytorch.cli import ReduceLROnPlateau
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.tuner.tuning import Tuner
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_meta.cli import main
from lightning_meta.errors import UserError
from lightning_meta.loading import load
from lightning_meta.meta import MAML, Baseline, ProtoNet
from lightning_meta.multitask import Conditioned, CrossStitch, Grouped, Independent, MixtureOfExperts, MultiHead
from tests import methods
from tests.devices.toys import EPISODES, MULTI_TASK

pytestmark = [
    pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback with a model that overrides"),
    pytest.mark.filterwarnings("ignore:The provided params to be frozen already exist"),  # batch normalisation's
    pytest.mark.filterwarnings("ignore:Found unsupported keys in the optimizer configuration"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty"),
    pytest.mark.filterwarnings("ignore:When using `Trainer\\(accumulate_grad_batches"),
    pytest.mark.filterwarnings("ignore:When using the `ThroughputMonitor`"),
    pytest.mark.filterwarnings("ignore:.*was called without a model"),  # Lightning's, of OnExceptionCheckpoint
    pytest.mark.filterwarnings("ignore:.*there is no last checkpoint available"),  # the same
    pytest.mark.filterwarnings("ignore:Found .* in eval mode at the start of training"),
    pytest.mark.filterwarnings("ignore:SWA is currently only supported every epoch"),
]

RATE = 0.05


class Net(nn.Sequential):
    """Stages with batch normalisation."""

    def __init__(self) -> None:
        super().__init__(
            nn.Linear(4, 8, bias=False),  # which the next layer would take out
            nn.BatchNorm1d(8),
            nn.ReLU(),
            nn.Linear(8, 8, bias=False),
            nn.BatchNorm1d(8),
            nn.ReLU(),
        )


@dataclass(frozen=True)
class Family:
    """A module, its data, and the metric that it is judged by."""

    name: str
    make: Callable[..., Any]
    data: Callable[..., Any]
    metric: str
    size: str

    def module(self, **options: Any) -> Any:
        torch.manual_seed(0)
        return self.make(**{"optimizer": partial(torch.optim.SGD, lr=RATE), **options})


def _family(name: str, make: Callable[..., Any], *, episodes: bool) -> Family:
    data: Any = EPISODES["vectors"] if episodes else MULTI_TASK["own sets"]
    metric, size = ("val/accuracy", "meta_batch_size") if episodes else ("val/score", "batch_size")
    return Family(name, make, data, metric, size)


FAMILIES = [
    _family("MAML", lambda **o: MAML(Net(), 0.1, 2, **o), episodes=True),
    _family("ProtoNet", lambda **o: ProtoNet(Net(), **o), episodes=True),
    _family("MultiHead", lambda **o: MultiHead(Net(), **o), episodes=False),
    _family("Independent", lambda **o: Independent(Net(), **o), episodes=False),
]
MORE = [
    _family("Baseline", lambda **o: Baseline(Net(), head_steps=3, **o), episodes=True),
    _family("MultiHead, branches", lambda **o: MultiHead(Net(), shared_depth=3, **o), episodes=False),
    _family("MixtureOfExperts", lambda **o: MixtureOfExperts(Net(), 2, **o), episodes=False),
    _family("Grouped", lambda **o: Grouped(Net(), [["a", "b"], ["c", "d"]], **o), episodes=False),
    _family("CrossStitch", lambda **o: CrossStitch(Net(), **o), episodes=False),
    _family("Conditioned", lambda **o: Conditioned(Net(), **o), episodes=False),
]
_LISTED = {family.name for family in FAMILIES + MORE} | {"Linear"}  # Linear has no backbone that tools could freeze
MORE += [_family(name, make, episodes=False) for name, make in methods.MULTI_TASK.items() if name not in _LISTED]
every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
every_module = pytest.mark.parametrize("family", FAMILIES + MORE, ids=lambda f: f.name)
two_families = pytest.mark.parametrize(  # by default; the others are among the slow tests
    "family", [pytest.param(f, id=f.name, marks=[pytest.mark.slow] * (i % 2)) for i, f in enumerate(FAMILIES)]
)

TABLE: dict[str, dict[str, str]] = {}


@pytest.fixture(scope="module", autouse=True)
def _table() -> Iterator[None]:
    yield
    names = [family.name for family in FAMILIES]
    print("\n\n| tool | " + " | ".join(names) + " |")
    print("| --- " * (len(names) + 1) + "|")
    for tool, row in TABLE.items():
        print(f"| {tool} | " + " | ".join(row.get(name, "") for name in names) + " |")


@pytest.fixture(autouse=True)
def _no_process_group() -> Iterator[None]:
    yield
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


# Helpers


def trainer(folder: Path, **options: Any) -> L.Trainer:
    quiet: dict[str, Any] = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "accelerator": "cpu",
        "devices": 1,
        "num_sanity_val_steps": 0,
        "default_root_dir": folder,
    }
    if "max_epochs" not in options:
        options.setdefault("max_steps", -1)
        options["max_epochs"] = 3 if options["max_steps"] == -1 else -1
    return L.Trainer(**{**quiet, **options})


def fit(family: Family, folder: Path, *used: L.Callback, module: Any = None, **options: Any) -> Any:
    """A module trained for two batches in each of three epochs."""
    module = family.module() if module is None else module
    trainer(folder, callbacks=list(used), **options).fit(module, datamodule=family.data())
    return module


@cache
def plain(family: Family, epochs: int = 3) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The weights and the test figures that a run without any tool or flag comes to."""
    with TemporaryDirectory() as folder:
        module = fit(family, Path(folder), max_epochs=epochs)
        return weights(module), scored(family, module, Path(folder))


def scored(family: Family, module: Any, folder: Path) -> dict[str, float]:
    return dict(trainer(folder).test(module, datamodule=family.data(), verbose=False)[0])


def weights(module: nn.Module) -> dict[str, Tensor]:
    """Real parameters and buffers, batch statistics among them."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return {name: t.detach().clone() for name, t in tensors if t.is_floating_point()}


def parameters(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def same(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float = 0.0) -> bool:
    assert one.keys() == other.keys()
    return all(torch.allclose(one[name], other[name], rtol=0, atol=tolerance) for name in one)


class At(L.Callback):
    """Calls a function at a hook, and keeps what it returns."""

    def __init__(self, hook: str, look: Callable[[L.Trainer, Any], Any]) -> None:
        self.seen: list[Any] = []
        setattr(self, hook, lambda trainer, module, *args, **kwargs: self.seen.append(look(trainer, module)))


class Memory(Logger):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []

    name = "memory"
    version = 0

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append(metrics)

    def column(self, name: str) -> list[float]:
        return [row[name] for row in self.rows if name in row]


def refused(match: str, run: Callable[[], Any], kind: type[Exception] = UserError) -> str:
    with pytest.raises(kind, match=match) as caught:
        run()
    line = " ".join(str(caught.value).split())
    assert len(str(caught.value).splitlines()) == 1 or kind is not UserError
    return f"refused: {line}"


WORKS = "works"

# Callbacks


def _averaged(family: Family, folder: Path, averaging: Any, average: Callable[[list[Any]], Any]) -> str:
    steps = At("on_train_batch_end", lambda trainer, module: weights(module))
    validated = At("on_validation_batch_start", lambda trainer, module: weights(module))
    module = fit(family, folder, averaging, steps, validated)
    expected = {name: average([step[name] for step in steps.seen]) for name in steps.seen[0]}
    assert same(weights(module), expected, 1e-5)
    assert not same(parameters(module), {n: steps.seen[-1][n] for n in parameters(module)}, 1e-5)
    assert same(validated.seen[-1], expected, 1e-5), "the average is what is validated"
    moved = [name for name in expected if "head" in name and not torch.equal(expected[name], steps.seen[-1][name])]
    assert moved or family.name == "ProtoNet", "the heads are averaged as well"
    runs = trainer(folder)
    runs.strategy.connect(module)
    runs.save_checkpoint(folder / "averaged.ckpt")
    assert same(weights(load(folder / "averaged.ckpt", allow=[Net])), weights(module))
    assert all(math.isfinite(v) for n, v in scored(family, module, folder).items() if n in ("test/loss", "test/score"))
    return WORKS


def ema(family: Family, folder: Path) -> str:
    def average(steps: list[Tensor]) -> Tensor:
        mean = steps[0]
        for step in steps[1:]:
            mean = 0.5 * mean + 0.5 * step
        return mean

    return _averaged(family, folder, callbacks.EMAWeightAveraging(decay=0.5), average)


def averaging(family: Family, folder: Path) -> str:
    return _averaged(family, folder, callbacks.WeightAveraging(), lambda steps: torch.stack(steps).mean(0))


def swa(family: Family, folder: Path) -> str:
    starts = At("on_train_epoch_start", lambda trainer, module: parameters(module))
    norms = At("on_train_start", lambda trainer, module: [n.momentum for n in module.modules() if _is_norm(n)])
    module = family.module()
    used = callbacks.StochasticWeightAveraging(RATE, swa_epoch_start=2)
    fit(family, folder, starts, used, norms, module=module, max_epochs=4)
    counted = starts.seen[1:4]  # the last epoch only collects the batch statistics of the average
    expected = {name: torch.stack([start[name] for start in counted]).mean(0) for name in counted[0]}
    assert same(parameters(module), expected, 1e-5)
    for norm, momentum in zip([n for n in module.modules() if _is_norm(n)], norms.seen[0], strict=True):
        assert norm.momentum == momentum == 0.1
        if family.name != "MAML":  # which keeps no running statistics: it normalises each task by its own
            assert norm.running_mean.abs().max() > 1e-3, "collected anew"
            assert (norm.running_var > 0).all()
            assert int(norm.num_batches_tracked) == 2
    return WORKS


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm)


class StillNorms(callbacks.BaseFinetuning):
    """Batch normalisation stays still as well, until the backbone is unfrozen."""

    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(pl_module.backbone, train_bn=False)

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: torch.optim.Optimizer) -> None:
        if epoch == 2:
            self.unfreeze_and_add_param_group(pl_module.backbone, optimizer, lr=RATE)


def _finetuned(family: Family, folder: Path, used: Any, norms_too: bool) -> str:
    def look(trainer: L.Trainer, module: Any) -> dict[str, Tensor]:
        of_norms = {id(t) for n in module.modules() if _is_norm(n) for t in (*n.parameters(), *n.buffers())}
        tensors = [*module.backbone.named_parameters(), *module.backbone.named_buffers()]
        kept = [(n, t) for n, t in tensors if norms_too or id(t) not in of_norms]
        if family.name == "MAML":  # which normalises each task by its own statistics and keeps no running ones
            kept = [(n, t) for n, t in kept if "running" not in n and "tracked" not in n]
        return {n: t.detach().clone() for n, t in kept}

    start, ends = At("on_train_start", look), At("on_train_epoch_end", look)
    others = At("on_train_epoch_end", lambda trainer, module: parameters(module))
    module = fit(family, folder, used, start, ends, others, max_epochs=4)
    backbone = {f"backbone.{name}" for name in start.seen[0]}
    assert same(start.seen[0], ends.seen[0])
    assert same(start.seen[0], ends.seen[1]), "still before the unfreeze epoch"
    for name, tensor in start.seen[0].items():
        assert not torch.equal(tensor, ends.seen[3][name]), f"{name} moves from the unfreeze epoch on"
    if family.name not in ("ProtoNet",):  # all of it is backbone
        trained = [n for n, p in others.seen[0].items() if n not in backbone and not torch.equal(p, others.seen[1][n])]
        assert trained, "heads train while the backbone is frozen"
    assert all(p.requires_grad for p in module.backbone.parameters())
    return WORKS


def finetuning(family: Family, folder: Path) -> str:
    used = callbacks.BackboneFinetuning(2, backbone_initial_lr=RATE)
    return _finetuned(family, folder, used, norms_too=False)  # Lightning lets batch normalisation train


def base_finetuning(family: Family, folder: Path) -> str:
    if family.name == "ProtoNet":
        run = partial(fit, family, folder, StillNorms())
        return refused("all weights of ProtoNet are frozen", run)
    return _finetuned(family, folder, StillNorms(), norms_too=True)


def pruning(family: Family, folder: Path) -> str:
    used = callbacks.ModelPruning(
        "l1_unstructured", amount=0.5, apply_pruning=lambda epoch: epoch == 1, use_lottery_ticket_hypothesis=False
    )
    ends = At("on_train_epoch_end", lambda trainer, module: parameters(module))
    module = family.module()
    runs = trainer(folder, callbacks=[used, ends], max_epochs=4)
    runs.fit(module, datamodule=family.data())
    pruned = {name: p for name, p in module.named_parameters() if name.rpartition(".")[2] in ("weight", "bias")}
    zeros, count = sum(int((p == 0).sum()) for p in pruned.values()), sum(p.numel() for p in pruned.values())
    assert zeros == round(count / 2)
    assert any(name.endswith("weight_orig") for name in ends.seen[-1]), "it went on training under masks"
    moved = [n for n, p in pruned.items() if not torch.equal(p, ends.seen[0][n]) and (p != 0).any()]
    assert moved
    before = weights(module)
    figures = scored(family, module, folder)
    assert same(weights(module), before)
    runs.save_checkpoint(folder / "pruned.ckpt")
    again = load(folder / "pruned.ckpt", allow=[Net])
    assert same(parameters(again), parameters(module))
    assert scored(family, again, folder) == figures
    return WORKS


def rates(family: Family, folder: Path) -> str:
    logger = Memory()
    module = family.module(lr_scheduler=partial(torch.optim.lr_scheduler.StepLR, step_size=2, gamma=0.5))
    monitor = callbacks.LearningRateMonitor("step")
    fit(family, folder, monitor, module=module, logger=logger, log_every_n_steps=1)
    (name,) = {n for row in logger.rows for n in row if n.startswith("lr-")}
    assert logger.column(name) == pytest.approx([RATE, RATE, RATE / 2, RATE / 2, RATE / 4, RATE / 4])
    return WORKS


def accumulation(family: Family, folder: Path) -> str:
    runs = trainer(folder, callbacks=[callbacks.GradientAccumulationScheduler({0: 2, 1: 1})])
    runs.fit(family.module(), datamodule=family.data())
    assert runs.global_step == 1 + 2 + 2
    return WORKS


def early(family: Family, folder: Path) -> str:
    stops = callbacks.EarlyStopping(family.metric, patience=2, mode="max", min_delta=2.0)
    runs = trainer(folder, callbacks=[stops], max_epochs=9)
    runs.fit(family.module(), datamodule=family.data())
    assert runs.current_epoch == 3, "two epochs after the first, which nothing is better than by so much"
    with pytest.raises(RuntimeError, match="Early stopping conditioned on metric `none` which is not available"):
        fit(family, folder, callbacks.EarlyStopping("none"))
    return WORKS


def timer(family: Family, folder: Path) -> str:
    timer = callbacks.Timer(timedelta(microseconds=1), interval="step")
    runs = trainer(folder, callbacks=[timer], max_epochs=9)
    runs.fit(family.module(), datamodule=family.data())
    assert runs.global_step == 1
    assert timer.time_elapsed("validate") == 0 or timer.time_elapsed("train") > 0
    return WORKS


def device(family: Family, folder: Path) -> str:
    logger = Memory()
    run = partial(fit, family, folder, callbacks.DeviceStatsMonitor(cpu_stats=True), logger=logger, log_every_n_steps=1)
    if find_spec("psutil") is None:  # of a CPU
        return refused("psutil", run, ModuleNotFoundError)
    run()
    assert any("cpu" in name for row in logger.rows for name in row)
    return WORKS


def _summary(family: Family, folder: Path, kind: Any) -> str:
    class Kept(kind):
        @staticmethod
        def summarize(summary_data: Any, total_parameters: int, *args: Any, **kwargs: Any) -> None:
            table.append((dict(summary_data), total_parameters))

    table: list[Any] = []
    module = fit(family, folder, Kept(max_depth=1))
    ((columns, total),) = table
    assert "backbone" in columns["Name"]
    assert total == sum(p.numel() for p in module.parameters()), "heads included"
    return WORKS


def summary(family: Family, folder: Path) -> str:
    return _summary(family, folder, callbacks.ModelSummary)


def rich_summary(family: Family, folder: Path) -> str:
    return _summary(family, folder, callbacks.RichModelSummary)


def _bar(family: Family, folder: Path, kind: Any) -> str:
    class Kept(kind):
        def get_metrics(self, trainer: L.Trainer, pl_module: Any) -> Any:
            metrics = super().get_metrics(trainer, pl_module)
            shown.append(dict(metrics))
            return metrics

        def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
            super().on_validation_end(trainer, pl_module)
            self.get_metrics(trainer, pl_module)

    shown: list[dict[str, Any]] = []
    fit(family, folder, Kept(), enable_progress_bar=True, log_every_n_steps=1)
    assert {"train/loss", family.metric} <= shown[-1].keys()
    return WORKS


def throughput(family: Family, folder: Path) -> str:
    logger = Memory()
    monitor = callbacks.ThroughputMonitor(batch_size_fn=lambda batch: 7, window_size=2)
    fit(family, folder, monitor, logger=logger, log_every_n_steps=1)
    assert logger.column("train/samples") == [7.0 * n for n in range(1, 7)]
    return WORKS


def lambdas(family: Family, folder: Path) -> str:
    calls: list[str] = []
    used = callbacks.LambdaCallback(
        on_train_batch_end=lambda *args: calls.append("batch"),
        on_before_optimizer_step=lambda *args: calls.append("step"),
        on_after_backward=lambda *args: calls.append("backward"),
    )
    fit(family, folder, used, accumulate_grad_batches=2)
    assert [calls.count(name) for name in ("batch", "backward", "step")] == [6, 6, 3]
    return WORKS


def writer(family: Family, folder: Path) -> str:
    class Writer(callbacks.BasePredictionWriter):
        def write_on_epoch_end(self, trainer: Any, pl_module: Any, predictions: Any, batch_indices: Any) -> None:
            written.append((predictions, batch_indices))

    written: list[Any] = []
    module = fit(family, folder)
    returned = trainer(folder, callbacks=[Writer("epoch")]).predict(module, datamodule=family.data())
    ((predictions, indices),) = written
    assert returned is not None
    assert len(predictions) == len(returned)
    (of_loader,) = indices
    numbers = sorted(i for batch in of_loader for i in batch)
    for one, other in zip(predictions, returned, strict=True):
        torch.testing.assert_close(one, other)
    assert numbers == list(range(len(numbers))), "every test example once"
    assert numbers
    return WORKS


def on_exception(family: Family, folder: Path) -> str:
    class Stops(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
            if trainer.global_step == 3:
                raise ArithmeticError("planted")

    keeps = callbacks.OnExceptionCheckpoint(folder, "stopped")
    with pytest.raises(ArithmeticError, match="planted"):
        fit(family, folder, keeps, Stops(), enable_checkpointing=True)
    load(folder / "stopped.ckpt", allow=[Net])
    resumed = family.module()
    trainer(folder).fit(resumed, datamodule=family.data(), ckpt_path=folder / "stopped.ckpt", weights_only=False)
    whole = fit(family, folder)
    assert same(weights(resumed), weights(whole)), "resumed within the epoch, it is the run that was not stopped"
    return WORKS


def spikes(family: Family, folder: Path) -> str:
    from lightning.fabric.utilities.spike import TrainingSpikeException

    class Planted(callbacks.SpikeDetection):
        def on_train_batch_end(  # type: ignore[override]  # as Lightning's own callback
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            if trainer.global_step == 6:
                outputs = {"loss": outputs["loss"] * 1e6}
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    fit(family, folder, callbacks.SpikeDetection(warmup=1, atol=1e3))
    with pytest.raises(TrainingSpikeException):
        fit(family, folder, Planted(warmup=1, atol=1e3))
    assert (folder / "skip_batches.json").is_file()
    return WORKS


def batch_finder(family: Family, folder: Path) -> str:
    data = family.data(**{family.size: 3, _per_epoch(family): 40})
    tried = At("on_train_batch_start", lambda trainer, module: None)
    sizes: list[int] = []

    class Counts(L.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            sizes.append(_size(batch))

    used = callbacks.BatchSizeFinder(steps_per_trial=1, init_val=2, max_trials=3, batch_arg_name=family.size)
    trainer(folder, callbacks=[used, Counts(), tried], max_steps=1).fit(family.module(), datamodule=data)
    assert used.optimal_batch_size == getattr(data, family.size) == 8
    assert sizes == [8], "the run that follows has batches of the size that was found"
    return WORKS


def _per_epoch(family: Family) -> str:
    return "meta_batches_per_epoch" if family.size == "meta_batch_size" else "batches_per_epoch"


def _size(batch: Any) -> int:
    return len(batch.tasks) if hasattr(batch, "tasks") else len(next(iter(batch.rows.values())))


def rate_finder(family: Family, folder: Path) -> str:
    used = callbacks.LearningRateFinder(num_training_steps=12, update_attr=False)
    seeking = fit(family, folder, used, max_epochs=3)
    assert used.optimal_lr is not None
    assert len(used.optimal_lr.results["lr"]) >= 3
    assert same(weights(seeking), weights(fit(family, folder))), "the search leaves no trace in the run that follows"
    return WORKS


class CopiesAtEveryHook(L.Callback):
    """Deep-copies and pickles the module wherever Lightning calls it."""

    def __init__(self) -> None:
        self.hooks: set[str] = set()


def _copies(name: str) -> Callable[..., None]:
    def hook(self: CopiesAtEveryHook, trainer: L.Trainer, pl_module: Any, *args: Any, **kwargs: Any) -> None:
        for twin in (copy.deepcopy(pl_module), pickle.loads(pickle.dumps(pl_module))):
            assert same(weights(twin), weights(pl_module))
        self.hooks.add(name)

    return hook


for _name in [n for n in dir(L.Callback) if n.startswith("on_")] + ["setup", "teardown"]:
    if "checkpoint" not in _name and _name != "on_exception":
        setattr(CopiesAtEveryHook, _name, _copies(_name))


def any_callback(family: Family, folder: Path) -> str:
    used = CopiesAtEveryHook()
    module = fit(family, folder, used, max_epochs=1)
    assert same(weights(module), weights(fit(family, folder, max_epochs=1))), "copies leave no trace"
    runs = trainer(folder, callbacks=[used])
    runs.validate(module, datamodule=family.data(), verbose=False)
    runs.test(module, datamodule=family.data(), verbose=False)
    runs.predict(module, datamodule=family.data())
    assert len(used.hooks) > 30
    return WORKS


def checkpoints(family: Family, folder: Path) -> str:
    keeps = callbacks.ModelCheckpoint(folder, "best", monitor=family.metric, mode="max", save_last=True)
    module = family.module()
    runs = trainer(folder, callbacks=[keeps], enable_checkpointing=True)
    runs.fit(module, datamodule=family.data())
    assert isinstance(keeps, callbacks.Checkpoint)
    best = runs.test(datamodule=family.data(), ckpt_path="best", verbose=False, weights_only=False)[0]
    assert scored(family, load(folder / "best.ckpt", allow=[Net]), folder) == best
    assert scored(family, type(module).load_from_checkpoint(folder / "best.ckpt", backbone=Net()), folder) == best
    last = runs.test(datamodule=family.data(), ckpt_path="last", verbose=False, weights_only=False)[0]
    assert scored(family, load(folder / "last.ckpt", allow=[Net]), folder) == last
    return WORKS


CALLBACKS: dict[str, Callable[[Family, Path], str]] = {
    "BackboneFinetuning": finetuning,
    "BaseFinetuning": base_finetuning,
    "BasePredictionWriter": writer,
    "BatchSizeFinder": batch_finder,
    "Callback": any_callback,
    "Checkpoint": checkpoints,
    "DeviceStatsMonitor": device,
    "EarlyStopping": early,
    "GradientAccumulationScheduler": accumulation,
    "LambdaCallback": lambdas,
    "LearningRateFinder": rate_finder,
    "LearningRateMonitor": rates,
    "ModelCheckpoint": checkpoints,
    "ModelPruning": pruning,
    "ModelSummary": summary,
    "OnExceptionCheckpoint": on_exception,
    "ProgressBar": partial(_bar, kind=callbacks.ProgressBar),
    "RichModelSummary": rich_summary,
    "RichProgressBar": partial(_bar, kind=callbacks.RichProgressBar),
    "StochasticWeightAveraging": swa,
    "SpikeDetection": spikes,
    "ThroughputMonitor": throughput,
    "Timer": timer,
    "TQDMProgressBar": partial(_bar, kind=callbacks.TQDMProgressBar),
    "EMAWeightAveraging": ema,
    "WeightAveraging": averaging,
}


def test_every_public_callback_is_tried() -> None:
    assert set(CALLBACKS) == set(callbacks.__all__)


@two_families
@pytest.mark.parametrize("name", CALLBACKS)
def test_callback(name: str, family: Family, tmp_path: Path) -> None:
    TABLE.setdefault(name, {})[family.name] = CALLBACKS[name](family, tmp_path)


@every_module
def test_a_backbone_stays_still_until_it_is_unfrozen(family: Family, tmp_path: Path) -> None:
    finetuning(family, tmp_path)
    base_finetuning(family, tmp_path)


def test_branches_train_beside_a_frozen_backbone_without_a_data_module(tmp_path: Path) -> None:
    data = MULTI_TASK["own sets"]()
    data.setup("fit")
    module = MultiHead(Net(), shared_depth=3, tasks=data.spec)
    start = At("on_train_start", lambda trainer, module: parameters(module))
    runs = trainer(tmp_path, callbacks=[callbacks.BackboneFinetuning(9), start])
    runs.fit(module, train_dataloaders=data.train_dataloader(), val_dataloaders=data.val_dataloader())
    moved = {n for n, p in module.named_parameters() if not torch.equal(p, start.seen[0][n])}
    assert "backbone.0.weight" not in moved
    assert "branches.0.0.weight" in moved, "it is no part of the backbone"


def test_independent_keeps_the_averaged_weights_that_it_validated(tmp_path: Path) -> None:
    family = FAMILIES[3]
    validated = At("on_validation_batch_start", lambda trainer, module: weights(module))
    module = fit(family, tmp_path, callbacks.EMAWeightAveraging(decay=0.9), validated, max_epochs=4)
    epochs = [validated.seen[i] for i in range(0, len(validated.seen), len(validated.seen) // 4)]
    for i in range(len(module.names)):
        best = epochs[module.best.steps[i] // 2 - 1]
        with module.weights("selected"):
            for name, tensor in weights(module).items():
                if name.startswith((f"backbone.{i}.", f"heads.{i}.")):
                    assert torch.equal(tensor, best[name]), name


# Flags of the Trainer

Flag = Callable[[Family, Path], str]


def _trained(family: Family, folder: Path, **options: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights before and after training, by a module that then validates, tests and predicts."""
    module, start = family.module(), At("on_train_start", lambda trainer, module: weights(module))
    runs = trainer(folder, callbacks=[start], **options)
    runs.fit(module, datamodule=family.data())
    found = weights(module)
    runs.validate(module, datamodule=family.data(), verbose=False)
    runs.test(module, datamodule=family.data(), verbose=False)
    assert runs.predict(module, datamodule=family.data())
    return start.seen[0], found


def trains(**options: Any) -> Flag:
    """A check that all stages run, and that training moves the same weights as without the flag."""

    def check(family: Family, folder: Path) -> str:
        start, found = _trained(family, folder, **options)
        moved, expected = (
            {name for name, p in start.items() if not torch.equal(p, ends[name])} for ends in (found, plain(family)[0])
        )
        assert moved >= expected
        return WORKS

    return check


def as_without(epochs: int = 3, /, **options: Any) -> Flag:
    """The run is, to the last bit, the one without the flag."""

    def check(family: Family, folder: Path) -> str:
        expected, _ = plain(family, epochs)
        assert same(_trained(family, folder, max_epochs=epochs, **options)[1], expected)
        return WORKS

    return check


def counts(batches: int, validations: int, steps: int, **options: Any) -> Flag:
    """A check of the numbers of training batches, validations and optimiser steps."""

    def check(family: Family, folder: Path) -> str:
        trained, validated = At("on_train_batch_end", _nothing), At("on_validation_epoch_end", _nothing)
        runs = trainer(folder, callbacks=[trained, validated], **options)
        runs.fit(family.module(), datamodule=family.data())
        assert (len(trained.seen), len(validated.seen), runs.global_step) == (batches, validations, steps)
        return WORKS

    return check


def _nothing(trainer: L.Trainer, module: Any) -> None:
    return None


def limit(stage: str) -> Flag:
    def check(family: Family, folder: Path) -> str:
        hook = "on_validation_batch_end" if stage == "val" else f"on_{stage}_batch_end"
        seen = At(hook, _nothing)
        runs = trainer(folder, callbacks=[seen], **{f"limit_{stage}_batches": 1}, max_epochs=1)
        module = family.module()
        runs.fit(module, datamodule=family.data())
        if stage == "test":
            runs.test(module, datamodule=family.data(), verbose=False)
        if stage == "predict":
            runs.predict(module, datamodule=family.data())
        loaders = 3 if stage == "test" and family.size == "batch_size" else 1
        assert len(seen.seen) == loaders
        return WORKS

    return check


def clipping(algorithm: str) -> Flag:
    def check(family: Family, folder: Path) -> str:
        def largest(trainer: L.Trainer, module: Any) -> tuple[float, float]:
            grads = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
            return float(grads.norm()), float(grads.abs().max())

        class Reads(L.Callback):
            def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
                if any(p.grad is not None for p in pl_module.parameters()):
                    seen.append(largest(trainer, pl_module))

        seen: list[tuple[float, float]] = []
        fit(family, folder, Reads(), gradient_clip_val=1e-3, gradient_clip_algorithm=algorithm)
        tasks = 4 if family.name == "Independent" else 1  # it clips each task by itself
        assert seen
        for norm, most in seen:
            assert (norm if algorithm == "norm" else most) <= 1.001e-3 * math.sqrt(tasks)
        return WORKS

    return check


def precision(name: str) -> Flag:
    def check(family: Family, folder: Path) -> str:
        module = family.module()
        runs = trainer(folder, precision=name, max_epochs=10)
        if name.startswith("16") and family.name == "MAML":
            if name == "16-mixed":  # without a GPU Lightning takes bfloat16 in its place
                setattr(runs.strategy.precision_plugin, "precision", "16-mixed")  # noqa: B010
            return refused("would underflow in float16", partial(runs.fit, module, datamodule=family.data()))
        start = At("on_train_start", lambda trainer, module: parameters(module))
        runs.callbacks.append(start)  # type: ignore[attr-defined]
        runs.fit(module, datamodule=family.data())
        assert not same(parameters(module), start.seen[0])
        found = runs.test(module, datamodule=family.data(), verbose=False)[0]
        exact = plain(family, 10)[1]
        loss = "test/loss"
        assert found[loss] == pytest.approx(exact[loss], rel=0.2 if _draws_heads(family) else 0.1)
        return WORKS

    return check


def _draws_heads(family: Family) -> bool:
    return family.name != "ProtoNet"  # others draw heads, and torch draws other numbers in another precision


def synchronised(family: Family, folder: Path) -> str:
    run = partial(fit, family, folder, sync_batchnorm=True, strategy="ddp")
    return refused("sync_batchnorm: .*leave it out", run)


def overfits(batches: float, met: int) -> Flag:
    def check(family: Family, folder: Path) -> str:
        def look(batch: Any) -> Tensor:
            x = batch.support.x if hasattr(batch, "support") else batch.inputs
            return torch.cat([v.flatten() for v in x.values()]) if isinstance(x, dict) else x.flatten()

        class Sees(L.Callback):
            def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
                seen.append(look(batch))

        seen: list[Tensor] = []
        fit(family, folder, Sees(), overfit_batches=batches)
        assert len(seen) == 3 * met
        for i, batch in enumerate(seen):
            assert torch.equal(batch, seen[i % met]), "the same in every epoch"
        return WORKS

    return check


def anomalies(family: Family, folder: Path) -> str:
    as_without(1, detect_anomaly=True)(family, folder)

    class Breaks(L.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            with torch.no_grad():
                next(pl_module.parameters()).fill_(math.nan)

    from lightning_meta.errors import NonFiniteLossError

    with pytest.raises((NonFiniteLossError, RuntimeError), match=r"became nan at step 0|returned nan values"):
        fit(family, folder, Breaks(), detect_anomaly=True)
    return WORKS


def sanity(family: Family, folder: Path) -> str:
    module = fit(family, folder, num_sanity_val_steps=2)
    assert same(weights(module), plain(family)[0])
    if hasattr(module, "best"):
        assert min(module.best.steps) > 0, "a check before training is no validation to select by"
    return WORKS


def time_out(family: Family, folder: Path) -> str:
    runs = trainer(folder, max_time={"seconds": 0}, max_epochs=9)
    runs.fit(family.module(), datamodule=family.data())
    assert runs.global_step < 18
    return WORKS


def bare(family: Family, folder: Path) -> str:
    left = dict.fromkeys(
        ["logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing", "num_sanity_val_steps"]
    )
    return as_without(barebones=True, **left)(family, folder)


def profiled(family: Family, folder: Path) -> str:
    for name in ("simple", "advanced"):
        as_without(profiler=name)(family, folder)
    return WORKS


def plugged(family: Family, folder: Path) -> str:
    class Counts(TorchCheckpointIO):
        def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
            written.append(path)
            super().save_checkpoint(checkpoint, path, storage_options)

    written: list[Any] = []
    runs = trainer(folder, plugins=[Counts()])
    runs.fit(family.module(), datamodule=family.data())
    runs.save_checkpoint(folder / "by_plugin.ckpt")
    assert written
    load(folder / "by_plugin.ckpt", allow=[Net])
    return WORKS


def reloads(family: Family, folder: Path) -> str:
    data = family.data()
    made: list[Any] = []
    loader = data.train_dataloader

    def counted() -> Any:
        made.append(1)
        return loader()

    data.train_dataloader = counted
    module = family.module()
    trainer(folder, reload_dataloaders_every_n_epochs=1).fit(module, datamodule=data)
    assert len(made) == 3
    assert same(weights(module), plain(family)[0]), "every epoch has its own batches still"
    return WORKS


FLAGS: dict[str, Flag] = {
    "accelerator, devices": trains(accelerator="cpu", devices=1),
    "strategy": as_without(strategy="ddp"),
    "precision 32-true": precision("32-true"),
    "precision bf16-mixed": precision("bf16-mixed"),
    "precision bf16-true": precision("bf16-true"),
    "precision 64-true": precision("64-true"),
    "precision 16-mixed": precision("16-mixed"),
    "logger": as_without(logger=True),
    "fast_dev_run": counts(1, 1, 1, fast_dev_run=True),
    "max_steps": counts(5, 2, 5, max_steps=5),
    "min_epochs, max_epochs": counts(4, 2, 4, min_epochs=1, max_epochs=2),
    "min_steps": counts(5, 2, 5, max_steps=5, min_steps=2),
    "max_time": time_out,
    "limit_train_batches": counts(3, 3, 3, limit_train_batches=1),
    "limit_train_batches, a share": counts(3, 3, 3, limit_train_batches=0.5),
    "limit_val_batches": limit("val"),
    "limit_test_batches": limit("test"),
    "limit_predict_batches": limit("predict"),
    "overfit_batches": overfits(1, 1),
    "overfit_batches, a share": overfits(0.5, 1),
    "val_check_interval": counts(6, 6, 6, val_check_interval=1),
    "val_check_interval, a share": counts(6, 6, 6, val_check_interval=0.5),
    "check_val_every_n_epoch": counts(6, 1, 6, check_val_every_n_epoch=2),
    "num_sanity_val_steps": sanity,
    "log_every_n_steps": as_without(log_every_n_steps=2),
    "enable_checkpointing": as_without(enable_checkpointing=True),
    "enable_progress_bar": as_without(enable_progress_bar=True),
    "enable_model_summary": as_without(enable_model_summary=True),
    "accumulate_grad_batches": counts(6, 3, 3, accumulate_grad_batches=2),
    "gradient_clip_val, _algorithm norm": clipping("norm"),
    "gradient_clip_val, _algorithm value": clipping("value"),
    "deterministic": as_without(deterministic=True),
    "benchmark": as_without(benchmark=True),
    "inference_mode": as_without(inference_mode=False),
    "use_distributed_sampler": as_without(use_distributed_sampler=False),
    "profiler": profiled,
    "detect_anomaly": anomalies,
    "barebones": bare,
    "plugins": plugged,
    "sync_batchnorm, of one process": as_without(sync_batchnorm=True),
    "sync_batchnorm, ddp": synchronised,
    "reload_dataloaders_every_n_epochs": reloads,
    "default_root_dir": trains(),
    "enable_autolog_hparams": as_without(enable_autolog_hparams=False),
}
NOT_OF_ONE_MACHINE = {"self", "num_nodes", "model_registry", "callbacks"}  # callbacks are above


def test_every_flag_is_tried() -> None:
    tried = " ".join(FLAGS).replace("_algorithm", "gradient_clip_algorithm").replace(",", " ").split()
    assert set(inspect.signature(L.Trainer.__init__).parameters) - set(tried) == NOT_OF_ONE_MACHINE


@pytest.mark.filterwarnings("ignore:.*It is recommended to use `self.log.*sync_dist=True")
@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
@pytest.mark.filterwarnings("ignore:Grad strides do not match")
@two_families
@pytest.mark.parametrize("name", FLAGS)
@pytest.mark.filterwarnings("ignore:.*AMP with fp16 is not supported on CPU")
@pytest.mark.filterwarnings("ignore:You are running in `Trainer\\(barebones")
@pytest.mark.filterwarnings("ignore:.*tensorboardX.*")
@pytest.mark.filterwarnings("ignore:You have turned on `Trainer\\(detect_anomaly")
@pytest.mark.filterwarnings("ignore:.*overfit")
def test_flag(name: str, family: Family, tmp_path: Path) -> None:
    TABLE.setdefault(name, {})[family.name] = FLAGS[name](family, tmp_path)


# Rates


def plateau(optimizer: torch.optim.Optimizer) -> ReduceLROnPlateau:
    return ReduceLROnPlateau(optimizer, monitor="val/loss", patience=0, factor=0.5, threshold=10.0)


@every_family
def test_a_rate_falls_on_a_plateau_and_a_resumed_run_goes_on(family: Family, tmp_path: Path) -> None:
    ends = At("on_train_epoch_end", lambda trainer, module: trainer.optimizers[0].param_groups[0]["lr"])
    options: dict[str, Any] = {"lr_scheduler": plateau}
    whole = fit(family, tmp_path, ends, module=family.module(**options), max_epochs=4)
    assert ends.seen == pytest.approx([RATE, RATE / 2, RATE / 4, RATE / 8]), "no validation is better by the threshold"
    first = trainer(tmp_path, max_epochs=2)
    first.fit(family.module(**options), datamodule=family.data())
    first.save_checkpoint(tmp_path / "first.ckpt")
    resumed = family.module(**options)
    trainer(tmp_path, max_epochs=4).fit(
        resumed, datamodule=family.data(), ckpt_path=tmp_path / "first.ckpt", weights_only=False
    )
    assert same(weights(resumed), weights(whole))


@every_family
def test_a_plateau_without_a_metric_is_one_line(family: Family, tmp_path: Path) -> None:
    module = family.module(lr_scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau)
    refused("lr_scheduler: ReduceLROnPlateau needs a metric", lambda: fit(family, tmp_path, module=module))


@pytest.mark.parametrize("method", ["MAML", "MultiHead"])
def test_a_plateau_in_a_configuration(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    episodic = {
        "class_path": "lightning_meta.EpisodicDataModule",
        "init_args": {
            "source": {"class_path": "lightning_meta.sources.Sinusoid"},
            "shots": 5,
            "meta_batches_per_epoch": 2,
            "val_tasks": 10,
            "test_tasks": 10,
        },
    }
    tabular = {
        "class_path": "lightning_meta.MultiTaskDataModule",
        "init_args": {
            "source": {"class_path": "tests.devices.toys.Tasks", "init_args": {"kind": "own sets"}},
            "batch_size": 8,
            "batches_per_epoch": 2,
        },
    }
    family, width = ("meta", 1) if method == "MAML" else ("multitask", 4)
    backbone = {"class_path": "lightning_meta.nn.MLP", "init_args": {"in_features": width, "hidden": [8]}}
    schedule = {
        "class_path": "lightning.pytorch.cli.ReduceLROnPlateau",
        "init_args": {"monitor": "val/loss", "factor": 0.5, "patience": 0, "threshold": 10.0},
    }
    config = {
        "model": {
            "class_path": f"lightning_meta.{family}.{method}",
            "init_args": {
                "backbone": backbone,
                "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.004}},
                "lr_scheduler": schedule,
            },
        },
        "data": episodic if method == "MAML" else tabular,
        "checkpoint": {"monitor": "val/loss", "mode": "min"},
        "trainer": {"max_steps": 8, "accelerator": "cpu", "enable_progress_bar": False},
    }
    Path("whole.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", "whole.yaml"]) == 0
    whole = torch.load("runs/whole/0/checkpoints/last.ckpt", weights_only=False)
    assert whole["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(0.004 / 16), "none of four is better"
    assert load("runs/whole/0/checkpoints/last.ckpt").lr == 0.004
    assert main(["fit", "--config", "whole.yaml", "--name=half", "--trainer.max_steps=4"]) == 0
    assert main(["fit", "--config", "whole.yaml", "--name=half", "--ckpt_path=last"]) == 0
    half = torch.load("runs/half/0/checkpoints/last.ckpt", weights_only=False)
    assert all(torch.equal(t, half["state_dict"][n]) for n, t in whole["state_dict"].items() if "extra" not in n)
    assert half["lr_schedulers"] == whole["lr_schedulers"]


@every_family
@pytest.mark.parametrize("given", ["class", "partial", "lambda", "command line"])
def test_a_rate_that_was_found_is_used(family: Family, given: str, tmp_path: Path) -> None:
    from jsonargparse import ArgumentParser

    if given == "command line":
        from lightning.pytorch.cli import OptimizerCallable

        parser = ArgumentParser()
        parser.add_argument("--optimizer", type=OptimizerCallable)
        of_line = ["--optimizer=torch.optim.SGD", "--optimizer.lr=0.05"]
        optimizer = parser.instantiate_classes(parser.parse_args(of_line)).optimizer
    else:
        makers: dict[str, Any] = {
            "class": torch.optim.SGD,
            "partial": partial(torch.optim.SGD, lr=RATE),
            "lambda": lambda parameters: torch.optim.SGD(parameters, lr=RATE),
        }
        optimizer = makers[given]
    module = family.module(optimizer=optimizer)
    assert module.lr == {"class": 0.001, "lambda": None}.get(given, RATE)
    before = module.lr
    data = family.data(**{_per_epoch(family): 30})
    found = Tuner(trainer(tmp_path)).lr_find(module, datamodule=data, num_training=25)
    assert found is not None
    suggested = found.suggestion()
    if suggested is None:
        suggested = module.lr = 0.123
    assert module.lr == suggested != before
    ends = At("on_train_start", lambda trainer, module: trainer.optimizers[0].param_groups[0]["lr"])
    runs = trainer(tmp_path, callbacks=[ends], max_epochs=1)
    runs.fit(module, datamodule=family.data())
    assert ends.seen == [suggested]
    runs.save_checkpoint(tmp_path / "found.ckpt")
    if given != "lambda":
        assert load(tmp_path / "found.ckpt", allow=[Net]).lr == pytest.approx(suggested)


@two_families
def test_the_tuner_finds_a_batch_size(family: Family, tmp_path: Path) -> None:
    data = family.data(**{_per_epoch(family): 40})
    tuner = Tuner(trainer(tmp_path))
    found = tuner.scale_batch_size(
        family.module(), datamodule=data, init_val=2, steps_per_trial=1, max_trials=3, batch_arg_name=family.size
    )
    assert found == getattr(data, family.size) == 8
    assert _size(next(iter(data.train_dataloader()))) == 8


# Habits


@every_family
def test_a_checkpoint_of_another_class_is_refused(family: Family, tmp_path: Path) -> None:
    runs = trainer(tmp_path, max_epochs=1)
    module = family.module()
    runs.fit(module, datamodule=family.data())
    runs.save_checkpoint(tmp_path / "it.ckpt")
    other = next(type(f.module()) for f in FAMILIES if f.name != family.name)
    refused(
        f"is a checkpoint of {type(module).__name__}, not of {other.__name__}",
        lambda: other.load_from_checkpoint(tmp_path / "it.ckpt", backbone=Net()),
    )


@every_family
def test_fitting_twice_goes_on_from_the_weights(family: Family, tmp_path: Path) -> None:
    module = family.module()
    trainer(tmp_path).validate(module, datamodule=family.data(), verbose=False)
    start = At("on_train_start", lambda trainer, module: parameters(module))
    fit(family, tmp_path, start, module=module)
    first = parameters(module)
    fit(family, tmp_path, start, module=module)
    assert same(start.seen[1], first)
    assert not same(parameters(module), first)
    fresh = fit(family, tmp_path)
    assert same(first, parameters(fresh)), "a validation before training leaves no trace"


@every_family
def test_loaders_in_place_of_a_data_module(family: Family, tmp_path: Path) -> None:
    data = family.data()
    data.setup("fit")
    known = {"episodes": data.spec} if hasattr(family.module(), "episodes") else {"tasks": data.spec}
    module, without = family.module(**known), family.module()
    loaders = {"train_dataloaders": data.train_dataloader(), "val_dataloaders": data.val_dataloader()}
    trainer(tmp_path).fit(module, **loaders)
    assert same(weights(module), weights(fit(family, tmp_path)))
    refused("give the module an? (EpisodeSpec|TasksSpec)", lambda: trainer(tmp_path).fit(without, **loaders))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*It is recommended to use `self.log.*sync_dist=True")
@pytest.mark.filterwarnings("ignore:Grad strides do not match")
@two_families
def test_copies_of_the_process_return_every_weight_or_are_refused(family: Family, tmp_path: Path) -> None:
    """Lightning returns weights by name, without those of modules that the original process does not have."""
    copies: dict[str, Any] = {"strategy": "ddp_spawn"}  # started afresh: a fork of a process with threads can stop
    with pytest.raises(Exception, match=r"the parts that are made for the data, .*=data\.spec"):
        fit(family, tmp_path, **copies)
    data = family.data()
    data.setup("fit")
    known = {family.module().spec_name: data.spec}
    expected = fit(family, tmp_path, module=family.module(**known))
    assert same(weights(fit(family, tmp_path, module=family.module(**known), **copies)), weights(expected))


def _support() -> tuple[Tensor, list[str], Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(6, 4, generator=generator), list("aabbcc"), torch.randn(5, 4, generator=generator)


@pytest.mark.parametrize("by", ["freeze", "requires_grad_"])
@pytest.mark.parametrize("frozen_backbone", [False, True])
def test_a_frozen_module_still_learns_new_tasks(by: str, frozen_backbone: bool, tmp_path: Path) -> None:
    family = FAMILIES[0]
    module = family.module()
    module.backbone.requires_grad_(not frozen_backbone)
    runs = trainer(tmp_path)
    runs.fit(module, datamodule=family.data())
    module.eval()
    x, labels, new = _support()
    expected = module.predictor(x, labels).outputs(new)
    score = scored(family, module, tmp_path)
    runs.save_checkpoint(tmp_path / "it.ckpt")
    loaded = load(tmp_path / "it.ckpt", allow=[Net])
    assert torch.equal(loaded.predictor(x, labels).outputs(new), expected), "what was frozen is adapted by no one"
    for frozen in (module, loaded):
        getattr(frozen, by)(*([False] if by == "requires_grad_" else []))
        assert not any(p.requires_grad for p in frozen.parameters())
        assert torch.equal(frozen.predictor(x, labels).outputs(new), expected)
        assert scored(family, frozen, tmp_path) == score
    refused("all weights of MAML are frozen .* nothing to train", lambda: fit(family, tmp_path, module=module))
    module.unfreeze()
    fit(family, tmp_path, module=module)


def test_weights_frozen_one_by_one_leave_nothing_to_adapt(tmp_path: Path) -> None:
    module = fit(FAMILIES[0], tmp_path)
    for parameter in module.parameters():
        parameter.requires_grad = False
    refused("MAML has nothing to adapt: all its weights are frozen", lambda: module.predictor(*_support()[:2]))


@every_module
def test_a_batch_norm_in_evaluation_mode_stays_frozen(family: Family, tmp_path: Path) -> None:
    def held(module: Any) -> list[Any]:
        return [part for part in module.modules() if _is_norm(part)]

    module = family.module()
    for norm in held(module):
        norm.running_mean.fill_(0.3)
        norm.running_var.fill_(2.0)
        norm.eval()
    modes = At("on_train_batch_end", lambda trainer, module: [norm.training for norm in held(module)])
    runs = trainer(tmp_path, callbacks=[modes])
    runs.fit(module, datamodule=family.data())
    assert not any(any(of_batch) for of_batch in modes.seen)
    first = scored(family, module, tmp_path)
    runs.save_checkpoint(tmp_path / "it.ckpt")
    loaded = load(tmp_path / "it.ckpt", allow=[Net])
    assert scored(family, loaded, tmp_path) == first
    for norm in [*held(module), *held(loaded)]:
        if family.name != "MixtureOfExperts" or float(norm.running_mean[0]):  # other experts start anew
            assert torch.equal(norm.running_mean, torch.full((8,), 0.3))
            assert torch.equal(norm.running_var, torch.full((8,), 2.0))
        assert int(norm.num_batches_tracked) == 0
    if hasattr(module, "predictor"):
        x, labels, new = _support()
        for one in (module, loaded):
            learned = one.predictor(x, labels)
            torch.testing.assert_close(learned.outputs(new[:1]), learned.outputs(new)[:1], rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # of the compiler, which takes a warning for an error
@pytest.mark.slow
@every_family
def test_a_compiled_module_trains_as_the_module_or_is_refused(family: Family, tmp_path: Path) -> None:
    module = family.module()
    compiled: Any = torch.compile(module, backend="eager")

    def run() -> None:
        trainer(tmp_path, max_epochs=1).fit(compiled, datamodule=family.data())

    if family.size == "meta_batch_size":
        refused("torch.compile cannot trace .* compile=True compiles its training step", run)
        return
    run()
    assert same(weights(module), weights(fit(family, tmp_path, max_epochs=1)), 1e-5)
