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
    made = [torch.full((size,), float(i)) for i in range(6) for size in (3_000_000, 12_000_000)]  # 12 and 48 MB
    total = sum(float(part[-1]) for part in made)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, total

plain = [step() for _ in range(4)][-1]
kept = keep_freed_memory()
after = [step() for _ in range(4)][-1]
print(kept, plain[0], after[0], plain[1] == after[1])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_a_step_asks_the_system_for_nothing_that_the_step_before_gave_back() -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True, env=clean)
    kept, before, after, same_numbers = done.stdout.split()
    assert (kept, same_numbers) == ("True", "True")
    assert int(before) > 40_000  # 360 MB in pages of 4 KiB
    assert int(after) < 100


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    assert not keep_freed_memory()
