"""A disk without room: one line, status 2, and whole files or none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_meta.cli import main
from lightning_meta.run import read_checkpoint
from tests.run.test_resume import MODEL, ROOT, SCHEDULES

# The system refuses to write files larger than the limit, as it refuses to write to a full disk.
LIMITED = """
import resource, sys
limit = int(sys.argv[1])
from lightning_meta.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
sys.exit(main(["fit", *sys.argv[2:]]))
"""
OPTIONS = [*MODEL, *SCHEDULES["apart"], "--trainer.max_steps=23", "--trainer.log_every_n_steps=1"]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no limit on file sizes")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("room", "left"),
    [
        (300, set()),  # not even a configuration
        (12_000, set()),  # no checkpoint
        (19_500, {"config.yaml", "metrics.csv", "checkpoints/last.ckpt"}),  # the first, and none that grew
        (30_000, {"results.json", "checkpoints/best.ckpt", "checkpoints/last.ckpt"}),  # all but the figures
    ],
)
def test_a_run_on_a_full_disk(tmp_path: Path, room: int, left: set[str]) -> None:
    command = [sys.executable, "-c", LIMITED, str(room), *OPTIONS]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("lightning-meta: error: cannot write (")
    assert "File too large" in done.stderr
    run = tmp_path / "runs" / "toy" / "0"
    assert left <= {str(file.relative_to(run)) for file in run.rglob("*")}
    assert not [file for file in run.rglob("*") if file.name.startswith(".")]
    checkpoints = list(run.rglob("*.ckpt"))
    for file in checkpoints:
        read_checkpoint(file)
    if not checkpoints:
        assert done.stderr.endswith("there is no checkpoint yet: start it again\n")
        return
    assert done.stderr.endswith("go on with --ckpt_path runs/toy/0/checkpoints/last.ckpt\n")
    resumed = ["--ckpt_path=last", f"--runs={tmp_path / 'runs'}"]
    assert main(["fit", *OPTIONS, *resumed]) == 0
    assert main(["fit", *OPTIONS, f"--runs={tmp_path / 'whole'}"]) == 0
    whole = tmp_path / "whole" / "toy" / "0"
    assert (run / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
