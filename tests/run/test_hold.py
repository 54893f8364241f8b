"""One process at a time trains a run."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightning_meta.errors import UserError
from lightning_meta.run import RunLogger
from lightning_meta.run.directory import lock_run

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs file locks")

HOLD = """
import sys, time, os
from pathlib import Path
from lightning_meta.run.directory import lock_run
held = lock_run(Path(sys.argv[1]))
child = os.fork()  # as a loader's worker
print(f"{'held' if child else 'forked'} {child}\\n", end="", flush=True)  # in one piece, as both write
time.sleep(1800)  # until the test ends it
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    # Both have to speak: until the worker runs, it has not yet closed what it inherited.
    said = dict(process.stdout.readline().split() for _ in range(2))
    child = int(said["held"])
    yield process, child
    process.kill()
    process.wait()
    process.stdout.close()
    os.kill(child, signal.SIGKILL)


def test_a_second_process_is_refused_until_the_first_is_gone(
    tmp_path: Path, holder: tuple[subprocess.Popen[str], int]
) -> None:
    process, child = holder
    with pytest.raises(UserError, match=r"another process is training this run, or has it open; wait for its end"):
        lock_run(tmp_path)
    process.kill()
    process.wait()
    os.kill(child, 0)  # its worker is still there, and holds nothing
    lock_run(tmp_path).release()
    assert [file.name for file in tmp_path.iterdir()] == ["run.lock"]


def test_a_new_run_is_held_from_its_first_moment_and_let_go(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path, "run", exclusive=True)
    with pytest.raises(UserError, match="another process"):
        lock_run(logger.directory)
    logger.release()
    again = RunLogger(tmp_path, "run", 0, exclusive=True)
    again.hold()
    for copied in (copy.deepcopy(again), pickle.loads(pickle.dumps(again))):
        del copied
    with pytest.raises(UserError, match="another process"):
        lock_run(logger.directory)
    again.discard()  # it is not new, and stays
    lock_run(logger.directory).release()


def test_a_logger_outside_of_fit_holds_nothing(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path, "run")
    lock_run(logger.directory).release()


def test_a_run_of_one_device_on_a_second_machine_has_its_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NODE_RANK", "1")  # as a cluster sets it, whatever is run
    logger = RunLogger(tmp_path, "run", exclusive=True)
    assert logger.save_dir == str(tmp_path / "run" / "0")
    lock_run(logger.directory).release()  # the machines of one run do not keep each other out


def test_what_cannot_be_locked_is_not_kept_from_anyone(tmp_path: Path) -> None:
    lock_run(tmp_path / "missing").release()
    assert not (tmp_path / "missing").exists()
