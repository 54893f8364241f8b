"""The first mistake in what the user gave is found by comparing it with what the parser and the classes declare."""

from __future__ import annotations

from argparse import ArgumentError
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import nn

from lightning_meta import UserError
from lightning_meta.cli import main
from lightning_meta.cli.diagnosis import Given
from lightning_meta.cli.fit import MetaCLI
from lightning_meta.cli.messages import parse
from lightning_meta.cli.test import make_parser
from tests.robustness.mistake_inputs import MAML, changed, write_inputs
from tests.robustness.test_mistakes import MISTAKES

FIT = ["fit", "--config", "maml.yaml"]
WORDS = "the words of the parser"


class Sinusoids(nn.Module):
    """Not a subclass of Source."""


def network(width: int, depth: int = 1) -> nn.Module:
    return nn.Linear(width, depth)


class Odd(nn.Module):
    def __init__(self, width: int) -> None:
        raise ValueError(f"{width} is odd:\n  choose an even width")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_inputs(tmp_path)


def line(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    assert main([*command]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said.removeprefix("lightning-meta: error: ").strip()


@pytest.mark.slow
def test_no_line_depends_on_the_words_of_the_parser(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def accepted(cli: MetaCLI) -> None:
        raise UserError("the parser accepted it")

    monkeypatch.setattr(ArgumentError, "__str__", lambda error: WORDS)
    monkeypatch.setattr(MetaCLI, "instantiate_classes", accepted)
    refused = 0
    for mistake, (command, said) in MISTAKES.items():
        assert main(command) == 2
        text = capsys.readouterr().err
        assert WORDS not in text, mistake
        if "the parser accepted it" not in text:
            refused += 1
            assert all(part in text for part in said), mistake
    assert refused > 60


# By name: options of fit beside maml.yaml, and the line.
LINES = {
    "a shipped name without --config": (
        ["maml_glyphs"],
        "maml_glyphs: an option was expected; did you mean --config maml_glyphs?",
    ),
    "a word": (["quickly"], "quickly: an option was expected; see lightning-meta fit --help"),
    "a second value": (["--data.shots", "1", "5"], "5: an option was expected; see lightning-meta fit --help"),
    "a dash of a word processor": (
        ["\u2013trainer.max_steps", "5"],
        "\u2013trainer.max_steps: there is no such option; did you mean --trainer.max_steps?",
    ),
    "a misspelt key beside a class": (
        ["--model={class_path: MAML, init_arg: {}}"],
        "--model: init_arg is beside class_path; did you mean init_args?",
    ),
    "an option of no callback": (
        ["--trainer.callbacks", "[]", "--trainer.callbacks.monitor", "x"],
        "--trainer.callbacks: monitor is an argument of a class that is not named; give --trainer.callbacks "
        "CLASS before --trainer.callbacks.monitor",
    ),
    "a number for an optimizer": (
        ["--model.optimizer", "0.01"],
        "--model.optimizer: there is no class 0.01 here; expected an Optimizer, see lightning-meta fit --help",
    ),
    "a mistake behind an added item": (
        ["--trainer.callbacks+=DeviceStatsMonitor", "--data.rotations+=val", "--trainer.max_step=5"],
        "--trainer.max_step: there is no such option; did you mean --trainer.max_steps?",
    ),
    "a value after a space": (["--model.inner_lr", "fast"], "--model.inner_lr: expected float, got fast"),
    "no value before another option": (
        ["--model.inner_lr", "--trainer.max_steps=1"],
        "--model.inner_lr: a value is missing; see lightning-meta fit --help",
    ),
    "an argument of a number": (
        ["--trainer.max_steps.a=1"],
        "--trainer.max_steps.a: there is no such option; see lightning-meta fit --help",
    ),
    "the long form": (
        ["--model.init_args.backbone.init_args.hiden=[1]"],
        "--model.backbone.hiden: there is no such option of MLP; did you mean hidden?",
    ),
    "a class in a mapping": (
        ["--model={class_path: MAML, init_args: {inner_lrs: 1}}"],
        "--model.inner_lrs: there is no such option of MAML; did you mean inner_lr?",
    ),
    "a list with a wrong item": (
        ["--model.backbone.hidden=[4, wide]"],
        "--model.backbone.hidden: expected int, got wide",
    ),
    "arguments in a list": (
        ["--model.backbone={class_path: MLP, init_args: [4]}"],
        "--model.backbone.init_args: expected Mapping, such as {NAME: VALUE}, got [4]",
    ),
    "the last of several callbacks": (
        ["--trainer.callbacks=[LearningRateMonitor]", "--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.x=1"],
        "--trainer.callbacks.x: there is no such option of EarlyStopping; it has monitor, min_delta, patience, "
        "verbose, mode, strict, check_finite, stopping_threshold, divergence_threshold, check_on_train_epoch_end, "
        "log_rank_zero_only",
    ),
    "an appended callback": (
        ["--trainer.callbacks=[LearningRateMonitor]", "--trainer.callbacks+=EarlyStopping"],
        "--trainer.callbacks: EarlyStopping: monitor is required; give --trainer.callbacks.monitor, or monitor in its "
        "init_args",
    ),
    "an argument of a function": (
        ["--model.backbone=tests.test_diagnosis.network", "--model.backbone.widht=1"],
        "--model.backbone.widht: there is no such option of network; did you mean width?",
    ),
    "a function without an argument": (
        ["--model.backbone=tests.test_diagnosis.network"],
        "--model.backbone: network: width is required; give --model.backbone.width, or width in its init_args",
    ),
    "a class of another kind": (
        ["--data.source=tests.test_diagnosis.Sinusoids"],
        "--data.source: expected Source or TaskGenerator, got tests.test_diagnosis.Sinusoids; see lightning-meta fit "
        "--help",
    ),
    "a nested class that is not there": (
        ["--model.backbone=torch.nn.Linear.Fast"],
        "--model.backbone: there is no class torch.nn.Linear.Fast",
    ),
    "a module in a package": (
        ["--model.backbone=torch.nnn.Linear"],
        "--model.backbone: there is no module torch.nnn; install it, run from its folder, or add that folder to "
        "PYTHONPATH",
    ),
    "two classes of a name": (
        ["--model.lr_scheduler=ReduceLROnPlateau"],
        "--model.lr_scheduler: several classes are named ReduceLROnPlateau; give the path of one: "
        "lightning.pytorch.cli.ReduceLROnPlateau or torch.optim.lr_scheduler.ReduceLROnPlateau",
    ),
    "an argument of the class that a type names": (
        ["--data.augmentation.flips=1"],
        "--data.augmentation: flips is an argument of a class that is not named; give --data.augmentation CLASS before "
        "--data.augmentation.flips",
    ),
    "a class that another replaces": (
        ["--data.source=Table", "--data=MultiTaskDataModule", "--data.source.targets={y: null}"],
        "--data.source: there is no class Table here; expected a Source or TaskGenerator, see lightning-meta fit "
        "--help",
    ),
}


@pytest.mark.parametrize("case", LINES)
def test_the_first_mistake_is_named(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    options, said = LINES[case]
    assert line(capsys, *FIT, *options) == said


FILES: dict[str, tuple[Any, str]] = {
    "a section": ({"traner": {"max_steps": 1}}, "--traner: there is no such option; did you mean --trainer?"),
    "an option": (
        {"trainer": {"max_step": 1}},
        "--trainer.max_step: there is no such option; did you mean --trainer.max_steps?",
    ),
    "a value": ({"trainer": {"max_steps": "few"}}, "--trainer.max_steps: expected int, got few"),
    "a name that is a number": ({"name": 5}, "--name: expected str or null, got 5; see lightning-meta fit --help"),
    "a boolean for text": (
        {"trainer": {"profiler": False}},
        "--trainer.profiler: expected Profiler or str or null, got False (in YAML, quote no, yes, off, on, false, "
        "true, which are booleans)",
    ),
    "an empty name": ({"": 1}, "--: there is no such option; see lightning-meta fit --help"),
    "a class in a list": (
        {"trainer": {"callbacks": [{"class_path": "EarlyStoping"}]}},
        "--trainer.callbacks: there is no class EarlyStoping; did you mean EarlyStopping?",
    ),
    "a mapping for a class": (
        {"data": {"class_path": {"class_path": "EpisodicDataModule"}}},
        "--data: there is no class {'class_path': 'EpisodicDataModule'}; did you mean EpisodicDataModule?",
    ),
    "no arguments": (
        {"data": {"class_path": "EpisodicDataModule", "init_args": None}},
        "--data.init_args: expected Mapping, such as {NAME: VALUE}, got null",
    ),
    "arguments that are a number": (
        {"model": {"class_path": "lightning_meta.MAML", "init_args": 1}},
        "--model.init_args: expected Mapping, such as {NAME: VALUE}, got 1",
    ),
    "no model": ({"model": None}, "--model must be given; name a configuration with --config FILE"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_mistake_in_a_file_is_named_as_an_option(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    change, said = FILES[case]
    Path("c.yaml").write_text(changed(MAML, lambda config: config.update(change)))
    assert line(capsys, "fit", "--config", "c.yaml") == said


def test_files_and_options_are_applied_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    Path("other.yaml").write_text(yaml.safe_dump({"model": {"class_path": "ProtoNet"}}))
    of_maml = "--model.inner_steps=2"
    assert "there is no such option of ProtoNet" in line(capsys, *FIT, "--config=other.yaml", of_maml)
    assert line(capsys, *FIT, of_maml, "--config=other.yaml", "--model.inner_lr=x").startswith(
        "--model.inner_lr: there"
    )


def test_an_option_is_compared_with_the_configuration_that_it_changes() -> None:
    base = {"data": MAML["data"], "ckpt_path": "runs/a"}
    with pytest.raises(UserError, match=r"^--data.shot: there is no such option of EpisodicDataModule; did you mean s"):
        parse(make_parser(), ["--data.shot=1"], base)
    with pytest.raises(UserError, match=r"^--ckpt_path and --data must be given$"):
        parse(make_parser(), ["--ways=2"])


def test_an_object_that_cannot_be_created_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model.backbone=tests.test_diagnosis.Odd", "--model.backbone.width=3"]
    assert line(capsys, *FIT, *options) == "--model.backbone: Odd: 3 is odd: choose an even width"


def test_an_argument_that_the_parser_does_not_check_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert line(capsys, *FIT, "--model.dict_kwargs.foo=1") == "--model.foo: there is no such option of MAML"


def test_an_error_of_an_unknown_kind_is_shown_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Given, "check", lambda *_: None)
    with pytest.raises(UserError) as caught:
        parse(make_parser(), ["--ways=[[]]"])
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 500
    assert text.endswith("; see lightning-meta test --help")
