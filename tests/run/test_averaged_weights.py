"""Runs with averaged weights: the averages are what is validated, stored, tested, loaded and left in the module."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging, WeightAveraging
from torch import Tensor, nn

import lightning_meta as lm
from lightning_meta.cli import main
from lightning_meta.nn import MLP, Conv4
from lightning_meta.run import read_checkpoint
from lightning_meta.testing import toys
from tests.run.toys import ToyData, ToyModule
from tests.test_cli import TOY

pytestmark = pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback with a model that overrides")

FAST = partial(torch.optim.Adam, lr=0.05)
OPTIONS: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False, "max_steps": 12}
MODULES: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "ProtoNet": (lambda: lm.ProtoNet(Conv4(1, width=4, blocks=2), optimizer=FAST), toys.pictures),
    "SimpleShot": (lambda: lm.SimpleShot(Conv4(1, width=4, blocks=2), optimizer=FAST), toys.pictures),
    "MultiHead": (lambda: lm.MultiHead(MLP(4, (8,)), optimizer=FAST), toys.sums),
    "Independent": (lambda: lm.Independent(MLP(4, (8,)), optimizer=FAST), toys.sums),
    "not of this package": (lambda: ToyModule(nn.Linear(5, 5)), partial(ToyData, 4)),
}
AVERAGES: dict[str, Callable[[], WeightAveraging]] = {
    "exponential": lambda: EMAWeightAveraging(decay=0.9),
    "exponential, without buffers": lambda: EMAWeightAveraging(decay=0.9, use_buffers=False),
    "equal": WeightAveraging,
}
same_run = {name: MODULES[name] for name in ("ProtoNet", "SimpleShot", "Independent")}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fit(kind: str, *callbacks: Callback, **options: Any) -> tuple[Any, lm.Run]:
    lightning.seed_everything(0, verbose=False)
    make, data = MODULES[kind]
    module = make()
    return module, lm.fit(module, data(), callbacks=list(callbacks), **{**OPTIONS, **options})


def stored(run: lm.Run, name: str = "best") -> dict[str, Any]:
    assert run.directory is not None
    return read_checkpoint(run.directory / "checkpoints" / f"{name}.ckpt")


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("kind", MODULES)
def test_the_averages_of_the_best_checkpoint_are_tested_and_left_in_the_module(kind: str, average: str) -> None:
    module, run = fit(kind, AVERAGES[average]())
    best = stored(run)
    assert same(module.state_dict(), best["state_dict"])
    assert any(not torch.equal(best["current_model_state"][n], p) for n, p in module.named_parameters()), "averages"
    if kind == "not of this package":
        return
    assert run.directory is not None
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    again = Trainer(accelerator="cpu", **quiet).test(lm.load(run.directory), MODULES[kind][1](), verbose=False)[0]
    assert {name: again[name] for name in run.metrics} == pytest.approx(run.metrics)


def test_the_averages_are_left_in_the_module_without_a_test() -> None:
    module, run = fit("ProtoNet", EMAWeightAveraging(decay=0.9), limit_test_batches=0)
    assert same(module.state_dict(), stored(run)["state_dict"])


def test_the_command_tests_the_checkpoint_that_it_names() -> None:
    config = {
        "model": {
            "class_path": "lightning_meta.ProtoNet",
            "init_args": {
                "backbone": {"class_path": "lightning_meta.nn.MLP", "init_args": {"in_features": 256, "hidden": [8]}},
                "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.05}},
            },
        },
        "data": {
            "class_path": "lightning_meta.EpisodicDataModule",
            "init_args": {
                "source": {"class_path": "lightning_meta.testing.toys.NoisyPictures"},
                **{"ways": 3, "shots": 2, "queries": 3, "meta_batch_size": 4, "meta_batches_per_epoch": 3},
                **{"val_tasks": 4, "test_tasks": 20},
            },
        },
        "trainer": {
            **TOY["trainer"],
            "callbacks": [
                {"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging", "init_args": {"decay": 0.9}}
            ],
        },
    }
    Path("averaged.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", "averaged.yaml"]) == 0
    run = Path("runs/averaged/0")
    results = json.loads((run / "results.json").read_text())
    assert main(["test", "--ckpt_path", str(run / results["checkpoint"]), "--trust"]) == 0
    (again,) = run.glob("tests/*/results.json")
    assert json.loads(again.read_text())["test/loss"] == pytest.approx(results["test/loss"])


class Stop(Callback):
    """Ctrl-C in a step."""

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 5:
            raise KeyboardInterrupt


@pytest.mark.parametrize("kind", same_run)
def test_a_resumed_run_continues_with_the_weights_that_are_not_averaged(kind: str) -> None:
    _, whole = fit(kind, EMAWeightAveraging(decay=0.9), name="whole")
    with pytest.raises(KeyboardInterrupt):
        fit(kind, EMAWeightAveraging(decay=0.9), Stop(), name="stopped")
    _, resumed = fit(kind, EMAWeightAveraging(decay=0.9), resume="runs/stopped/0")
    assert resumed.metrics == whole.metrics
    for entry in ("state_dict", "current_model_state"):
        one, other = (dict(stored(run, "last")[entry]) for run in (resumed, whole))
        if entry == "current_model_state":  # whose centre is computed again when training begins
            one["centre"] = other["centre"] = torch.zeros(())
        assert same(one, other)


def test_the_best_weights_of_each_task_are_stored_with_the_averages() -> None:
    """A state dict of averages has neither them nor integers: the callback's copy of the module never updates them."""
    module, run = fit("Independent", EMAWeightAveraging(decay=0.9))
    again = lm.load(str(run.directory))
    assert max(again.best.steps) > 0
    assert torch.equal(again.snapshots.get_extra_state(), module.snapshots.get_extra_state())
    before = stored(run)["current_model_state"]
    assert torch.equal(stored(run)["state_dict"]["key"], before["key"]), "an average of int64 is rounded"


