"""A stranger's checkpoint wastes bounded time and memory, and is refused in one line."""

from __future__ import annotations

import functools
import re
import resource
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lightning_meta
from lightning_meta.cli import main
from lightning_meta.describing import describe
from lightning_meta.errors import UserError
from lightning_meta.meta import ProtoNet
from lightning_meta.nn import MLP
from lightning_meta.run import AtomicCheckpointIO, intact, read_checkpoint
from lightning_meta.run.outline import check_outline
from lightning_meta.tasks import EpisodeSpec
from tests.robustness.hostile_checkpoints import CALLS, FILES, NETWORKS, PLACES, VALUES, content, rewritten, saved
from tests.run.test_resume import MODEL
from tests.waiting import computing_at_most

SECONDS, MEMORY = 60, 2**30  # of computing, and bytes; a hostile file would take hours and terabytes


@pytest.fixture(autouse=True)
def bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Limit the time and memory of a test, and give it its own folder."""
    monkeypatch.chdir(tmp_path)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with computing_at_most(SECONDS):
        yield
    resource.setrlimit(resource.RLIMIT_AS, (before, hard))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < MEMORY / 2**10


def hostile(kind: str, file: Path = Path("a.ckpt")) -> tuple[Path, str]:
    """The checkpoint, and what is said about it."""
    if kind in VALUES | CALLS:
        return saved(file, (VALUES | CALLS)[kind]), (VALUES | CALLS)[kind][2]
    if kind in NETWORKS:
        torch.save(NETWORKS[kind][0](), file)
        return file, NETWORKS[kind][1]
    make, line = (FILES | PLACES)[kind]
    return make(file), line


KINDS = [*VALUES, *CALLS, *FILES, *PLACES, *NETWORKS]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_refused_in_one_line(kind: str) -> None:
    file, line = hostile(kind)
    for load in (lightning_meta.load, ProtoNet.load_from_checkpoint):
        with pytest.raises(UserError) as error:
            load(file)
        assert re.search(line if "|" in line else re.escape(line), str(error.value))
        assert len(str(error.value)) < 2100


OPTIONS = {"predict": ["--support=.", "--query=."], "fit": MODEL, "test": []}


@pytest.mark.parametrize("command", OPTIONS)
@pytest.mark.parametrize("kind", ["shared in the loops", "a record that inflates", "a pipe", "a long name"])
def test_it_is_refused_by_the_commands(kind: str, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    file, line = hostile(kind)
    before = sorted(Path().rglob("*"))
    assert main([command, *OPTIONS[command], f"--ckpt_path={file}"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert line in said or "is not in a run directory" in said
    assert sorted(Path().rglob("*")) == before


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")  # torch 2.14 says what it does
def test_what_is_sound_is_read(tmp_path: Path) -> None:
    """Shared and expanded tensors, attributes of a state dict, plain containers, and a copy with Python's own zip."""
    whole = content()
    weight = torch.arange(6.0)
    odd: dict[Any, Any] = {
        1: (True, None, 2.5, 2**70, {"a", "b"}),
        (0, "a"): [b"bytes", 1j, torch.float8_e4m3fn, torch.Size([2])],
    }
    odd["tensors"] = {
        "same": weight,
        "view": weight[2:],
        "wide": weight[:1].expand(1000),
        "eye": torch.eye(3).to_sparse(),
    }
    odd["more"] = [torch.device("cpu"), bytearray(b"x"), torch.nn.Parameter(weight), torch.ones(3).to(torch.uint16)]
    AtomicCheckpointIO().save_checkpoint({**whole, "odd": odd}, tmp_path / "a.ckpt")
    read = AtomicCheckpointIO().load_checkpoint(tmp_path / "a.ckpt")["odd"]
    assert read[1] == odd[1]
    assert read[0, "a"] == odd[0, "a"]
    assert read["tensors"]["view"].tolist() == [2, 3, 4, 5]
    assert read["tensors"]["view"].untyped_storage().data_ptr() == read["tensors"]["same"].untyped_storage().data_ptr()
    assert lightning_meta.load(tmp_path / "a.ckpt").state_dict().keys() == whole["state_dict"].keys()
    lightning_meta.load(rewritten(tmp_path / "b.ckpt", lambda parts: None))


