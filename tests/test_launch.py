"""Several ranks and machines: the same training however it is launched, and an end with a word if a rank dies."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest
from torch import Tensor

from lightning_meta.run import read_checkpoint
from tests.launching import ONE, TWO, accident, ended, free_port, start, torchrun

LINE = "lightning-meta: error: "
MACHINES = ["--trainer.num_nodes=2", "--trainer.devices=1", "--trainer.strategy=ddp"]
GO_ON = "resume with `lightning-meta fit --config runs/tiny/0/config.yaml --ckpt_path runs/tiny/0`"

pytestmark = pytest.mark.slow


def weights(folder: Path) -> dict[str, Tensor]:
    """The weights of the only run in a folder, after 8 steps."""
    (run,) = (folder / "runs" / "tiny").iterdir()
    last = read_checkpoint(run / "checkpoints" / "last.ckpt")
    assert last["global_step"] == 8
    assert (run / "results.json").is_file()
    state: dict[str, Tensor] = last["state_dict"]
    return state


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a if a[name].is_floating_point())


def lines(output: str) -> list[str]:
    """The lines of an output that begin like messages of the command."""
    return [line for line in output.splitlines() if line.startswith(("lightning-meta:", "stopped in step"))]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """The weights of a run on one process that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    ((status, output),) = ended(start(folder, *ONE))
    assert status == 0, output
    return weights(folder)


def test_two_machines_train_as_one_process(tmp_path: Path, whole: dict[str, Tensor]) -> None:
    port = free_port()
    options = [*MACHINES, "--trainer.callbacks+=tests.launching.NotesWrites"]
    for status, output in ended(*(start(tmp_path, *options, before=torchrun(2, n, port)) for n in range(2))):
        assert status == 0, output
    assert distance(weights(tmp_path), whole) < 1e-12
    assert "metrics.csv" in (tmp_path / "rank_0").read_text()
    assert (tmp_path / "rank_1").read_text() == ""  # only rank 0 writes


@pytest.mark.parametrize(("dies", "says"), [(1, "rank 1 was killed by SIGKILL"), (0, "rank 0 died")])
def test_a_rank_that_dies_ends_the_others_and_any_number_of_ranks_goes_on(
    tmp_path: Path, whole: dict[str, Tensor], dies: int, says: str
) -> None:
    ((status, output),) = ended(start(tmp_path, *TWO, *accident(rank=dies)))
    assert status == (1 if dies else -signal.SIGKILL)
    (line,) = lines(output)
    assert line.startswith(LINE + says)
    assert line.endswith(GO_ON)
    assert "Traceback" not in output
    ((status, output),) = ended(start(tmp_path, *(ONE if dies else TWO), "--ckpt_path=last"))
    assert status == 0, output
    assert distance(weights(tmp_path), whole) < 1e-12


@pytest.mark.parametrize(("dies", "says"), [(1, "rank 1 was killed by SIGKILL"), (0, "rank 0 died")])
def test_a_rank_that_waits_in_vain_ends_too(tmp_path: Path, dies: int, says: str) -> None:
    ((_, output),) = ended(start(tmp_path, *TWO, *accident(rank=dies, stall=True)))
    assert lines(output) == [f"{LINE}{says}; {GO_ON}"]


def test_one_process_that_dies_goes_on_as_two(tmp_path: Path, whole: dict[str, Tensor]) -> None:
    ((status, output),) = ended(start(tmp_path, *ONE, *accident()))
    assert status == -signal.SIGKILL, output
    ((status, output),) = ended(start(tmp_path, *TWO, "--ckpt_path=last"))
    assert status == 0, output
    assert distance(weights(tmp_path), whole) < 1e-12


