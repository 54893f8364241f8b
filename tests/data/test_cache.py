from __future__ import annotations

import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from lightning_meta.batches import Split
from lightning_meta.data.cache import cache_folder, load_or_build, replacing
from lightning_meta.data.group_tasks import hashes_of_groups
from lightning_meta.data.hashes import Hashes, of_pools
from lightning_meta.data.pool import Pool
from lightning_meta.errors import UserError
from tests.waiting import KILL_ROUNDS, LIMIT

SLOW = pytest.mark.slow
# What a killed process wrote under a temporary name goes with the next build, or after a day.
KINDS = ("killed", "ended", "whole after one ended", "temporary files")

# What the child processes below run: the same pools, large enough that writing them takes a while.
CHILD = """
import sys, torch
from lightning_meta.data.cache import load_or_build
from lightning_meta.data.pool import Pool
def build():
    x = torch.arange(8_000_000).to(torch.uint8).reshape(8, -1)
    print("building", flush=True)
    return {s: Pool(x.clone(), torch.tensor([8]), (s,), ("",)) for s in ("train", "val", "test")}
"""


def pools(value: int = 0) -> dict[Split, Pool]:
    x = torch.arange(24, dtype=torch.uint8).reshape(6, 1, 2, 2) + value

    def pool(split: str) -> Pool:
        return Pool(x.clone(), torch.tensor([2, 4]), (f"{split}/ä", f"{split}/b"), ("g", "h"))

    return {"train": pool("train"), "val": pool("val"), "test": pool("test")}


def same(a: dict[Split, Pool], b: dict[Split, Pool]) -> bool:
    return all(torch.equal(a[s].x, b[s].x) and (a[s].names, a[s].groups) == (b[s].names, b[s].groups) for s in a)


def child(code: str, cache: Path) -> subprocess.Popen[str]:
    env = {**os.environ, "LIGHTNING_META_CACHE": str(cache)}
    return subprocess.Popen([sys.executable, "-c", CHILD + code], env=env, stdout=subprocess.PIPE, text=True)


def test_builds_once_and_then_reads_the_same(cache: Path) -> None:
    built = []

    def build() -> dict[Split, Pool]:
        built.append(1)
        return pools()

    first, second = load_or_build("toy", "k", build), load_or_build("toy", "k", build)
    assert len(built) == 1
    assert same(first.pools, pools())
    assert same(second.pools, pools())
    assert first.hashes == second.hashes == of_pools(pools())
    assert [path.name[:4] for path in (cache / "decoded").iterdir()] == ["toy-"]


def test_another_key_is_another_file(cache: Path) -> None:
    load_or_build("toy", "28 pixels", pools)
    other = load_or_build("toy", "32 pixels", lambda: pools(1))
    assert same(other.pools, pools(1))
    assert len(list((cache / "decoded").iterdir())) == 2


def test_fingerprint_sees_names_sizes_order_and_examples() -> None:
    plain = pools()
    swapped = {**plain, "train": plain["train"].select([1, 0])}
    renamed = {**plain, "val": plain["test"]}
    prints = [of_pools(p).whole for p in (plain, pools(1), swapped, renamed)]
    assert len(set(prints)) == 4


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_examples_are_memory_mapped_and_writing_to_them_leaves_the_file_alone(cache: Path) -> None:
    loaded = load_or_build("toy", "k", pools).pools
    assert str(next((cache / "decoded").iterdir())) in Path("/proc/self/maps").read_text()
    loaded["train"].x.fill_(9)
    assert same(load_or_build("toy", "k", pools).pools, pools())


@pytest.mark.parametrize("damage", ["truncate", "flip", "extend", "empty", "not safetensors"])
@pytest.mark.parametrize("hashes", [of_pools, hashes_of_groups])
def test_a_damaged_file_is_never_used(
    cache: Path, damage: str, hashes: Callable[[Mapping[Split, Pool]], Hashes], caplog: pytest.LogCaptureFixture
) -> None:
    load_or_build("toy", "k", pools, hashes)
    path = next((cache / "decoded").iterdir())
    intact = path.read_bytes()
    rng = random.Random(damage)
    for _ in range(150 if damage in ("truncate", "flip") else 1):
        caplog.clear()
        damaged = bytearray(intact)
        if damage == "truncate":
            damaged = damaged[: rng.randrange(len(intact))]
        elif damage == "flip":
            damaged[rng.randrange(len(intact))] ^= 1 << rng.randrange(8)
        elif damage == "extend":
            damaged += b"more"
        else:
            damaged = bytearray() if damage == "empty" else bytearray(b"hello, world" * 99)
        path.unlink()  # the intact file may still be mapped
        path.write_bytes(damaged)
        with caplog.at_level(logging.WARNING, logger="lightning_meta"):
            assert same(load_or_build("toy", "k", pools, hashes).pools, pools())
        rebuilt = path.read_bytes() != damaged
        if hashes is of_pools or not rebuilt:  # a file without a hash of its tasks is one of an older version
            assert rebuilt == ("is damaged" in caplog.text)
        assert rebuilt or damage == "flip"  # a flip may hit a blank that pads the header: harmless
    assert len(list((cache / "decoded").iterdir())) == 1


@pytest.mark.parametrize("damaged", ["examples", "names", "groups"])
def test_what_lies_under_the_hashes_of_tasks_is_compared(
    cache: Path, damaged: str, caplog: pytest.LogCaptureFixture
) -> None:
    load_or_build("toy", "k", pools, hashes_of_groups)
    path = next((cache / "decoded").iterdir())
    before = bytes(pools()["val"].x.flatten().tolist())
    old, new = {
        "examples": (before, bytes([before[0] + 1]) + before[1:]),
        "names": (b"val/b", b"val/c"),
        "groups": (b'\\"h\\"', b'\\"j\\"'),
    }[damaged]
    content = path.read_bytes()
    assert old in content
    path.unlink()
    path.write_bytes(content.replace(old, new))
    with caplog.at_level(logging.WARNING, logger="lightning_meta"):
        assert same(load_or_build("toy", "k", pools, hashes_of_groups).pools, pools())
    assert "is damaged" in caplog.text


