"""In a whole run the examples are decoded, read and hashed once, and what is mapped stays mapped."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torch import Tensor, nn

import lightning_meta as lm
from lightning_meta.batches import SPLITS, Split
from lightning_meta.data import cache as cache_file
from lightning_meta.data.hashes import HashedParts, of_pools, of_sets
from lightning_meta.data.pool import Pool
from lightning_meta.data.task_set import TaskSet
from lightning_meta.run import RunCheckpoint, RunRecord
from lightning_meta.run.results import facts
from lightning_meta.sources import glyphs, parkinsons, table
from tests.multitask.toys import Toys

SIZE = 24
IMAGE = 3 * SIZE**2


class Counted:
    """Counts of `reads` of the cache, of `decodes` by name, and of `hashed` bytes of examples."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reads, self.decodes, self.hashed, self._patch = 0, Counter[str](), 0, monkeypatch
        real, opened, counted = hashlib.sha256, safetensors.safe_open, self

        class Sha:
            def __init__(self, content: Any = b"", sha: Any = None) -> None:
                self._sha = sha or real()
                self.update(content)

            def update(self, content: Any) -> None:
                if isinstance(content, memoryview):  # bytes are names and layouts
                    counted.hashed += content.nbytes
                self._sha.update(content)

            def hexdigest(self) -> str:
                return str(self._sha.hexdigest())

            def digest(self) -> bytes:
                return bytes(self._sha.digest())

        def open_counted(*args: Any, **options: Any) -> Any:
            self.reads += 1
            return opened(*args, **options)

        monkeypatch.setattr(hashlib, "sha256", Sha)
        monkeypatch.setattr(cache_file, "safe_open", open_counted)

    def calls(self, owner: Any, name: str) -> None:
        """Count the calls of a function."""
        function = getattr(owner, name)

        def counted(*args: Any, **options: Any) -> Any:
            self.decodes[name] += 1
            return function(*args, **options)

        self._patch.setattr(owner, name, counted)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(monkeypatch)


@pytest.fixture
def folder(tmp_path: Path, cache: Path) -> Path:
    """Two groups of three classes of twelve images, each of another colour."""
    for c in range(6):
        for i in range(12):
            file = tmp_path / "images" / f"group{c % 2}" / f"class{c}" / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (SIZE, SIZE), (40 * c, 20 * i, 0)).save(file)
    return tmp_path / "images"


def episodes(source: lm.Source) -> lm.EpisodicDataModule:
    return lm.EpisodicDataModule(source, 2, 1, 1, meta_batches_per_epoch=2, val_tasks=2, test_tasks=2)


def tasks(source: lm.Source | lm.TaskSource, **options: Any) -> lm.MultiTaskDataModule:
    return lm.MultiTaskDataModule(source, batch_size=4, batches_per_epoch=2, train_subset=2, **options)


def whole_run(data: LightningDataModule, features: int, folder: Path) -> tuple[str | None, dict[str, str]]:
    """Train, validate, test and write, as the command does; the hashes in the results and in the checkpoint."""
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(features, 4))
    module: LightningModule
    module = lm.ProtoNet(backbone) if isinstance(data, lm.EpisodicDataModule) else lm.MultiHead(backbone)
    kept = ModelCheckpoint(folder / "kept", every_n_train_steps=1)
    runs = Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[RunRecord("{}", False, 0.0), RunCheckpoint(None), kept],
        default_root_dir=folder,
    )
    runs.fit(module, datamodule=data)
    runs.test(module, datamodule=data, verbose=False)
    record = torch.load(kept.best_model_path, weights_only=False)["lightning_meta_run"]["examples"]
    return facts(module, data, runs)["data_fingerprint"], record


