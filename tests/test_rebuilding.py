"""Networks that functions make or that take classes: they are stored, load again, and are refused before training."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from torch import Tensor, nn

import lightning_meta as lm
from lightning_meta.building import build
from lightning_meta.cli import main
from lightning_meta.cli.config_text import check_fit_configs
from lightning_meta.describing import describe, remember
from lightning_meta.errors import UserError
from lightning_meta.loading import load
from lightning_meta.nn.fresh import fresh
from lightning_meta.run.differences import differences
from lightning_meta.specifications import unknown_parts
from lightning_meta.tasks import Classification, TasksSpec
from tests.test_cli import MAML

called: list[str] = []


class Width(Enum):
    SMALL = 4


class Scale:
    """A class that is neither a network nor a dataclass."""

    def __init__(self, factor: float = 2.0) -> None:
        self.factor = factor


class Net(nn.Module):
    """A network with a class among its arguments, like those of timm; it does not store them."""

    def __init__(
        self,
        width: int = 4,
        act: type[nn.Module] = nn.ReLU,
        norm: Callable[[int], nn.Module] | None = None,
        scale: Scale | None = None,
    ) -> None:
        super().__init__()
        self.first, self.act = nn.Linear(1, width), act()
        self.norm = nn.Identity() if norm is None else norm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.first(x)))


def small_net(width: int = 4, act: type[nn.Module] = nn.ReLU, body: nn.Module | None = None) -> nn.Module:
    """A function that returns a network, like `torchvision.models.resnet18`."""
    called.append("small_net")
    return nn.Sequential(body or nn.Identity(), Net(width, act))


def not_a_network(path: str) -> str:
    called.append(path)
    return path


def negative(x: float) -> float:
    return -x


class Outer:
    class Inner(Net):
        """A network defined in a class."""

    @classmethod
    def make(cls, width: int = 4) -> nn.Module:
        """Make a network that cannot be described, since a method and not a function makes it."""
        return cls.Inner(width)


def adam(parameters: Any, lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr)


ALLOW = [__name__]


@pytest.mark.parametrize(
    "value",
    [
        nn.Tanh,
        adam,
        functools.partial(adam, lr=0.5),
        functools.partial(nn.LayerNorm, eps=0.5),
        Width.SMALL,
        {"act": [nn.Tanh, None], "norm": functools.partial(nn.BatchNorm1d, momentum=None)},
    ],
)
def test_an_argument_comes_back(value: Any) -> None:
    spec = describe(value)
    assert json.loads(json.dumps(spec)) == spec
    again = build(spec, ALLOW)
    if isinstance(value, functools.partial):
        assert (again.func, again.keywords) == (value.func, value.keywords)
    elif isinstance(value, dict):
        assert again["act"] == tuple(value["act"])
        assert again["norm"].keywords == value["norm"].keywords
    else:
        assert again is value


def test_classes_of_torch_need_no_permission_and_functions_do() -> None:
    assert build(describe(nn.Tanh)) is nn.Tanh
    for value in (adam, Width.SMALL, Net, nn.functional.relu, functools.partial(adam, lr=0.5)):
        with pytest.raises(UserError, match="is not trusted"):
            build(describe(value))
    assert build(describe(adam), [adam]) is adam
    assert build(describe(nn.functional.relu), ["torch.nn.functional"]) is nn.functional.relu


@pytest.mark.parametrize(
    "spec",
    [
        {"function_path": "os.system", "init_args": {"command": "touch exploded"}},
        {"function_path": "torch.nn.init.zeros_", "init_args": {"tensor": 1}},
        {"function_path": "torch.nn.utils.parametrize.cached", "init_args": {}},
        {"function_path": "torch.nn.Linear", "init_args": {"in_features": 1, "out_features": 1}},
        {"import_path": "os.system"},
        {"import_path": "os.system", "init_args": {}},
        {"import_path": "torch.nn.modules.module.OrderedDict"},
        {"import_path": "torch.nn.functional.importlib.import_module"},
        {"import_path": "torch.nn.Parameter"},
        {"import_path": "torch.nn.functional"},
        {"import_path": "torch.nn.ReLU", "member": "__init__"},
        {"class_path": "torch.nn.Identity", "function_path": "os.system"},
        {"class_path": "torch.nn.functional.relu"},
    ],
)
def test_a_stranger_calls_and_names_nothing_else(spec: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        build(spec)


def test_an_allowed_function_is_called_only_if_it_makes_a_network() -> None:
    called.clear()
    with pytest.raises(UserError, match=r"is not a function annotated to return a torch\.nn\.Module"):
        build({"function_path": f"{__name__}.not_a_network", "init_args": {"path": "exploded"}}, ALLOW)
    assert called == []


def test_what_is_passed_on_is_a_part_of_a_model_or_allowed_itself() -> None:
    for value in (Scale, not_a_network):
        for passed in (value, functools.partial(value)):
            with pytest.raises(UserError, match=r"load the checkpoint in Python with load\(\.\.\., allow=\[\w+\]\)"):
                build(describe(passed), [*ALLOW, describe(value)["import_path"]])
        assert build(describe(value), [value]) is value
    for function in (small_net, adam, nn.functional.relu, nn.functional.gelu):
        assert build(describe(function), [*ALLOW, "torch"]) is function


def test_a_network_is_made_anew_with_a_function_among_its_arguments() -> None:
    network = Defaults(f=negative)
    assert fresh(network, 1).f is negative


@pytest.mark.parametrize("name", ["instance", "import_path", "function_path", "class_path", "init_args"])
def test_a_task_may_be_called_as_a_part_of_a_description(name: str, tmp_path: Path) -> None:
    tasks = TasksSpec(
        {name: Classification(2), "b": Classification(2)},
        {name: (4,), "b": (4,)},
        {name: 8, "b": 8},
        input_dtypes={name: "float32"},
    )
    module = lm.MultiHead(lm.nn.MLP(4, (8,)), tasks=tasks)
    module.configure_model()
    spec = {**describe(module), "layout": 2}
    torch.save({"state_dict": module.state_dict(), "lightning_meta": spec}, tmp_path / "a.ckpt")
    assert describe(load(tmp_path / "a.ckpt")) == describe(module)
    options = {"data": {"weights": {name: 1.0, "b": 2.0}}}
    assert list(unknown_parts(options)) == []
    assert [str(d) for d in differences(options, {"data": {"weights": {name: 1.0, "b": 3.0}}})] == [
        "data.weights.b 2.0 -> 3.0"
    ]
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({"data": {"weights": {name: {"a": 1}}}}))
    check_fit_configs([f"--config={tmp_path}/a.yaml"])


def test_a_network_that_a_function_made_is_made_by_it_again() -> None:
    network = small_net(3, nn.Tanh)
    remember(network, {"width": 3, "act": nn.Tanh}, small_net)
    like: Any
    for like in (network, copy.deepcopy(network), build(describe(network), ALLOW), fresh(network, 1)):
        assert like(torch.ones(1, 1)).shape == (1, 3)
        assert isinstance(like[1].act, nn.Tanh)
    assert describe(build(describe(network), ALLOW)) == describe(network)


class Defaults(lm.Described, nn.Module):
    """A network whose defaults have no import path; a rebuilt one uses them again."""

    def __init__(self, f: Callable[[float], float] = lambda x: x + 1, act: nn.Module = nn.ReLU()) -> None:  # noqa: B008
        super().__init__()
        self.f, self.act = f, act


def test_a_default_need_not_be_stored() -> None:
    spec = describe(Defaults())
    assert spec == {"class_path": f"{__name__}.Defaults", "init_args": {}}
    assert build(spec, ALLOW).f(1.0) == 2.0
    assert "f" in describe(Defaults(f=lambda x: x))["init_args"]


# The command line


def write(folder: Path, backbone: dict[str, Any], **arguments: Any) -> Path:
    config = copy.deepcopy(MAML)
    config["model"]["init_args"] |= {"backbone": backbone, **arguments}
    (folder / "own.yaml").write_text(yaml.safe_dump(config))
    return folder / "own.yaml"


LINEAR = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 1, "out_features": 1}}
ONE_TO_ONE = {"class_path": f"{__name__}.small_net", "init_args": {"width": 1, "body": LINEAR}}


def classes_in(run: Path) -> Any:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["lightning_meta"]["init_args"]


@pytest.mark.parametrize(
    "backbone",
    [
        {"class_path": f"{__name__}.small_net", "init_args": {"width": 3, "act": "torch.nn.Tanh"}},
        {"class_path": f"{__name__}.small_net", "init_args": {"body": ONE_TO_ONE}},
        {"class_path": f"{__name__}.Net", "init_args": {"act": "torch.nn.Tanh", "norm": "torch.nn.LayerNorm"}},
        {"class_path": f"{__name__}.Outer.Inner", "init_args": {"width": 3}},
    ],
    ids=["function", "functions", "class", "nested class"],
)
def test_a_run_loads_by_its_path(
    backbone: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--config", str(write(tmp_path, backbone))]) == 0
    run = tmp_path / "runs/own/0"
    called.clear()
    with pytest.raises(UserError, match=rf"{__name__}\.[\w.]+ is not trusted"):
        load(run)
    assert called == []
    again = load(run, allow=ALLOW)
    assert describe(again.backbone) == classes_in(run)["backbone"]
    assert main(["test", f"--ckpt_path={run}", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]) == 2
    assert "give --trust" in capsys.readouterr().err
    options = ["--trust", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    assert main(["test", f"--ckpt_path={run}", *options]) == 0
    first, second = (json.loads((run / at / "results.json").read_text()) for at in (".", "tests/0"))
    assert first["test/mse"] == second["test/mse"]


def test_what_a_checkpoint_cannot_store_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    backbone = {"class_path": f"{__name__}.Net", "init_args": {"scale": {"class_path": f"{__name__}.Scale"}}}
    assert main(["fit", "--config", str(write(tmp_path, backbone))]) == 2
    said = capsys.readouterr().err
    assert f"--model.backbone.scale: a checkpoint cannot store how this {__name__}.Scale was made" in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["Outer.make", "Outer.nothing", "Nothing.make"])
def test_a_network_that_a_method_makes_or_nothing_does_is_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--config", str(write(tmp_path, {"class_path": f"{__name__}.{name}"}))]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


# Python


class Sizes(lm.MAML):
    def __init__(self, backbone: nn.Module, *sizes: int, **options: Any) -> None:
        super().__init__(backbone, **options)


def fit(module: Any) -> None:
    data = lm.EpisodicDataModule(lm.sources.Sinusoid(), shots=5, queries=5, meta_batches_per_epoch=1, val_tasks=2)
    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "accelerator": "cpu"}
    trainer = L.Trainer(max_steps=1, enable_progress_bar=False, enable_model_summary=False, **options)
    trainer.fit(module, datamodule=data)


def test_arguments_without_names_are_refused_when_training_starts() -> None:
    module = Sizes(Net(), 3, 4)
    with pytest.raises(
        UserError,
        match=r"^Sizes takes \*sizes, which a checkpoint cannot store.*pass all its constructor arguments by name",
    ):
        fit(module)
    assert module.global_step == 0


def test_what_load_must_be_given_is_said_when_training_starts(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING"):
        fit(lm.MAML(Net(), optimizer=lambda p: torch.optim.Adam(p)))
    assert f"how backbone ({__name__}.Net) and optimizer ({__name__}." in caplog.text
    assert "load them by load(path, backbone=..., optimizer=...)" in caplog.text
