"""A checkpoint or run directory from a stranger may construct parts of models, and nothing that runs code."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
import time
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import nn

import lightning_meta
import lightning_meta as lm
from lightning_meta.building import build
from lightning_meta.cli import main
from lightning_meta.cli.trust import check_untrusted
from lightning_meta.describing import Described, describe
from lightning_meta.errors import UserError
from lightning_meta.import_paths import TRUSTED, UntrustedClassError
from lightning_meta.meta import ProtoNet
from lightning_meta.nn import MLP
from lightning_meta.run import AtomicCheckpointIO
from lightning_meta.tasks import EpisodeSpec

EVIL = (
    "from pathlib import Path\nPath('exploded').touch()\nclass X:\n    pass\ndef f(*args, **options):\n    return 1\n"
)
DATA = {
    "class_path": "lightning_meta.EpisodicDataModule",
    "init_args": {"source": {"class_path": "lightning_meta.sources.Sinusoid", "init_args": {}}, "test_tasks": 2},
}
BAD_EVENTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect", "exec")
heard: list[str] | None = None


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if heard is not None and (event in BAD_EVENTS[:-1] or (event == "open" and set(str(arguments[1])) & set("wax+"))):
        heard.append(f"{event} {arguments}")


sys.addaudithook(_hear)  # there is no way to take it out


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a module that leaves a trace when it is imported; it is importable as every file here is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    (tmp_path / "evilmod.py").write_text(EVIL)
    yield tmp_path
    sys.modules.pop("evilmod", None)


def exploded() -> bool:
    return Path("exploded").exists() or "evilmod" in sys.modules


def learner() -> Any:
    return ProtoNet(MLP(1, (8,)), episodes=EpisodeSpec("classification", (1,), 5))


def saved(file: Path, spec: Any = None) -> Path:
    module = learner()
    checkpoint = {"state_dict": module.state_dict(), "lightning_meta": spec or describe(module)}
    AtomicCheckpointIO().save_checkpoint(checkpoint, file)
    return file


def run_of(spec: Any = None, config: Any = None) -> Path:
    """A stranger's run directory."""
    saved(Path("evil/0/checkpoints/best.ckpt"), spec)
    content = {"model": spec or describe(learner()), "data": DATA} | (config or {})
    Path("evil/0/config.yaml").write_text(yaml.safe_dump(content))
    return Path("evil/0")


def used(command: str, *options: str) -> int:
    folders = ["--support=.", "--query=."] if command == "predict" else []
    return main([command, "--ckpt_path=evil/0", *folders, *options])


CLI = {"class_path": "lightning_meta.cli.fit.MetaCLI", "init_args": {"args": ["--model=evilmod.X"]}}
FOREIGN = [
    CLI,
    {"class_path": "lightning_meta.run.RunLogger", "init_args": {"save_dir": "exploded"}},
    {"class_path": "lightning_meta.sources.Table", "init_args": {"path": "evilmod.py", "targets": {}}},
    {"class_path": "lightning_meta.testing.toys.ToyNet", "init_args": {}},
    {"class_path": "evilmod.X", "init_args": {}},
    {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "exploded"]}},
]


@pytest.mark.parametrize("where", ["class", "backbone", "deep"])
@pytest.mark.parametrize("hostile", FOREIGN, ids=lambda spec: spec["class_path"])
@pytest.mark.parametrize("command", ["load", "predict", "test"])
def test_no_foreign_class_is_built(
    command: str, hostile: dict[str, Any], where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = describe(learner())
    if where == "class":
        spec = hostile
    else:
        spec["init_args"]["backbone"] = hostile if where == "backbone" else {"a": [hostile]}
    run = run_of(spec)
    if command == "load":
        with pytest.raises(UntrustedClassError, match="is not trusted"):
            lightning_meta.load(run)
    else:
        assert used(command) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert f"the class {hostile['class_path']} is not one of lightning_meta's; give --trust" in said
    assert not exploded()


@pytest.mark.parametrize(
    "path",
    [
        "lightning_meta.meta.predictor.Predictor",  # of this package, and no part of a model
        "lightning_meta.GradientConflict",
        "lightning_meta.multitask.gradient_conflict.Callback",  # imported there from elsewhere
        "lightning_meta.meta.export.Path",
        "lightning_meta.meta.base.torch",  # no classes
        "lightning_meta.meta.base.torch.load",
        "lightning_meta.meta.base.LightningModule.load_from_checkpoint",
        "torch.nn.modules.module.OrderedDict",
        "torch.nn.modules.container.abc.Mapping",
        "torch.nn.parallel.distributed.os.system",
        "torch.nn.functional.importlib.import_module",
        "torch.nn.quantized.Linear",
        "torch.nn.Parameter",
        "torch.optim.lr_scheduler.partial",
        "torch.optim.Optimizer.__init__",
        "torch.nn..Linear",
        "torch.nn.",
    ],
)
def test_nothing_but_parts_of_models_is_reached_in_trusted_rooms(path: str) -> None:
    with pytest.raises(UserError):
        build({"class_path": path, "init_args": {}})


def classes() -> list[str]:
    """The paths of all classes that the modules of the trusted rooms hold or have imported."""
    found = {f"lightning_meta.{name}" for name in dir(lm) if isinstance(getattr(lm, name), type)}
    for room in TRUSTED:
        parent, _, last = room.rpartition(".")
        if isinstance(getattr(importlib.import_module(parent or room), last, None), type):
            found.add(room)  # a single class
            continue
        module = importlib.import_module(room)
        names = [room, *(m.name for m in pkgutil.walk_packages(getattr(module, "__path__", []), room + "."))]
        for name in names:
            members = vars(importlib.import_module(name))
            found |= {f"{name}.{key}" for key, value in members.items() if isinstance(value, type)}
    return sorted(found)


ARGUMENTS: list[Any] = [
    "evilmod.f",
    "evilmod.py",
    "exploded",
    7,
    {"class_path": "torch.nn.Linear", "init_args": {"in_features": 2, "out_features": 2}},
    {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}},
]