def mapped(x: Tensor) -> bool:
    """Whether the memory of a tensor is mapped from a file of the cache."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(end, 16) for end in line.split()[0].split("-"))
        if first <= x.data_ptr() < last:
            return bool(re.search(r"\.safetensors( \(deleted\))?$", line))
    return False


# From the cache


def test_episodes_of_a_decoded_source(folder: Path, counted: Counted) -> None:
    flat = folder / "group0"
    make = lambda: lm.sources.ImageFolder(flat, SIZE, 3, fractions=(0.34, 0.33, 0.33))  # noqa: E731
    for c in range(6):  # six classes, of which each split has two
        flat.joinpath(f"more{c}").symlink_to(folder / f"group{c % 2}" / f"class{c}")
    make().prepare()
    counted.reads, counted.hashed = 0, 0
    data = episodes(make())
    found, _ = whole_run(data, IMAGE, folder.parent)
    pools = [dataset.origin for dataset in data.datasets.values()]
    assert counted.reads == 1
    assert counted.hashed == sum(pool.x.nbytes for pool in pools if isinstance(pool, Pool))
    assert all(mapped(pool.x) for pool in pools if isinstance(pool, Pool))
    assert found == of_pools(make().pools()).whole


def test_tasks_of_a_decoded_source(folder: Path, counted: Counted) -> None:
    make = lambda: lm.sources.ImageFolder(folder, SIZE, 3)  # noqa: E731
    make().prepare_held_out()
    counted.reads, counted.hashed = 0, 0
    data = tasks(make())
    found, of_splits = whole_run(data, IMAGE, folder.parent)
    assert counted.reads == 1
    assert counted.hashed == sum(_bytes(data, split) * (1 if split == "train" else 2) for split in SPLITS)
    assert all(isinstance(part.inputs, Tensor) and mapped(part.inputs) for part in data.sets.values())
    assert found == of_sets(data.sets).whole
    assert of_splits == {split: of_sets({split: part}).whole for split, part in data.sets.items()}


def test_a_few_tasks_have_a_hash_of_their_own(folder: Path) -> None:
    data = tasks(lm.sources.ImageFolder(folder, SIZE, 3), tasks=["group1"])
    assert data.fingerprint() == of_sets(data.sets).whole
    assert data.fingerprint() != tasks(lm.sources.ImageFolder(folder, SIZE, 3)).fingerprint()


class Halved(lm.sources.ImageFolder):
    """Half of the images of each class."""

    def pools(self) -> dict[Split, Pool]:
        return halved(super().pools())

    def held_out(self) -> dict[Split, Pool]:
        return halved(super().held_out())


def halved(pools: dict[Split, Pool]) -> dict[Split, Pool]:
    for split, pool in pools.items():  # in place: what the source keeps is another dictionary
        rows = torch.cat([part[: len(part) // 2] for part in torch.arange(len(pool.x)).split(pool.sizes.tolist())])
        pools[split] = Pool(pool.x[rows], pool.sizes // 2, pool.names, pool.groups)
    return pools


def test_a_subclass_that_leaves_examples_out_has_hashes_of_its_own(folder: Path) -> None:
    data, whole = tasks(Halved(folder, SIZE, 3)), tasks(lm.sources.ImageFolder(folder, SIZE, 3))
    assert data.fingerprint() == of_sets(data.sets).whole != whole.fingerprint()
    assert data.division() == of_sets(data.sets).splits
    flat = folder / "group0"
    source = Halved(flat, SIZE, 3, fractions=(0.34, 0.33, 0.33))
    expected = of_pools(source.pools()).whole
    assert source.fingerprint() == expected
    assert expected != lm.sources.ImageFolder(flat, SIZE, 3, fractions=(0.34, 0.33, 0.33)).fingerprint()


def test_a_source_of_sets_that_are_not_those_in_the_cache_has_hashes_of_its_own() -> None:
    class Cached(Toys):
        def sets(self) -> dict[Split, TaskSet]:
            sets = super().sets()
            self.task_hashes = HashedParts(dict(sets), of_sets(sets))
            return sets

    class Turned(Cached):
        def sets(self) -> dict[Split, TaskSet]:
            sets = super().sets()
            return {**sets, "train": sets["val"]}

    whole = Cached().fingerprint()
    assert whole == tasks(Cached()).fingerprint() == of_sets(Toys().sets()).whole
    for found in (Turned().fingerprint(), tasks(Turned()).fingerprint()):
        assert found == of_sets(Turned().sets()).whole != whole


def test_a_fingerprint_does_not_depend_on_what_was_read_before(folder: Path) -> None:
    make = lambda: lm.sources.ImageFolder(folder / "group0", SIZE, 3, fractions=(0.34, 0.33, 0.33))  # noqa: E731
    expected, source = make().fingerprint(), make()
    source.held_out()
    assert source.fingerprint() == expected
    source.pools()
    source.held_out()
    assert source.fingerprint() == expected


def test_a_file_without_the_hashes_of_tasks_is_made_anew(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The version before cached the same pools under the same name, with another hash."""
    source = lm.sources.ImageFolder(folder, SIZE, 3)
    listing = source._held_out_listing()
    key = source._key_of(listing)
    cache_file.load_or_build("imagefolder", f"examples divided; {key}", lambda: source._decode(listing, key))
    data = tasks(source)
    assert data.fingerprint() == of_sets(data.sets).whole
    assert not caplog.records
    assert source.task_hashes is not None