@pytest.mark.slow
def test_two_processes_build_at_once(tmp_path: Path) -> None:
    code = "print(load_or_build('toy', 'k', build).hashes.whole)"
    both = [child(code, tmp_path), child(code, tmp_path)]
    lines = [process.communicate(timeout=LIMIT)[0].split() for process in both]
    assert all(process.returncode == 0 for process in both)
    assert lines[0][-1] == lines[1][-1]
    assert [path.suffix for path in (tmp_path / "decoded").iterdir()] == [".safetensors"]


@pytest.mark.slow
def test_killed_while_building_leaves_no_broken_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
from pathlib import Path
import os
while True:
    load_or_build('toy', 'k', build)
    for path in Path(os.environ['LIGHTNING_META_CACHE']).rglob('*.safetensors'):
        path.unlink()
"""
    for delay in (0.01, 0.04):
        process = child(code, tmp_path)
        assert process.stdout is not None
        process.stdout.readline()  # it has begun
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if list(tmp_path.rglob("*.safetensors")):  # under its own name a file is whole: nothing is built again
            monkeypatch.setenv("LIGHTNING_META_CACHE", str(tmp_path))
            assert load_or_build("toy", "k", lambda: pytest.fail("damaged")).pools["test"].x.numel() == 8_000_000


@pytest.mark.skipif(sys.platform == "win32", reason="processes are forked")
@pytest.mark.parametrize(
    ("kind", "kills"),
    [pytest.param("toy", 4, marks=SLOW), pytest.param("images", 50 if KILL_ROUNDS else 20, marks=SLOW)]
    + ([pytest.param("toy", 50, marks=SLOW)] if KILL_ROUNDS else []),
)
def test_killed_at_random_moments_a_cache_is_whole_or_absent(tmp_path: Path, kind: str, kills: int) -> None:
    command = [sys.executable, "-m", "tests.data.kill_cache", str(tmp_path), str(kills), "0", kind]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    print(f"\n{kind}: {seen}")
    assert seen["killed"] >= kills // 4  # how many fall before the end is the machine's
    assert seen.keys() <= {*KINDS, *(f"{left} after both were killed" for left in ("whole", "absent"))}


def test_orphans_go_after_a_day_and_nothing_else_does(cache: Path) -> None:
    folder = cache / "decoded"
    folder.mkdir(parents=True)
    orphans = {".toy-1.safetensors.99-0a1b2c3d.tmp", ".tmpXyZ123", "tmpq1w2e3r4"}
    others = {"tmp", "tmp-notes.txt", ".tmprc", "my.tmp", ".hidden.tmp", "tmpfile.safetensors"}
    for name in orphans | others:
        (folder / name).touch()
        os.utime(folder / name, (0, 0))
    writing = ".toy-2.safetensors.98-0a1b2c3d.tmp"  # another process, now
    (folder / writing).touch()
    load_or_build("toy", "k", pools)
    assert {path.name for path in folder.iterdir() if not path.name.startswith("toy-")} == {*others, writing}


def opened_days_ago(file: Path, days: float) -> None:
    os.utime(file, (time.time() - days * 24 * 3600,) * 2)


def test_what_is_not_opened_for_sixty_days_goes_and_nothing_else_does(cache: Path) -> None:
    folder = cache / "decoded"
    folder.mkdir(parents=True)
    others = [folder / "mine.safetensors", folder / "table-0123.safetensors", folder / "table-0123456789abcdef.csv"]
    for file in others:
        file.touch()
    files: dict[str, Path] = {}
    mapped: dict[str, dict[Split, Pool]] = {}
    for key in ("unused", "used", "recent"):
        mapped[key] = load_or_build("x", key, pools).pools
        (files[key],) = set(folder.iterdir()) - {*others, *files.values()}
    for file in [*others, files["unused"], files["used"]]:
        opened_days_ago(file, 61)
    opened_days_ago(files["recent"], 59)
    load_or_build("x", "used", pools)  # opens it
    os.utime(files["used"], (time.time() - 3600, files["used"].stat().st_mtime))
    load_or_build("x", "used", pools)
    assert files["used"].stat().st_atime > time.time() - 600, "file systems note at most one opening a day"
    assert set(folder.iterdir()) == {*others, *files.values()}
    load_or_build("x", "new", pools)
    assert [key for key, file in files.items() if file.exists()] == ["used", "recent"]
    assert all(file.exists() for file in others)
    assert same(mapped["unused"], pools())


def test_a_failure_while_writing_leaves_nothing_and_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("file", "old")]


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LIGHTNING_META_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match=r"cannot write toy.* set LIGHTNING_META_CACHE") as error:
        load_or_build("toy", "k", pools)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on file sizes")
def test_a_full_disk(tmp_path: Path) -> None:
    code = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))  # the system then refuses to write more
try:
    load_or_build('toy', 'k', build)
except ValueError as error:
    print(error)
"""
    output = child(code, tmp_path).communicate(timeout=LIMIT)[0]
    assert "make room, or set LIGHTNING_META_CACHE" in output.splitlines()[-1]
    assert list((tmp_path / "decoded").iterdir()) == []


def test_default_folder_is_the_platforms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIGHTNING_META_CACHE")
    assert "lightning_meta" in str(cache_folder())