@pytest.mark.filterwarnings("ignore")
def test_no_class_of_the_trusted_rooms_does_harm_whatever_its_arguments() -> None:
    global heard
    warnings.simplefilter("ignore")
    paths = classes()
    built = 0
    heard = []
    try:
        for path in paths:
            module, _, name = path.rpartition(".")
            try:
                names = list(inspect.signature(getattr(importlib.import_module(module), name)).parameters)
            except (TypeError, ValueError):
                names = []
            for value in ARGUMENTS:
                for given in (
                    {n: value for n in names if n not in ("args", "kwargs")},
                    dict.fromkeys(names[:1], value),
                ):
                    try:
                        made = build({"class_path": path, "init_args": given})
                    except UserError:
                        continue
                    built += 1
                    assert isinstance(made, nn.Module | Described | partial) or is_dataclass(made)
    finally:
        quiet, heard = heard, None
    print(f"\n{len(paths)} classes, {built} objects")
    assert built > 100
    assert quiet == []
    assert not exploded()


@pytest.mark.parametrize("schedule", ["LambdaLR", "MultiplicativeLR"])
def test_a_function_of_a_schedule_is_no_text(schedule: str) -> None:
    spec = describe(learner())
    path = f"torch.optim.lr_scheduler.{schedule}"
    spec["init_args"]["lr_scheduler"] = {"class_path": path, "init_args": {"lr_lambda": "evilmod.f"}}
    module = lightning_meta.load(saved(Path("a.ckpt"), spec))
    with pytest.raises(UserError):
        module.configure_optimizers()
    assert not exploded()


DEEP = "what becomes a deep list"


def nest_deeply(file: Path, depth: int) -> None:
    """Replace `DEEP` in a checkpoint by lists within lists; Python's own pickler recurses and writes none so deep."""
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    text = b"X" + len(DEEP).to_bytes(4, "little") + DEEP.encode()  # BINUNICODE
    lists = b"]" * depth + b"K\x01" + b"a" * depth  # EMPTY_LIST, BININT1, APPEND
    assert sum(content.count(text) for content in parts.values()) == 1
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content.replace(text, lists))


def halves() -> Any:
    """A list of two, each of two and so on: 2^60 values in a file of a few lines."""
    spec: Any = 1
    for _ in range(60):
        spec = [spec, spec]
    return spec


def ring() -> Any:
    spec: dict[str, Any] = {}
    spec["a"] = spec
    return spec


MISSHAPEN: dict[str, Any] = {
    "init_args": [1],
    "number": {"a": {"class_path": "torch.nn.Linear", "init_args": 3}},
    "names": {"a": {"class_path": "torch.nn.Linear", "init_args": {1: 2}}},
    "deep": {"backbone": DEEP},
    "halves": {"backbone": halves()},
    "ring": {"backbone": ring()},
    "too large": {
        "backbone": {"class_path": "torch.nn.Linear", "init_args": {"in_features": 2**60, "out_features": 9}}
    },
    "negative": {"backbone": {"class_path": "torch.nn.Linear", "init_args": {"in_features": -2, "out_features": 9}}},
}
TOO_MUCH = {"deep": "levels deep, or hold themselves", "ring": "hold themselves", "halves": "to the same ones"}


