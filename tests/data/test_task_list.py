"""Lists of fixed tasks: what is written comes back bit for bit, what is wrong is one line, scores are recomputed."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import lightning_meta as lm
from lightning_meta.batches import SPLITS, Episode, Split
from lightning_meta.data.listed import ListedEpisodes
from lightning_meta.errors import UserError
from tests.ddp_driver import Tiny

NAMES = ["=A1", "Greek/alpha", "c, d", "-x", "é", "'f"]  # what a spreadsheet runs, and what CSV must quote


class Named(Tiny):
    """`Tiny` with such names in its test split."""

    def pools(self) -> dict[Split, lm.Pool]:
        pools = super().pools()
        test = pools["test"]
        return {**pools, "test": lm.Pool(test.x, test.sizes, tuple(NAMES), test.groups)}


def same(one: Episode, other: Episode) -> bool:
    pairs = [(a, b) for p in ("support", "query") for a, b in zip(getattr(one, p), getattr(other, p), strict=True)]
    assert one.classes is not None
    assert other.classes is not None
    pairs += [(one.tasks, other.tasks), (one.classes, other.classes)]
    return one.ways == other.ways and all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


def test_tasks(data: lm.EpisodicDataModule) -> list[Episode]:
    data.prepare_data()
    data.setup("test")
    return list(data.test_dataloader())


test_tasks.__test__ = False  # type: ignore[attr-defined]


@pytest.mark.parametrize("rotations", [(), ("test",)])
def test_a_written_list_gives_the_same_episodes_bit_for_bit(tmp_path: Path, rotations: Any) -> None:
    file = tmp_path / "tasks.csv"
    options: dict[str, Any] = {"queries": 3, "test_shots": 2, "test_tasks": 9, "rotations": rotations}
    drawn = lm.EpisodicDataModule(Named(), evaluation_meta_batch_size=4, **options)
    drawn.write_test_tasks(file)
    listed = lm.EpisodicDataModule(Named(), evaluation_meta_batch_size=4, **options, test_task_list=file)
    one, other = test_tasks(drawn), test_tasks(listed)
    assert len(one) == len(other) == 3
    assert all(same(a, b) for a, b in zip(one, other, strict=True))
    assert isinstance(listed.datasets["test"], ListedEpisodes)
    assert listed.datasets["test"].shape == drawn.datasets["test"].shape
    assert listed.provenance() == {
        "task_list": str(file),
        "task_list_sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }


# Files of images.


def write_image(file: Path, seed: int, size: int = 12, mode: str = "RGB") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    picture = Image.fromarray(pixels)
    (picture.convert("L").point(lambda p: 255 * (p > 128), "1") if mode == "1" else picture).save(file)


def write_rows(file: Path, rows: list[tuple[Any, ...]], last: str = "example") -> Path:
    with file.open("w", newline="") as out:
        csv.writer(out).writerows([("task", "set", "class", last), *rows])
    return file


def rows_of(file: Path) -> list[list[str]]:
    return list(csv.reader(file.read_text().splitlines()))[1:]


@pytest.fixture
def folder(tmp_path: Path) -> lm.sources.ImageFolder:
    for c in range(12):
        for i in range(4):
            write_image(tmp_path / "images" / f"class{c}" / f"{i}.png", 4 * c + i)
    return lm.sources.ImageFolder(tmp_path / "images", 12, fractions=(0.25, 0.25, 0.5))


def nearest_mean(support: list[tuple[str, np.ndarray]], query: list[tuple[str, np.ndarray]]) -> float:
    """The accuracy of the nearest class mean of pixels."""
    names = sorted({name for name, _ in support})
    means = np.stack([np.mean([x for name, x in support if name == n], 0) for n in names])
    return float(np.mean([names[((means - x) ** 2).sum(1).argmin()] == name for name, x in query]))


def pixels(file: Path, size: int | None = None, invert: bool = False) -> np.ndarray:
    image: Image.Image = Image.open(file)
    if size is not None:
        grey = image.convert("L")
        grey = grey.point(lambda p: 255 - p) if invert else grey
        image = grey.resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(image, np.float64).ravel() / 255


def scores(data: lm.EpisodicDataModule) -> list[float]:
    """The score of a prototypical network on pixels in each test task."""
    (found,) = lm.evaluate(lm.ProtoNet(nn.Flatten()), data)
    return [row["score"] for row in found.per_task]


def by_hand(file: Path, read: Callable[[str, str], np.ndarray]) -> list[float]:
    """The scores of the tasks in a list, by NumPy."""
    tasks: dict[str, dict[str, list[tuple[str, np.ndarray]]]] = {}
    for task, part, name, example in rows_of(file):
        sets = tasks.setdefault(task, {"support": [], "query": []})
        sets[part].append((name, read(name, example)))
    return [nearest_mean(sets["support"], sets["query"]) for sets in tasks.values()]


def test_the_examples_of_an_image_folder_are_named_by_their_files(
    folder: lm.sources.ImageFolder, tmp_path: Path
) -> None:
    file = tmp_path / "tasks.csv"
    options: dict[str, Any] = {"ways": 3, "shots": 2, "queries": 2, "test_tasks": 6}
    drawn = lm.EpisodicDataModule(folder, **options)
    drawn.write_test_tasks(file)
    assert {row[3] for row in rows_of(file)} <= {f"{i}.png" for i in range(4)}
    expected = by_hand(file, lambda name, example: pixels(tmp_path / "images" / name / example))
    assert scores(lm.EpisodicDataModule(folder, **options, test_task_list=file)) == pytest.approx(expected)
    assert scores(drawn) == pytest.approx(expected)
    assert 0 < np.mean(expected) < 1


def test_ways_and_shots_may_vary_and_images_may_be_files_beside_the_list(
    folder: lm.sources.ImageFolder, tmp_path: Path
) -> None:
    rows = []
    for task, (ways, shots, queries) in enumerate([(2, 1, 1), (4, 2, 1), (3, 1, 2)]):
        for c in range(ways):
            files = [f"images/class{c}/{i}.png" for i in (np.arange(4) + task) % 4]
            support, query = files[: shots + (c == 0)], files[3 : 3 + queries] or files[3:]
            rows += [(task, "query", f"class{c}", f) for f in query]
            rows += [(task, "support", f"class{c}", f) for f in support]
    file = write_rows(tmp_path / "varied.csv", rows, "file")
    data = lm.EpisodicDataModule(folder, 3, 1, 2, test_task_list=file)
    expected = by_hand(file, lambda _, example: pixels(tmp_path / example))
    module = lm.ProtoNet(nn.Flatten())
    assert scores(data) == pytest.approx(expected)
    assert [batch.ways for batch in test_tasks(data)] == [2, 4, 3]  # one task at a time, as batches are dense
    assert set(data.provenance()) == {"task_list", "task_list_sha256", "task_list_images_sha256"}
    L.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False).test(module, data, verbose=False)
    stored = module.test_report["predictions"]
    assert stored["output"].shape == (3, 4, 4)
    filled = np.isfinite(stored["output"])
    assert [filled[t].sum() for t in range(3)] == [2 * 2, 4 * 4, 3 * 3]
    right = [(filled[t].any(1), stored["output"][t], stored["target"][t]) for t in range(3)]
    again = [float(np.mean(np.nanargmax(o[there], 1) == y[there])) for there, o, y in right]
    assert again == pytest.approx(expected)
    assert all((y[~there] == -1).all() for there, _, y in right)


# Omniglot's one-shot runs.


def write_runs(root: Path, ways: int = 4) -> Path:
    """A made-up copy of the layout: two runs, in the second of which an item lies beside another class."""
    for r in (1, 2):
        lines = []
        for c in range(ways):
            item, drawing = f"run{r:02}/test/item{c + 1:02}.png", f"run{r:02}/training/class{(c + r) % ways + 1:02}.png"
            write_image(root / item, 10 * r + c, 105, "1")
            write_image(root / drawing, 10 * r + (c if r == 1 or c else 3), 105, "1")
            lines.append(f"{item} {drawing}")
        (root / f"run{r:02}" / "class_labels.txt").write_text("\n".join(lines) + "\n")
    return root


class Grey(lm.Source):
    """Grey images of 28 pixels."""

    def pools(self) -> dict[Split, lm.Pool]:
        x = torch.randint(0, 256, (12, 1, 28, 28), generator=torch.Generator().manual_seed(0)).byte()
        made = [lm.Pool(x[i::3], torch.tensor([2, 2]), (f"{s}0", f"{s}1"), ("", "")) for i, s in enumerate(SPLITS)]
        return dict(zip(SPLITS, made, strict=True))


def test_omniglots_runs_are_tasks(tmp_path: Path) -> None:
    root = write_runs(tmp_path / "all_runs")
    data = lm.EpisodicDataModule(Grey(), 2, 1, 1, test_task_list=root)
    expected = []
    for run in ("run01", "run02"):
        pairs = [line.split() for line in (root / run / "class_labels.txt").read_text().splitlines()]
        support = [(training, pixels(root / training, 28, invert=True)) for _, training in pairs]
        query = [(training, pixels(root / test, 28, invert=True)) for test, training in pairs]
        expected.append(nearest_mean(support, query))
    assert expected == [1.0, 0.75]
    assert scores(data) == pytest.approx(expected)
    (batch,) = test_tasks(data)
    assert (batch.ways, batch.support.x.shape, batch.query.x.shape) == (4, (2, 4, 1, 28, 28), (2, 4, 1, 28, 28))


RUNS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no runs": (
        lambda root: [f.rename(f.with_suffix(".md")) for f in list(root.rglob("*.txt"))],
        "there is no run01/class_labels.txt here",
    ),
    "a drawing is missing": (lambda root: (root / "run02/test/item03.png").unlink(), "differ, as in run02/test/item03"),
    "a line is missing": (
        lambda root: (root / "run01/class_labels.txt").write_text("run01/test/item01.png run01/training/class02.png"),
        "class_labels.txt: its lines and the 4 images in",
    ),
    "one name": (lambda root: (root / "run01/class_labels.txt").write_text("x"), "line 1: expected two drawings"),
    "another size": (
        lambda root: write_image(root / "run01/test/item01.png", 0, 28, "1"),
        "item01.png: 28x28 pixels, but Omniglot's drawings have 105x105",
    ),
    "no image": (lambda root: (root / "run01/test/item01.png").write_text("x"), "item01.png: this is not a readable"),
    "no folder": (lambda root: (root / "run01/training").rename(root / "run01/x"), "training: there is no such folder"),
}


@pytest.mark.parametrize("case", RUNS)
def test_runs_that_are_not_whole_are_one_line(case: str, tmp_path: Path) -> None:
    change, line = RUNS[case]
    change(write_runs(tmp_path / "runs"))
    with pytest.raises(UserError, match=line.replace("(", r"\(")):
        lm.EpisodicDataModule(Grey(), 2, 1, 1, test_task_list=tmp_path / "runs").setup("test")


# Mistakes.

GOOD = [(0, "support", "test 0", 0), (0, "support", "test 1", 1), (0, "query", "test 0", 2), (0, "query", "test 1", 3)]
BAD: dict[str, tuple[list[tuple[Any, ...]], str]] = {
    "unknown class": (
        [(0, "support", "test 9", 0)],
        "line 2: the test split has no class 'test 9'; did you mean",
    ),
    "class of another split": ([(0, "support", "train 1", 0)], "the test split has no class 'train 1'"),
    "number out of range": ([(0, "support", "test 0", 12)], "line 2: class 'test 0' has no example '12'; it has 12"),
    "negative": ([(0, "support", "test 0", -1)], "has no example '-1'"),
    "no number": ([(0, "support", "test 0", "x.png")], "has no example 'x.png'; it has 12, numbered 0 to 11"),
    "many digits": ([(0, "support", "test 0", "0" * 30 + "99")], "has no example"),
    "support in query": (
        [(0, "query", "test 0", 0)],
        "line 2: example 0 of class 'test 0' is already in the support set of",
    ),
    "twice": ([(0, "support", "test 0", 0)], "line 3: example 0 of class 'test 0' is already in the support set of"),
    "query without support": (
        [(0, "query", "test 5", 0)],
        "line 2: class 'test 5' has a query in task 0 but no",
    ),
    "other set": ([(0, "train", "test 0", 0)], "line 2: set is 'train', expected support or query"),
    "starts at 1": ([(1, "support", "test 0", 0)], "line 2: found task '1' where task 0 should begin"),
    "no queries": (
        [(0, "support", "test 0", 0), (1, "support", "test 1", 1)],
        "has support examples of 1 classes",
    ),
    "short row": ([(0, "support")], "line 2: expected 4 values, task, set, class and example or file, got 2"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_list_is_one_line_before_evaluation(case: str, tmp_path: Path) -> None:
    rows, line = BAD[case]
    file = write_rows(tmp_path / "bad.csv", [*rows, *GOOD])
    for stage in ("test", "fit"):
        with pytest.raises(UserError) as raised:
            lm.EpisodicDataModule(Tiny(), 2, 1, 1, test_task_list=file).setup(stage)
        assert line in str(raised.value)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "the first line of a list must be task,set,class,example"),
        (b"a,b\n", "got 'a,b'"),
        (b"task,set,class,example\n", "the list has no tasks"),
        (b"task,set,class,example\n0,\xff,a,0\n", "this is not text in UTF-8"),
        (b'task,set,class,example\n0,"support,a,0\n', "this is not CSV"),
        (b"task,set,class,file\n0,support,a,../x.png\n0,support,b,x.png\n0,query,a,x.png\n", "is outside"),
        (b"task,set,class,file\n0,support,a,x.png\n0,support,b,y.png\n0,query,a,z.png\n", "line 2: there is no file"),
        (
            b"task,set,class,file\n0,support,a,%s\n0,support,b,y.png\n0,query,a,z.png\n" % (b"x" * 300),
            "line 2: there is",
        ),
    ],
)
def test_a_file_that_is_no_list_is_one_line(content: bytes, line: str, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes(content)
    with pytest.raises(UserError) as raised:
        lm.EpisodicDataModule(Tiny(), 2, 1, 1, test_task_list=tmp_path / "list.csv").setup("test")
    assert line in str(raised.value)


FILES = [(0, "support", "a", "lab/0.png"), (0, "support", "b", "lab/1.png"), (0, "query", "a", "lab/2.png")]


@pytest.mark.parametrize(
    ("last", "line"),
    [
        ((0, "query", "a", "lab/./0.png"), "line 5: example lab/./0.png of class 'a' is already in the support set"),
        ((0, "query", "a", "lab//0.png"), "line 5: example lab//0.png of class 'a' is already in the support set"),
        ((0, "query", "b", "lab/0.png"), "line 5: lab/0.png is of class 'b' here but 'a' above"),
        ((0, "query", "b", "./lab/2.png"), "line 5: lab/2.png is of class 'b' here but 'a' above"),
    ],
)
def test_a_file_is_one_example_of_one_class_however_it_is_spelled(last: Any, line: str, tmp_path: Path) -> None:
    for number in range(3):
        write_image(tmp_path / "lab" / f"{number}.png", number, 16, "1")

    def images(row: Any) -> int:
        file = write_rows(tmp_path / "list.csv", [*FILES, row], "file")
        data = lm.EpisodicDataModule(Tiny(), 2, 1, 1, test_task_list=file)
        return len(data._task_list.pool.x)  # type: ignore[union-attr]

    with pytest.raises(UserError) as raised:
        images(last)
    assert line in str(raised.value)
    write_image(tmp_path / "lab" / "3.png", 3, 16, "1")
    assert images((0, "query", "b", "./lab/3.png")) == 4


def test_what_cannot_be_listed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no file or folder"):
        lm.EpisodicDataModule(Tiny(), test_task_list=tmp_path / "none.csv").setup("test")
    with pytest.raises(UserError, match="this source makes its tasks"):
        lm.EpisodicDataModule(lm.sources.Sinusoid(), test_task_list=tmp_path / "none.csv")
    with pytest.raises(UserError, match="this source makes its tasks"):
        lm.EpisodicDataModule(lm.sources.Sinusoid()).write_test_tasks(tmp_path / "tasks.csv")
    with pytest.raises(UserError, match="are listed already"):
        lm.EpisodicDataModule(Tiny(), test_task_list="x.csv").write_test_tasks(tmp_path / "tasks.csv")


def test_no_list_is_written_that_would_be_too_large_to_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = lm.EpisodicDataModule(Tiny(), 2, 1, 1, test_tasks=20)
    file = tmp_path / "tasks.csv"
    data.write_test_tasks(file)
    size = file.stat().st_size
    file.unlink()
    monkeypatch.setattr("lightning_meta.data.task_list.LARGEST_TABLE", size - 1)
    with pytest.raises(UserError, match=r"tasks\.csv: the list would be larger than .*; write fewer than 20 tasks"):
        data.write_test_tasks(file)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("lightning_meta.data.task_list.LARGEST_TABLE", size)
    data.write_test_tasks(file)


def test_the_hash_of_the_test_split_is_that_of_the_list_too(tmp_path: Path) -> None:
    """A resumed run compares this hash."""
    divisions: list[dict[Split, str]] = []
    for rows in (None, GOOD, [*GOOD[:3], (0, "query", "test 1", 4)]):
        file = None if rows is None else write_rows(tmp_path / f"{len(divisions)}.csv", rows)
        divisions.append(lm.EpisodicDataModule(Tiny(), 2, 1, 1, test_task_list=file).division())
    assert len({d["test"] for d in divisions}) == 3
    assert len({d["train"] for d in divisions}) == 1
    moved = lm.EpisodicDataModule(Tiny(), 2, 1, 1, test_task_list=write_rows(tmp_path / "moved.csv", GOOD))
    assert moved.division() == divisions[1]


def test_a_list_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="the list cannot be written"):
        lm.EpisodicDataModule(Tiny(), 3, 1, 4, test_tasks=2).write_test_tasks(tmp_path / "file" / "tasks.csv")


def test_the_folder_of_a_list_is_made(tmp_path: Path) -> None:
    lm.EpisodicDataModule(Tiny(), 3, 1, 4, test_tasks=2).write_test_tasks(tmp_path / "new" / "tasks.csv")
    assert (tmp_path / "new" / "tasks.csv").is_file()
