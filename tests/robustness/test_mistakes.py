"""Mistakes that users make, on purpose: one line that names the option and says what to do, and no debris."""

# mypy: disable-error-code=arg-type
# wrong types are the point
from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch.utils.data import DataLoader, TensorDataset

from lightning_meta.cli import main
from lightning_meta.data import EpisodicDataModule, MultiTaskDataModule
from lightning_meta.errors import UserError
from lightning_meta.meta import MAML, Baseline, ProtoNet
from lightning_meta.multitask import MultiHead
from lightning_meta.nn import MLP, Conv4, LeNet, ResNet12
from lightning_meta.sources import Glyphs, ImageFolder, Sinusoid, Table
from lightning_meta.tasks import EpisodeSpec
from tests.robustness.mistake_inputs import write_inputs

M, T, I = (["fit", "--config", f"{name}.yaml"] for name in ("maml", "table", "images"))  # noqa: E741
HELP = "lightning-meta fit --help"


def config(file: str) -> list[str]:
    return ["fit", "--config", file]


# By name: the command, and what its line must hold: the option, and the way out.
MISTAKES: dict[str, tuple[list[str], tuple[str, ...]]] = {
    # Files
    "tabs in YAML": (config("tabs.yaml"), ("--config: tabs.yaml, line 2", "indent by spaces")),
    "a wrong indentation": (config("indent.yaml"), ("--config: indent.yaml, line 3", "check the indentation")),
    "an argument beside class_path": (config("beside.yaml"), ("inner_lr is beside", "move it below init_args")),
    "a callback without init_args": (
        config("flat.yaml"),
        ("--trainer.callbacks: monitor is beside", "move it below init_args"),
    ),
    "a section twice": (config("twice.yaml"), ("trainer is already set in line", "merge the two")),
    "an argument twice": (config("twice_inside.yaml"), ("inner_steps is already set in line", "merge")),
    "an empty file": (
        config("empty.yaml"),
        ("--config: empty.yaml is not a configuration", "expected options by name"),
    ),
    "a list": (config("list.yaml"), ("--config: list.yaml is not a configuration", "expected options by name")),
    "a program": (config("train.py"), ("--config: train.py is not a configuration",)),
    "JSON cut off": (config("broken.json"), ("--config: broken.json, line", "brackets")),
    "an archive": (config("config.zip"), ("--config: config.zip is not UTF-8 text", "name a YAML file")),
    "a folder": (config("pets"), ("--config: pets is a folder", "name a file in it")),
    "a file that is not there": (config("nope.yaml"), ("--config: there is no file", "nope.yaml")),
    "a ladder in fit": (config("ladder.yaml"), ("is a ladder", "lightning-meta ladder --config ladder.yaml")),
    "a sweep in fit": (config("sweep.yaml"), ("is a sweep", "lightning-meta sweep --config sweep.yaml")),
    "fit's file in ladder": (["ladder", "--config", "maml.yaml"], ("--config: maml.yaml is not a ladder", "fit")),
    "a key twice in a ladder": (["ladder", "--config", "ladder_twice.yaml"], ("rungs is already set in line 1",)),
    "a key twice in a sweep": (["sweep", "--config", "sweep_twice.yaml"], ("parameters is already set in line 2",)),
    "a folder for a sweep": (["sweep", "--config", "pets"], ("--config: pets is a folder", "name a file in it")),
    "a folder for a ladder": (["ladder", "--config", "pets"], ("--config: pets is a folder", "name a file in it")),
    # What is missing
    "stopping without a monitor": (
        [*M, "--trainer.callbacks=EarlyStopping"],
        ("--trainer.callbacks: EarlyStopping: monitor is required", "give --trainer.callbacks.monitor"),
    ),
    "stopping without a monitor in a list": (
        config("stopping.yaml"),
        ("EarlyStopping: monitor is required", "init_args"),
    ),
    "a schedule without its steps": (
        [*M, "--model.lr_scheduler=torch.optim.lr_scheduler.StepLR"],
        ("--model.lr_scheduler: StepLR: step_size is required", "give --model.lr_scheduler.step_size"),
    ),
    "a schedule without its length": (config("cosine.yaml"), ("CosineAnnealingLR: T_max is required", "init_args")),
    "no backbone": (config("no_backbone.yaml"), ("MAML: backbone is required", "give --model.backbone")),
    "no source": (config("no_source.yaml"), ("EpisodicDataModule: source is required", "give --data.source")),
    "a section that is a number": (config("a_number.yaml"), ("trainer: expected options by name, got 5",)),
    "an empty section": (config("empty_section.yaml"), ("checkpoint: expected options by name, got null",)),
    "no data": (config("no_data.yaml"), ("--data must be given",)),
    "no targets": (config("no_targets.yaml"), ("Table: targets is required", "give --data.source.targets")),
    "no folder of images": (config("no_root.yaml"), ("ImageFolder: root is required", "give --data.source.root")),
    "a layer without its width": (
        config("no_width.yaml"),
        ("--model.backbone: Linear: out_features is required", "give --model.backbone.out_features"),
    ),
    "weights without values": (
        [*T, "--model.weighting=Fixed"],
        ("Fixed: weights is required", "give --model.weighting.weights"),
    ),
    "a logger without a folder": (
        [*M, "--trainer.logger=CSVLogger"],
        ("CSVLogger: save_dir is required", "give --trainer.logger.save_dir"),
    ),
    "an option without a value": ([*M, "--trainer.max_steps"], ("--trainer.max_steps: a value is missing", HELP)),
    "no runs to compare": (["compare"], ("RUN and --baseline must be given",)),
    "no runs to draw": (["curves"], ("RUN must be given",)),
    # Names
    "a command misspelt": (["fti", "--config", "maml.yaml"], ("there is no command fti", "did you mean fit?")),
    "no such command": (["train"], ("there is no command train", "expected fit, test")),
    "a Trainer option alone": ([*M, "--max_steps=3"], ("--max_steps", "did you mean --trainer.max_steps?")),
    "a dash too few": ([*M, "-trainer.max_steps=3"], ("did you mean --trainer.max_steps?",)),
    "a dash of a word processor": ([*M, "\u2014trainer.max_steps=3"], ("did you mean --trainer.max_steps?",)),
    "an option of another method": (
        [*I, "--model.inner_steps=3"],
        ("--model.inner_steps: there is no such option of ProtoNet", "--model.help ProtoNet lists them"),
    ),
    "a callback's option misspelt": (
        [*M, "--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitr=val/mse"],
        ("--trainer.callbacks.monitr: there is no such option of EarlyStopping", "did you mean monitor?"),
    ),
    "a callback misspelt": ([*M, "--trainer.callbacks=EarlyStoping"], ("--trainer.callbacks", "EarlyStopping?")),
    "a logger by its package": ([*M, "--trainer.logger=tensorboard"], ("--trainer.logger", "TensorBoardLogger?")),
    "a class of torch": ([*M, "--model.optimizer=Adamm"], ("--model.optimizer: there is no class Adamm", "mean Adam?")),
    "a class path of torch": (
        [*M, "--model.optimizer=torch.optim.Adamm"],
        ("--model.optimizer: there is no class torch.optim.Adamm", "did you mean Adam?"),
    ),
    "an option of the optimiser": (
        [*M, "--model.optimizer=SGD", "--model.optimizer.momentm=0.9"],
        ("--model.optimizer.momentm: there is no such option of SGD", "did you mean momentum?"),
    ),
    "an option of the schedule": (
        [*M, "--model.lr_scheduler=StepLR", "--model.lr_scheduler.size=3"],
        ("--model.lr_scheduler.size: there is no such option of StepLR", "did you mean step_size?"),
    ),
    "a class in small letters": ([*M, "--model=maml"], ("--model: there is no class maml", "did you mean MAML?")),
    "a class path misspelt": ([*M, "--model=lightning_meta.meta.Maml"], ("--model", "did you mean MAML?")),
    "a backbone for a model": (
        [*M, "--model=Conv4"],
        ("--model: there is no class Conv4 here; expected a LightningModule", HELP),
    ),
    "a source for data": ([*M, "--data=Sinusoid"], ("--data", "expected a LightningDataModule", HELP)),
    "an argument of no class": (
        [*M, "--trainer.logger.name=icons"],
        (
            "--trainer.logger: name is an argument of a class",
            "give --trainer.logger CLASS before --trainer.logger.name",
        ),
    ),
    "an abstract class": ([*M, "--model=MetaModule"], ("--model: MetaModule is an abstract class", "subclasses")),
    "a function for a model": ([*M, "--model=os.getcwd"], ("--model: expected LightningModule", "os.getcwd", HELP)),
    "a layer for a callback": ([*M, "--trainer.callbacks=torch.nn.Linear"], ("--trainer.callbacks: expected", HELP)),
    "a module misspelt": ([*M, "--model=lightning_metas.meta.MAML"], ("--model", "lightning_metas", "PYTHONPATH")),
    # Values
    "a negative rate": ([*M, "--model.inner_lr=-1"], ("--model.inner_lr: a positive number is needed, got -1",)),
    "a word for a number": ([*M, "--model.inner_lr=fast"], ("--model.inner_lr: expected float, got fast",)),
    "a fraction of a step": ([*M, "--trainer.max_steps=2.5"], ("--trainer.max_steps: expected int, got 2.5",)),
    "negative steps": ([*M, "--model.inner_steps=-1"], ("--model.inner_steps: at least 0",)),
    "a word for a list": ([*M, "--model.backbone.hidden=big"], ("--model.backbone.hidden: expected Sequence",)),
    "a negative width": (
        [*M, "--model.backbone.hidden=[-4]"],
        ("--model.backbone.hidden: whole numbers of at least 1",),
    ),
    "no width": ([*M, "--model.backbone.hidden=[0]"], ("--model.backbone.hidden: whole numbers of at least 1",)),
    "a strategy of tasks": ([*M, "--model.strategy=fast"], ("--model.strategy: expected 'auto' or", "got fast")),
    "an option without its partner": ([*M, "--model.chunk_size=2"], ("--model.chunk_size", "for strategy vmap")),
    "a negative seed": ([*M, "--seed_everything=-1"], ("--seed_everything: expected 0 to",)),
    "a word for a seed": ([*M, "--seed_everything=abc"], ("--seed_everything: expected bool or int",)),
    "a mode that is none": ([*M, "--checkpoint.mode=least"], ("--checkpoint.mode: expected 'max' or 'min'",)),
    "checkpoints never": ([*M, "--checkpoint.every_n_steps=0"], ("--checkpoint.every_n_steps: at least 1",)),
    "no optimiser's rate": (
        [*M, "--model.optimizer=torch.optim.Adam", "--model.optimizer.lr=-1"],
        ("--model.optimizer: Invalid learning rate",),
    ),
    # The machine
    "an accelerator misspelt": ([*M, "--trainer.accelerator=gpuu"], ("--trainer.accelerator: expected auto or cpu",)),
    "a TPU": ([*M, "--trainer.accelerator=tpu"], ("--trainer.accelerator: torch finds no TPU here", "leave it out")),
    "no device": ([*M, "--trainer.devices=0"], ("--trainer.devices: 0 leaves nothing", "give 1 or more")),
    "no accumulation": (
        [*M, "--trainer.accumulate_grad_batches=0"],
        ("--trainer.accumulate_grad_batches: at least 1 is needed",),
    ),
    "a strategy misspelt": ([*M, "--trainer.strategy=dpp"], ("dpp", "ddp", HELP)),
    "a precision": (
        [*M, "--trainer.precision=fp16"],
        ("--trainer.precision: expected 64 or 32 or 16 or", "'bf16-mixed'"),
    ),
    "a package of a precision": ([*M, "--trainer.precision=transformer-engine"], ("pip install", "transformer_engine")),
    "a package of a strategy": ([*M, "--trainer.strategy=deepspeed"], ("pip install", "deepspeed", HELP)),
    "a time in words": ([*M, "--trainer.max_time=1h"], ("1h", "DD:HH:MM:SS", "--trainer.max_time")),
    "an algorithm of clipping": (
        [*M, "--trainer.gradient_clip_val=1", "--trainer.gradient_clip_algorithm=l2"],
        ("gradient_clip_algorithm", "'value', 'norm'", HELP),
    ),
    # Runs
    "a folder that is no run": (
        [*M, "--ckpt_path=pets"],
        ("--ckpt_path pets: pets is not a run directory", "name one"),
    ),
    "an empty path": ([*M, "--ckpt_path="], ("--ckpt_path", "is not a run directory", "name one")),
    "a table for a checkpoint": ([*M, "--ckpt_path=houses.csv"], ("houses.csv is not a checkpoint",)),
    "a metric that stopping follows": (
        [*M, "--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitor=val/acuracy"],
        ("--trainer.callbacks: EarlyStopping: 'val/acuracy' is not logged", "logged metrics: val/loss, val/mse"),
    ),
    "a metric that a schedule follows": (
        [
            *(*M, "--model.lr_scheduler=lightning.pytorch.cli.ReduceLROnPlateau"),
            *("--model.lr_scheduler.monitor=val/los", "--trainer.max_epochs=2"),
        ],
        ("--model.lr_scheduler: 'val/los' is not logged", "logged metrics: val/loss, val/mse"),
    ),
    # Data
    "a wrong folder": ([*I, "--data.source.root=nowhere"], ("--data.source.root=nowhere: there is no such folder",)),
    "a file for a folder": ([*I, "--data.source.root=houses.csv"], ("--data.source.root=houses.csv", "no such folder")),
    "a class for the folder of classes": (
        [*I, "--data.source.root=pets/class_0"],
        ("found 0 class folders", "root is the folder that contains a folder of images for each class"),
    ),
    "one class": ([*I, "--data.source.root=few"], ("found 1 class folders", "need at least one each")),
    "too few classes for a division": (
        [*I, "--data.source.fractions=[0.7,0.1,0.2]"],
        (
            "--data.test_ways: 2 classes",
            "the val split has 1",
            "--data.source.least_classes 2 of ImageFolder",
            "there are 10 classes",
        ),
    ),
    "more ways than classes": (
        [*I, "--data.ways=20"],
        ("--data.ways: 20 classes", "the train split has 5", "ask for at most 5, or give the train split 20"),
    ),
    "more examples than there are": (
        [*I, "--data.shots=20"],
        ("--data.shots + --data.queries: 20 + 1", "ask for fewer"),
    ),
    "two channels": ([*I, "--data.source.channels=2"], ("--data.source.channels: expected 1 or 3, got 2",)),
    "images without pixels": ([*I, "--data.source.image_size=0"], ("--data.source.image_size=0: expected at least 1",)),
    "fractions beyond 1": (
        [*I, "--data.source.fractions=[0.5,0.5,0.5]"],
        ("--data.source.fractions", "add up to 1"),
    ),
    "grey for colour": ([*I, "--data.source.channels=1"], ("--model.backbone: Conv4 does not take", "in_channels")),
    "episodes of a table": (
        [*I, "--data.source=Table"],
        ("--data.source: there is no class Table here; expected a Source or TaskGenerator", HELP),
    ),
    "a meta-learner on tasks": (config("maml_on_table.yaml"), ("MAML learns from an EpisodicDataModule",)),
    "a classifier of waves": ([*M, "--model=ProtoNet", "--model.backbone=MLP"], ("ProtoNet classifies", "use MAML")),
    "a table that is not there": (
        [*T, "--data.source.path=nope.csv"],
        ("--data.source.path=nope.csv: there is no such",),
    ),
    "a folder for a table": (
        [*T, "--data.source.path=pets"],
        ("--data.source.path=pets: it is a folder", "name a file"),
    ),
    "a spreadsheet": ([*T, "--data.source.path=book.xlsx"], ("book.xlsx: expected a table", ".csv, .tsv or .parquet")),
    "a damaged table": ([*T, "--data.source.path=damaged.parquet"], ("damaged.parquet: the table cannot be read",)),
    "a table in another encoding": ([*T, "--data.source.path=latin.csv"], ("latin.csv", "save it as UTF-8")),
    "a table with semicolons": (
        [*T, "--data.source.path=semicolons.csv"],
        ("separated by ';'; set --data.source.delimiter ';'",),
    ),
    "a table of a header": ([*T, "--data.source.path=header.csv"], ("header.csv: the table has no rows",)),
    "a table of two rows": (
        [*T, "--data.source.path=two_rows.csv"],
        ("--data.source: the val split is empty", "train split has", "another division"),
    ),
    "a target misspelt": (
        [*T, "--data.source.targets={prise: regression}"],
        ("--data.source.targets: houses.csv has no column 'prise'", "did you mean 'price'?"),
    ),
    "a feature misspelt": ([*T, "--data.source.features=[sise]"], ("--data.source.features", "did you mean 'size'?")),
    "a kind misspelt": ([*T, "--data.source.targets={price: regresion}"], ("--data.source.targets", "'regression'")),
    "targets as a list": ([*T, "--data.source.targets=[price]"], ("expected Mapping, such as {NAME: VALUE}, got",)),
    "an option that the source lacks": (
        [*T, "--data.source.file=houses.csv"],
        ("--data.source.file: there is no such option of Table; it has path, targets, features", "more"),
    ),
    "one target as text": ([*T, "--data.source.targets=price"], ("--data.source.targets: expected Mapping",)),
    "a task misspelt": ([*T, "--data.tasks=[prise]"], ("--data.tasks: there is no task 'prise'", "'price', 'style'")),
    "two divisions": (
        [*T, "--data.source.split_column=rooms", "--data.source.group_column=size"],
        ("split_column", "leave group_column out"),
    ),
    "a weighting misspelt": ([*T, "--model.weighting=Uncertinty"], ("--model.weighting", "did you mean Uncertainty?")),
    "a weight of no task": (
        [*T, "--model.weighting=Fixed", "--model.weighting.weights={nope: 1.0}"],
        ("--model.weighting.weights: no task is named 'nope'", "price, style"),
    ),
    "a stem of no task": ([*T, "--model.stems={nope: MLP}"], ("--model.stems: expected one for each task",)),
    "dropout of everything": ([*T, "--model.head_dropout=1.5"], ("--model.head_dropout: a number from 0 to below 1",)),
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mistakes")
    write_inputs(folder)
    return folder


@pytest.fixture
def here(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(inputs)
    monkeypatch.delenv("LIGHTNING_META_DATA", raising=False)
    return inputs


def refusal(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The line of a command that is refused, which leaves nothing behind."""
    before = set(Path().rglob("*"))
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main(command) == 2
    logged, line = capsys.readouterr().err.rsplit("lightning-meta: error: ", 1)
    assert not logged or " per meta-batch, computed by " in logged  # training had begun
    assert line.count("\n") == 1
    assert not {"Namespace(", "<class '", "Traceback"} & set(line.split("'"))
    assert len(line) < 700
    assert set(Path().rglob("*")) == before
    return line


def test_there_are_more_than_a_hundred() -> None:
    print(f"\n{len(MISTAKES)} mistakes on the command line, {len(CALLS)} in Python")
    assert len(MISTAKES) + len(CALLS) > 100


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_that_says_what_to_do(
    mistake: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, said = MISTAKES[mistake]
    line = refusal(command, capsys)
    for part in said:
        assert part in line


def test_an_optimiser_without_a_rate_is_no_mistake(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*M, "--model.optimizer=torch.optim.SGD", "--trainer.fast_dev_run=true"]) == 0


SPEC = EpisodeSpec("classification", (1,), 2, 2, "float32")
LOADER = DataLoader(TensorDataset(torch.zeros(4, 1), torch.zeros(4, 1)), batch_size=2)


def fit(module: Any, **data: Any) -> None:
    options: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    Trainer(max_steps=1, accelerator="cpu", enable_model_summary=False, **options).fit(module, **data)


def waves(**options: Any) -> EpisodicDataModule:
    return EpisodicDataModule(Sinusoid(), shots=2, queries=2, val_tasks=1, meta_batches_per_epoch=1, **options)


# By name: the call, and the argument and the way out that its line must hold.
CALLS: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "a negative rate": (lambda: MAML(MLP(), inner_lr=-1), ("inner_lr: a positive number is needed, got -1",)),
    "a rate that is no number": (lambda: MAML(MLP(), inner_lr=float("nan")), ("inner_lr: a positive number",)),
    "a rate in words": (lambda: MAML(MLP(), inner_lr="fast"), ("inner_lr: a positive number", "'fast'")),
    "half a step": (lambda: MAML(MLP(), inner_steps=0.5), ("inner_steps: a whole number of at least 0",)),
    "no temperature": (lambda: ProtoNet(MLP(), temperature=float("nan")), ("temperature: a positive number",)),
    "a negative penalty": (lambda: Baseline(MLP(), weight_decay=-1), ("weight_decay: a number of at least 0",)),
    "a class for a backbone": (lambda: MAML(MLP), ("backbone: a Module is needed", "give an instance, MLP(...)")),
    "a name for a backbone": (lambda: MultiHead("Conv4"), ("backbone: a Module is needed, got str 'Conv4'",)),
    "a list of stems": (lambda: MultiHead(MLP(), stems=[MLP()]), ("stems: a Mapping is needed",)),
    "a name for a weighting": (lambda: MultiHead(MLP(), weighting="uncertainty"), ("weighting: a Weighting is",)),
    "names for tasks": (lambda: MultiHead(MLP(), tasks=["a"]), ("tasks: a TasksSpec is needed",)),
    "an optimiser that is made": (
        lambda: MAML(MLP(), optimizer=torch.optim.Adam(MLP().parameters())),
        ("optimizer: a class or function is needed", "partial(torch.optim.Adam, lr=0.001)"),
    ),
    "a name for a schedule": (
        lambda: MAML(MLP(), lr_scheduler="cosine"),
        ("lr_scheduler: a class or function is needed",),
    ),
    "a schedule without its steps": (
        lambda: fit(MAML(MLP(hidden=[2]), lr_scheduler=torch.optim.lr_scheduler.StepLR), datamodule=waves()),
        ("lr_scheduler: ", "'step_size'"),
    ),
    "no channels": (lambda: Conv4(in_channels=0), ("in_channels: at least 1",)),
    "no blocks": (lambda: Conv4(blocks=0), ("blocks: at least 1",)),
    "one width for a list": (lambda: MLP(hidden=4), ("hidden: whole numbers of at least 1 are needed, one a layer",)),
    "dropout of everything": (lambda: ResNet12(dropout=1.0), ("dropout: a number from 0 to below 1",)),
    "negative features": (lambda: LeNet(features=-1), ("features: at least 1",)),
    "a name for a source": (lambda: EpisodicDataModule("Omniglot"), ("source: a Source or TaskGenerator is needed",)),
    "a class for a source": (lambda: EpisodicDataModule(Glyphs), ("source: ", "give an instance, Glyphs(...)")),
    "waves as tasks": (lambda: MultiTaskDataModule(Sinusoid()), ("source: a Source or TaskSource is needed",)),
    "one task for a list": (lambda: MultiTaskDataModule(Glyphs(), tasks="Latin"), ("tasks: a list of names",)),
    "one target for targets": (lambda: Table("x.csv", "price"), ("Table targets: expected the kind of each",)),
    "one feature for a list": (lambda: Table("x.csv", {"a": None}, features="b"), ("features: a list of names",)),
    "a folder that is not there": (
        lambda: EpisodicDataModule(ImageFolder("no")).setup("fit"),
        ("root=no", "no such folder"),
    ),
    "a module without data": (lambda: fit(MAML(MLP())), ("fit it with an EpisodicDataModule",)),
    "a loader of examples": (
        lambda: fit(ProtoNet(MLP(), episodes=SPEC), train_dataloaders=LOADER),
        ("ProtoNet takes batches of type Episode, got list", "datamodule=EpisodicDataModule(...)"),
    ),
    "a call before a task is learned": (lambda: ProtoNet(MLP(), episodes=SPEC)(torch.zeros(2, 1)), ("use predictor(",)),
    "a predictor before training": (lambda: MAML(MLP()).predictor(torch.zeros(2, 1), [0, 1]), ("fit it with an",)),
    "inputs of another shape": (
        lambda: ProtoNet(MLP(), episodes=SPEC).predictor(torch.zeros(2, 3), [0, 1]),
        ("inputs of shape (M, 1) are needed, got (2, 3)",),
    ),
    "labels for some inputs": (
        lambda: ProtoNet(MLP(), episodes=SPEC).predictor(torch.zeros(2, 1), [0]),
        ("labels: one for each of the 2 support inputs is needed, got 1",),
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mistake", CALLS)
def test_a_mistake_in_python_names_the_argument(mistake: str, here: Path) -> None:
    call, said = CALLS[mistake]
    with pytest.raises(UserError) as caught:
        call()
    line = str(caught.value)
    assert "--" not in line or "ImageFolder" in line
    for part in said:
        assert part in line


# By the module that is missing: a command that needs it, and what is to be installed.
PACKAGES = {
    "wandb": ([*M, "--trainer.logger=WandbLogger"], "pip install 'lightning_meta[wandb]'"),
    "optuna": (["sweep", "--config", "sweep.yaml", "--trials=1"], "pip install 'lightning_meta[sweep]'"),
    "pyarrow": (T, "the package pyarrow is not installed; pip install pyarrow"),
    "comet_ml": ([*M, "--trainer.logger=CometLogger"], "CometLogger: Requirement 'comet-ml"),
}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_missing_package_says_what_to_install(
    package: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if package == "comet_ml" and importlib.util.find_spec(package):
        pytest.skip("it is installed")
    monkeypatch.setitem(sys.modules, package, None)
    command, said = PACKAGES[package]
    line = refusal(command, capsys)
    assert said in line
    assert "pip install" in line