def test_classes_of_groups_that_take_turns_are_brought_together(cache: Path, tmp_path: Path) -> None:
    """Only in this case are the examples copied."""
    for name, grey in (("a", 10), ("m/x", 20), ("m/y", 30), ("z", 40)):
        for i in range(3):
            file = tmp_path / "images" / name / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (4, 4), grey + i).save(file)
    data = tasks(lm.sources.ImageFolder(tmp_path / "images", 4, 1))
    assert data.fingerprint() == of_sets(data.sets).whole
    train = data.sets["train"]
    assert isinstance(train.inputs, Tensor)
    first = train.inputs[:, 0, 0, 0] // 10
    assert {name: first[rows].tolist() for name, rows in train.rows.items()} == {"all": [1, 4], "m": [2, 3]}


@pytest.mark.slow  # the drawings are decoded
@pytest.mark.data
def test_omniglot(data_folder: Path, counted: Counted, tmp_path: Path) -> None:
    lm.sources.Omniglot().prepare_held_out()
    lm.sources.Omniglot().prepare()
    for data, hashed in ((episodes(lm.sources.Omniglot()), 32460), (tasks(lm.sources.Omniglot()), 32460 + 6 * 1623)):
        counted.reads, counted.hashed = 0, 0
        whole_run(data, 784, tmp_path / str(hashed))
        assert counted.reads == 1
        assert 0 <= counted.hashed - 784 * hashed < 16 * 2 * 32460  # beside images, rows and labels of tasks


# Without a cache


class Own(lm.Source):
    """A source of a user's that keeps nothing."""

    def pools(self) -> dict[Split, Pool]:
        x = torch.arange(6.0).repeat_interleave(50).unsqueeze(1) * torch.ones(IMAGE)
        names: dict[Split, tuple[str, ...]] = {"train": ("a", "b"), "val": ("c", "d"), "test": ("e", "f")}
        sizes = torch.tensor([50, 50])
        return {s: Pool(x[100 * i : 100 * (i + 1)], sizes, names[s], ("", "")) for i, s in enumerate(SPLITS)}

    def held_out(self) -> dict[Split, Pool]:
        return {split: Pool(pool.x, pool.sizes, ("a", "b"), pool.groups) for split, pool in Own.pools(self).items()}

    def fingerprint(self) -> str:
        return of_pools(Own.pools(self)).whole


