"""`lightning-meta fit` and `test`, as a user meets them."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from lightning_meta.cli import main
from lightning_meta.cli.main import COMMANDS
from lightning_meta.cli.parsing import with_own_paths
from lightning_meta.loading import load
from lightning_meta.run.directory import lock_run

TRAINER = {
    "max_steps": 8,
    "log_every_n_steps": 2,
    "accelerator": "cpu",
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
MAML: dict[str, Any] = {
    "model": {
        "class_path": "lightning_meta.MAML",
        "init_args": {
            "backbone": {"class_path": "lightning_meta.nn.MLP", "init_args": {"hidden": [8]}},
            "inner_steps": 1,
            "test_inner_steps": 2,
        },
    },
    "data": {
        "class_path": "lightning_meta.EpisodicDataModule",
        "init_args": {
            "source": {"class_path": "lightning_meta.sources.Sinusoid"},
            "shots": 5,
            "queries": 6,
            "meta_batches_per_epoch": 4,
            "val_tasks": 10,
            "test_tasks": 20,
        },
    },
    "checkpoint": {"monitor": "val/mse", "mode": "min"},
    "trainer": TRAINER,
}
TOY: dict[str, Any] = {
    "model": {
        "class_path": "tests.run.toys.ToyModule",
        "init_args": {
            "backbone": {"class_path": "torch.nn.Linear", "init_args": {"in_features": 5, "out_features": 5}}
        },
    },
    "data": {"class_path": "tests.run.toys.ToyData", "init_args": {"length": 4}},
    "trainer": TRAINER,
}


def write_configs(folder: Path) -> Path:
    for name, config in (("maml", MAML), ("toy", TOY)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_configs(tmp_path)


def run(command: str, *args: str) -> int:
    return main([command, *args])


def results(version: int, name: str = "maml") -> dict[str, Any]:
    return json.loads(Path(f"runs/{name}/{version}/results.json").read_text())


def test_a_run_leaves_a_whole_directory(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fit", "--config", "maml.yaml") == 0
    found = {str(f.relative_to("runs/maml/0")) for f in Path("runs/maml/0").rglob("*") if f.is_file()}
    assert found == {
        "config.yaml",
        "metrics.csv",
        "results.json",
        "predictions.npz",
        "per_task.csv",
        "run.lock",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "figures/training.png",
        "figures/tasks.png",
    }
    said = results(0)
    assert said["test/tasks"] == 20
    assert said["test_conditions"].endswith("-shot")
    assert "test_chance" not in said
    assert said["steps"] == 8
    assert {"test/mse", "test/mse_ci95", "seed", "parameters", "versions", "git_revision", "wall_time_s"} <= set(said)
    tasks = list(csv.DictReader(Path("runs/maml/0/per_task.csv").read_text().splitlines()))
    assert list(tasks[0]) == ["task", "step_0", "step_1", "step_2"]
    assert np.mean([float(t["step_2"]) for t in tasks]) == pytest.approx(said["test/mse"], rel=1e-6)
    assert len(np.load("runs/maml/0/predictions.npz")["output"]) == 20
    table = capsys.readouterr().out
    for shown in ("test mse", "95 %", "tasks", "after 2 inner steps", "runs/maml/0"):
        assert shown in table


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model.help", "ProtoNet"], "temperature"),
        pytest.param(["--data.help=EpisodicDataModule"], "meta_batch_size", marks=pytest.mark.slow),
        (["--help"], "--ckpt_path"),
        pytest.param(
            [
                "--model=ProtoNet",
                "--model.backbone=Conv4",
                "--data=EpisodicDataModule",
                "--data.source=Glyphs",
                "--print_config",
            ],
            "Conv4",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_help_explains_in_a_process_of_its_own(options: list[str], said: str) -> None:
    # Here other tests have imported every module; a user's process has not.
    command = [sys.executable, "-m", "lightning_meta", "fit", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--version"], 0, "lightning_meta "),
        (["--help"], 0, "usage: lightning-meta fit"),
        (["configs"], 0, "protonet_glyphs,"),
        (["cruves", "runs"], 2, "there is no command cruves; did you mean curves?"),
        (["fit", "--config=protonet_glyph"], 2, "did you mean protonet_glyphs"),
        (["compare", "--threads=none"], 2, "--threads: expected a whole number"),
    ],
)
def test_what_needs_no_torch_does_not_wait_for_it(arguments: list[str], status: int, said: str) -> None:
    code = "import sys; from lightning_meta.cli import main; status = main(); assert 'torch' not in sys.modules"
    command = [sys.executable, "-c", f"{code}; sys.exit(status)", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    assert said in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--model.optimizer=torch.optim.Adam", "--model.optimizer.lr=-1"], "Invalid learning rate"),
        (["--runs", "README"], "--runs: README"),
    ],
)
def test_mistakes_that_only_training_finds(options: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("README").write_text("a file, not a folder")
    assert run("fit", "--config", "maml.yaml", *options) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert line in error
    assert not Path("runs/maml").exists()


def test_what_another_optimizer_keeps_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    adam = {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.1}}
    Path("adam.yaml").write_text(yaml.safe_dump({"model": {"init_args": {"optimizer": adam}}}))
    wrong = ["--config", "maml.yaml", "--config", "adam.yaml", "--runs", "adam.yaml"]  # ends before training
    for options, line in (
        (["--model.optimizer", "AdamW"], "AdamW has lr 0.1, weight_decay 0.0 from the configuration; "),
        (["--model.optimizer=torch.optim.AdamW", "--model.optimizer.lr=0.2"], "AdamW has weight_decay 0.0 from"),
        (["--model.optimizer", "{class_path: AdamW, init_args: {lr: 0.2, weight_decay: 0.1}}"], ""),
        (["--model.optimizer.lr", "0.2"], ""),
        (["--model.optimizer", "AdamW", "--config", "adam.yaml"], ""),  # whose class is another again
    ):
        assert run("fit", *wrong, *options) == 2
        said = capsys.readouterr().err
        assert f"--model.optimizer {line}" in said if line else "from the configuration; change" not in said


def test_logging_can_be_turned_off() -> None:
    assert run("fit", "--config", "maml.yaml", "--trainer.log_every_n_steps=0") == 0


def test_the_saved_configuration_runs_again_to_the_same_result() -> None:
    assert run("fit", "--config", "maml.yaml", "--seed_everything=3") == 0
    assert run("fit", "--config", "runs/maml/0/config.yaml") == 0
    assert results(0)["test/mse"] == results(1)["test/mse"]
    assert results(1)["seed"] == 3


def test_a_trained_model_is_tested_on_other_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fit", "--config", "maml.yaml") == 0
    quiet = "--trainer.enable_progress_bar=false"
    assert run("test", "--ckpt_path=runs/maml/0", quiet) == 0
    same = json.loads(Path("runs/maml/0/tests/0/results.json").read_text())
    assert same["test/mse"] == results(0)["test/mse"]
    assert run("test", "--ckpt_path=runs/maml/0", "--tasks=30", "--shots=3", "--steps=4", quiet) == 0
    other = json.loads(Path("runs/maml/0/tests/1/results.json").read_text())
    assert other["test/tasks"] == 30
    assert "test/mse_step_4" in other


def test_the_checkpoint_loads_by_the_path_of_its_run() -> None:
    assert run("fit", "--config", "maml.yaml") == 0
    assert load("runs/maml/0").test_inner_steps == 2


def test_a_torch_backbone_of_a_configuration_loads_too() -> None:
    assert run("fit", "--config", "toy.yaml") == 0
    assert load("runs/toy/0", allow=["tests.run.toys"]).backbone.in_features == 5


def test_the_command_line_beats_the_checkpoint() -> None:
    assert run("fit", "--config", "maml.yaml") == 0
    assert run("fit", "--config", "maml.yaml", "--ckpt_path=last", "--model.test_inner_steps=4", "--allow_changes") == 0
    assert "test/mse_step_4" in results(0)


@pytest.mark.parametrize("form", ["apart", "equals", "nested", "file"])
def test_a_network_is_found_by_its_short_name_beside_those_of_other_packages(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = types.ModuleType("another_package")
    exec("import torch\n\nclass MLP(torch.nn.Module): pass", vars(other))  # as torchvision.ops.MLP
    monkeypatch.setitem(sys.modules, "another_package", other)
    Path("short.yaml").write_text("model: {init_args: {backbone: {class_path: MLP, init_args: {in_features: 1}}}}")
    options = {
        "apart": ["--model.backbone", "MLP", "--model.backbone.in_features", "1"],
        "equals": ["--model.backbone=MLP", "--model.backbone.in_features=1"],
        "nested": ["--model.backbone", "{class_path: MLP, init_args: {in_features: 1}}"],
        "file": ["--config", "short.yaml"],
    }[form]
    assert main(["fit", "--config", "maml.yaml", *options, "--trainer.max_steps", "1", "--name", "maml"]) == 0
    backbone = yaml.safe_load(Path("runs/maml/0/config.yaml").read_text())["model"]["init_args"]["backbone"]
    assert backbone["class_path"] == "lightning_meta.nn.MLP"


def test_names_that_are_no_classes_stay() -> None:
    options = ["--data.source.task_column", "Conv4", "--data.source.root=MLP", "--model.backbone_weights", "Frozen"]
    assert with_own_paths(["--name", "MLP", *options]) == ["--name", "MLP", *options]
    networks = with_own_paths(["--model.stems.a", "MLP", "--model.backbone.class_path=Conv4"])
    assert networks == [
        "--model.stems.a",
        "lightning_meta.nn.MLP",
        "--model.backbone.class_path=lightning_meta.nn.Conv4",
    ]


def test_tensorboard_by_its_short_name() -> None:
    assert run("fit", "--config", "toy.yaml", "--trainer.logger=TensorBoardLogger") == 0
    assert list(Path("runs/toy/0").glob("events.out.tfevents*"))
    assert Path("runs/toy/0/metrics.csv").is_file()


def test_help_of_a_class_lists_networks_and_is_short_enough_to_read(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        run("fit", "--model.help", "ProtoNet")
    text = capsys.readouterr().out
    assert len(text.splitlines()) < 150
    listed = re.search(r"--model.backbone BACKBONE.*?known subclasses: (.*?), and (\d+) others", " ".join(text.split()))
    assert listed is not None
    networks = {path.rpartition(".")[2] for path in "".join(listed[1].split()).split(",")}
    assert networks == {"ChannelNormalized", "Conv4", "LeNet", "MLP", "ResNet12", "TabularMLP"}
    assert int(listed[2]) > 100
    assert "torch.optim.AdamW" in text
    with pytest.raises(SystemExit, match="0"):
        run("fit", "--data.help", "EpisodicDataModule")
    text = " ".join(capsys.readouterr().out.split())
    assert re.search(
        r"--data.augmentation AUGMENTATION .*? known subclasses: lightning_meta.Augmentation, and \d+ others", text
    )


@pytest.mark.parametrize(("command", "of_class"), [("fit", "model"), ("test", "data")])
def test_help_is_one_screen_and_help_all_lists_every_option(
    command: str, of_class: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        run(command, "--help_all")
    whole = capsys.readouterr().out
    assert "--trainer.gradient_clip_val" in whole
    for base in ("ChecksBatches", "GradientBasedLearner", "LightningModule,", "LightningDataModule,", "Callback,"):
        assert f"lightning_meta.{base}" not in whole
        assert f"lightning.{base}" not in whole
    with pytest.raises(SystemExit, match="0"):
        run(command, "--help")
    short = capsys.readouterr().out.splitlines()
    assert len(short) < 40
    assert max(map(len, short)) <= 80
    named = set(re.findall(r"--[a-z_]+", "\n".join(short))) - {"--help_all", "--threads", "--model", "--data"}
    assert named == {option for option in named if f"{option} " in whole or f"{option}." in whole}
    assert f"--{of_class}.help" in "\n".join(short)


def test_the_help_of_predict_is_one_screen(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        run("predict", "--help")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 40
    assert max(map(len, lines)) <= 80
    listed = {line.split()[0] for line in lines if line.startswith("  --")}
    assert {"--table", "--support", "--query", "--export", "--calibrated", "--delimiter", "--trust"} < listed


def test_every_method_is_in_the_help_of_fit(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        run("fit", "--help")
    text = capsys.readouterr().out
    assert "--print_config" in text
    for name in ("MAML", "ProtoNet", "MultiHead", "Independent", "EpisodicDataModule", "Omniglot", "Table"):
        assert re.search(rf"\b{name}\b", text)
    assert "MetaModule" not in text


def test_threads_are_those_that_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    before, seen = torch.get_num_threads(), []
    monkeypatch.setitem(COMMANDS, "curves", lambda options: seen.append((options, torch.get_num_threads())))
    assert main(["curves", "--threads", "3", "runs/a"]) == 0
    assert main(["curves", "runs/a", "--threads=1"]) == 0
    assert seen == [(["runs/a"], 3), (["runs/a"], 1)]
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("command", sorted({*COMMANDS} - {"configs"}))
def test_the_help_of_a_command_lists_threads(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert "--threads " in capsys.readouterr().out


@pytest.mark.parametrize("number", ["0", "two", "-1", ""])
def test_threads_that_cannot_be_are_refused(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["curves", "runs/a", "--threads", number]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--threads: expected a whole number" in line


def test_help_and_configuration_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        run("fit", "--config", "maml.yaml", "--print_config")
    assert "inner_lr" in capsys.readouterr().out
    assert main(["--help"]) == 0
    assert main([]) == 2


def test_null_is_no_value_at_any_depth(capsys: pytest.CaptureFixture[str]) -> None:
    of_source = ["delimiter", "init_args.time_column", "features"]
    options = [f"--data.source.{name}=null" for name in of_source]
    options += ["--data.source.path=null.csv", "--data.source.weights=None_of_them", "--data.batch_size", "8"]
    options += ["--data.source.targets={y: null}", "--model.weighting", "null", "--trainer.logger", "null"]
    with pytest.raises(SystemExit, match="0"):
        run("fit", "--model=MultiHead", "--data=MultiTaskDataModule", "--data.source=Table", *options, "--print_config")
    config = yaml.safe_load(capsys.readouterr().out)
    table = config["data"]["init_args"]["source"]["init_args"]
    assert [table[name.removeprefix("init_args.")] for name in of_source] == [None] * 3
    assert (table["path"], table["weights"], table["targets"]) == ("null.csv", "None_of_them", {"y": None})
    assert config["model"]["init_args"]["weighting"] is config["trainer"]["logger"] is None
    assert run("fit", "--config=maml.yaml", "--trainer.max_steps=null") == 2
    assert "--trainer.max_steps: expected int, got null" in capsys.readouterr().err


BAD = {
    "no GPU": (["--trainer.accelerator=gpu"], "torch finds no GPU here; leave it out to use what this machine has"),
    "unknown option": (
        ["--trainer.max_step=3"],
        "--trainer.max_step: there is no such option; did you mean --trainer.max_st",
    ),
    "no option": (["configs/maml.yaml"], "an option was expected; did you mean --config configs/maml.yaml?"),
    "unknown argument": (["--model.iner_steps=1"], "did you mean inner_steps?"),
    "an option that the class sets": (
        ["--model=Reptile", "--model.first_order=true"],
        "--model.first_order: Reptile sets it itself; leave it out",
    ),
    "unknown class": (["--data.source=Sinusiod"], "there is no class Sinusiod; did you mean Sinusoid?"),
    "unknown class of one kind": (["--model.inner_optimizer=Adam"], "there is no class Adam; did you mean InnerAdam?"),
    "unknown module": (["--model.backbone=nowhere.Net"], "there is no module nowhere"),
    "unknown torch class": (["--model.backbone=torch.nn.Linearr"], "did you mean Linear?"),
    "bad number": (["--model.inner_steps=many"], "model.inner_steps: expected int, got many"),
    "bad choice": (["--model.batch_norm=x"], "expected 'transductive' or 'inductive', got x"),
    "bad union": (["--data.shots=x"], "data.shots: expected int or tuple[int, int], got x"),
    "bad value": (["--model.inner_lr=-1"], "inner_lr: a positive number is needed"),
    "unknown metric": (
        ["--checkpoint.monitor=val/acc"],
        "'val/acc' is not logged in validation; monitor one of the logged metrics: val/",
    ),
    "bad device": (["--trainer.devices=x"], "`devices`"),
    "no checkpoints": (
        ["--trainer.enable_checkpointing=false"],
        "--trainer.enable_checkpointing false: a run is tested and resumed from its best and last checkpoints; leave",
    ),
    "no logger": (["--trainer.logger=false"], "--trainer.logger false: a run writes metrics.csv; leave it out"),
    "another folder": (["--trainer.default_root_dir=x"], "leave it out and give --runs"),
    "a search": (["--trainer.callbacks=LearningRateFinder"], "--trainer.callbacks: LearningRateFinder would change"),
    "no run to resume": (["--ckpt_path=last"], "there is no run named 'maml' in runs"),
    "no such checkpoint": (["--ckpt_path=no.ckpt"], "there is no such file"),
    "no checkpoint": (["--ckpt_path=maml.yaml"], "is not a checkpoint, or is damaged"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_ends_in_one_line_and_no_debris(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    if case == "no GPU" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    before = set(Path().iterdir())
    options, expected = BAD[case]
    assert run("fit", "--config", "maml.yaml", *options) == 2
    logged, said = capsys.readouterr().err.rsplit("lightning-meta: error: ", 1)
    assert not logged or " per meta-batch, computed by " in logged  # training had begun
    assert said.count("\n") == 1
    assert expected in said
    assert set(Path().iterdir()) == before


def test_bad_configuration_files(capsys: pytest.CaptureFixture[str]) -> None:
    Path("broken.yaml").write_text("model: {class_path: [")
    Path("typo.yaml").write_text("modle:\n  class_path: x\n")
    for file, expected in {"none": "none.yaml", "broken": "broken.yaml", "typo": "did you mean --model?"}.items():
        assert run("fit", "--config", f"{file}.yaml") == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert expected in said


@pytest.mark.parametrize(
    ("command", "file", "said"),
    [
        ("fit", "here/protonet_glyph.yaml", "did you mean protonet_glyphs.yaml?"),
        ("ladder", "here/ladder_tabel.yaml", "did you mean ladder_table.yaml?"),
        ("sweep", "here/maml_glyph.yaml", "did you mean maml_glyphs.yaml?"),
        ("fit", "nowhere/protonet_glyphs.yaml", "did you mean --config protonet_glyphs, which is shipped?"),
        ("fit", "nowhere/else.yaml", "there is no file"),
        ("fit", "nowhere/a:b.yaml", "there is no file"),
        ("fit", "a" * 300, "File name too long"),
        ("sweep", "a" * 300, "File name too long"),
        ("test", "a" * 300, "File name too long"),
        ("fit", "", "is a folder"),  # an unset variable of the shell
    ],
)
def test_a_missing_configuration_names_a_similar_file(
    command: str, file: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("protonet_glyphs", "ladder_table", "maml_glyphs"):
        Path("here").mkdir(exist_ok=True)
        (Path("here") / f"{name}.yaml").touch()
    if command == "test":
        assert run("fit", "--config", "maml.yaml") == 0
        capsys.readouterr()
    run_option = ["--ckpt_path", "runs/maml/0"] if command == "test" else []
    assert run(command, *run_option, "--config", file) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error
    assert file in error
    assert ("did you mean" in error) == ("did you mean" in said)


def test_the_checkpoint_of_another_class_or_shape(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fit", "--config", "maml.yaml") == 0
    assert run("fit", "--config", "toy.yaml", "--ckpt_path=runs/maml/0") == 2
    assert "is a checkpoint of lightning_meta.MAML" in capsys.readouterr().err
    assert run("fit", "--config", "maml.yaml", "--ckpt_path=last", "--model.backbone.hidden=[9]") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "what it holds does not fit this run (RuntimeError: " in said
    assert "size mismatch for backbone" in said
    assert results(0)["steps"] == 8  # the run that was to be resumed is as it was


@pytest.mark.skipif(sys.platform == "win32", reason="needs file locks")
def test_a_run_that_another_process_trains_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fit", "--config", "maml.yaml") == 0
    before = {file: file.read_bytes() for file in Path("runs").rglob("*") if file.is_file()}
    held = lock_run(Path("runs/maml/0"))
    capsys.readouterr()
    logged = ["--trainer.logger=WandbLogger", "--trainer.logger.offline=true"]  # it keeps its number in the run
    assert run("fit", "--config", "maml.yaml", "--ckpt_path=last", "--trainer.max_steps=12", *logged) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "runs/maml/0: another process is training this run" in said
    assert {file: file.read_bytes() for file in Path("runs").rglob("*") if file.is_file()} == before
    held.release()
    assert run("fit", "--config", "maml.yaml", "--ckpt_path=last", "--trainer.max_steps=12") == 0


def test_nan_keeps_the_last_good_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("fit", "--config", "toy.yaml", "--model.nan_at=5") == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "NaN at step 5" in said
    assert "runs/toy/0/checkpoints/last.ckpt" in said
    assert load("runs/toy/0/checkpoints/last.ckpt", allow=["tests.run.toys"]) is not None
