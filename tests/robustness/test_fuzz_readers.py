"""Every reader of a file that a stranger may have made, on damaged ones: values, or one line; never another error."""

from __future__ import annotations

import contextlib
import gzip
import io
import pickle
import random
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from lightning_meta.batches import SPLITS
from lightning_meta.cli.ladder import file as ladder_file
from lightning_meta.cli.ladder.file import read_ladder
from lightning_meta.cli.sweep.file import read_sweep
from lightning_meta.cli.trust import check_untrusted, read_configuration, without_machine
from lightning_meta.data import cache, files
from lightning_meta.data.images import image_files, read_images
from lightning_meta.data.pool import Pool
from lightning_meta.errors import UserError
from lightning_meta.report.figures import compare_training
from lightning_meta.report.transfer import compare
from lightning_meta.sources import Table, cifar, mini_imagenet, mnist, omniglot, parkinsons
from lightning_meta.sources.labels_file import files_of_table
from tests.report.transfer_runs import Simulated, write_run
from tests.robustness.fuzzing import SECONDS
from tests.waiting import computing_at_most

EXAMPLES = 25 if not SECONDS else int(20 * SECONDS)
PATIENCE = 10.0  # seconds of computing for one file
PIECES = [
    *(
        b"",
        b"\0",
        b"\xff\xfe",
        b"\n",
        b"\r",
        b",",
        b'"',
        b"'",
        b"-1",
        b"nan",
        b"1e999",
        b"9" * 400,
        b"[",
        b"]",
        b"{",
        b"}",
    ),
    *(
        b": ",
        b"&a ",
        b"*a ",
        b"<<: ",
        b"!!int ",
        b"!!python/object:os.system ",
        b"!!binary ",
        b"- ",
        b"? ",
        b"\t",
        b"null",
    ),
    *(
        b"\x80\x04",
        b"\x93NUMPY",
        b"PK\x03\x04",
        b"PK\x05\x06",
        b"\x1f\x8b",
        b"2001-99-99",
        b"true",
        b"0x",
        b"1:2:3",
        b"%",
    ),
]


def torn(content: bytes, draw: random.Random) -> bytes:
    """Content after some changes: bytes flipped, cut, repeated, moved, or replaced by what programs trip over."""
    data = bytearray(content)
    for _ in range(draw.randint(1, 6)):
        start = draw.randrange(len(data) + 1)
        stop = min(len(data), start + draw.choice([0, 1, 2, 8, 64]))
        change = draw.choice(["flip", "flip", "cut", "piece", "piece", "copy", "end", "noise"])
        if change == "flip" and start < len(data):
            data[start] = draw.randrange(256)
        elif change == "cut":
            del data[start:stop]
        elif change == "piece":
            data[start:stop] = draw.choice(PIECES)
        elif change == "copy":
            data[start:start] = data[start:stop] * draw.choice([1, 2, 50])
        elif change == "end" and draw.random() < 0.2:
            del data[start:]
        elif change == "noise":
            data[start:stop] = draw.randbytes(stop - start)
    return bytes(data)


def shaken(value: Any, draw: random.Random) -> Any:
    """Plain data with some values of another kind."""
    if draw.random() < 0.04:
        return draw.choice(
            [None, 0, -1, 2**70, 1e308, float("nan"), "", "x", [], {}, [[]], {"a": 1}, {1: 2}, True, ["x"]]
        )
    if isinstance(value, dict):
        return {k if draw.random() > 0.02 else draw.choice([1, None, "x"]): shaken(v, draw) for k, v in value.items()}
    return [shaken(v, draw) for v in value] if isinstance(value, list) else value


def fuzz(file: Path, read: Callable[[], Any], change: Callable[[bytes, random.Random], bytes] = torn) -> Counter[str]:
    """Read changes of a file, which is read whole first; how often it was read and refused."""
    whole, counts = file.read_bytes(), Counter[str]()
    read()
    for seed in range(EXAMPLES):
        content = change(whole, random.Random(seed))
        file.write_bytes(content)
        line = ""
        try:
            with computing_at_most(PATIENCE):
                read()
        except UserError as error:
            line = str(error)
        except BaseException:
            print(f"seed {seed}: {content[:2000]!r}")
            raise
        assert line.isprintable(), seed
        assert len(line) < 20_000, seed
        counts["refused" if line else "read"] += 1
    print(f"\n{file.name}: {dict(counts)}")
    return counts


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIGHTNING_META_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LIGHTNING_META_DATA", raising=False)
    return tmp_path


