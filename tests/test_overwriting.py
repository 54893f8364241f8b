"""No command replaces a file unless it is told to, and it says so before it computes anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_meta.cli import main

COMPARE = ["compare", "runs/a", "--baseline", "runs/b"]
PREDICT = ["predict", "--ckpt_path", "runs/none", "--support", "s"]
COMMANDS = {
    "compare by its default": (COMPARE, "--out", "report/forest.png"),
    "compare": ([*COMPARE, "--out", "there"], "--out", "there/transfer.csv"),
    "curves by its default": (["curves", "runs/a"], "--out", "curves.png"),
    "curves": (["curves", "runs/a", "--out", "x.pdf"], "--out", "x.pdf"),
    "predict by its default": ([*PREDICT, "--query", "q"], "--out", "predictions.csv"),
    "predict": ([*PREDICT, "--query", "q", "--out", "x.csv"], "--out", "x.csv"),
    "export": ([*PREDICT, "--export", "task.pt2"], "--export", "task.pt2"),
    "export beside a table": ([*PREDICT, "--query", "q", "--export", "task.onnx"], "--export", "task.onnx"),
}


@pytest.mark.parametrize("kind", ["file", "link"])
@pytest.mark.parametrize("case", COMMANDS)
def test_what_is_there_stays(
    case: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command, option, name = COMMANDS[case]
    file = Path(name)
    file.parent.mkdir(exist_ok=True)
    if kind == "file":
        file.write_text("of another run")
    else:
        file.symlink_to("nowhere")
    assert main(command) == 2
    said = capsys.readouterr().err
    # There are no runs: had it read anything before, it would have said that.
    assert said.startswith(f"lightning-meta: error: {option}: {name} already exists")
    assert "--overwrite" in said
    assert said.count("\n") == 1
    assert file.is_symlink() if kind == "link" else file.read_text() == "of another run"
    assert main([*command, "--overwrite"]) == 2
    assert "already exists" not in capsys.readouterr().err


def test_a_table_and_an_export_do_not_share_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*PREDICT, "--query", "q", "--out", "x.pt2", "--export", "x.pt2"]) == 2
    assert "--out names the same file" in capsys.readouterr().err
    assert main([*PREDICT, "--export", "none/x.pt2"]) == 2
    assert "there is no folder none" in capsys.readouterr().err