@pytest.mark.parametrize("trust", [(), ("--trust",)], ids=["", "trusted"])
@pytest.mark.parametrize("kind", MISSHAPEN)
def test_a_misshapen_checkpoint_is_one_line(kind: str, trust: tuple[str], capsys: pytest.CaptureFixture[str]) -> None:
    run_of()
    spec = {"class_path": "lightning_meta.meta.protonet.ProtoNet", "init_args": MISSHAPEN[kind]}
    file = saved(Path("evil/0/checkpoints/best.ckpt"), spec)
    if kind == "deep":
        nest_deeply(file, 5000)
    assert used("predict", *trust) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("lightning-meta: error: evil/0/checkpoints/best.ckpt")
    if kind in TOO_MUCH:
        assert said.endswith(f"{TOO_MUCH[kind]}\n")


def test_trust_builds_modules_only(capsys: pytest.CaptureFixture[str]) -> None:
    run_of(FOREIGN[-1])
    assert used("predict", "--trust") == 2
    assert "subprocess.Popen is not a part of a model" in capsys.readouterr().err
    assert not exploded()


USERS = """
from torch import nn
from lightning_meta.describing import Described


class Net(Described, nn.Module):
    def __init__(self, act=nn.ReLU):
        super().__init__()
        self.layer, self.act = nn.Linear(1, 8), act(["touch", "exploded"])
"""
COMMANDS: list[Any] = [
    {"import_path": "subprocess.Popen", "init_args": {"args": ["touch", "exploded"]}},
    {"import_path": "subprocess.Popen"},
    {"import_path": "subprocess.check_call", "init_args": {"args": ["touch", "exploded"]}},
    {"import_path": "subprocess.check_call"},
]


