"""Files are replaced whole, by any number of writers at once, and no one else's file is touched."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lightning_meta.run.files import replacing
from lightning_meta.staging import ORPHANED_AFTER, staging

KILLED = """
import os, signal, sys
from lightning_meta.run.files import replacing
with replacing(sys.argv[1]) as file:
    file.write("half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def write(path: Path, text: str) -> None:
    with replacing(path) as file:
        file.write(text)


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


@pytest.mark.parametrize("name", ["a.csv", "a[1]*.csv", "*", "ä"])
def test_files_of_others_stay(tmp_path: Path, name: str) -> None:
    others = {f".{name}.swp", f".{name}.bak", f".{name}.1234", ".x.1.tmp", "x", f".{name}.1-0123456789abcdef.tmp.gz"}
    others |= {f".{name}.{os.getpid()}-{'0' * 16}.tmp", ".b.csv.1-0123456789abcdef.tmp"}
    for other in others:
        (tmp_path / other).touch()
    write(tmp_path / name, "whole")
    assert names(tmp_path) == {*others, name}


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_what_a_killed_process_left_goes_with_the_next_write(tmp_path: Path) -> None:
    for target in ("a[1].csv", "b.csv"):
        assert subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / target)], check=False).returncode == -9
    assert len(names(tmp_path)) == 2
    write(tmp_path / "a[1].csv", "whole")
    assert len(names(tmp_path)) == 2
    assert "a[1].csv" in names(tmp_path)
    write(tmp_path / "b.csv", "whole")
    assert names(tmp_path) == {"a[1].csv", "b.csv"}


def test_what_another_machine_left_goes_after_a_day(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f".a.999999999-{number:016}.tmp").touch()
    os.utime(tmp_path / ".a.999999999-0000000000000002.tmp", (0, 0))
    write(tmp_path / "a", "whole")
    assert names(tmp_path) == {"a", ".a.999999999-0000000000000001.tmp"}


def test_two_writers_at_once_do_not_see_each_other(tmp_path: Path) -> None:
    errors: list[Exception] = []

    def many(text: str) -> None:
        try:
            for _ in range(100):
                write(tmp_path / "a.csv", text * 1000)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=many, args=(text,)) for text in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(set((tmp_path / "a.csv").read_text())) == 1
    assert names(tmp_path) == {"a.csv"}


def test_a_failure_leaves_the_old_file_alone(tmp_path: Path) -> None:
    write(tmp_path / "a", "old")

    def fail() -> None:
        with staging(tmp_path / "a") as staged:
            staged.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert names(tmp_path) == {"a"}
    assert (tmp_path / "a").read_text() == "old"


WRITES = """
import sys, time
from pathlib import Path
import lightning_meta.staging as staging
if sys.argv[2] == "elsewhere":
    staging._machine = lambda: "0" * 8
with staging.staging(Path(sys.argv[1])) as staged:
    staged.write_text("half")
    print("begun", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no such locks")
@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_a_live_writers_file_outlives_a_jump_of_the_clock(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer in another process, of this machine or, as from another container, one whose number says nothing."""
    command = [sys.executable, "-c", WRITES, str(tmp_path / "a"), where]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "begun\n"
        with monkeypatch.context() as jump:
            now = time.time()
            jump.setattr(time, "time", lambda: now + 10 * ORPHANED_AFTER)
            write(tmp_path / "a", "mine")
        writer.communicate("\n")
    assert writer.returncode == 0
    assert (tmp_path / "a").read_text() == "half"
    assert names(tmp_path) == {"a"}


def test_what_has_no_live_writer_goes_where_the_clock_is_all_there_is(tmp_path: Path) -> None:
    (tmp_path / ".a.999999999-0000000000000001.tmp").touch()
    os.utime(tmp_path / ".a.999999999-0000000000000001.tmp", (0, 0))
    with staging(tmp_path / "b") as staged:
        write(tmp_path / "a", "whole")
        assert ".a.999999999-0000000000000001.tmp" in names(tmp_path)  # somebody writes to this folder
        staged.touch()
    write(tmp_path / "a", "whole")
    assert names(tmp_path) == {"a", "b"}
