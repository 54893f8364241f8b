"""A disk without room: one line, status 2, and whole files or none."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lightning_meta.cli import main
from lightning_meta.fitting.disk import disk_trouble
from lightning_meta.run import AtomicCheckpointIO, read_checkpoint
from lightning_meta.run.files import replacing
from lightning_meta.run.progress import restoring_error
from tests.run.test_resume import MODEL, ROOT, SCHEDULES
from tests.waiting import LIMIT

# The system refuses to write files larger than the limit, as it refuses to write to a full disk. It is set before the
# run, after a number of checkpoints, or before the figures.
LIMITED = """
import resource, sys
moment, limit = sys.argv[1], int(sys.argv[2])
from lightning_meta.cli import main
from lightning_meta.run import AtomicCheckpointIO
import lightning_meta.fitting.summary as command

def full():
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

save, write_figures, saved = AtomicCheckpointIO.save_checkpoint, command.write_figures, []

def counted(self, *args, **options):
    save(self, *args, **options)
    saved.append(1)
    if moment == "checkpoint" and len(saved) == 2:
        full()

def last(*args):
    if moment == "figures":
        full()
    write_figures(*args)

AtomicCheckpointIO.save_checkpoint, command.write_figures = counted, last
if moment == "start":
    full()
sys.exit(main(["fit", *sys.argv[3:]]))
"""
SMALL = [*MODEL, *SCHEDULES["apart"], "--trainer.max_steps=23", "--trainer.log_every_n_steps=1"]
LARGE = [*SMALL, "--model.backbone.out_features=60000"]  # with Adam's moments over 4 MB, more than any buffer
CHECKPOINT, CONFIG = "checkpoints/last.ckpt", "config.yaml"

limits_files = pytest.mark.skipif(sys.platform == "win32", reason="no limit on file sizes")


@pytest.fixture(scope="module")
def sizes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, int]]:
    """The sizes of the files of whole runs."""
    found = {}
    for name, options in (("small", SMALL), ("large", LARGE)):
        folder = tmp_path_factory.mktemp("whole")
        assert main(["fit", *options, f"--runs={folder}"]) == 0
        run = folder / "toy" / "0"
        found[name] = {str(file.relative_to(run)): file.stat().st_size for file in run.rglob("*") if file.is_file()}
    return found


@limits_files
@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "moment", "file", "left"),
    [
        ("small", "start", CONFIG, set()),  # not even a configuration
        ("small", "start", CHECKPOINT, set()),  # no checkpoint
        ("large", "start", CHECKPOINT, set()),
        ("small", "checkpoint", CHECKPOINT, {CONFIG, CHECKPOINT}),  # the first ones, and no further
        ("large", "checkpoint", CHECKPOINT, {CONFIG, CHECKPOINT}),
        ("large", "figures", "figures/training.png", {"results.json", "checkpoints/best.ckpt", CHECKPOINT}),
    ],
)
def test_a_run_on_a_full_disk(
    tmp_path: Path, size: str, moment: str, file: str, left: set[str], sizes: dict[str, dict[str, int]]
) -> None:
    if size == "large":
        assert sizes[size][CHECKPOINT] > 2**20
    options = SMALL if size == "small" else LARGE
    command = [sys.executable, "-c", LIMITED, moment, str(sizes[size][file] // 2), *options]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("lightning-meta: error: cannot write (")
    assert "File too large" in done.stderr
    run = tmp_path / "runs" / "toy" / "0"
    assert left <= {str(file.relative_to(run)) for file in run.rglob("*")}
    assert not [file for file in run.rglob("*") if file.name.startswith(".")]
    checkpoints = list(run.rglob("*.ckpt"))
    for checkpoint in checkpoints:
        read_checkpoint(checkpoint)
    if not checkpoints:
        assert done.stderr.endswith("there is no checkpoint yet: start it again\n")
        return
    assert done.stderr.endswith(
        "resume with `lightning-meta fit --config runs/toy/0/config.yaml --ckpt_path runs/toy/0`\n"
    )
    resumed = ["--ckpt_path=last", f"--runs={tmp_path / 'runs'}"]
    assert main(["fit", *options, *resumed]) == 0
    assert main(["fit", *options, f"--runs={tmp_path / 'whole'}"]) == 0
    whole = tmp_path / "whole" / "toy" / "0"
    assert (run / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()


@limits_files
def test_a_large_checkpoint_on_a_full_disk(tmp_path: Path) -> None:
    """torch says that its own writer failed, and what the disk said is behind that, however it is passed on."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    try:
        with pytest.raises((RuntimeError, OSError)) as raised:
            AtomicCheckpointIO().save_checkpoint({"state_dict": {"w": torch.ones(2**19)}}, tmp_path / "a.ckpt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert restoring_error(raised.value, tmp_path / "a.ckpt") is None
    assert disk_trouble(raised.value) == "File too large"
    assert list(tmp_path.iterdir()) == []


def caught(raising: Callable[[], None]) -> BaseException:
    with pytest.raises((RuntimeError, OSError)) as raised:
        raising()
    return raised.value


def while_handling(number: int) -> BaseException:
    def raising() -> None:
        try:
            raise OSError(number, os.strerror(number))
        except OSError:
            raise RuntimeError("a bug") from ValueError("another")

    return caught(raising)


def test_what_the_disk_said_is_found_behind_an_error_once() -> None:
    assert disk_trouble(while_handling(errno.ENOSPC)) == os.strerror(errno.ENOSPC)
    ring = RuntimeError("a")
    ring.__cause__ = ring
    ring.__context__ = OSError(errno.ENOSPC, "No space left on device", "a.ckpt")
    ring.__context__.__context__ = ring
    assert disk_trouble(ring) == "a.ckpt: No space left on device"
    assert disk_trouble(RuntimeError("a")) is None


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
def test_what_may_not_be_read_by_others_is_no_trouble_of_the_disk(number: int) -> None:
    assert disk_trouble(while_handling(number)) is None
    assert disk_trouble(OSError(number, "a user's own data set")) is None


def test_what_this_package_may_not_write_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "a"))

    monkeypatch.setattr(Path, "open", refuse)

    def write() -> None:
        with replacing(tmp_path / "a"):
            pass

    assert disk_trouble(caught(write)) == f"{tmp_path / 'a'}: Permission denied"
