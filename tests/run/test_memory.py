"""Memory that is kept: fewer pages to clear, and the same numbers."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_meta.run import memory
from lightning_meta.run.memory import keep_freed_memory, memory_limit, peak_memory

STEPS = """
import resource, sys, torch
import lightning.pytorch  # as in every command, before memory is kept
from lightning_meta.run import memory

KEPT, PAGE = int(sys.argv[1]) << 20, resource.getpagesize()
LARGE = KEPT // 6 // 4  # numbers in a block; four blocks fit into what is kept

def step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    made = [torch.full((size,), float(i)) for i in range(4) for size in (LARGE // 50, LARGE)]
    total = sum(float(part[-1]) for part in made)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * PAGE / (4 * LARGE * 4), total

plain = [step() for _ in range(4)]
memory.SHARE = memory.memory_limit() // KEPT
kept = memory.keep_freed_memory() and memory.keep_freed_memory()
after = [step() for _ in range(4)]
print(kept, min(share for share, _ in plain), sum(share for share, _ in after), plain[-1][1] == after[-1][1])
"""

PATTERN = """
import re, sys, torch
from lightning_meta.run import memory

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) >> 10

def megabytes(count):
    return torch.ones(count << 18)

memory.SHARE = memory.memory_limit() // (int(sys.argv[1]) << 20)
assert memory.keep_freed_memory() and memory.keep_freed_memory()
start = peak()
made = [megabytes(8) for _ in range(64)]  # 512 MB
for count in (10, 12, 14, 16):  # no block fits where one was freed
    made = made[1::2]
    made += [megabytes(count) for _ in range((512 - sum(part.numel() >> 18 for part in made)) // count)]
print(peak() - start)
"""

FORK = """
import os, torch
from lightning_meta.run.memory import keep_freed_memory

def resident():  # in MiB
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20

keep_freed_memory()
small = resident()
made = [torch.ones(5_000_000) for _ in range(20)]  # 400 MB
del made
print(resident() - small, flush=True)
if os.fork() == 0:
    print(resident() - small, flush=True)
    os._exit(0)
os.wait()
"""


glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")


def printed_by(code: str, *arguments: str) -> list[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True, env=clean
    )
    return done.stdout.split()


@pytest.mark.slow
@glibc
def test_the_system_clears_each_page_that_is_kept_only_once() -> None:
    kept, least_before, all_after, same_numbers = printed_by(STEPS, "384")
    assert (kept, same_numbers) == ("True", "True")
    assert float(least_before) > 0.9  # in each of four steps, nearly every page of its 256 MB
    # The steps may lie at other places of the 384 MB, which are one and a half times as large.
    assert float(all_after) < 1.6


@pytest.mark.slow
@glibc
def test_no_more_is_kept_than_the_share() -> None:
    peak = int(printed_by(PATTERN, "64")[0])
    assert 500 < peak < 512 + 64 + 30


@pytest.mark.slow
@glibc
def test_a_forked_worker_does_not_hold_what_its_parent_keeps() -> None:
    parent, child = (int(size) for size in printed_by(FORK))
    assert parent > 350
    assert child < 50


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    assert not keep_freed_memory()


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    memory._grow_heap.cache_clear()
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert not keep_freed_memory()
    memory._grow_heap.cache_clear()


GIB = 1 << 30
CGROUPS: dict[str, tuple[str | None, dict[str, int | str], int | None]] = {
    "version 2, own": ("0::/user/job\n", {"user/job/memory.max": GIB}, GIB),
    "version 2, above": ("0::/user/job\n", {"user/job/memory.max": "max", "user/memory.max": GIB}, GIB),
    "version 2, container": ("0::/\n", {"memory.max": GIB}, GIB),
    "version 1": ("4:cpu,memory:/job\n0::/\n", {"memory/job/memory.limit_in_bytes": GIB}, GIB),
    "version 1, container": ("4:memory:/on/the/host\n", {"memory/memory.limit_in_bytes": GIB}, GIB),
    "the least": ("4:memory:/job\n0::/job\n", {"memory/job/memory.limit_in_bytes": GIB, "job/memory.max": 7}, 7),
    "not of memory": ("4:cpu:/job\n", {"memory/job/memory.limit_in_bytes": GIB}, None),
    "another's": ("0::/job\n", {"other/memory.max": GIB}, None),
    "version 1, none": ("4:memory:/\n", {"memory/memory.limit_in_bytes": 2**63 - 4096}, None),
    "no cgroups": (None, {}, None),
}


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits as POSIX has them")
@pytest.mark.parametrize("case", CGROUPS)
def test_the_least_limit_counts(case: str, tmp_path: Path) -> None:
    lines, files, expected = CGROUPS[case]
    texts = {f"sys/fs/cgroup/{name}": str(limit) for name, limit in files.items()}
    if lines is not None:
        texts["proc/self/cgroup"] = lines
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert memory_limit(tmp_path) == (memory_limit(tmp_path / "nothing") if expected is None else expected)


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits as POSIX has them")
def test_the_limits_of_the_process_count() -> None:
    import resource

    code = "import resource; from lightning_meta.run.memory import memory_limit\n"
    code += f"resource.setrlimit(resource.RLIMIT_DATA, ({GIB // 2}, resource.getrlimit(resource.RLIMIT_DATA)[1]))\n"
    assert resource.getrlimit(resource.RLIMIT_DATA)[0] != GIB // 2
    assert printed_by(code + "print(memory_limit())") == [str(GIB // 2)]


def test_the_peak_of_a_process_is_what_linux_counts(tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    assert peak_memory(cpu, tmp_path) is None
    status = tmp_path / "proc" / "self" / "status"
    status.parent.mkdir(parents=True)
    status.write_text("Name:\tpython\nVmPeak:\t 9000 kB\nVmHWM:\t 2560 kB\nVmRSS:\t 1024 kB\n")
    assert peak_memory(cpu, tmp_path) == 2.5
    if sys.platform.startswith("linux"):
        peak = peak_memory(cpu)
        assert peak is not None
        assert 50 < peak < memory_limit() / 2**20  # torch alone takes more than 50 MB