class Own(StochasticWeightAveraging):
    """A subclass."""


class Adds(ToyModule):
    """Adds a callback of its own."""

    def configure_callbacks(self) -> list[Callback]:
        return [Own(0.05)]


MESSAGE = (
    "callbacks: Own puts its average into .* neither test nor resume it; use WeightAveraging or EMAWeightAveraging"
)


@pytest.mark.parametrize("make", [ToyModule, Adds])
def test_an_average_that_no_checkpoint_holds_is_refused_before_training(make: type[ToyModule]) -> None:
    callbacks = [] if make is Adds else [Own(0.05)]
    with pytest.raises(lm.UserError, match=MESSAGE) as raised:
        lm.fit(make(nn.Linear(5, 5)), ToyData(4), callbacks=callbacks, **OPTIONS)
    assert "\n" not in str(raised.value)
    assert not list(Path().glob("runs/*/*"))


def test_the_command_names_its_option_in_the_refusal(capsys: pytest.CaptureFixture[str]) -> None:
    path = "lightning.pytorch.callbacks.StochasticWeightAveraging"
    callback = {"class_path": path, "init_args": {"swa_lrs": 0.05, "device": None}}
    Path("toy.yaml").write_text(yaml.safe_dump({**TOY, "trainer": {**TOY["trainer"], "callbacks": [callback]}}))
    assert main(["fit", "--config", "toy.yaml"]) == 2
    assert "--trainer.callbacks: StochasticWeightAveraging puts its average" in capsys.readouterr().err


def mean_feature(module: lm.SimpleShot | lm.LaplacianShot, images: Tensor) -> Tensor:
    """The mean feature of images by the module's weights."""
    copied = module.backbone.eval()
    with torch.no_grad():
        mean: Tensor = copied(images.float() / 255).mean(0)
    return mean


class Centres(Callback):
    """Keeps the centre and the weights at every validation."""

    def __init__(self) -> None:
        self.seen: list[tuple[Tensor, dict[str, Tensor]]] = []

    def on_validation_batch_start(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        weights = {name: tensor.clone() for name, tensor in pl_module.state_dict().items()}
        self.seen.append((pl_module.centre.clone(), weights))


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("method", [lm.SimpleShot, lm.LaplacianShot])
def test_the_centre_is_that_of_the_averages(method: Any, average: str) -> None:
    torch.manual_seed(0)
    data, centres = toys.pictures(), Centres()
    module = method(Conv4(1, width=4, blocks=2), optimizer=FAST)
    run = lm.fit(module, data, callbacks=[AVERAGES[average](), centres], **OPTIONS)
    images = data.training_images(2000)
    for name in ("best", "last"):
        again = lm.load(f"{run.directory}/checkpoints/{name}.ckpt")
        torch.testing.assert_close(again.centre, mean_feature(again, images), rtol=1e-4, atol=1e-5)
    assert centres.seen
    for centre, weights in centres.seen:
        module.load_state_dict(weights)
        torch.testing.assert_close(centre, mean_feature(module, images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [lm.SimpleShot, lm.LaplacianShot])
def test_a_validation_after_training_has_the_centre_of_the_averages(method: Any) -> None:
    data, centres = toys.pictures(), Centres()
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    options = {**quiet, **OPTIONS, "max_steps": 11}  # not at the end of an epoch, so the last average is not validated
    trainer = Trainer(**options, callbacks=[EMAWeightAveraging(decay=0.9), centres])
    torch.manual_seed(0)
    module = method(Conv4(1, width=4, blocks=2), optimizer=FAST)
    trainer.fit(module, data)
    centres.seen.clear()
    trainer.validate(module, data, verbose=False)
    assert centres.seen
    for centre, weights in centres.seen:
        module.load_state_dict(weights)
        torch.testing.assert_close(centre, mean_feature(module, data.training_images(2000)), rtol=1e-4, atol=1e-5)
