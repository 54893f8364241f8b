"""The shipped configurations work by their names, outside of a clone as well."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from lightning_meta.cli import main
from lightning_meta.cli.shipped import SWEEPS, shipped, with_shipped

ROOT = Path(__file__).parents[1]
QUICK = ["--trainer.max_steps=2", "--trainer.enable_progress_bar=false", "--data.init_args.meta_batches_per_epoch=2"]
QUICK += ["--data.init_args.val_tasks=2", "--data.init_args.test_tasks=2"]


def test_names_are_those_of_the_folder() -> None:
    assert set(shipped()) == {file.stem for file in (ROOT / "configs").glob("*.yaml")}


def test_a_name_trains_in_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--config", "protonet_glyphs", *QUICK]) == 0
    assert (tmp_path / "runs" / "protonet_glyphs" / "0" / "results.json").is_file()


def test_a_file_here_comes_before_a_shipped_name_and_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("maml_glyphs").write_text("own: file")
    Path("photos").mkdir()  # as of the photographs themselves
    assert with_shipped(["--config", "maml_glyphs"]) == ["--config", "maml_glyphs"]
    assert with_shipped(["--config", "photos"]) == ["--config", str(shipped()["photos"])]
    assert with_shipped(["--config=protonet_glyphs"]) == [f"--config={shipped()['protonet_glyphs']}"]
    assert with_shipped(["--config", "model:\n  a: 1"]) == ["--config", "model:\n  a: 1"]


def test_an_unknown_name_is_one_line_with_what_was_meant(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", "protonet_glyph"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "protonet_glyphs" in line
    assert main(["ladder", "--config", "nothing_like_it"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "lightning-meta configs" in line


@pytest.mark.parametrize(("command", "name"), [("fit", "ladder_glyphs"), ("ladder", "protonet_glyphs")])
def test_messages_call_a_shipped_configuration_by_its_name(
    command: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--config", name]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"lightning-meta: error: --config: {name} is ")
    assert "/" not in line


@pytest.mark.parametrize("name", shipped(SWEEPS))
def test_a_shipped_sweep_starts_from_any_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", f"--config={name}", "--trials=1", "--trainer.max_step=2"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "did you mean --trainer.max_steps" in line  # the configuration of its runs was found and read
    assert not list(tmp_path.iterdir())


def test_the_list_of_configurations_is_one_screen(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs"]) == 0
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 40
    assert max(map(len, text.splitlines())) <= 80
    groups = dict(re.findall(r"^(\w[^\n]*) \(.*\):\n((?:  .*\n)+)", text, re.MULTILINE))
    names = {kind: re.findall(r"\w+", group) for kind, group in groups.items()}
    sweeps = names.pop("Sweeps")
    assert sweeps == list(shipped(SWEEPS))
    assert sorted(name for group in names.values() for name in group) == list(shipped())
    assert {"maml_sinusoid", "photos", "protonet_table"} < set(names["Few-shot learning"])
    assert {"linear_parkinsons", "mtan_glyphs", "multi_head_table"} < set(names["Multi-task learning"])
    assert all(name.startswith("ladder_") for name in names["Ladders"])
    assert names["Additions to another configuration"] == ["wandb"]


def test_a_word_describes_the_configurations_whose_name_contains_it(capsys: pytest.CaptureFixture[str]) -> None:
    described = []
    for name in shipped():  # a name with all but its last letter is not the name of a configuration
        assert main(["configs", name[:-1]]) == 0
        lines = capsys.readouterr().out.splitlines()
        described += [line for line in lines if line.split()[0] == name]
    assert [line.split()[0] for line in described] == list(shipped())
    assert all(len(line.split()) > 3 and len(line) < 200 for line in described)
    assert main(["configs", "omniglot"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "protonet_omniglot      ProtoNet on Omniglot (Snell et al. 2017)" in lines
    assert all("omniglot" in line.split()[0] for line in lines)


def test_a_configuration_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs", "maml_glyphs"]) == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["model"]["class_path"] == "lightning_meta.MAML"
    assert main(["configs", "maml_glyphs.yaml"]) == 0
    assert capsys.readouterr().out == printed
    refused = {
        ("nothing",): "no configuration has 'nothing'",
        ("maml_glypsh",): "did you mean maml_glyphs",
        ("maml", "anil"): "expected one",
        ("",): "expected one",
        ("-x",): "expected one",
    }
    for words, message in refused.items():
        assert main(["configs", *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line


@pytest.mark.parametrize("words", [[], ["glyphs"], ["maml_glyphs"]])
def test_what_reads_the_output_may_end_early(words: list[str]) -> None:
    command = [sys.executable, "-u", "-m", "lightning_meta", "configs", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()  # before anything is written
        told = process.stderr.read()
    assert (process.returncode, told) == (0, "")


def test_versions_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("lightning_meta ")


@pytest.mark.slow
def test_the_wheel_holds_every_configuration(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"lightning_meta/configs/{name}.yaml" for name in shipped()} <= set(names)
    assert {f"lightning_meta/configs/sweeps/{name}.yaml" for name in shipped(SWEEPS)} <= set(names)
    assert not [name for name in names if name.startswith(("tests/", "configs/", "scripts/"))]
