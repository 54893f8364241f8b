"""Killed at random moments, a command leaves whole files that say what is so, and ends as if it had not been killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import LIMIT

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="needs /proc")
@pytest.mark.parametrize(("kind", "kills"), [("fit", 5), ("resume", 5), ("predict", 4), ("ladder", 5)])
def test_killed_at_random_moments_nothing_is_corrupt_or_untrue(tmp_path: Path, kind: str, kills: int) -> None:
    command = [sys.executable, "-m", "tests.run.kill_anything", kind, str(tmp_path), str(kills), "0"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert sum(json.loads(done.stdout.splitlines()[-1]).values()) == kills