def test_a_source_of_ones_own(counted: Counted, tmp_path: Path) -> None:
    for name in ("pools", "held_out", "fingerprint"):
        counted.calls(Own, name)
    whole_run(episodes(Own()), IMAGE, tmp_path / "episodes")
    assert counted.decodes["pools"] == 1 + counted.decodes["fingerprint"] == 2  # this fingerprint asks again
    whole_run(tasks(Own()), IMAGE, tmp_path / "tasks")
    assert counted.decodes["held_out"] == 1


def test_data_sets_of_pairs(counted: Counted, tmp_path: Path) -> None:
    class Pairs(list[Any]):
        def __getitem__(self, index: Any) -> Any:
            counted.decodes["pairs"] += 1
            return super().__getitem__(index)

    def make(labels: list[list[int]]) -> lm.sources.FromDataset:
        train, val, test = (
            Pairs([(torch.full((IMAGE,), float(y)), y) for y in of for _ in range(20)]) for of in labels
        )
        return lm.sources.FromDataset(train, val, test)

    whole_run(episodes(make([[0, 1], [2, 3], [4, 5]])), IMAGE, tmp_path / "episodes")
    assert counted.decodes["pairs"] == 120
    assert counted.hashed == 120 * IMAGE * 4
    counted.hashed = 0
    data = tasks(make([[0, 1]] * 3))
    whole_run(data, IMAGE, tmp_path / "tasks")
    assert counted.decodes["pairs"] == 240
    assert counted.hashed == _bytes(data, "train") + 2 * (_bytes(data, "val") + _bytes(data, "test"))


def test_glyphs(counted: Counted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = [c for c in glyphs.read_characters() if c.script in ("Armenian", "Cyrillic")]
    monkeypatch.setattr(glyphs, "read_characters", lambda: few)
    counted.calls(lm.sources.Glyphs, "render")
    data: Any = episodes(lm.sources.Glyphs(image_size=16))
    whole_run(data, 256, tmp_path / "episodes")
    assert counted.hashed == sum(dataset.origin.x.nbytes for dataset in data.datasets.values())
    counted.hashed = 0
    data = tasks(lm.sources.Glyphs(image_size=16))
    whole_run(data, 256, tmp_path / "tasks")
    assert counted.hashed == _bytes(data, "train") + 2 * (_bytes(data, "val") + _bytes(data, "test"))
    assert counted.decodes["render"] == 2


def run_table(folder: Path) -> lm.MultiTaskDataModule:
    rows = [f"{i % 7},{i % 5},{i * 0.5},{i % 3}.5" for i in range(100)]
    (folder / "t.csv").write_text("\n".join(["a,b,y,z", *rows]))
    return tasks(lm.sources.Table(folder / "t.csv", {"y": None, "z": None}))


def run_parkinsons(folder: Path) -> lm.MultiTaskDataModule:
    return tasks(lm.sources.Parkinsons())


@pytest.mark.parametrize(
    ("make", "features", "owner", "reader"),
    [
        (run_table, 2, table, "read_columns"),
        pytest.param(run_parkinsons, 16, parkinsons, "read_official", marks=pytest.mark.data),
    ],
)
def test_tables(
    make: Callable[[Path], lm.MultiTaskDataModule],
    features: int,
    owner: Any,
    reader: str,
    counted: Counted,
    tmp_path: Path,
    data_folder: Path,
) -> None:
    data = make(tmp_path)
    counted.calls(owner, reader)
    whole_run(data, features, tmp_path)
    assert counted.decodes[reader] == 1
    assert counted.hashed == _bytes(data, "train") + 2 * (_bytes(data, "val") + _bytes(data, "test"))


def _bytes(data: lm.MultiTaskDataModule, split: Split) -> int:
    """The number of bytes of a split that are hashed for a fingerprint."""
    part = data.sets[split]
    assert isinstance(part.inputs, Tensor)
    return part.inputs.nbytes + sum(t.nbytes for t in (*part.targets.values(), *part.rows.values()))