def test_what_torch_takes_and_training_writes_is_read() -> None:
    """Attributes of tensors, keys of other kinds, and views, which allocate nothing."""
    tagged, weight, storage = torch.ones(3), nn.Parameter(torch.ones(3)), torch.ones(2**20)
    tagged.tag, weight.tags = "a", ["b"]  # type: ignore[attr-defined]
    keys = [torch.device("cpu"), torch.Size([1, 2]), ((1, 2), (3, "a")), 1j, b"x", torch.strided]
    odd = {
        "keys": {key: i for i, key in enumerate(keys)},
        "set": {(1, (2, 3))},
        "tensors": [tagged, weight, nn.Buffer(torch.ones(2))],
        "wide": torch.ones(1).expand(512, 512, 128),
        "views": [storage[:] for _ in range(40)],
    }
    torch.save({**content(), "odd": odd}, "a.ckpt")
    read = AtomicCheckpointIO().load_checkpoint("a.ckpt")["odd"]
    assert read["keys"] == odd["keys"]
    assert read["set"] == odd["set"]
    assert read["tensors"][0].tag == "a"
    assert read["tensors"][1].tags == ["b"]
    assert read["wide"].shape == (512, 512, 128)
    assert len(read["views"]) == 40


def test_a_tuple_of_too_few_values_and_a_size_of_text_are_refused_before_torch_reads_them() -> None:
    torch.save(torch.ones(1), "a.pt")
    with zipfile.ZipFile("a.pt") as archive:
        sound = archive.read("a/data.pkl")
    check_outline(sound, lambda key: 4)
    size, text = b"K\x01\x85", b"X\x01\0\0\x001\x85"  # (1,) and ("1",)
    assert size in sound
    for damaged in (sound.replace(size, text, 1), sound.replace(size, text), b"\x80\x02K\x01\x86."):
        with pytest.raises((IndexError, ValueError)):
            check_outline(damaged, lambda key: 4)


def test_a_file_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that has changed is checked again."""
    calls: list[str] = []
    test = zipfile.ZipFile.testzip

    def outlined(*args: Any) -> None:
        calls.append("outline")
        check_outline(*args)

    def tested(archive: zipfile.ZipFile) -> str | None:
        calls.append("checksums")
        return test(archive)

    monkeypatch.setattr("lightning_meta.run.intact.check_outline", outlined)
    monkeypatch.setattr(zipfile.ZipFile, "testzip", tested)
    torch.save(content(), "a.ckpt")
    read_checkpoint("a.ckpt")
    read_checkpoint("a.ckpt")
    assert calls == ["checksums", "outline"] * 2  # it may change again within the same tick of the clock
    monkeypatch.setattr(intact, "SETTLED", -(10**9))
    read_checkpoint("a.ckpt")
    read_checkpoint("a.ckpt")
    assert calls == ["checksums", "outline"] * 3
    saved(Path("a.ckpt"), VALUES["shared in the loops"])
    with pytest.raises(UserError, match="by references to the same ones"):
        read_checkpoint("a.ckpt")


def test_a_wrong_device_is_not_a_damaged_file() -> None:
    torch.save(content(), "a.ckpt")
    for device in ("cuda:99", "nonsense", "meta"):
        with pytest.raises(UserError, match=r"map_location: .* is not a device of this machine"):
            lightning_meta.load("a.ckpt", map_location=device)


@functools.lru_cache
def table(size: int) -> Tensor:
    """A table that is made by the first call and then shared."""
    return torch.arange(float(size))


class Redrawing(nn.Module):
    """A constructor that looks at values, and remembers them outside of itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 8)
        while not torch.rand(()) > 0:
            pass
        self.plain = table(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x * self.plain)


def test_a_network_of_ones_own_is_made_once_and_with_values() -> None:
    table.cache_clear()
    made = ProtoNet(Redrawing(), episodes=EpisodeSpec("classification", (4,), 5))
    torch.save({"state_dict": made.state_dict(), "lightning_meta": {**describe(made), "layout": 2}}, "a.ckpt")
    table.cache_clear()
    read = lightning_meta.load("a.ckpt", allow=[Redrawing])
    x = torch.rand(3, 4)
    assert torch.equal(read.backbone(x), made.backbone(x))
    assert not table(4).is_meta


def test_a_network_that_is_given_is_not_copied_to_try_it() -> None:
    class Counting(MLP):
        copies = 0

        def __deepcopy__(self, memo: Any) -> MLP:
            Counting.copies += 1
            return MLP(4, (8,))

    torch.save(content(), "a.ckpt")
    given = Counting(4, (8,))
    ProtoNet(given, episodes=EpisodeSpec("classification", (4,), 5))
    once, Counting.copies = Counting.copies, 0
    assert lightning_meta.load("a.ckpt", backbone=given).backbone is given
    assert Counting.copies == once


def test_arguments_of_lightning_that_say_what_is_done_anyway() -> None:
    torch.save(content(), "a.ckpt")
    read = ProtoNet.load_from_checkpoint("a.ckpt", None, None, True, weights_only=True)
    assert read.state_dict().keys() == content()["state_dict"].keys()
    others: list[tuple[str, Any]] = [("hparams_file", "h.yaml"), ("strict", False), ("weights_only", False)]
    for name, value in others:
        with pytest.raises(UserError, match=rf"^{name}: .*leave it out"):
            ProtoNet.load_from_checkpoint("a.ckpt", **{name: value})
