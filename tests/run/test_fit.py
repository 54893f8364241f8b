"""`lightning_meta.fit` does in Python what the command does: the same bits, files, resumes and endings."""

from __future__ import annotations

import functools
import io
import json
import logging
import warnings
from collections.abc import Callable
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor, nn

import lightning_meta as lm
from lightning_meta.cli import main
from lightning_meta.fitting.quiet import LOGGERS
from lightning_meta.run import RunCheckpoint, read_checkpoint
from lightning_meta.tasks import EpisodeSpec
from lightning_meta.testing import toys
from tests.meta.test_units import pumps
from tests.run.test_resume import plain
from tests.run.toys import ToyData, ToyModule, batch
from tests.test_cli import write_configs

OPTIONS: dict[str, Any] = {"log_every_n_steps": 2, "accelerator": "cpu", "enable_progress_bar": False}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_configs(tmp_path)


def toy(nan_at: int = -1) -> ToyModule:
    """The module of `toy.yaml`; its dropout draws from the random stream of the run, which begins with the weights."""
    return ToyModule(nn.Linear(5, 5), nan_at=nan_at)


def maml(**options: Any) -> lm.MAML:
    return lm.MAML(lm.nn.MLP(hidden=[8]), inner_steps=1, test_inner_steps=2, **options)


def sines(**options: Any) -> lm.EpisodicDataModule:
    sizes: dict[str, Any] = {"meta_batches_per_epoch": 4, "val_tasks": 10, "test_tasks": 20, **options}
    return lm.EpisodicDataModule(lm.sources.Sinusoid(), shots=5, queries=6, **sizes)


def in_python(kind: str, max_steps: int = 8, seed: int = 0, **options: Any) -> lm.Run:
    lightning.seed_everything(seed, verbose=False)
    module, data = (toy(), ToyData(4)) if kind == "toy" else (maml(), sines())
    if kind == "maml":
        options["checkpoint"] = lm.RunCheckpoint("val/mse")
    return lm.fit(module, data, name=kind, max_steps=max_steps, **OPTIONS, **options)


def by_command(kind: str, max_steps: int = 8, resume: str | None = None) -> None:
    resumed = [] if resume is None else [f"--ckpt_path={resume}"]
    assert main(["fit", "--config", f"{kind}.yaml", f"--trainer.max_steps={max_steps}", *resumed]) == 0


def left(run: str | Path) -> dict[str, Any]:
    """The content of the files of a run, without times and descriptions."""
    run = Path(run)
    results = json.loads((run / "results.json").read_text())
    bits: dict[str, Any] = {}
    for name in ("best", "last"):
        checkpoint = read_checkpoint(run / "checkpoints" / f"{name}.ckpt")
        bits[name] = plain({k: checkpoint[k] for k in ("state_dict", "optimizer_states", "global_step")})
        bits[f"random {name}"] = plain(checkpoint["quiet_moment"]["random"])
    with np.load(run / "predictions.npz") as arrays:
        bits["predictions"] = {name: arrays[name].tobytes() for name in arrays}
    return {
        "files": sorted(str(file.relative_to(run)) for file in run.rglob("*")),
        "tables": [(run / name).read_text() for name in ("metrics.csv", "per_task.csv")],
        "results": {
            k: v for k, v in results.items() if not k.endswith("time_s") and k not in ("git_revision", "peak_memory_mb")
        },
        **bits,
    }


@pytest.mark.parametrize("kind", ["toy", "maml"])
def test_a_run_is_that_of_the_command_bit_for_bit(kind: str) -> None:
    by_command(kind)
    run = in_python(kind)
    assert run.directory == Path(f"runs/{kind}/1")
    assert left(f"runs/{kind}/1") == left(f"runs/{kind}/0")
    results = json.loads((Path(run.directory or "") / "results.json").read_text())
    assert run.metrics == {name: value for name, value in results.items() if name.startswith("test/")}


MAKERS: dict[str, Callable[..., Any]] = {"Python": in_python, "the command": by_command}


@pytest.mark.parametrize("kind", ["toy", "maml"])
@pytest.mark.parametrize(("begun", "resumed"), [("Python", "the command"), ("the command", "Python")])
def test_either_resumes_a_run_of_the_other(begun: str, resumed: str, kind: str, caplog: Any) -> None:
    in_python(kind, 10)
    MAKERS[begun](kind, 5)
    with caplog.at_level(logging.INFO):
        MAKERS[resumed](kind, 10, resume=f"runs/{kind}/1")
    (line,) = [record.message for record in caplog.records if "resumed from" in record.message]
    parts = line.split("; ")
    assert [part for part in parts if part.startswith("changed")] == ["changed: trainer.max_steps 5 -> 10"]
    assert left(f"runs/{kind}/1") == left(f"runs/{kind}/0")


