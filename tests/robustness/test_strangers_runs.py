"""A stranger's run directory, or folder: it runs no code, starts no process, opens no port and leads nobody outside."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_meta.building import build
from lightning_meta.cli import main
from lightning_meta.cli.trust import without_machine
from lightning_meta.describing import describe
from lightning_meta.errors import UserError
from lightning_meta.meta import MAML
from lightning_meta.nn import MLP
from lightning_meta.reading import refuse_links_out
from lightning_meta.report.transfer import compare
from lightning_meta.run import AtomicCheckpointIO
from lightning_meta.run.directory import run_directory_of
from lightning_meta.run.results import git_revision
from lightning_meta.tasks import EpisodeSpec
from tests.report.test_transfer_refusals import TASKS
from tests.report.transfer_runs import write_run
from tests.robustness.test_trust import DATA, run_of
from tests.run.test_resume import MODEL

PATIENCE = 200  # seconds, on a loaded machine; to wait for a pipe or to count a bomb takes for ever
EVENTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.bind", "socket.connect")
heard: list[str] | None = None


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if heard is not None and event in EVENTS:
        heard.append(f"{event} {arguments}")


sys.addaudithook(_hear)  # there is no way to take it out


@pytest.fixture
def quiet() -> Iterator[None]:
    """A test during which no process is started and no connection is opened."""
    global heard
    heard = []
    try:
        yield
    finally:
        listened, heard = heard, None
    assert listened == []


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def in_time() -> Iterator[None]:
    """An alarm that ends what waits for ever; pytest's own takes the whole session with it."""

    def late(number: int, frame: Any) -> None:
        raise AssertionError("took for ever")

    before, rest = signal.signal(signal.SIGALRM, late), signal.alarm(PATIENCE)
    yield
    signal.alarm(rest)
    signal.signal(signal.SIGALRM, before)