# Run directories

TASKS = {"a": Simulated(np.arange(40) % 2), "b": Simulated(np.arange(40) % 3 == 0, joint=0.5, gradient_share=0.5)}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["config.yaml", "results.json", "per_task.csv", "predictions.npz"])
def test_a_run_that_is_compared(name: str) -> None:
    for method in ("independent", "shared"):
        write_run(Path(method) / "0", TASKS)
    assert fuzz(Path("shared/0") / name, lambda: compare(["shared"], ["independent"]))["refused"] > EXAMPLES // 10


@pytest.mark.filterwarnings("ignore")
def test_training_curves() -> None:
    Path("run").mkdir()
    rows = "".join(f"{s},{s / 10},{s / 9},{0.1}\n" for s in range(1, 9))
    Path("run/metrics.csv").write_text("step,train/accuracy,val/accuracy,val/accuracy_ci95\n" + rows)
    fuzz(Path("run/metrics.csv"), lambda: compare_training(["run"], "a.png"))


def shaken_yaml(content: bytes, draw: random.Random) -> bytes:
    if draw.random() < 0.5:
        return torn(content, draw)
    return yaml.safe_dump(shaken(yaml.safe_load(content), draw), allow_unicode=True).encode("utf-8", "surrogatepass")


CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("name", ["maml_sinusoid", "protonet_omniglot", "multi_head_table"])
def test_the_configuration_of_a_strangers_run(name: str) -> None:
    file = Path("config.yaml")
    file.write_bytes((CONFIGS / f"{name}.yaml").read_bytes())

    def read() -> None:
        stored = read_configuration(file)
        check_untrusted(without_machine({"data": stored.get("data"), "trainer": stored.get("trainer") or {}}), file)

    assert fuzz(file, read, shaken_yaml)["refused"] > EXAMPLES // 10


def test_a_ladder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ladder_file, "_parsed", lambda file, folder, rung, config, options: config)  # the parser of fit
    Path("ladder.yaml").write_bytes((CONFIGS / "ladder_glyphs.yaml").read_bytes())
    read = lambda: read_ladder("ladder.yaml", Path("runs"), None, None, [])  # noqa: E731
    assert fuzz(Path("ladder.yaml"), read, shaken_yaml)["refused"] > EXAMPLES // 10


def test_a_sweep() -> None:
    Path("sweep.yaml").write_bytes((CONFIGS / "sweeps" / "maml_glyphs.yaml").read_bytes())
    assert fuzz(Path("sweep.yaml"), lambda: read_sweep("sweep.yaml"), shaken_yaml)["refused"] > EXAMPLES // 10


# Archives; their content is never the official one, so all are refused, or come as far as to be hashed


def official(path: Path, read: Callable[[Path], Any]) -> Callable[[], Any]:
    """Read a file as a source reads an official one; where only its hash is wrong is as good as read."""

    def reading() -> None:
        try:
            files._checked(path, str(path), read, "mend it")
        except UserError as error:
            if "are not the official ones" not in str(error) and "is not the official one" not in str(error):
                raise

    return reading


def drawing(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (omniglot.SIDE, omniglot.SIDE), shade).save(buffer, "PNG")
    return buffer.getvalue()


def test_the_zip_of_omniglot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(omniglot, "ARCHIVES", {"images_background": (1, "")})
    with zipfile.ZipFile("a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for drawer in range(1, 21):
            archive.writestr(f"images_background/Latin/character01/0001_{drawer:02}.png", drawing(drawer % 2))
    source = omniglot.Omniglot()
    fuzz(Path("a.zip"), official(Path("a.zip"), lambda path: source._read(path, "images_background")))


def tar_of_cifar(draw: random.Random) -> bytes:
    """Two images of a class; the pickles are torn, the tar, or the gzip around it."""
    spoil = draw.choice(["pickle", "tar", "gzip", "fields"])
    fields: dict[bytes, Any] = {b"data": np.zeros((1, 3072), np.uint8), b"fine_labels": [0], b"coarse_labels": [0]}
    members = {"train": fields, "test": fields, "meta": {b"fine_label_names": [b"a"], b"coarse_label_names": [b"b"]}}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            content = shaken(content, draw) if spoil == "fields" else content
            pickled = pickle.dumps(content, protocol=draw.choice([0, 2]))
            pickled = torn(pickled, draw) if spoil == "pickle" else pickled
            info = tarfile.TarInfo(f"cifar-100-python/{name}")
            info.size = len(pickled)
            archive.addfile(info, io.BytesIO(pickled))
    packed = gzip.compress(torn(buffer.getvalue(), draw) if spoil == "tar" else buffer.getvalue(), 1, mtime=0)
    return torn(packed, draw) if spoil == "gzip" else packed


def test_the_tar_of_cifar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar, "IMAGES", {"train": 1, "test": 1})
    monkeypatch.setattr(cifar, "PER_CLASS", 2)
    whole = next(made for seed in range(99) if len(made := tar_of_cifar(random.Random(seed))))
    Path("a.tar.gz").write_bytes(whole)
    read = official(Path("a.tar.gz"), cifar.read_cifar100)
    with contextlib.suppress(UserError):
        read()

    def lenient() -> None:
        with contextlib.suppress(UserError):
            read()

    assert fuzz(Path("a.tar.gz"), lenient, lambda content, draw: tar_of_cifar(draw))["read"] == EXAMPLES