def test_the_configuration_runs_again_by_the_command_and_the_commands_take_the_directory() -> None:
    run = in_python("maml", callbacks=None, logger=None)
    assert run.directory is not None
    assert main(["fit", "--config", str(run.directory / "config.yaml")]) == 0
    assert left("runs/maml/1") == left("runs/maml/0")
    assert type(lm.load(run.directory)) is lm.MAML
    assert main(["test", f"--ckpt_path={run.directory}", "--trainer.enable_progress_bar=false"]) == 0
    assert json.loads((run.directory / "tests/0/results.json").read_text())["test/mse"] == run.metrics["test/mse"]


def test_runs_of_named_tasks_can_be_compared() -> None:
    from lightning_meta.testing import toys

    for seed in (1, 2):
        for module in (lm.Independent, lm.MultiHead):
            lightning.seed_everything(seed, verbose=False)
            checkpoint = lm.RunCheckpoint("val/score")
            made = module(lm.nn.MLP(4, (8,)))
            lm.fit(made, toys.sums(), name=module.__name__, checkpoint=checkpoint, max_steps=4, **OPTIONS)
    assert main(["compare", "runs/MultiHead", "--baseline", "runs/Independent"]) == 0


def test_a_loaded_module_is_trained_for_longer() -> None:
    in_python("maml", 10)
    in_python("maml", 5)
    checkpoint = lm.RunCheckpoint("val/mse")
    lm.fit(lm.load("runs/maml/1"), sines(), resume="runs/maml/1", checkpoint=checkpoint, max_steps=10, **OPTIONS)
    assert left("runs/maml/1") == left("runs/maml/0")


# What `config.yaml` says.


class Other(nn.Linear):
    """A layer with the same weights."""


