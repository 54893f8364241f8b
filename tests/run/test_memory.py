"""Memory that is kept: fewer pages to clear, and the same numbers."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from lightning_meta.run.memory import keep_freed_memory

STEPS = """
import resource, torch
from lightning_meta.run.memory import keep_freed_memory

def step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    made = [torch.full((size,), float(i)) for i in range(4) for size in (3_000_000, 150_000_000)]  # 2.4 GB
    total = sum(float(part[-1]) for part in made)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, total

plain = [step() for _ in range(4)][-1]
kept = keep_freed_memory()
after = [step() for _ in range(4)][-1]
print(kept, plain[0], after[0], plain[1] == after[1])
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


def printed_by(code: str) -> list[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=clean)
    return done.stdout.split()


@glibc
def test_a_step_asks_the_system_for_nothing_that_the_step_before_gave_back() -> None:
    kept, before, after, same_numbers = printed_by(STEPS)
    assert (kept, same_numbers) == ("True", "True")
    assert int(before) > 300_000  # pages of 4 KiB
    assert int(after) < 100


@glibc
def test_a_forked_worker_does_not_hold_what_its_parent_keeps() -> None:
    parent, child = (int(size) for size in printed_by(FORK))
    assert parent > 350
    assert child < 50


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    assert not keep_freed_memory()
