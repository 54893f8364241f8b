"""Counts, ranges and names that cannot be: one line before training, told as options or as arguments."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from make_tables import MULTI_TASK
from torch import nn

from lightning_meta import UserError
from lightning_meta.cli import main
from lightning_meta.cli.options import Place, as_options
from lightning_meta.data import EpisodeDataset, EpisodicDataModule, MultiTaskDataModule
from lightning_meta.data.episodes import EpisodeShape
from lightning_meta.data.loader import check_shared
from lightning_meta.describing import fixed_options
from lightning_meta.meta import MAML, Baseline, ProtoNet
from lightning_meta.multitask import MultiHead
from lightning_meta.nn import MLP, Conv4, LeNet, ResNet12
from lightning_meta.pictures import EpisodeGrid
from lightning_meta.run import RunCheckpoint, RunLogger
from lightning_meta.sources import Parkinsons, Sinusoid
from lightning_meta.tasks import Regression
from tests.test_cli import MAML as CONFIG

DATA, MODEL, TRAINER = "data.init_args.", "model.init_args.", "trainer."
SIZES = {"shots", "queries", "meta_batch_size", "meta_batches_per_epoch", "val_tasks", "test_tasks"}
AT_LEAST_ONE = {
    *(f"{DATA}{name}" for name in SIZES | {"test_shots", "test_queries", "evaluation_meta_batch_size"}),
    *(f"{TRAINER}{name}" for name in ("max_epochs", "num_nodes", "check_val_every_n_epoch")),
    *(f"{TRAINER}{name}" for name in ("accumulate_grad_batches", "limit_train_batches", "val_check_interval")),
    "checkpoint.every_n_steps",
}
AT_LEAST_ZERO = {
    *(f"{DATA}num_workers", f"{MODEL}inner_steps", f"{MODEL}test_inner_steps", "seed_everything"),
    *(f"{TRAINER}{name}" for name in ("max_steps", "min_steps", "min_epochs", "log_every_n_steps")),
    *(f"{TRAINER}{name}" for name in ("limit_val_batches", "limit_test_batches", "gradient_clip_val")),
}
CASES = {
    **{f"{name}=0": f"--{name}" for name in AT_LEAST_ONE},
    **{f"{name}=-3": f"--{name}" for name in AT_LEAST_ONE | AT_LEAST_ZERO},
    f"{DATA}shots=[5, 1]": f"--{DATA}shots: a number from 1 up, or a rising pair",
    f"{MODEL}backbone.init_args.hidden=[0]": f"--{MODEL}backbone.hidden: whole numbers of at least 1 are needed",
    f"{TRAINER}val_check_interval=5": f"--{TRAINER}val_check_interval: an epoch has 4 batches",
    f"{TRAINER}val_check_interval=1.5": f"--{TRAINER}val_check_interval: a whole number",
    f"{TRAINER}check_val_every_n_epoch=3": f"--{TRAINER}check_val_every_n_epoch: training ends after 2 epochs",
    f"{TRAINER}limit_val_batches=0": "--checkpoint.monitor null",
    f"{TRAINER}min_steps=100": f"--{TRAINER}min_steps: 100 is more than",
    f"{TRAINER}devices=3": f"--{DATA}meta_batch_size: 4 tasks cannot be shared evenly by 3 ranks; use a multiple of 3",
    "runs=": "--runs: name a folder",
}
NAMES = [
    "",
    " ",
    ".",
    "..",
    "../x",
    "a/b",
    "/abs",
    "a\\b",
    "a\tb",
    "a\x1b[2J",
    "x" * 200,
    "é" * 100,
    "CON",
    "nul.txt",
    "x.",
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("maml.yaml").write_text(yaml.safe_dump(CONFIG))
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    """The one line of a refusal, which leaves nothing behind."""
    before = sorted(Path().rglob("*"))
    assert main([*command]) == 2
    said = capsys.readouterr().err
    assert said.startswith("lightning-meta: error: ")  # nothing was said before it: no step was taken
    assert said.count("\n") == 1
    assert sorted(Path().rglob("*")) == before
    return said


@pytest.mark.parametrize("option", sorted(CASES))
def test_a_command_tells_of_its_option(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert CASES[option].replace(".init_args", "") in refused(capsys, "fit", "--config=maml.yaml", f"--{option}")


def test_the_test_command_tells_of_its_own_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", "maml.yaml"]) == 0
    capsys.readouterr()
    for option in (
        "--ways=1",
        "--shots=0",
        "--queries=-1",
        "--tasks=0",
        "--steps=-1",
        "--trainer.limit_test_batches=0",
    ):
        said = refused(capsys, "test", "--ckpt_path=runs/maml/0", option)
        assert f"{option.partition('=')[0]}: " in said


def test_without_validation_the_last_checkpoint_is_tested_when_nothing_is_monitored() -> None:
    assert main(["fit", "--config=maml.yaml", "--trainer.limit_val_batches=0", "--checkpoint.monitor=null"]) == 0
    assert sorted(f.name for f in Path("runs/maml/0/checkpoints").iterdir()) == ["last.ckpt"]


def test_an_interval_over_epochs_is_no_mistake() -> None:
    steps = ["--trainer.val_check_interval=5", "--trainer.check_val_every_n_epoch=null"]
    assert main(["fit", "--config=maml.yaml", *steps]) == 0
    assert Path("runs/maml/0/checkpoints/best.ckpt").is_file()


MAKERS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "episodes": (EpisodicDataModule, dict.fromkeys([*SIZES, "ways", "test_shots", "test_queries"], (0, -1, 2.5, "4"))),
    "batches": (MultiTaskDataModule, dict.fromkeys(("batch_size", "train_subset", "batches_per_epoch"), (0, -1, 2.5))),
    "MAML": (MAML, {"inner_steps": (-1, 0.5), "test_inner_steps": (-1,), "inner_lr": (0, -1, float("nan"))}),
    "ProtoNet": (ProtoNet, {"temperature": (0, float("nan"))}),
    "Baseline": (Baseline, {"head_steps": (-1,), "head_lr": (0,), "scale": (float("inf"),), "weight_decay": (-1,)}),
    **{
        method.__name__: (method, {"head_hidden": ((0,), (-1,)), "head_dropout": (-0.1, 1, float("nan"))})
        for method in MULTI_TASK
        if "head_hidden" not in fixed_options(method)
    },
    "MLP": (MLP, {"in_features": (0, -1), "hidden": ((0,), (4, -1))}),
    "Conv4": (Conv4, dict.fromkeys(("in_channels", "width", "blocks"), (0, -1, 1.5))),
    "LeNet": (LeNet, {"in_channels": (0,), "features": (-1,), "dropout": (1.0, float("nan"))}),
    "ResNet12": (ResNet12, {"in_channels": (0,), "widths": ((), (0,)), "dropout": (-1,)}),
    "EpisodeGrid": (EpisodeGrid, dict.fromkeys(("shots", "queries", "ways"), (0, -1))),
    "Regression": (Regression, {"outputs": (-1,)}),
}


@pytest.mark.parametrize("case", MAKERS)
def test_python_is_told_of_the_argument(case: str) -> None:
    make, wrong = MAKERS[case]
    first = {"episodes": Sinusoid, "batches": Parkinsons}.get(case)
    needs = [first()] if first else [MLP(4, (8,))] if isinstance(make, type) and hasattr(make, "training_step") else []
    for name, values in wrong.items():
        for value in values:
            with pytest.raises(UserError, match=rf"^{name}: .*got"):
                make(*needs, **{name: value})


def test_episodes_by_themselves() -> None:
    with pytest.raises(UserError, match=r"^meta_batch_size: at least 1"):
        EpisodeDataset(Sinusoid(), "train", EpisodeShape(0, 1, 1), 0, 1, 0)


@pytest.mark.parametrize(("tasks", "ranks", "fewer"), [(1, 4, "(1)"), (32, 5, "(1 or 2 or 4)"), (25, 4, "(1)")])
def test_a_meta_batch_that_ranks_cannot_share_names_numbers_that_can(tasks: int, ranks: int, fewer: str) -> None:
    with pytest.raises(UserError, match=r"^meta_batch_size: ") as error:
        check_shared(tasks, ranks)
    assert fewer in str(error.value)
    check_shared(ranks * tasks, ranks)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("command", ["fit", "sweep", "ladder"])
def test_a_name_is_one_folder_within_that_of_runs(
    name: str, command: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = {"fit": "maml.yaml", "sweep": "sweep.yaml", "ladder": "ladder.yaml"}[command]
    Path("sweep.yaml").write_text(
        "method: random\nmetric: {name: val/mse, goal: minimize}\n"
        "parameters: {model.init_args.inner_lr: {min: 0.1, max: 0.2}}\n"
        "command: [python, '${program}', --config=maml.yaml, '${args}']\n"
    )
    Path("ladder.yaml").write_text("rungs: {}\n")
    trials = ["--trials=1"] if command == "sweep" else []
    assert "--name: " in refused(capsys, command, f"--config={file}", *trials, f"--name={name}")
    with pytest.raises(UserError, match=r"^name: "):
        RunLogger(folder, name)


def test_a_rung_is_one_folder_too(capsys: pytest.CaptureFixture[str]) -> None:
    for rung in ("con", "a.", "x" * 200):
        Path("ladder.yaml").write_text(yaml.safe_dump({"seeds": [1], "baseline": rung, "rungs": {rung: {}}}))
        assert "ladder.yaml, rungs: " in refused(capsys, "ladder", "--config=ladder.yaml")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MAML(MLP(4), first_order="no"), "first_order: True or False is needed, got 'no'"),  # type: ignore[arg-type]
        (lambda: MAML(MLP(4), inner_steps=None), "inner_steps: a value is needed, got None"),  # type: ignore[arg-type]
        (lambda: MAML(MLP(4), inner_parameters=3), "inner_parameters: a name or a list of names is needed, got 3"),  # type: ignore[arg-type]
        (lambda: MAML(MLP(4), inner_parameters=[]), "inner_parameters: a name or a list of names is needed, got []"),
        (lambda: ProtoNet(MLP(4), compile=1), "compile: True or False is needed, got 1"),
        (lambda: MAML(MLP(4), inner_step=3), "inner_step: there is no such option of MAML; did you mean inner_steps"),
        (lambda: MultiHead(MLP(4), weights=None), "weights: there is no such option of MultiHead"),
        (lambda: MAML(MLP(4), inner_learning_rate=0.1), "there is no such option of MAML; did you mean inner_lr"),
        (lambda: MAML(MLP(4), lerning_rate=0.1), "of MAML; options of the optimizer belong to it: optimizer=partial("),
        (lambda: EpisodicDataModule(Sinusoid(), shot=1), "such option of EpisodicDataModule; did you mean shots"),  # type: ignore[call-arg]
        (lambda: MLP(4, hiden=(3,)), "hiden: there is no such option of MLP; did you mean hidden"),  # type: ignore[call-arg]
        (lambda: RunCheckpoint(monitor=3), "checkpoint.monitor: a str is needed, got int '3'"),  # type: ignore[arg-type]
        (lambda: RunCheckpoint(mode="foo"), "checkpoint.mode: expected 'max' or 'min', got 'foo'"),  # type: ignore[arg-type]
        (lambda: RunCheckpoint(every_n_steps="5"), "checkpoint.every_n_steps: a whole number"),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_a_wrong_argument_in_python_is_one_line(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        make()


def test_a_constructor_that_forgets_its_base_is_one_line() -> None:
    class Forgets(ProtoNet):
        def __init__(self, backbone: nn.Module) -> None:
            pass

    with pytest.raises(UserError, match=r"Forgets: its constructor must call super\(\).__init__\(\)"):
        Forgets(MLP(4))


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("x.csv: one column; give delimiter=';'", "x.csv: one column; give --data.source.delimiter ';'"),
        (r"x.csv: one column; give delimiter='\t'", r"x.csv: one column; give --data.source.delimiter $'\t'"),
        ("inner_lr: set first_order=True", "--model.inner_lr: set --model.first_order true"),
        ("use num_workers=0 or pool_on=cpu", "use --data.num_workers 0 or --data.pool_on cpu"),
        ("seed: give nothing=1, got delimiter=3", "seed: give nothing=1, got delimiter=3"),
    ],
)
def test_suggestions_name_options(said: str, expected: str) -> None:
    places = [
        Place("model", "MAML", {"inner_lr": 0.1, "first_order": False}),
        Place("data", "EpisodicDataModule", {"num_workers": 2, "pool_on": None}),
        Place("data.source", "Table", {"delimiter": None}),
    ]
    assert as_options(said, places) == expected