def test_what_nobody_can_describe_is_marked_and_compared_by_its_class(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    in_python("toy", 4)
    config = yaml.safe_load(Path("runs/toy/0/config.yaml").read_text())
    assert config["model"]["init_args"]["backbone"] == {"instance": "torch.nn.modules.linear.Linear"}
    assert config["data"] == {"instance": "tests.run.toys.ToyData"}
    capsys.readouterr()
    assert main(["fit", "--config", "runs/toy/0/config.yaml"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "model.backbone was created in Python, and its arguments are unknown" in said
    assert main(["test", "--ckpt_path=runs/toy/0", "--trust"]) == 2
    assert "data was created in Python" in capsys.readouterr().err
    with caplog.at_level(logging.INFO):
        in_python("toy", 8, resume="runs/toy/0")
    unknown = (
        "the examples (ToyData provides no hash of its data), data, made in Python, model.backbone, made in Python"
    )
    assert unknown in caplog.text
    with pytest.raises(lm.UserError, match=r"model\.backbone torch\.nn\.modules\.linear\.Linear -> .*Other"):
        lm.fit(ToyModule(Other(5, 5)), ToyData(4), resume="runs/toy/0", max_steps=9, **OPTIONS)


class Size(Enum):
    SMALL = 4
    LARGE = 8


class Net(lm.Described, nn.Module):
    """A network with a class, a member of an enumeration and functions among its arguments."""

    def __init__(
        self,
        act: type[nn.Module] = nn.ReLU,
        size: Size = Size.SMALL,
        last: Callable[[torch.Tensor], torch.Tensor] = nn.functional.relu,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
    ) -> None:
        super().__init__()
        self.first, self.act, self.norm = nn.Linear(1, size.value), act(), norm(size.value)
        self.last = last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.last(self.norm(self.act(self.first(x))))
        return result


def trained(arguments: dict[str, Any], **options: Any) -> Path:
    lightning.seed_everything(0, verbose=False)
    checkpoint = lm.RunCheckpoint("val/mse")
    module = lm.MAML(Net(**arguments), inner_steps=1, test_inner_steps=2)
    run = lm.fit(module, sines(), checkpoint=checkpoint, **{"max_steps": 4, **OPTIONS, **options})
    assert run.directory is not None
    return run.directory


@pytest.mark.parametrize(
    "given",
    [{}, {"act": nn.Tanh, "size": Size.LARGE, "last": nn.functional.softsign}, {"norm": nn.Identity}],
    ids=["defaults", "all", "a class as a function"],
)
def test_a_class_a_function_and_a_member_are_written_as_the_command_takes_them(
    given: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    run = trained(given)
    arguments = yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]["backbone"]["init_args"]
    assert all(isinstance(value, str) for value in arguments.values())
    assert arguments["act"] in ("torch.nn.ReLU", "torch.nn.Tanh")
    assert arguments["size"] in ("SMALL", "LARGE")
    config = f"--config={run}/config.yaml"
    assert main(["fit", config, "--name=again"]) == 0
    assert left("runs/again/0") == left(run)
    with caplog.at_level(logging.INFO):
        assert main(["fit", config, f"--ckpt_path={run}", "--trainer.max_steps=6"]) == 0
        trained(given, resume="runs/again/0", max_steps=6)
    lines = [record.message for record in caplog.records if "resumed from" in record.message]
    assert [line.partition("; ")[2] for line in lines] == ["changed: trainer.max_steps 4 -> 6"] * 2
    assert left("runs/again/0") == left(run)
    other = {**given, "act": nn.Sigmoid}
    with pytest.raises(lm.UserError, match=r"backbone\.act torch\.nn\.\w+ -> torch\.nn\.Sigmoid"):
        trained(other, resume=run, max_steps=8)


def test_a_partial_that_the_command_cannot_take_is_marked(capsys: pytest.CaptureFixture[str]) -> None:
    run = trained({"norm": functools.partial(nn.LayerNorm, eps=0.5)})
    capsys.readouterr()
    assert main(["fit", f"--config={run}/config.yaml"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "model.backbone.norm was created in Python" in said


class Sizes(lm.MAML):
    """Has arguments without names, and a specification among the others."""

    def __init__(self, backbone: nn.Module, *sizes: int, episodes: EpisodeSpec | None = None) -> None:
        super().__init__(backbone, episodes=episodes)


def test_arguments_without_names_are_refused_and_leave_nothing() -> None:
    module = Sizes(lm.nn.MLP(hidden=[8]), 3, 4, episodes=EpisodeSpec("regression", (1,), 1))
    with pytest.raises(lm.UserError, match=r"^Sizes takes \*sizes, which a checkpoint cannot store"):
        lm.fit(module, sines(), max_steps=2, **OPTIONS)
    assert not Path("runs").exists()


def test_numbers_of_numpy_are_written_as_numbers() -> None:
    lightning.seed_everything(0, verbose=False)
    module = lm.MAML(lm.nn.MLP(hidden=[8]), inner_lr=np.float64(0.02), inner_steps=np.int64(2))  # type: ignore[arg-type]
    run = lm.fit(module, sines(), checkpoint=lm.RunCheckpoint("val/mse"), max_steps=2, seed=np.int64(5), **OPTIONS)  # type: ignore[arg-type]
    assert run.directory is not None
    config = yaml.safe_load((run.directory / "config.yaml").read_text())
    assert [config["model"]["init_args"][name] for name in ("inner_lr", "inner_steps")] == [0.02, 2]
    assert lm.load(run.directory).inner_steps == 2
    assert config["seed_everything"] == 5


def test_numbers_of_numpy_are_options_like_others() -> None:
    lightning.seed_everything(0, verbose=False)
    rate: Any = np.logspace(-2, -1, 2)[0]
    three: Any = np.int64(3)
    half: Any = np.float32(0.5)
    module = lm.ProtoNet(
        lm.nn.MLP(3, [three]),
        optimizer=functools.partial(torch.optim.SGD, lr=rate, momentum=half),
        lr_scheduler=functools.partial(torch.optim.lr_scheduler.StepLR, step_size=three, gamma=np.float64(0.5)),
        backbone_lr_factor=np.float64(0.5),
        strategy="vmap",
        chunk_size=three,
    )
    pairs = [(torch.randn(3), c) for c in range(6) for _ in range(3)]
    source = lm.sources.FromDataset(pairs, pairs, pairs, separate_labels=True)
    sizes: dict[str, Any] = {"ways": (np.int64(2), three), "test_ways": three, "shots": np.int64(1)}
    sizes |= {name: np.int64(2) for name in ("queries", "meta_batch_size", "meta_batches_per_epoch", "val_tasks")}
    data = lm.EpisodicDataModule(source, **sizes, test_tasks=three, evaluation_meta_batch_size=three)
    run = lm.fit(module, data, max_steps=2, **OPTIONS)
    assert run.directory is not None
    loaded = lm.load(run.directory)
    assert loaded.lr == rate
    assert isinstance(loaded, lm.MetaModule)
    (result,) = lm.evaluate(loaded, data, ways=[np.int64(2)], shots=np.int64(1), tasks=three)  # type: ignore[list-item, arg-type]
    assert result.ways == 2


class KeepsAnArray(lightning.Callback):
    def state_dict(self) -> dict[str, Any]:
        return {"history": [np.ones(2)]}


def test_a_checkpoint_that_could_not_be_loaded_is_not_written() -> None:
    lightning.seed_everything(0, verbose=False)
    module = lm.MAML(lm.nn.MLP(hidden=[8]))
    expected = r"^checkpoint: callbacks\['KeepsAnArray'\]\['history'\]\[0\] \(numpy.ndarray\) is not plain data"
    with pytest.raises(lm.UserError, match=expected):
        lm.fit(module, sines(), max_steps=2, callbacks=[KeepsAnArray()], **OPTIONS)
    assert not list(Path("runs").glob("*/*/checkpoints/*.ckpt"))


# Seeds.


def test_a_linear_model_needs_no_seed(caplog: pytest.LogCaptureFixture) -> None:
    """It is solved, so its result does not depend on the weights that were drawn."""
    lm.fit(lm.Linear(), lm.MultiTaskDataModule(lm.testing.RareTasks()), max_epochs=1)
    assert "without a seed" not in caplog.text
    assert "before this seed was set" not in Path("runs/run/0/config.yaml").read_text()


def test_a_run_without_a_seed_says_so(caplog: pytest.LogCaptureFixture) -> None:
    run = lm.fit(toy(), ToyData(4), max_steps=2, **OPTIONS)
    assert "the weights were drawn without a seed: call lightning.seed_everything" in caplog.text
    text = Path("runs/run/0/config.yaml").read_text()
    assert text.startswith("# The weights were drawn before this seed was set.")
    assert yaml.safe_load(text)["seed_everything"] == 0
    assert run.directory == Path("runs/run/0")


def test_a_seed_decides_what_is_drawn_in_training_and_a_resumed_run_has_its_own() -> None:
    weights = toy().state_dict()
    for runs, seed in (("a", 3), ("b", 3), ("c", 4)):
        module = toy()
        module.load_state_dict(weights)
        lm.fit(module, ToyData(4), runs=runs, seed=seed, max_steps=4, **OPTIONS)
    assert left("a/run/0") == left("b/run/0")
    assert left("a/run/0")["last"] != left("c/run/0")["last"]
    lightning.seed_everything(7, verbose=False)  # of something else in this process
    lm.fit(toy(), ToyData(4), runs="a", resume="last", max_steps=6, **OPTIONS)
    assert json.loads(Path("a/run/0/results.json").read_text())["seed"] == 3
    with pytest.raises(lm.UserError, match="seed_everything 3 -> 9: this cannot change in a resume"):
        lm.fit(toy(), ToyData(4), runs="a", resume="last", seed=9, max_steps=8, **OPTIONS)


def remarks(*runs: int) -> list[str]:
    """The comments on the seed in the configurations."""
    texts = [Path(f"runs/run/{run}/config.yaml").read_text() for run in runs]
    assert [yaml.safe_load(text)["seed_everything"] for text in texts] == [0] * len(runs)
    first = [text.splitlines()[0] for text in texts]
    return [line if "weights were drawn" in line else "" for line in first]


@pytest.mark.parametrize("seed", [None, 0])
def test_a_seed_gives_the_weights_of_one_run(seed: int | None) -> None:
    options = {**OPTIONS, "max_steps": 2, "seed": seed}
    lightning.seed_everything(0, verbose=False)
    with pytest.raises(lm.UserError):  # nothing is drawn
        lm.fit(toy(), ToyData(broken=True), **options)
    for _ in range(3):
        lm.fit(toy(), ToyData(4), **options)
    lightning.seed_everything(0, verbose=False)
    lm.fit(toy(), ToyData(4), **options)
    first, second, third, seeded = remarks(0, 1, 2, 3)
    assert first == seeded == ""
    assert second == third != ""


def test_no_run_of_a_loop_that_seeds_in_fit_has_the_weights_of_the_seed() -> None:
    for _ in range(3):
        lm.fit(toy(), ToyData(4), max_steps=2, seed=0, **OPTIONS)
    assert remarks(0, 1, 2) == ["# The weights were drawn before this seed was set."] * 3
    lm.fit(toy(), ToyData(4), resume="last", max_steps=4, **OPTIONS)
    assert "weights were drawn" not in Path("runs/run/2/config.yaml").read_text()


# Endings.


def files() -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in Path("runs").rglob("*") if file.is_file()}


class Presses(Callback):
    """Ctrl-C in the middle of a step."""

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 5:
            raise KeyboardInterrupt


def test_a_loss_that_is_not_finite_keeps_what_the_command_keeps() -> None:
    assert main(["fit", "--config", "toy.yaml", "--model.nan_at=5", "--name=command"]) == 1
    lightning.seed_everything(0, verbose=False)
    with pytest.raises(lm.NonFiniteLossError, match=r"step 5; the last good checkpoint is runs/python/0/checkpoints"):
        lm.fit(toy(nan_at=5), ToyData(4), name="python", max_steps=8, **OPTIONS)
    kept = [[str(file.relative_to(run)) for file in sorted(run.rglob("*"))] for run in Path("runs").glob("*/0")]
    assert kept[0] == kept[1]
    assert "checkpoints/last.ckpt" in kept[0]


def test_ctrl_c_keeps_the_last_checkpoint_and_is_a_keyboard_interrupt(capsys: pytest.CaptureFixture[str]) -> None:
    in_python("toy", 8)
    with pytest.raises(KeyboardInterrupt) as raised:
        in_python("toy", 8, callbacks=Presses())
    assert raised.type is KeyboardInterrupt  # with a subclass a script would end with status 1, and not 130
    said = capsys.readouterr().err
    assert "stopped in step 5 by Ctrl-C; resume with resume='runs/toy/1/checkpoints/last.ckpt'" in said
    assert not Path("runs/toy/1/results.json").exists()
    in_python("toy", 8, resume="runs/toy/1")
    assert left("runs/toy/1") == left("runs/toy/0")


class NoTest(ToyModule):
    """Validated alone."""

    test_step = LightningModule.test_step  # type: ignore[assignment]


class NoData(ToyData):
    """Data for training alone."""

    val_dataloader = LightningDataModule.val_dataloader
    test_dataloader = LightningDataModule.test_dataloader


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "no such argument": ({"max_step": 3}, "max_step: neither .* did you mean max_steps?"),
    "an option": ({"ckpt_path": "last"}, "ckpt_path: neither .* did you mean resume?"),
    "two checkpoints": (
        {"callbacks": lm.RunCheckpoint()},
        "callbacks: a run has one RunCheckpoint; give .* checkpoint",
    ),
    "a count": ({"max_epochs": 0}, "max_epochs: at least 1 is needed"),
    "two counts": ({"min_steps": 9, "max_steps": 8}, "min_steps: 9 is more than max_steps, 8"),
    "an accelerator": ({"accelerator": "gpus"}, "accelerator: expected .* got gpus"),
    "a metric": ({"checkpoint": "val/acc"}, "checkpoint.monitor: 'val/acc' is not logged in validation"),
    "validation turned off": (
        {"limit_val_batches": 0},
        r"limit_val_batches: 0 .* but checkpoint=RunCheckpoint\(monitor=",
    ),
    "a seed": ({"seed": -1}, "seed: expected 0 to"),
    "a seed that is none": ({"seed": "0"}, "seed: expected a whole number, got '0'"),
    "a name": ({"name": "a/b"}, "name: 'a/b' is not the name of one folder"),
    "no run": ({"resume": "last"}, "resume='last': there is no run named 'run' in runs"),
    "no checkpoint": ({"resume": "no.ckpt"}, "resume='no.ckpt': there is no such file"),
    "data": ({"data": ToyData(broken=True)}, "ways: 50 classes are asked for"),
    "no data module": ({"data": [1]}, "data: a LightningDataModule is needed, got list"),
    "no module": ({"module": nn.Linear(5, 5)}, "module: a LightningModule is needed, got Linear"),
    "copies of the process": (
        {"strategy": "ddp_notebook", "devices": 2},
        "strategy: DDPStrategy would train in copies of this process, .* use strategy='ddp', in a notebook devices=1",
    ),
    "a device": ({"devices": 0}, "devices: 0 leaves nothing to train on"),
    "no checkpoints": (
        {"enable_checkpointing": False, "callbacks": ModelCheckpoint()},
        "enable_checkpointing=False: a run is tested and resumed from .*; leave it out, or train with",
    ),
    "no logger": ({"logger": False}, "logger=False: a run writes metrics.csv; leave it out, or train with"),
    "nothing but training": ({"barebones": True}, "barebones=True: it turns off the logging .*; leave it out"),
    "another folder": ({"default_root_dir": "x"}, "default_root_dir: a run is written .*; leave it out and give runs"),
    "other checkpoint files": (
        {"plugins": [TorchCheckpointIO()]},
        "plugins: a run writes its checkpoints itself, .* leave out TorchCheckpointIO",
    ),
    "a search for a batch size": (
        {"callbacks": BatchSizeFinder()},
        "callbacks: BatchSizeFinder would change .*; search before the run",
    ),
    "a search for a rate": (
        {"callbacks": [LearningRateFinder()]},
        "callbacks: LearningRateFinder would change .*; search before the run",
    ),
    "no test": ({"module": NoTest(nn.Linear(5, 5))}, "NoTest has no test_step, .*; define one"),
    "no test in a trial": ({"module": NoTest(nn.Linear(5, 5)), "fast_dev_run": True}, "NoTest has no test_step"),
    "no test data": (
        {"data": NoData(4)},
        "NoData has no test_dataloader, .*; define one, or give limit_test_batches=0 to test nothing",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_that_speaks_of_arguments_and_leaves_nothing(case: str) -> None:
    given, expected = MISTAKES[case]
    if "checkpoint" in given:
        given = {"checkpoint": lm.RunCheckpoint(given["checkpoint"], "max")}
    options = {"module": toy(), "data": ToyData(4), "max_steps": 8, **OPTIONS, **given}
    before = set(Path().iterdir())
    with pytest.raises(lm.UserError, match=f"^{expected}") as raised:
        lm.fit(**options)
    assert "\n" not in str(raised.value)
    assert "--" not in str(raised.value)
    assert set(Path().iterdir()) == before


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
def test_a_run_without_validation_and_test_data_keeps_its_last_checkpoint() -> None:
    run = lm.fit(toy(), NoData(4), checkpoint=lm.RunCheckpoint(None), max_steps=2, limit_test_batches=0, **OPTIONS)
    assert run.metrics == {}
    assert [file.name for file in Path("runs/run/0/checkpoints").iterdir()] == ["last.ckpt"]


def test_what_the_trainer_refuses_leaves_nothing() -> None:
    with pytest.raises(lm.UserError, match="`gradient_clip_algorithm` x is invalid"):
        lm.fit(toy(), ToyData(4), max_steps=8, **{**OPTIONS, "gradient_clip_algorithm": "x"})
    assert not Path("runs").exists()


def test_a_change_of_meaning_is_refused_or_allowed() -> None:
    in_python("maml", 4)

    def resumed(module: lm.MAML, data: lm.EpisodicDataModule, **options: Any) -> lm.Run:
        options = {**OPTIONS, "max_steps": 8, "checkpoint": lm.RunCheckpoint("val/mse"), **options}
        return lm.fit(module, data, resume="runs/maml/0", **options)

    before = files()
    with pytest.raises(lm.UserError, match=r"model\.inner_lr 0\.01 -> 0\.02.*resume with allow_changes=True"):
        resumed(maml(inner_lr=0.02), sines())
    with pytest.raises(lm.UserError, match=r"data\.meta_batch_size 4 -> 5: this cannot change"):
        resumed(maml(), sines(meta_batch_size=5))
    with pytest.raises(lm.UserError, match=r"^max_steps: runs/maml/0/checkpoints/last.ckpt is at step 4 already"):
        resumed(maml(), sines(), max_steps=3)
    assert files() == before
    resumed(maml(inner_lr=0.02), sines(), allow_changes=True)
    assert Path("runs/maml/0/config.yaml").read_text().startswith("# From step 4 on: model.inner_lr 0.01 -> 0.02\n")


def test_a_resumed_run_may_be_given_more_time() -> None:
    for hours, resume in ((1, None), (2, "runs/toy/0")):
        in_python("toy", 4, resume=resume, max_time={"hours": hours})
    assert yaml.safe_load(Path("runs/toy/0/config.yaml").read_text())["trainer"]["max_time"] == {"hours": 2}


def test_a_trial_run_leaves_nothing() -> None:
    run = in_python("toy", fast_dev_run=True)
    assert run.directory is None
    assert set(run.metrics) == {"test/accuracy", "test/tasks"}
    assert not Path("runs").exists()


def test_the_random_state_is_not_touched_by_a_mistake() -> None:
    before = torch.get_rng_state()
    with pytest.raises(lm.UserError):
        lm.fit(toy, ToyData(4))  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("machine", "capability", "precision", "slow"), [
    ("x86_64", "AVX2", "bf16-mixed", True),
    ("AMD64", "DEFAULT", "bf16-true", True),
    ("x86_64", "AVX512", "bf16-mixed", False),
    ("x86_64", "AVX2", "32-true", False),
    ("aarch64", "DEFAULT", "bf16-mixed", False),
])  # fmt: skip
def test_a_precision_that_this_processor_emulates_is_named(
    machine: str, capability: str, precision: Any, slow: bool, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    in_python("maml", precision=precision)
    line = f"precision='{precision}': this CPU has no instructions for bfloat16"
    assert [line in record.message for record in caplog.records if "bfloat16" in record.message] == [True] * slow


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoint": "val/mse"}, "checkpoint: a RunCheckpoint is needed, such as"),
        ({"checkpoint": ModelCheckpoint()}, "checkpoint: a RunCheckpoint is needed, such as"),
        ({"callbacks": "EarlyStopping"}, "callbacks: a Callback is needed, got str 'EarlyStopping'"),
        ({"callbacks": lightning.Callback}, "callbacks: a Callback is needed, got the class Callback"),
        ({"callbacks": {lightning.Callback()}}, "callbacks: a Callback is needed, got set"),
        ({"logger": "wandb"}, "logger: a Logger is needed, got str 'wandb'"),
        ({"callbacks": (c for c in [lightning.Callback()])}, "callbacks: a Callback is needed, got generator"),
        ({"logger": True}, "logger: a Logger is needed, got bool 'True'"),
        ({"name": 3}, "name: a str is needed, got int '3'"),
        ({"runs": 3}, "runs: a str or PathLike is needed, got int '3'"),
        ({"resume": 3}, "resume: a str or PathLike is needed, got int '3'"),
        ({"allow_changes": "yes"}, "allow_changes: True or False is needed, got 'yes'"),
        ({"max_steps": "20"}, "max_steps: a whole number is needed, or -1 for no limit, got str '20'"),
        ({"max_steps": None, "max_epochs": 1}, "max_steps: a whole number is needed, or -1 for no limit, got None"),
        ({"max_steps": True}, "max_steps: a whole number is needed, or -1 for no limit, got bool 'True'"),
        ({"max_epochs": "1"}, "max_epochs: a whole number is needed"),
        *(
            ({"max_time": time}, "max_time: a time above 0 is needed, as DD:HH:MM:SS")
            for time in (0, 60, -1, "1h", "00:00:00:00", {"seconds": 0}, {"weeks": "1"}, timedelta(hours=-1))
        ),
        ({"epochs": 3}, "neither lightning_meta.fit nor the Trainer has such an argument; did you mean max_epochs?"),
        ({"precision": "foo"}, "foo"),
        ({"strategy": "foo"}, "foo"),
        ({"profiler": "foo"}, "`profiler`"),
        ({"limit_val_batches": 0}, "or give checkpoint=RunCheckpoint(monitor=None) to test the last checkpoint"),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_one_line_that_names_it(options: dict[str, Any], message: str, folder: Path) -> None:
    with pytest.raises(lm.UserError) as raised:
        lm.fit(maml(), sines(), **{"max_steps": 2, **OPTIONS, **options})
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not list(folder.glob("runs/*/*"))


def results_file(run: lm.Run, name: str) -> Any:
    assert run.directory is not None
    return yaml.safe_load((run.directory / name).read_text())


def test_the_default_checkpoint_follows_the_family_and_a_resumed_run_says_what_differs(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    run = lm.fit(lm.MultiHead(lm.nn.MLP(4, (8,))), toys.sums(), name="sums", max_steps=2, **OPTIONS)
    assert (
        yaml.safe_load((Path(run.directory or "") / "config.yaml").read_text())["checkpoint"]["monitor"] == "val/score"
    )
    lm.fit(lm.MultiHead(lm.nn.MLP(4, (8,))), toys.sums(), resume=str(run.directory), max_steps=3, **OPTIONS)
    assert "changed: trainer.max_steps 2 -> 3" in caplog.text


class AbsoluteError(lm.tasks.Regression):
    metric = "mean_absolute_error"

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).abs().mean(-1)

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).abs().mean((-2, -1))


class AbsoluteErrorMAML(lm.MAML):
    @property
    def task(self) -> AbsoluteError:
        return AbsoluteError(self.spec.outputs)


@pytest.mark.parametrize("stored", [False, True])
def test_in_few_shot_regression_the_default_checkpoint_follows_the_metric_of_the_task(
    folder: Path, stored: bool
) -> None:
    data = pumps(folder / "flows.csv") if stored else sines(meta_batches_per_epoch=2)
    run = lm.fit(maml(), data, max_steps=2, **OPTIONS)
    chosen = results_file(run, "config.yaml")["checkpoint"]
    assert (chosen["monitor"], chosen["mode"]) == ("val/mse", "min")
    assert results_file(run, "results.json")["checkpoint"] == "checkpoints/best.ckpt"


def test_the_default_checkpoint_follows_the_metric_of_a_task_of_ones_own(folder: Path) -> None:
    module = AbsoluteErrorMAML(lm.nn.MLP(hidden=[8]), inner_steps=1)
    run = lm.fit(module, sines(meta_batches_per_epoch=2), max_steps=2, **OPTIONS)
    chosen = results_file(run, "config.yaml")["checkpoint"]
    assert (chosen["monitor"], chosen["mode"]) == ("val/mean_absolute_error", "min")
    assert results_file(run, "results.json")["checkpoint"] == "checkpoints/best.ckpt"


class NamedLate(lm.MAML):
    @property
    def task(self) -> Any:
        return self.made_in_build  # not before the data are known


def test_a_metric_that_is_unknown_before_training_is_asked_for(folder: Path) -> None:
    module = NamedLate(lm.nn.MLP(hidden=[8]))
    with pytest.raises(lm.UserError, match=r"^checkpoint: the metric of NamedLate.task is unknown .*RunCheckpoint"):
        lm.fit(module, sines(), max_steps=2, **OPTIONS)
    assert not Path("runs").exists()


def test_the_accuracy_of_regression_is_refused_before_the_first_step(folder: Path) -> None:
    with pytest.raises(lm.UserError, match=r"^checkpoint.monitor: 'val/accuracy' .*; monitor val/mse or val/loss$"):
        lm.fit(maml(), sines(), checkpoint=lm.RunCheckpoint(), max_steps=1, **OPTIONS)  # ends before a validation
    assert not list(folder.glob("runs/*/*"))
    run = lm.fit(maml(), sines(), checkpoint=lm.RunCheckpoint(), max_steps=0, **OPTIONS)  # tested, never validated
    assert results_file(run, "results.json")["test/mse"] > 0


def test_one_checkpoint_serves_two_runs(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = lm.RunCheckpoint("val/mse")
    first, second = (lm.fit(maml(), sines(), checkpoint=checkpoint, max_steps=4, **OPTIONS) for _ in range(2))
    seconds = [results_file(run, "results.json")["train_time_s"] for run in (first, second)]
    assert checkpoint.seconds == pytest.approx(seconds[1], abs=0.02)
    assert "is missing" not in caplog.text


def test_lightning_does_not_describe_the_trainer_that_this_package_makes(folder: Path) -> None:
    shown, messages = io.StringIO(), [logging.getLogger(name) for name in ("lightning.pytorch", "pytorch_lightning")]
    handler = logging.StreamHandler(shown)
    loggers = [*messages, *map(logging.getLogger, LOGGERS)]
    levels = [logger.level for logger in loggers]  # scripts that other tests import set them
    for logger in messages:
        logger.addHandler(handler)
    try:
        for logger in loggers:
            logger.setLevel(logging.INFO if logger in messages else logging.NOTSET)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            module = maml()
            lm.fit(module, sines(), checkpoint=lm.RunCheckpoint("val/mse"), max_steps=1, **OPTIONS)
            lm.evaluate(module, sines(), tasks=2)
        assert shown.getvalue() == ""
        assert not [w.message for w in warned if "lightning" in w.filename]
        Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)  # the user's own is as it was
        assert "GPU available" in shown.getvalue()
    finally:
        for logger in messages:
            logger.removeHandler(handler)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def test_an_interval_longer_than_an_epoch_of_data_of_ones_own_is_refused_in_one_line() -> None:
    """How long an epoch is, is known once the Trainer has the loaders."""
    with pytest.raises(lm.UserError, match=r"^val_check_interval: an epoch has 4 batches, so 5 never pass within one"):
        lm.fit(toy(), ToyData(4), max_steps=8, val_check_interval=5, **OPTIONS)
    with pytest.raises(lm.UserError, match=r"^val_check_interval: the length of an epoch is not known, so 0.5 of it"):
        lm.fit(toy(), Endless(), max_steps=8, val_check_interval=0.5, **OPTIONS)


@pytest.mark.parametrize(
    "options", [{}, {"val_check_interval": 0.5}, {"val_check_interval": 5, "limit_val_batches": 0}]
)
def test_other_errors_are_not_taken_for_an_interval_that_is_too_long(options: dict[str, Any]) -> None:
    given = {**OPTIONS, "max_steps": 8, "checkpoint": RunCheckpoint(monitor=None), **options}
    with pytest.raises(ValueError, match="of the module's own"):
        lm.fit(Wrong(nn.Linear(5, 5)), ToyData(4), **given)
    with pytest.raises(lm.UserError, match="50 classes are asked for"):
        lm.fit(toy(), ToyData(broken=True), **given)
    with pytest.raises(ValueError, match="the file is missing"):
        lm.fit(toy(), Missing(4), **given)


class Missing(ToyData):
    def setup(self, stage: str) -> None:
        raise ValueError("the file is missing")


class Endless(ToyData):
    def train_dataloader(self) -> Any:
        return iter(batch(i) for i in range(100))


class Wrong(ToyModule):
    def training_step(self, x: Tensor, batch_idx: int) -> Tensor:
        raise ValueError("a mistake of the module's own")
