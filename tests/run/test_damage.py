"""Files of a run that a disk, a kill or a person damaged: found when they are read, and said in one line."""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from lightning_meta.cli import main
from lightning_meta.errors import UserError
from lightning_meta.loading import load
from lightning_meta.report import write_figures
from lightning_meta.run import AtomicCheckpointIO, read_checkpoint
from lightning_meta.run.intact import damage
from tests.run.test_resume import MODEL, SCHEDULES, fingerprint, plain, run_in

OPTIONS = [*SCHEDULES["apart"], "--trainer.max_steps=23", "--trainer.log_every_n_steps=1"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a finished run."""
    return run_in(tmp_path_factory.mktemp("whole"), OPTIONS)


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy of it, that may be damaged."""
    return Path(shutil.copytree(whole.parent.parent, tmp_path / "runs") / "toy" / "0")


def resume(run: Path, path: Path | None = None) -> int:
    return main(["fit", *MODEL, *OPTIONS, f"--runs={run.parent.parent}", f"--ckpt_path={path or run}"])


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    said = capsys.readouterr().err
    (line,) = [line for line in said.splitlines() if "error" in line.lower()]
    assert "Traceback" not in said
    return line


def files_of(run: Path) -> dict[str, bytes]:
    return {str(file.relative_to(run)): file.read_bytes() for file in run.rglob("*") if file.is_file()}


# Checkpoints


def test_every_flipped_byte_that_matters_is_found(whole: Path, tmp_path: Path) -> None:
    original = (whole / "checkpoints" / "last.ckpt").read_bytes()
    expected = plain(read_checkpoint(whole / "checkpoints" / "last.ckpt"))
    file, found = tmp_path / "last.ckpt", 0
    for place in range(0, len(original), max(len(original) // 400, 1)):
        flipped = bytearray(original)
        flipped[place] ^= 1 << place % 8
        file.write_bytes(flipped)
        try:
            checkpoint = read_checkpoint(file)
        except UserError as error:
            found += "damaged" in str(error)
        else:  # in padding, or in what is stored twice
            assert plain(checkpoint) == expected, f"byte {place} changed what was read"
    assert found > 100


def test_flipped_weights_are_found(tmp_path: Path) -> None:
    file, weights = tmp_path / "best.ckpt", torch.arange(20_000, dtype=torch.float32)
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)  # as a program may that wants to write faster
    try:
        AtomicCheckpointIO().save_checkpoint({"state_dict": {"w": weights}}, file)
        assert not torch.serialization.get_crc32_options()
    finally:
        torch.serialization.set_crc32_options(before)
    original = file.read_bytes()
    start = original.index(weights.numpy().tobytes())
    for i in range(15):
        flipped = bytearray(original)
        flipped[start + 5000 * i] ^= 16
        file.write_bytes(flipped)
        with pytest.raises(UserError, match=r"best\.ckpt is damaged: 'data/0' in it is not what was written"):
            read_checkpoint(file)


def test_a_checkpoint_that_others_wrote_without_checksums_is_read(tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"state_dict": {"w": torch.ones(3)}}, tmp_path / "a.ckpt")
    finally:
        torch.serialization.set_crc32_options(before)
    assert torch.equal(read_checkpoint(tmp_path / "a.ckpt")["state_dict"]["w"], torch.ones(3))


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 255
    file.write_bytes(data)


def zero(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


@pytest.mark.parametrize("spoil", [truncate, empty, flip, zero, Path.unlink])
def test_damage_is_seen(spoil: Callable[[Path], None], run: Path) -> None:
    last = run / "checkpoints" / "last.ckpt"
    assert damage(last) is None
    spoil(last)
    assert damage(last) is not None


@pytest.mark.parametrize(("spoil", "named"), [(truncate, "run"), (flip, "file"), (Path.unlink, "run")])
def test_a_damaged_last_checkpoint_falls_back_to_the_best(
    spoil: Callable[[Path], None], named: str, run: Path, whole: Path, caplog: pytest.LogCaptureFixture
) -> None:
    last = run / "checkpoints" / "last.ckpt"
    (run / "results.json").unlink()
    spoil(last)
    with caplog.at_level(logging.WARNING):
        assert resume(run, last if named == "file" else None) == 0
    assert f"resuming from {run / 'checkpoints' / 'best.ckpt'}" in caplog.text
    assert fingerprint(run) == fingerprint(whole)


def test_without_an_intact_checkpoint_nothing_is_touched(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("best.ckpt", "last.ckpt"):
        flip(run / "checkpoints" / name)
    before = files_of(run)
    assert resume(run) == 2
    line = error_line(capsys)
    assert "last.ckpt" in line
    assert "best.ckpt" in line
    assert "restore one of them, or start a new run" in line
    assert files_of(run) == before


def test_another_checkpoint_is_never_tested_in_place_of_a_damaged_best(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truncate(run / "checkpoints" / "best.ckpt")
    last = run / "checkpoints" / "last.ckpt"
    assert main(["test", "--ckpt_path", str(run), "--trust"]) == 2
    assert f"{last} is intact, name it to use that one" in error_line(capsys)
    assert not (run / "tests").exists()
    with pytest.raises(UserError, match=r"best\.ckpt is .*damaged; .*last\.ckpt is intact"):
        load(run)
    assert main(["test", "--ckpt_path", str(last), "--trust", "--trainer.enable_progress_bar=false"]) == 0


# metrics.csv


def torn_in_the_middle(lines: list[str]) -> str:
    lines[5] = lines[5][:2] + "\r\n"
    return "".join(lines)


def without_a_column(lines: list[str]) -> str:
    return "".join(re.sub(",[^,]*", "", line, count=1) for line in lines)


def with_one_header_cell_less(lines: list[str]) -> str:
    return "".join([lines[0].rpartition(",")[0] + "\r\n", *lines[1:]])


def with_a_word(lines: list[str]) -> str:
    lines[4] = re.sub(",[^,]*", ",O.1", lines[4], count=1)
    return "".join(lines)


DAMAGE: dict[str, Callable[[list[str]], str | bytes]] = {
    "torn in the middle": torn_in_the_middle,
    "NUL bytes": lambda lines: "".join(lines[:4]) + "\0" * 40 + "".join(lines[4:]),
    "binary": lambda lines: bytes(range(256)) * 8,
    "no header": lambda lines: "".join(lines[1:]),
    "another header": lambda lines: "a,b,c\r\n" + "".join(lines[1:]),
    "a header cell less": with_one_header_cell_less,
    "empty": lambda lines: "",
    "a folder": lambda lines: "",
}
OF_RESUME: dict[str, Callable[[list[str]], str | bytes]] = {
    "fewer rows": lambda lines: "".join(lines[:-9]),
    "a column less": without_a_column,
    "missing": lambda lines: "",
}
OF_PICTURES: dict[str, Callable[[list[str]], str | bytes]] = {"a word": with_a_word}


def spoil_metrics(run: Path, kind: str) -> None:
    file = run / "metrics.csv"
    content = {**DAMAGE, **OF_RESUME, **OF_PICTURES}[kind](file.read_bytes().decode().splitlines(keepends=True))
    file.unlink()
    if kind == "a folder":
        file.mkdir()
    elif kind != "missing":
        file.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize("kind", [*DAMAGE, *OF_RESUME])
def test_damaged_metrics_are_a_line_on_resume(kind: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil_metrics(run, kind)
    before = files_of(run)
    assert resume(run) == 2
    line = error_line(capsys)
    assert "metrics.csv" in line
    assert "restore it, or resume from a copy of the checkpoint in another folder" in line
    assert files_of(run) == before


def test_the_way_out_that_is_named_works(run: Path, tmp_path: Path) -> None:
    spoil_metrics(run, "binary")
    copy = Path(shutil.copy(run / "checkpoints" / "best.ckpt", tmp_path / "a.ckpt"))
    assert resume(run, copy) == 0
    assert (run.parent / "1" / "results.json").is_file()


def test_what_a_kill_left_behind_the_checkpoint_is_no_damage(
    run: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_meta.run.results.git_revision", lambda: "0" * 40)  # committed to meanwhile
    (run / "results.json").unlink()
    with (run / "metrics.csv").open("ab") as file:
        file.write(b"24,1\r\n" + bytes(64) + b"\xff,")
    assert resume(run) == 0
    assert fingerprint(run) == fingerprint(whole)


@pytest.mark.parametrize("kind", [*DAMAGE, *OF_PICTURES])
def test_damaged_metrics_are_a_line_in_pictures(
    kind: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spoil_metrics(run, kind)
    assert main(["curves", str(run)]) == 2
    assert "metrics.csv" in error_line(capsys)
    assert not Path("curves.png").exists()
    if kind != "a folder":
        with pytest.raises(UserError, match=r"metrics\.csv is damaged"):
            write_figures(run)


# Folders that cannot be written to


def test_a_read_only_run_is_not_resumed_or_tested(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(dir: Path) -> NoReturn:
        assert run in (dir, *dir.parents)
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(dir))

    monkeypatch.setattr("lightning_meta.run.files.tempfile.TemporaryFile", refuse)
    before = files_of(run)
    commands: dict[str, Callable[[], Any]] = {
        "fit": lambda: resume(run),
        "test": lambda: main(["test", "--ckpt_path", str(run), "--trust", "--trainer.enable_progress_bar=false"]),
    }
    for command in commands.values():
        assert command() == 2
        line = error_line(capsys)
        assert f"{run} cannot be written to (Read-only file system)" in line
        assert "copy the run to a folder that is" in line
    assert files_of(run) == before