def test_the_idx_files_of_mnist() -> None:
    name = "t10k-labels-idx1-ubyte"
    Path("a.gz").write_bytes(gzip.compress(bytes(10_008), 1, mtime=0))
    fuzz(Path("a.gz"), official(Path("a.gz"), lambda path: mnist._read(name, path)))


def test_the_table_of_parkinsons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parkinsons, "ROWS", 3)
    line = ",".join(["1"] * len(parkinsons.COLUMNS))
    Path("a.data").write_text("\n".join([",".join(parkinsons.COLUMNS), *[line] * 3]))
    fuzz(Path("a.data"), official(Path("a.data"), parkinsons._read))


def test_the_lists_of_mini_imagenet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mini_imagenet, "PER_CLASS", 1)
    monkeypatch.setattr(mini_imagenet, "class_list", lambda name: {split: ["n1", "n2"] for split in SPLITS})
    Path("images").mkdir()
    for c in (1, 2):
        Path(f"images/{c}.jpg").touch()
    for split in SPLITS:
        Path(f"{split}.csv").write_text("filename,label\n1.jpg,n1\n2.jpg,n2\n")
    assert fuzz(Path("val.csv"), mini_imagenet.MiniImageNet(".")._listing)["refused"] > EXAMPLES // 10


# A user's data, and the cache


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table(suffix: str) -> None:
    import pyarrow as pa
    from pyarrow import csv as arrow_csv
    from pyarrow import parquet

    table = pa.table({"x": [i * 0.3 for i in range(40)], "s": ["ab", "c"] * 20, "y": [float(i % 7) for i in range(40)]})
    file = Path(f"t.{suffix}")
    if suffix == "csv":
        arrow_csv.write_csv(table, file)
    else:
        parquet.write_table(table, file)

    def read() -> None:
        source = Table(file, {"y": "regression"})
        source.tasks()
        source.sets()

    fuzz(file, read)


@pytest.mark.filterwarnings("ignore")
def test_images_to_label() -> None:
    Path("f/g").mkdir(parents=True)
    Image.effect_noise((12, 9), 50).save("f/g/a.png")
    fuzz(Path("f/g/a.png"), lambda: read_images(image_files(["f"]), (1, 8, 8)))


@pytest.mark.filterwarnings("ignore")
def test_labels_of_images() -> None:
    Path("f").mkdir()
    for name in ("a", "b", "c"):
        Image.new("L", (4, 4)).save(f"f/{name}.png")
    Path("labels.csv").write_text("file,label\na.png,x\nb.png,y\nc.png,x\n")

    def read() -> None:
        files, labels = files_of_table("f", "labels.csv")
        assert [file.parent for file in files] == [Path("f")] * 3 == [Path("f")] * len(labels)

    assert fuzz(Path("labels.csv"), read)["refused"] > EXAMPLES // 3


def test_the_cache_is_built_again() -> None:
    pool = Pool(torch.arange(12, dtype=torch.uint8).reshape(4, 3), torch.tensor([2, 2]), ("a", "b"), ("g", "g"))
    build = lambda: {s: replace(pool, x=pool.x.clone(), sizes=pool.sizes.clone()) for s in SPLITS}  # noqa: E731
    cache.load_or_build("toy", "key", build)
    (file,) = Path("cache/decoded").iterdir()

    def read() -> None:
        found = cache.load_or_build("toy", "key", build)
        assert all(torch.equal(found.pools[split].x, pool.x) for split in SPLITS)

    assert fuzz(file, read)["read"] == EXAMPLES