@pytest.mark.parametrize("act", COMMANDS, ids=str)
@pytest.mark.parametrize("where", ["class", "function"])
def test_trust_passes_no_command_on_to_what_calls_its_arguments(
    where: str, act: Any, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    making = "def make(act=nn.ReLU) -> nn.Module:\n    return Net(act)\n"
    (here / "users_net.py").write_text(f"{USERS}\n\n{making}")
    spec = describe(learner())
    path = {"class_path": "users_net.Net"} if where == "class" else {"function_path": "users_net.make"}
    # The path below the command makes `--trust` allow the command as if it were a module.
    below = {"import_path": f"{act['import_path']}.__init__"}
    spec["init_args"] |= {"backbone": {**path, "init_args": {"act": act}}, "more": below}
    run = run_of(spec)
    for _ in range(2):
        assert used("predict", "--trust") == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert f"{act['import_path']} is neither a part of a model nor a function annotated to return one" in said
        with pytest.raises(UserError, match="neither a part of a model nor"):
            lightning_meta.load(run, allow=["users_net", "subprocess"])
        del spec["init_args"]["more"]
        saved(run / "checkpoints/best.ckpt", spec)
        spec["init_args"]["more"] = below
    time.sleep(0.2)  # a command that was started would have left its file
    assert not exploded()
    sys.modules.pop("users_net", None)


def with_source(source: Any) -> dict[str, Any]:
    return {"data": {"class_path": DATA["class_path"], "init_args": {"source": source}}}


HOSTILE_DATA: dict[str, dict[str, Any]] = {
    "class": with_source({"class_path": "evilmod.X"}),
    "text": with_source("evilmod.X"),
    "json": with_source('{"class_path": "evilmod.X"}'),
    "file": with_source("evil.yaml"),
    "data": {"data": {"class_path": "evilmod.X"}},
    "data file": {"data": "evil.yaml"},
    "argument": with_source({"class_path": "lightning_meta.sources.FromDataset", "init_args": {"train": "evilmod.f"}}),
    "dotted key": {"data": {**DATA, "init_args.source": "evilmod.X"}},
    "dotted argument": {"data": {**DATA, "init_args": {"source.class_path": "evilmod.X"}}},
    "dictionary": {"data": {**DATA, "dict_kwargs": {"source": "evilmod.X"}}},
    "imported there": with_source(
        {"class_path": "lightning_meta.data.files.zipfile.ZipFile", "init_args": {"file": "a"}}
    ),
    "from elsewhere": with_source({"class_path": "lightning_meta.data.cache.Path", "init_args": {}}),
    "exception": with_source({"class_path": "lightning_meta.data.files.WrongContentError", "init_args": {"root": "a"}}),
    "precision": {"trainer": {"precision": {"class_path": "evilmod.X"}}},
    "precision as json": {"trainer": {"precision": '{"class_path": "evilmod.X"}'}},
    "precision in a file": {"trainer": {"precision": "sneaky"}},
    "seed": {"seed_everything": {"class_path": "evilmod.X"}},
}


@pytest.mark.parametrize("kind", HOSTILE_DATA)
def test_no_foreign_class_is_imported_for_the_data(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    run_of(config=HOSTILE_DATA[kind])
    for name in ("evil.yaml", "sneaky"):
        Path(name).write_text("class_path: evilmod.X\n")
    assert used("test") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "give --trust if the run is yours" in said or "expected a configuration" in said
    assert not exploded()


@pytest.mark.parametrize("option", ["strategy", "accelerator", "devices", "plugins"])
def test_what_says_where_to_run_is_not_taken_from_a_stranger(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    run_of(config={"trainer": {option: {"class_path": "evilmod.X"}}})
    assert used("test") == 2  # for the data are not of the model's kind
    assert "ProtoNet was made for task classification" in capsys.readouterr().err
    assert not exploded()


BOMB = "\n".join(["a0: &a0 x", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30))])


@pytest.mark.parametrize(
    "content",
    [
        "[1, 2",
        "- a",
        "3",
        "",
        "data: 3",
        "trainer: [1]",
        "when: 2001-99-99",
        "1: 2",
        "&a {data: *a}",
        BOMB,
        "\xff",
        "\0",
    ],
)
def test_a_damaged_configuration_is_one_line(content: str, capsys: pytest.CaptureFixture[str]) -> None:
    run_of()
    Path("evil/0/config.yaml").write_bytes(content.encode("latin-1"))
    for trust in ((), ("--trust",)):
        assert used("test", *trust) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert said.startswith(f"lightning-meta: error: {'evil/0/config.yaml' if not trust else ''}")


OWN = """
from lightning_meta.sources import {source} as Base
from lightning_meta.meta import ProtoNet


class Method(ProtoNet):
    pass


class Source(Base):
    pass
"""


def test_a_method_of_the_users_own_is_tested_by_those_who_trust_it(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "users_file.py").write_text(OWN.format(source="Glyphs"))
    options = [
        *("--model=users_file.Method", "--model.backbone=Conv4", "--model.backbone.in_channels=1"),
        *("--model.backbone.width=4", "--data=EpisodicDataModule", "--data.source=users_file.Source"),
        *("--data.queries=2", "--data.val_tasks=2", "--data.test_tasks=2", "--trainer.max_steps=1", "--name=mine"),
        *("--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu", "--trainer.devices=1"),
    ]
    assert main(["fit", *options]) == 0
    test = ["test", "--ckpt_path=runs/mine/0", "--trainer.enable_progress_bar=false"]
    capsys.readouterr()
    assert main(test) == 2
    said = capsys.readouterr().err
    assert "names the class users_file.Source" in said
    assert "give --trust if the run is yours" in said
    assert main([*test, "--config=runs/mine/0/config.yaml"]) == 2  # trusts the data, which it names, not the model
    assert "the class users_file.Method is not one of lightning_meta's; give --trust" in capsys.readouterr().err
    assert main([*test, "--trust"]) == 0
    assert main(["test", "--ckpt_path=runs/mine/0/tests/0", "--trust"]) == 2  # holds no checkpoint
    predict = ["predict", "--ckpt_path=runs/mine/0", "--support=nowhere", "--query=nowhere"]
    capsys.readouterr()
    assert main(predict) == 2
    assert "users_file.Method is not one of lightning_meta's; give --trust" in capsys.readouterr().err
    assert main([*predict, "--trust"]) == 2
    assert "nowhere: there is no such folder" in capsys.readouterr().err
    sys.modules.pop("users_file", None)


@pytest.mark.parametrize(
    ("command", "options", "searched"),
    [
        ("fit", (), True),
        ("predict", (), False),
        ("test", (), False),
        ("test", ("--trust",), True),
        ("test", ("--config=mine.yaml",), True),
    ],
)
def test_modules_beside_a_strangers_run_are_not_found(
    command: str, options: tuple[str, ...], searched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder with a checkpoint of `GBML` and a `learn2learn.py`, where learn2learn is not installed."""
    here = str(Path.cwd())
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", here)])
    assert main([command, *options]) == 2
    assert (here in sys.path) == searched


@pytest.mark.parametrize("form", ["mapping", "class_path"])
@pytest.mark.parametrize("metric", ["evil.Metric", "torchmetrics.utilities.Metric"])
def test_a_metric_that_a_strangers_table_names_is_refused(form: str, metric: str) -> None:
    def stored(metric: str) -> dict[str, Any]:
        target: dict[str, Any] = {"kind": "binary", "metric": metric}
        if form == "class_path":
            target = {"class_path": "lightning_meta.sources.Target", "init_args": target}
        source = {
            "class_path": "lightning_meta.sources.Table",
            "init_args": {"path": "t.csv", "targets": {"y": target}},
        }
        data = {"class_path": "lightning_meta.MultiTaskDataModule", "init_args": {"source": source}}
        return {"data": data, "trainer": {}}

    with pytest.raises(UserError, match=rf"names the metric {metric}, .*--trust"):
        check_untrusted(stored(metric), Path("config.yaml"))
    for known in ("auroc", "torchmetrics.classification.BinaryCohenKappa"):
        check_untrusted(stored(known), Path("config.yaml"))
