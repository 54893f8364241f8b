"""Runs a driver in processes of its own, one for each rank."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.waiting import LIMIT

ROOT = Path(__file__).parents[1]


def run_driver(module: str, folder: Path, world: int | str, gpus: bool = False) -> None:
    """Run `python -m module folder world`, which starts its ranks and leaves its findings in the folder."""
    command = [sys.executable, "-m", module, str(folder), str(world)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **({} if gpus else {"CUDA_VISIBLE_DEVICES": ""})}
    env = {k: v for k, v in env.items() if k not in ("LOCAL_RANK", "MASTER_PORT", "PL_GLOBAL_SEED")}
    with (folder / "output").open("w") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status: int | str = process.wait(LIMIT)  # ranks that wait for each other would wait for ever
        except subprocess.TimeoutExpired:
            status = f"nothing after {LIMIT} s"
            os.killpg(process.pid, signal.SIGKILL)  # the driver and the ranks it started
            process.wait()
    assert status == 0, f"{status}: {(folder / 'output').read_text()[-3000:]}"
