"""Every command that README, the pages, docstrings and configurations show runs as it stands."""

from __future__ import annotations

import csv
import os
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import reproduce
from PIL import Image

from lightning_meta.cli import main
from lightning_meta.cli.fit import MetaCLI
from lightning_meta.data.loader import check_shared
from tests.conftest import OF_RANKS
from tests.page_commands import ELSEWHERE, ROOT, all_commands, of_ladder, of_sweep, shortened

SUBSTITUTES = {"runs/means/0": "runs/protonet_glyphs/0"}  # what is the reader's own
STEPS = ("python scripts/", "configs/slurm/torchrun.sh ", "sbatch ")
RECORDER = '#!/bin/sh\necho "$@" > called\n'  # in the place of torchrun and srun
MACHINES = {"torchrun.sh": {"GPUS": "4"}, "fit.sbatch": {"SLURM_JOB_ID": "7"}}


def test_every_command_is_run_or_its_reason_given() -> None:
    shown = all_commands()
    unknown = [c for c in shown if c not in ELSEWHERE and not c.startswith(STEPS)]
    assert not unknown, f"run these in this test, or say in ELSEWHERE why not: {unknown}"
    assert not [c for c in ELSEWHERE if c not in shown and "configs/" not in c], "of ELSEWHERE, shown nowhere"
    assert len([c for c in shown if c not in ELSEWHERE]) > 20  # the pages were found


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the reader's: the repository's scripts and configurations, and data of one's own."""
    for name in ("configs", "scripts", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    for kind in range(30):
        (tmp_path / "data" / "images" / f"class_{kind}").mkdir(parents=True)
        for i in range(3):
            pixels = np.random.default_rng([kind, i]).integers(0, 255, (84, 84, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / "images" / f"class_{kind}" / f"{i}.png")
    (tmp_path / "FOLDER").symlink_to("data/images")
    draw = random.Random(0)
    with (tmp_path / "data" / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*(f"x{i}" for i in range(10)), "price", "sold"])
        writer.writerows([*(draw.random() for _ in range(11)), draw.randrange(2)] for _ in range(200))
    with (tmp_path / "new_rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([[f"x{i}" for i in range(10)], [draw.random() for _ in range(10)]])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


@pytest.mark.slow
@pytest.mark.data
def test_the_commands_run_one_after_the_other(
    clone: Path, data_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("protonet_glyphs", "maml_glyphs", "multi_head_glyphs"):  # of which the pages say how they are made
        assert main(["fit", *shortened(f"python scripts/fit.py --config configs/{name}.yaml")]) == 0
    assert main(["fit", *shortened("python scripts/fit.py --config configs/protonet_omniglot.yaml")]) == 0
    for command in all_commands():
        if command in ELSEWHERE:
            continue
        for shown, own in SUBSTITUTES.items():
            command = command.replace(shown, own)
        status = run(clone, command)
        assert status == 0, f"{command}: {capsys.readouterr().err[-2000:]}"


def run(folder: Path, command: str) -> int:
    """Run a command, shortened, and return its exit status."""
    if not command.startswith("python scripts/"):
        return launched(folder, command)
    name, options = Path(shlex.split(command)[1]).stem, shlex.split(command)[2:]
    if name == "fit":
        options = shortened(command)
    elif name == "ladder":
        options = of_ladder(command)
    elif name == "sweep":
        options = of_sweep(command)
    elif name == "reproduce":
        return reproduce.main(options)
    elif name == "test":
        options += ["--trainer.enable_progress_bar=false", *([] if "ladder_table" in command else ["--tasks=2"])]
    if "--trainer.devices" in options:  # the other ranks are this script, started again
        script = [sys.executable, f"scripts/{name}.py", *options]
        env = {name: value for name, value in os.environ.items() if name not in OF_RANKS}
        return subprocess.run(script, cwd=folder, env=env, timeout=300, check=False).returncode
    try:
        return main([name, *options])
    except SystemExit as stop:  # --help has printed
        return int(stop.code or 0)


def launched(folder: Path, command: str) -> int:
    """Run a script for several machines with stand-ins of their programs, and share out the meta-batch it asks for."""
    words = shlex.split(command)
    words = words[next(i for i, word in enumerate(words) if word.startswith("configs/slurm/")) :]
    script = Path(words[0])
    batch = {n: int(v) for n, v in re.findall(r"^#SBATCH --(\S+)=(\d+)$", script.read_text(), re.MULTILINE)}
    nodes = int((re.findall(r"--nodes (\d+)", command) or [words[2]])[0])
    slurm = {"SLURM_JOB_NUM_NODES": nodes, "SLURM_NTASKS_PER_NODE": batch.get("ntasks-per-node", 1)}
    for name in ("torchrun", "srun"):
        (folder / "bin").mkdir(exist_ok=True)
        (folder / "bin" / name).write_text(RECORDER)
        (folder / "bin" / name).chmod(0o755)
    environment = {**os.environ, **{k: str(v) for k, v in slurm.items()}, **MACHINES[script.name]}
    environment["PATH"] = f"{folder / 'bin'}:{environment['PATH']}"
    done = subprocess.run(["bash", *words], cwd=folder, env=environment, check=False)
    given = shlex.split((folder / "called").read_text())
    options = given[given.index("scripts/fit.py") + 1 :]
    config = Parsed(options).config
    check_shared(config.data.init_args.meta_batch_size, config.trainer.num_nodes * int(config.trainer.devices))
    return done.returncode


class Parsed(MetaCLI):
    """The command line of `fit`, which only parses the options."""

    def instantiate_classes(self) -> None:
        """Make nothing."""


@pytest.mark.slow
@pytest.mark.data
def test_four_ranks_of_the_readme_need_a_meta_batch_that_they_can_share(clone: Path, data_folder: Path) -> None:
    one = "python scripts/fit.py --config configs/protonet_omniglot.yaml --trainer.devices 4 --trainer.strategy ddp"
    assert run(clone, one) == 2
    config = Parsed([*shlex.split(one)[2:], "--data.meta_batch_size", "4"]).config  # as the page says
    check_shared(config.data.init_args.meta_batch_size, int(config.trainer.devices))