def test_a_rank_of_torchrun_that_dies_ends_the_job_on_both_machines(tmp_path: Path) -> None:
    port = free_port()
    options = [*MACHINES, *accident(rank=1)]
    both = ended(*(start(tmp_path, *options, before=torchrun(2, node, port)) for node in range(2)))
    (first, second) = both
    assert first[0] == second[0] == 1
    (line,) = lines(first[1])
    assert line.startswith(f"{LINE}rank 0 lost its connection to another rank")
    assert line.endswith(GO_ON)


@pytest.mark.parametrize("model", ["Breaks", "Sparse"])
def test_a_loss_that_is_not_finite_on_one_rank_ends_all_with_one_line(tmp_path: Path, model: str) -> None:
    ((status, output),) = ended(start(tmp_path, *TWO, model=f"tests.launching.{model}"))
    assert status == 1, output
    (line,) = lines(output)
    said = "the training loss of rank 1 became nan at step 5; the last good checkpoint is "
    assert line == f"{LINE}{said}runs/tiny/0/checkpoints/last.ckpt"
    assert "Traceback" not in output
    last = read_checkpoint(tmp_path / "runs/tiny/0/checkpoints/last.ckpt")
    assert last["global_step"] == 4
    assert all(tensor.isfinite().all() for tensor in last["state_dict"].values())


def test_sigterm_to_one_rank_stops_all_with_a_checkpoint(tmp_path: Path, whole: dict[str, Tensor]) -> None:
    ((status, output),) = ended(start(tmp_path, *TWO, *accident(rank=1, step=4, number=int(signal.SIGTERM))))
    assert status == 143, output
    (line,) = lines(output)
    assert line == f"stopped in step 5 by SIGTERM; {GO_ON}"
    assert read_checkpoint(tmp_path / "runs/tiny/0/checkpoints/last.ckpt")["global_step"] == 5
    ((status, output),) = ended(start(tmp_path, *TWO, "--ckpt_path=last"))
    assert status == 0, output
    assert distance(weights(tmp_path), whole) < 1e-12


@pytest.mark.parametrize("rank", [0, -1])
def test_control_c_to_one_or_all_ranks_stops_all_with_a_checkpoint(tmp_path: Path, rank: int) -> None:
    ((status, output),) = ended(start(tmp_path, *TWO, *accident(rank=rank, step=4, number=int(signal.SIGINT))))
    assert status == 130, output
    assert lines(output) == [f"stopped in step 5 by Ctrl-C; {GO_ON}"]
    assert "Traceback" not in output
    assert read_checkpoint(tmp_path / "runs/tiny/0/checkpoints/last.ckpt")["global_step"] == 5


@pytest.mark.parametrize(
    ("rank", "hook"), [(0, "on_validation_batch_start"), (1, "on_train_end"), (0, "on_test_batch_start")]
)
def test_sigterm_to_any_rank_outside_of_a_step_ends_all_with_its_status(tmp_path: Path, rank: int, hook: str) -> None:
    step = 3 if "validation" in hook else 8
    ((status, output),) = ended(start(tmp_path, *TWO, *accident(rank=rank, step=step, number=15, hook=hook)))
    assert status == 143, output
    assert lines(output) == [f"stopped in step {step} by SIGTERM; {GO_ON}"]


def test_the_end_of_the_shell_that_started_the_ranks_does_not_end_them(
    tmp_path: Path, whole: dict[str, Tensor]
) -> None:
    """A signal 0 is none: step 5 merely lasts for longer than a watch would wait."""
    options = [*MACHINES, *accident(number=0, seconds=8)]
    shell = 'export NODE_RANK={} MASTER_ADDR=127.0.0.1 MASTER_PORT={}; "$@" & until [ -e {} ]; do sleep 0.1; done'
    begun, port = "runs/tiny/0/checkpoints/last.ckpt", free_port()
    before = [["bash", "-c", shell.format(node, port, begun), "bash", sys.executable] for node in (0, 1)]
    for _, output in ended(*(start(tmp_path, *options, before=words) for words in before)):
        assert "died" not in output
    assert distance(weights(tmp_path), whole) < 1e-12
