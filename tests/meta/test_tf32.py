"""Where meta-learners compute in full float32: in every forward and backward pass, under the Trainer and outside of it.

torch's switches can be read without a GPU, so a layer notes them whenever cuDNN would.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from lightning_meta import load
from lightning_meta.building import build
from lightning_meta.cli import main
from lightning_meta.data import EpisodicDataModule
from lightning_meta.describing import describe
from lightning_meta.meta import MAML, Baseline, MetaModule, ProtoNet
from lightning_meta.multitask import MultiHead
from lightning_meta.nn import MLP, Conv4
from lightning_meta.run import results
from lightning_meta.run.results import facts
from tests.devices.toys import EPISODES
from tests.tf32_switches import as_torch_has_them, convolutions_use_tf32, switches


@pytest.fixture(autouse=True)
def _defaults() -> Iterator[None]:
    with as_torch_has_them():
        yield
    Noted.seen.clear()
    Noted.fails_in = ""


class Noted(torch.autograd.Function):
    """The identity; it notes whether TF32 was on, by the pass and by the stage of training."""

    generate_vmap_rule = True
    seen: ClassVar[dict[str, list[bool]]] = {}
    stage: ClassVar[str] = "step"
    fails_in: ClassVar[str] = ""

    @classmethod
    def note(cls, where: str) -> None:
        cls.seen.setdefault(where, []).append(convolutions_use_tf32())
        if where == cls.fails_in:
            raise ValueError(f"failed in {where}")

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        Noted.note("forward")
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        Noted.note(f"backward, {Noted.stage}")
        return gradient.clone()


class Noting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Noted.apply(x)


class Stages(L.Callback):
    """Tells the outer backward pass, which runs after `training_step` has returned; steps end as they began."""

    def __init__(self, fails_in: str = "") -> None:
        self.before, self.fails_in = switches(), fails_in
        Noted.stage, Noted.fails_in = "step", ""

    def on_fit_start(self, *args: Any) -> None:
        Noted.seen.clear()  # the network was run once, to see how many features it has

    def on_train_start(self, *args: Any) -> None:
        Noted.fails_in = self.fails_in

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        assert switches() == self.before, "between the step and its backward pass"
        Noted.stage = "outer"

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        Noted.stage = "step"
        assert switches() == self.before, "after the backward pass"

    def on_validation_batch_end(self, *args: Any) -> None:
        assert switches() == self.before, "after validation"


def backbone() -> nn.Module:
    return nn.Sequential(Conv4(1, 4, blocks=2), Noting())


MAMLS: dict[str, Callable[..., MetaModule]] = {
    "vmap": lambda **options: MAML(backbone(), 0.1, 2, strategy="vmap", **options),
    "loop": lambda **options: MAML(backbone(), 0.1, 2, strategy="loop", **options),
    "recomputed": lambda **options: MAML(backbone(), 0.1, 2, recompute=True, **options),
    "first order, inductive": lambda **options: MAML(
        backbone(), 0.1, 2, first_order=True, batch_norm="inductive", **options
    ),
    "measured": lambda **options: MAML(backbone(), 0.1, 1, strategy="measured", **options),
}
OTHERS: dict[str, Callable[..., MetaModule]] = {
    "ProtoNet": lambda **options: ProtoNet(backbone(), **options),
    "Baseline": lambda **options: Baseline(backbone(), head_steps=2, **options),
}


def data() -> EpisodicDataModule:
    return EPISODES["images"](meta_batches_per_epoch=4)


def runner(fails_in: str = "", **options: Any) -> L.Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    given = {"accelerator": "cpu", "devices": 1, **quiet, **options}
    return L.Trainer(enable_checkpointing=False, callbacks=[Stages(fails_in)], num_sanity_val_steps=0, **given)


def tf32_of_a_run(module: MetaModule, **options: Any) -> dict[str, set[bool]]:
    """Whether TF32 was on, by pass of training, evaluation and prediction."""
    Noted.seen.clear()
    before = switches()
    given, trainer = data(), runner(max_epochs=1, **options)
    trainer.fit(module, datamodule=given)
    found = {f"training, {where}": set(seen) for where, seen in Noted.seen.items()}
    for stage in ("validate", "test", "predict"):
        Noted.seen.clear()
        getattr(trainer, stage)(module, datamodule=given)
        found |= {f"{stage}, {where}": set(seen) for where, seen in Noted.seen.items()}
    Noted.seen.clear()
    batch = next(iter(given.test_dataloader()))
    predictor = module.to(trainer.strategy.root_device).predictor(batch.support.x[0], batch.support.y[0])
    predictor.probabilities(batch.query.x[0])
    found |= {f"predictor, {where}": set(seen) for where, seen in Noted.seen.items()}
    assert switches() == before
    return found


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("name", MAMLS)
def test_an_inner_loop_computes_in_full_float32_wherever_it_runs(name: str, accumulate: int) -> None:
    found = tf32_of_a_run(MAMLS[name](), accumulate_grad_batches=accumulate)
    inner = {f"{stage}, backward, step" for stage in ("validate", "test", "predict", "predictor")}
    forward = {f"{stage}, forward" for stage in ("training", "validate", "test", "predict", "predictor")}
    assert found.keys() >= {"training, backward, step", "training, backward, outer", *inner, *forward}
    assert found == {key: {False} for key in found}


@pytest.mark.parametrize("name", OTHERS)
def test_methods_without_an_inner_loop_keep_tf32(name: str) -> None:
    found = tf32_of_a_run(OTHERS[name]())
    assert found.keys() >= {"training, forward", "training, backward, outer", "validate, forward"}
    assert found == {key: {True} for key in found}


def test_an_option_asks_for_less() -> None:
    found = tf32_of_a_run(MAMLS["vmap"](tf32=True))
    assert found == {key: {True} for key in found}


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_torchs_own_function_asks_for_less(precision: str) -> None:
    torch.set_float32_matmul_precision(precision)
    found = tf32_of_a_run(MAMLS["vmap"]())
    assert found == {key: {True} for key in found}


@pytest.mark.parametrize("where", ["forward", "backward, step", "backward, outer"])
def test_an_error_leaves_the_switches_as_they_were(where: str) -> None:
    module, trainer = MAMLS["loop"](), runner(where, max_epochs=1, limit_val_batches=0)
    before = switches()
    with pytest.raises(ValueError, match="failed in"):
        trainer.fit(module, datamodule=data())
    assert Noted.seen[where][-1] is False
    assert switches() == before


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_an_error_in_evaluation_leaves_the_switches_as_they_were(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, trainer = MAMLS["loop"](), runner(max_epochs=1)
    before = switches()
    monkeypatch.setattr(Noted, "fails_in", "backward, step")
    with pytest.raises(ValueError, match="failed in"):
        getattr(trainer, stage)(module, datamodule=data())
    assert switches() == before


# The option, and what a run says


def test_the_option_is_kept_in_checkpoints(tmp_path: Path) -> None:
    trainer = L.Trainer(
        accelerator="cpu", max_steps=1, logger=False, enable_progress_bar=False, default_root_dir=tmp_path,
        enable_checkpointing=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    for asked in (True, False):
        module = MAML(Conv4(1, 4, blocks=2), 0.1, 1, tf32=asked)
        trainer.fit(module, datamodule=data())
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        loaded = load(tmp_path / "last.ckpt")
        assert isinstance(loaded, MAML)
        assert (loaded.tf32, loaded.computes_in_full_float32) == (asked, not asked)


def test_a_description_without_the_option_is_of_full_float32() -> None:
    spec = describe(MAML(MLP(4)))
    del spec["init_args"]["tf32"]
    assert build(spec).computes_in_full_float32


def test_a_run_says_what_precision_it_had(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = runner(precision="bf16-mixed")
    modules = {
        "MAML": (MAML(MLP(4)), "full"),
        "MAML, tf32": (MAML(MLP(4), tf32=True), "tf32"),
        "ProtoNet": (ProtoNet(MLP(4)), "tf32"),
        "MultiHead": (MultiHead(MLP(4)), "tf32"),
    }
    for module, _ in modules.values():
        said = facts(module, None, trainer)
        assert (said["precision"], said["float32"], said["device"]) == ("bf16-mixed", "full", "cpu")
    monkeypatch.setattr(results, "has_tf32", lambda device: True)
    assert {name: facts(module, None, trainer)["float32"] for name, (module, _) in modules.items()} == {
        name: expected for name, (_, expected) in modules.items()
    }
    torch.backends.cudnn.allow_tf32 = False
    assert facts(modules["ProtoNet"][0], None, trainer)["float32"] == "full"
    torch.set_float32_matmul_precision("high")
    assert facts(modules["MAML"][0], None, trainer)["float32"] == "tf32"


def test_the_command_line_takes_the_option_and_writes_what_was_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(results, "has_tf32", lambda device: True)  # else it is "full" in any case
    config = Path(__file__).parents[2] / "configs" / "maml_sinusoid.yaml"
    brief = {"trainer.max_steps": 1, "trainer.enable_progress_bar": "false", "trainer.accelerator": "cpu"}
    brief |= {"data.init_args.val_tasks": 2, "data.init_args.test_tasks": 2, "data.init_args.meta_batches_per_epoch": 1}
    options = [f"--{name}={value}" for name, value in brief.items()]
    for version, (asked, expected) in enumerate((([], "full"), (["--model.init_args.tf32=true"], "tf32"))):
        assert main(["fit", "--config", str(config), *options, *asked]) == 0
        run = Path("runs/maml_sinusoid") / str(version)
        assert main(["test", "--ckpt_path", str(run)]) == 0
        for folder in (run, run / "tests" / "0"):
            said = json.loads((folder / "results.json").read_text())
            assert (said["precision"], said["float32"], said["device"]) == ("32-true", expected, "cpu")