def refusal(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    capsys.readouterr()
    assert main(list(command)) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert len(said) < 1000
    return said


def working_run(config: dict[str, Any] | None = None) -> None:
    """A stranger's run that can be tested."""
    spec = EpisodeSpec("regression", (1,), 1)
    module = describe(MAML(MLP(1, (8,)), inner_steps=1, episodes=spec))
    run_of(module, config)
    learner = build(module)
    learner.configure_model()
    content = {"state_dict": learner.state_dict(), "lightning_meta": module}
    AtomicCheckpointIO().save_checkpoint(content, "evil/0/checkpoints/best.ckpt")


def try_out(*options: str) -> int:
    return main(
        ["test", "--ckpt_path=evil/0", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", *options]
    )


# Git

RUNS_CODE = """
[core]
    repositoryformatversion = 0
    bare = false
    fsmonitor = "touch exploded; false"
[filter "evil"]
    clean = "touch exploded; cat"
    required = true
"""


def repository(folder: Path) -> str:
    """A repository with a changed file, whose configuration runs code when git looks at it; the commit."""

    def git(*words: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
        done = subprocess.run(["git", *who, *words], cwd=folder, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init")
    (folder / ".gitattributes").write_text("* filter=evil\n")
    (folder / "a.txt").write_text("a")
    git("add", ".")
    git("commit", "-m", "a")
    commit = git("rev-parse", "HEAD")
    (folder / ".git" / "config").write_text(RUNS_CODE)
    (folder / "a.txt").write_text("b")
    return commit


@pytest.mark.usefixtures("quiet")
def test_the_tested_run_says_the_commit_and_runs_nothing_of_the_folders_configuration(here: Path) -> None:
    global heard
    working_run()
    heard = None
    commit = repository(here)
    heard = []
    assert try_out() == 0
    assert not (here / "exploded").exists()
    assert json.loads(Path("evil/0/tests/0/results.json").read_text())["git_revision"] == commit


def test_that_configuration_would_run_code(here: Path) -> None:
    repository(here)
    subprocess.run(["git", "status"], cwd=here, capture_output=True, check=False)
    assert (here / "exploded").exists()


def test_the_commit_of_branches_packed_and_detached_and_of_worktrees(here: Path) -> None:
    commit = repository(here)
    (here / ".git" / "config").write_text("[core]\n    repositoryformatversion = 0\n")
    (here / "sub").mkdir()
    assert git_revision(here / "sub") == commit
    subprocess.run(["git", "worktree", "add", "../other"], cwd=here, capture_output=True, check=True)
    assert git_revision(here.parent / "other") == commit
    subprocess.run(["git", "pack-refs", "--all"], cwd=here, check=True)
    assert git_revision(here) == git_revision(here.parent / "other") == commit
    subprocess.run(["git", "checkout", "--detach", "-f"], cwd=here, capture_output=True, check=True)
    assert git_revision(here) == commit


@pytest.mark.usefixtures("in_time")
@pytest.mark.parametrize("head", ["", "ref: ../../../x", "ref: refs/../../x", "\xff", "x" * 9999, "pipe", "a" * 39])
def test_a_damaged_repository_has_no_commit(here: Path, head: str) -> None:
    (here / ".git").mkdir()
    (here / "x").write_text("a" * 40)
    if head == "pipe":
        os.mkfifo(here / ".git" / "HEAD")
    else:
        (here / ".git" / "HEAD").write_bytes(head.encode("latin-1"))
    assert git_revision(here) is None


# What a configuration may choose

MACHINE: dict[str, Any] = {
    "strategy": "ddp_spawn",
    "devices": 2,
    "num_nodes": 3,
    "accelerator": "cuda",
}


@pytest.mark.usefixtures("quiet")
def test_a_strangers_run_chooses_no_processes_and_no_ports() -> None:
    init_args: Any = DATA["init_args"]
    data = {**DATA, "init_args": {**init_args, "num_workers": 3}}
    working_run({"trainer": {**MACHINE, "precision": "bf16-true"}, "data": data})
    assert try_out() == 0
    said = yaml.safe_load(Path("evil/0/tests/0/config.yaml").read_text())
    assert (said["trainer"]["num_nodes"], said["trainer"]["strategy"], said["trainer"]["devices"]) == (
        1,
        "auto",
        "auto",
    )
    assert said["trainer"]["precision"] == "bf16-true"  # which the numbers depend on
    assert said["data"]["init_args"]["num_workers"] == 0
    assert json.loads(Path("evil/0/tests/0/results.json").read_text())["precision"] == "bf16-true"


def test_the_users_own_options_reach_the_trainer() -> None:
    stored = {"trainer": {"precision": 16, "strategy": "ddp", "deterministic": True}, "data": None}
    assert without_machine(stored)["trainer"] == {"precision": 16, "deterministic": True}


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("source", ["Omniglot", "CIFARFS", "MultiMNIST", "Parkinsons"])
def test_a_strangers_run_names_no_place_to_download_from(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    init_args = {"url": "http://127.0.0.1:9/"}
    made = {"class_path": f"lightning_meta.sources.{source}", "init_args": init_args}
    run_of(config={"data": {"class_path": DATA["class_path"], "init_args": {"source": made}}})
    assert "data.source.url is 'http://127.0.0.1:9/', and not where" in refusal(capsys, "test", "--ckpt_path=evil/0")


# Links, out of which nothing is written


@pytest.mark.parametrize("target", ["../../outside", ".", "nowhere"])
def test_results_of_a_test_are_not_written_through_a_link(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("outside").mkdir()
    working_run()
    Path("evil/0/tests").symlink_to(target)
    before = set(Path().rglob("*"))
    assert try_out() == 2
    assert "evil/0/tests is a link, and results would be written to its target" in capsys.readouterr().err
    assert set(Path().rglob("*")) == before


@pytest.mark.parametrize("place", ["figures", "metrics.csv", "figures/training.png", "tests/a/b", "wandb"])
@pytest.mark.parametrize("target", ["outside", "outside/file", "nowhere", "/etc/passwd", "a loop"])
def test_every_link_that_leads_out_of_a_run_is_found(place: str, target: str) -> None:
    Path("outside").mkdir()
    link = Path("runs/toy/0") / place
    link.parent.mkdir(parents=True)
    link.symlink_to(link.name if target == "a loop" else Path(target).absolute())
    with pytest.raises(UserError, match=f"{link}: this link points outside runs/toy/0"):
        refuse_links_out(Path("runs/toy/0"))


def test_links_of_other_loggers_are_their_own() -> None:
    """W&B makes such a link to its log in the cache of the home folder."""
    Path("cache.log").touch()
    link = Path("runs/toy/0/wandb/offline-run-1/logs/debug-core.log")
    link.parent.mkdir(parents=True)
    link.symlink_to(Path("cache.log").absolute())
    refuse_links_out(Path("runs/toy/0"))


def test_a_strangers_run_that_leads_outside_is_not_gone_on_with(capsys: pytest.CaptureFixture[str]) -> None:
    options = [*MODEL, "--trainer.max_steps=2", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    assert main(["fit", *options]) == 0
    outside, run = Path("outside/7"), Path("runs/toy/0")
    outside.mkdir(parents=True)
    (outside / "config.yaml").touch()
    (run / "checkpoints").rename(outside / "checkpoints")
    (run / "checkpoints").symlink_to((outside / "checkpoints").absolute())
    before = {file: file.stat().st_mtime_ns for file in outside.rglob("*")}
    said = refusal(capsys, "fit", *options, "--trainer.max_steps=4", f"--ckpt_path={run}")
    assert f"{run / 'checkpoints'}: this link points outside {run}" in said
    assert {file: file.stat().st_mtime_ns for file in outside.rglob("*")} == before


def test_a_run_whose_checkpoints_are_elsewhere_is_that_run(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, scratch = Path("runs/ln/0"), Path("scratch")
    for folder in (run, scratch):
        folder.mkdir(parents=True)
    (run / "config.yaml").touch()
    (scratch / "last.ckpt").touch()
    (run / "checkpoints").symlink_to(scratch.absolute())
    assert run_directory_of(run / "checkpoints" / "last.ckpt") == run
    whole = Path("runs/ln/1/checkpoints")
    whole.mkdir(parents=True)
    (whole.parent / "config.yaml").touch()
    (whole / "last.ckpt").touch()
    Path("a/b").mkdir(parents=True)
    Path("a/b/c.ckpt").symlink_to((whole / "last.ckpt").absolute())
    assert run_directory_of(Path("a/b/c.ckpt")) == here / "runs/ln/1"
    monkeypatch.chdir(whole)
    assert run_directory_of(Path("last.ckpt")) == here / "runs/ln/1"


def test_links_inside_a_run_stay(capsys: pytest.CaptureFixture[str]) -> None:
    """W&B makes such links."""
    options = [*MODEL, "--trainer.max_steps=2", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    assert main(["fit", *options]) == 0
    Path("runs/toy/0/wandb").mkdir()
    Path("runs/toy/0/wandb/latest").symlink_to("../checkpoints")
    assert main(["fit", *options, "--trainer.max_steps=3", "--ckpt_path=runs/toy/0"]) == 0


def test_a_picture_takes_the_place_of_a_link() -> None:
    run = write_run(Path("shared/0"), TASKS)
    (run / "metrics.csv").write_text("step,val/accuracy\n1,0.5\n2,0.6\n")
    Path("precious").write_text("precious")
    Path("curves.png").symlink_to("precious")
    assert main(["curves", str(run), "--overwrite"]) == 0
    assert Path("precious").read_text() == "precious"
    assert not Path("curves.png").is_symlink()


def test_a_version_that_is_no_number_is_passed_over() -> None:
    """`"²".isdigit()`."""
    working_run()
    Path("evil/0/tests/²").mkdir(parents=True)
    assert try_out() == 0
    assert Path("evil/0/tests/0/results.json").is_file()


# Files that are none, and files that are more than they look


def pipe(file: Path) -> None:
    os.mkfifo(file)


def socket(file: Path) -> None:
    os.mknod(file, stat.S_IFSOCK | 0o600)


def device(file: Path) -> None:
    file.symlink_to("/dev/zero")


def folder(file: Path) -> None:
    file.mkdir()


def loop(file: Path) -> None:
    file.symlink_to(file.name)


def of_the_system(file: Path) -> None:
    file.symlink_to("/proc/self/mem")


def sparse(file: Path) -> None:
    with file.open("wb") as out:
        out.truncate(2**40)


def laughs(file: Path) -> None:
    lines = ["a0: &a0 x", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30))]
    file.write_text("\n".join(lines))


def merges(file: Path) -> None:
    """Write mappings that each merge the one before twice; PyYAML would expand 2^30 names."""
    lines = ["a0: &a0 {x: 1}", *(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}" for i in range(1, 31))]
    file.write_text("\n".join(lines))


def ring(file: Path) -> None:
    file.write_text("a: &a [*a]\n")


def deep(file: Path) -> None:
    file.write_text("[" * 100_000)


ODD = [pipe, socket, device, folder, loop, of_the_system, sparse]


@pytest.mark.usefixtures("in_time")
@pytest.mark.skipif(sys.platform != "linux", reason="pipes, /dev and /proc")
@pytest.mark.parametrize("make", [*ODD, laughs, merges, ring, deep], ids=lambda make: make.__name__)
@pytest.mark.parametrize("name", ["config.yaml", "results.json", "per_task.csv", "predictions.npz"])
def test_compare_reads_regular_files_of_bounded_size(name: str, make: Callable[[Path], None]) -> None:
    for method in ("independent", "shared"):
        write_run(Path(method) / "0", TASKS)
    file = Path("shared/0") / name
    file.unlink()
    make(file)
    with pytest.raises(UserError) as error:
        compare(["shared/0"], ["independent/0"])
    assert str(file.parent) in str(error.value)
    assert len(str(error.value)) < 1000


@pytest.mark.usefixtures("in_time")
@pytest.mark.parametrize("make", ODD, ids=lambda make: make.__name__)
def test_curves_reads_regular_files_of_bounded_size(
    make: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path("shared/0")
    run.mkdir(parents=True)
    make(run / "metrics.csv")
    assert "shared/0" in refusal(capsys, "curves", "shared/0")


@pytest.mark.usefixtures("in_time")
@pytest.mark.parametrize("make", [*ODD, laughs, merges, ring, deep], ids=lambda make: make.__name__)
@pytest.mark.parametrize("command", ["test", "ladder", "sweep", "fit"])
def test_configurations_are_regular_files_of_bounded_size(
    command: str, make: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    run_of()
    file = Path("evil/0/config.yaml")
    file.unlink()
    make(file)
    if command == "test":
        options = ["--ckpt_path=evil/0"] if file.is_file() else ["--ckpt_path=evil/0", f"--config={file}"]
    else:
        options = ["--config", str(file)]
    refusal(capsys, command, *options)
