"""The scripts for SLURM and torchrun, with stand-ins for the programs of the cluster."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from lightning_meta.run import read_checkpoint
from tests.launching import ONE, OPTIONS, ROOT, accident, ended, free_port, start
from tests.waiting import LIMIT

# Starts two ranks, as srun does on two machines, and ends both as soon as one has failed.
SRUN = """#!/usr/bin/env python
import os, subprocess, sys, time
command = sys.argv[1:]
while command[0].startswith("--"):
    print("srun was given", command.pop(0), flush=True)
ranks = [subprocess.Popen(command, env={**os.environ, "SLURM_PROCID": str(r), "SLURM_NODEID": str(r)}) for r in (0, 1)]
while any(rank.poll() is None for rank in ranks):
    time.sleep(0.02)
    if any(rank.poll() for rank in ranks):
        for rank in ranks:
            rank.kill()
sys.exit(max(128 - status if status < 0 else status for status in (rank.wait() for rank in ranks)))
"""
NAMED = '#!/bin/sh\necho "$(basename $0) $*" >> called\n'
SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_JOB_NAME": "lightning-meta",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_NNODES": "2",
    "SLURM_NTASKS": "2",
    "SLURM_NTASKS_PER_NODE": "1",
    "SLURM_LOCALID": "0",
    "SLURM_NODELIST": "localhost",
}


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """The environment of a job in a folder with stand-ins for srun, scontrol and torchrun."""
    bin = tmp_path / "bin"
    bin.mkdir()
    for name, text in {"srun": SRUN, "scontrol": NAMED, "torchrun": NAMED}.items():
        (bin / name).write_text(text)
        (bin / name).chmod(0o755)
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    (tmp_path / "tiny.yaml").write_text("model: ProtoNet\n")
    kept = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "MASTER_PORT", "PL_GLOBAL_SEED")}
    path = f"{bin}:{os.environ['PATH']}"
    return {**kept, **SLURM, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def job(folder: Path, cluster: dict[str, str], *options: str) -> tuple[int, str]:
    """The job of the shipped script, in the folder that it was submitted from."""
    command = ["bash", str(ROOT / "configs" / "slurm" / "fit.sbatch"), "tiny.yaml", *OPTIONS[:-1], *options]
    env = {**cluster, "MASTER_PORT": str(free_port()), "MASTER_ADDR": "127.0.0.1"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=LIMIT, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_a_job_that_is_told_to_stop_is_queued_again_and_goes_on(tmp_path: Path, cluster: dict[str, str]) -> None:
    status, output = job(tmp_path, cluster, *accident(rank=0, step=4, number=int(signal.SIGTERM)))
    assert status == 143, output
    command = "lightning-meta fit --config runs/tiny_77/0/config.yaml --ckpt_path runs/tiny_77/0"
    assert f"stopped in step 5 by SIGTERM; resume with `{command}`" in output
    assert (tmp_path / "called").read_text() == "scontrol requeue 77\n"
    status, output = job(tmp_path, cluster)
    assert status == 0, output
    assert (tmp_path / "called").read_text() == "scontrol requeue 77\n"
    whole = tmp_path / "whole"
    whole.mkdir()
    assert ended(start(whole, *ONE))[0][0] == 0
    ran, expected = (
        read_checkpoint(folder / "0" / "checkpoints" / "last.ckpt")["state_dict"]
        for folder in (tmp_path / "runs" / "tiny_77", whole / "runs" / "tiny")
    )
    assert all(torch.allclose(ran[name], expected[name], rtol=0, atol=1e-12) for name in expected)


@pytest.mark.slow
def test_a_task_that_dies_ends_the_job_which_is_not_queued_again(tmp_path: Path, cluster: dict[str, str]) -> None:
    status, output = job(tmp_path, cluster, *accident(rank=1))
    assert status not in (0, 143), output
    assert not (tmp_path / "called").exists()


def test_a_run_in_another_folder_is_found_again(tmp_path: Path, cluster: dict[str, str]) -> None:
    (tmp_path / "bin" / "srun").write_text(NAMED)
    kept = tmp_path / "scratch" / "tiny_77" / "0" / "checkpoints"
    script = ["bash", str(ROOT / "configs" / "slurm" / "fit.sbatch"), "tiny.yaml"]
    env = {**cluster, "SLURM_CPUS_PER_TASK": "3"}
    for options in (["--runs", "scratch"], ["--runs=scratch", "--ckpt_path=old.ckpt"]):
        for goes_on in (False, True):
            if goes_on:
                kept.mkdir(parents=True, exist_ok=True)
                (kept / "last.ckpt").touch()
            subprocess.run([*script, *options], cwd=tmp_path, env=env, check=True)
            said = (tmp_path / "called").read_text().splitlines()[-1]
            assert said.startswith("srun --kill-on-bad-exit=1 --cpus-per-task=3 python scripts/fit.py ")
            own = " --name tiny_77 --runs scratch"
            assert said.endswith(f"{own} --ckpt_path last" if goes_on else own)
        (kept / "last.ckpt").unlink()


def test_a_name_would_hide_the_run_and_is_refused(tmp_path: Path, cluster: dict[str, str]) -> None:
    for given in (["--name", "mine"], ["--name=mine"]):
        script = ["bash", str(ROOT / "configs" / "slurm" / "fit.sbatch"), "tiny.yaml", *given]
        done = subprocess.run(script, cwd=tmp_path, env=cluster, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert "leave --name out" in done.stderr


def test_torchrun_is_given_the_machines(tmp_path: Path, cluster: dict[str, str]) -> None:
    script = str(ROOT / "configs" / "slurm" / "torchrun.sh")
    command = ["bash", script, "node0", "3", "2", "tiny.yaml", "--trainer.max_steps", "8"]
    subprocess.run(command, cwd=tmp_path, env={**cluster, "GPUS": "4"}, check=True)
    said = (tmp_path / "called").read_text()
    assert said.startswith("torchrun --nnodes 3 --node_rank 2 --nproc_per_node 4 --master_addr node0 ")
    assert "--trainer.num_nodes 3 --trainer.devices 4 --trainer.strategy ddp --trainer.max_steps 8" in said
    missing = subprocess.run(["bash", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert missing.returncode == 2
    assert missing.stderr.startswith("usage: ")
