"""A rank that is slow to end is no rank that died, and the end of one that died is waited for."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.fabric.plugins.environments.lightning import LightningEnvironment

from lightning_meta.run.watch import RankWatch


def watching(rank: int, others: list[subprocess.Popen[bytes]]) -> RankWatch:
    """The watch of one of two ranks, the first of which has started others."""
    launcher = SimpleNamespace(procs=others) if others else SimpleNamespace()
    strategy = SimpleNamespace(launcher=launcher, cluster_environment=LightningEnvironment())
    trainer: Any = SimpleNamespace(world_size=2, global_rank=rank, local_rank=rank, strategy=strategy, global_step=5)
    watch = RankWatch()
    watch.setup(trainer, None, "fit")  # type: ignore[arg-type]
    return watch


def test_the_first_rank_ends_after_those_that_it_started(tmp_path: Path) -> None:
    """Theirs would see it die, and would end with status 1."""
    may_end = tmp_path / "may_end"
    code = f"import os, time\nwhile not os.path.exists({str(may_end)!r}): time.sleep(0.01)"
    other = subprocess.Popen([sys.executable, "-S", "-c", code])
    with watching(0, [other]):
        threading.Timer(0.2, may_end.touch).start()
    assert other.poll() == 0


def test_a_rank_whose_connection_is_gone_waits_for_the_end_of_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other rank reports which rank died, and a loaded machine may take a while to end a process."""
    parents = iter([1, *[1] * 10])
    monkeypatch.setattr(os, "getppid", lambda: next(parents, 2))
    with watching(1, []) as watch:
        watch.on_exception(None, None, RuntimeError())  # type: ignore[arg-type]
        assert not watch.reports
        watch.await_end_of_starter()
        assert watch.reports
        assert watch.dead() == "rank 0 died"


def test_an_error_of_a_collective_operation_is_told_from_others(tmp_path: Path) -> None:
    code = """
import os, sys, torch
from lightning_meta.run.watch import lost_connection
rank = int(sys.argv[1])
torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
layer = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))
layer(torch.ones(1, 2)).sum().backward()
if rank:
    os._exit(1)
for step in (
    torch.ones(1).sum().backward,
    lambda: layer(torch.ones(1, 2)).sum().backward(),
    torch.distributed.barrier,
):
    try:
        step()
    except RuntimeError as error:
        print(lost_connection(error))
"""
    command = [sys.executable, "-c", code]
    ranks = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    printed = [rank.communicate(timeout=200)[0].split() for rank in ranks]
    assert printed == [["False", "True", "True"], []]
