"""A table whose rows are examples of classes: what is read, how classes are divided, what is refused."""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from lightning_meta import EpisodicDataModule
from lightning_meta.batches import SPLITS
from lightning_meta.cli import main
from lightning_meta.errors import UserError
from lightning_meta.sources import LabelledTable

CONFIG = Path(__file__).parents[2] / "configs" / "protonet_table.yaml"
CLASSES = [f"kind {i}" for i in range(12)]


def write(path: Path, per_class: int = 8, **more: list[str]) -> tuple[np.ndarray, list[str]]:
    """12 classes that lie apart in three numbers, with a colour, in an order that mixes them."""
    generator = np.random.default_rng(0)
    labels = [CLASSES[i % 12] for i in range(12 * per_class)]
    centres = generator.normal(0, 3, (12, 3))
    x = np.array([centres[CLASSES.index(label)] for label in labels]) + generator.normal(0, 0.3, (len(labels), 3))
    colours = ["red" if row[0] > 0 else "blue" for row in x]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["a", "b", "c", "colour", "class", *more])
        rows = zip(x.tolist(), colours, labels, strict=True)
        writer.writerows(
            [*n, colour, label, *(m[i] for m in more.values())] for i, (n, colour, label) in enumerate(rows)
        )
    return x, labels


def test_classes_are_divided_and_inputs_are_learned_on_the_rows_of_training_classes(tmp_path: Path) -> None:
    x, labels = write(tmp_path / "t.csv")
    source = LabelledTable(tmp_path / "t.csv", "class", features=["a", "b", "c"], least_classes=3)
    pools = source.pools()
    assert sorted(name for pool in pools.values() for name in pool.names) == sorted(CLASSES)
    assert [pools[split].num_classes for split in SPLITS] == [6, 3, 3]
    train = x[[label in pools["train"].names for label in labels]]
    for pool in pools.values():
        start = 0
        for name, size in zip(pool.names, pool.sizes.tolist(), strict=True):
            of_class = x[[label == name for label in labels]]
            expected = (of_class - train.mean(0)) / train.std(0)
            assert torch.allclose(pool.x[start : start + size], torch.from_numpy(expected).float(), atol=1e-5)
            start += size
    assert (
        source.fingerprint()
        == LabelledTable(tmp_path / "t.csv", "class", features=["a", "b", "c"], least_classes=3).fingerprint()
    )


def test_the_order_of_rows_and_other_classes_examples_do_not_move_a_class(tmp_path: Path) -> None:
    write(tmp_path / "t.csv")
    write(tmp_path / "more.csv", per_class=9)
    one, other = (LabelledTable(tmp_path / f"{n}.csv", "class").pools() for n in ("t", "more"))
    assert {s: p.names for s, p in one.items()} == {s: p.names for s, p in other.items()}
    moved = LabelledTable(tmp_path / "t.csv", "class", seed=1).pools()
    assert moved["test"].names != one["test"].names


def test_a_column_divides_and_rare_classes_are_left_out_with_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    splits = ["train" if i % 12 < 6 else "val" if i % 12 < 9 else "test" for i in range(96)]
    write(tmp_path / "t.csv", part=splits)
    with (tmp_path / "t.csv").open("a") as file:
        file.write("0,0,0,red,rare,train\n0,0,0,red,,train\n")
    with caplog.at_level(logging.INFO, "lightning_meta"):
        pools = LabelledTable(tmp_path / "t.csv", "class", split_column="part", least_examples=2).pools()
    assert {split: set(pool.names) for split, pool in pools.items()} == {
        "train": set(CLASSES[:6]),
        "val": set(CLASSES[6:9]),
        "test": set(CLASSES[9:]),
    }
    assert "1 of 13 classes have fewer than 2 rows" in caplog.text
    assert pools["train"].x.shape == (48, 5)  # three numbers, red and blue


def test_the_shipped_configuration_learns_from_a_csv_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    write(Path("data/table.csv"), per_class=12)
    few = ["--trainer.max_steps=20", "--data.meta_batches_per_epoch=20", "--data.val_tasks=20", "--data.test_tasks=50"]
    few += ["--data.ways=3", "--data.test_ways=3", "--model.backbone.in_features=5", "--data.source.least_classes=3"]
    assert main(["fit", "--config", str(CONFIG), *few, "--trainer.enable_progress_bar=false"]) == 0
    results = yaml.safe_load(Path("runs/protonet_table/0/results.json").read_text())
    assert results["test/accuracy"] > 0.9
    assert results["test/tasks"] == 50


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "label": ({"label": "klass"}, "no column 'klass'"),
    "feature": ({"features": ["a", "x"]}, "no column 'x'"),
    "label as a feature": ({"features": ["a", "class"]}, "not a feature"),
    "too few classes": ({"least_classes": 5}, "5 classes each for train, val and test are 15"),
    "rare": ({"least_examples": 9}, "has 0 with 9 rows or more"),
    "fractions": ({"fractions": (0.5, 0.5, 0.5)}, "add up to 1"),
    "zero": ({"least_examples": 0}, "least_examples"),
    "categorical": ({"features": ["a"], "categorical": ["b"]}, "not a feature"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_is_refused(case: str, tmp_path: Path) -> None:
    write(tmp_path / "t.csv")
    options, said = WRONG[case]
    with pytest.raises(UserError, match=said):
        LabelledTable(tmp_path / "t.csv", **{"label": "class", **options}).pools()


def test_a_class_in_two_splits_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "t.csv", part=["train", "val", "test"] * 31 + ["train", "val", "val"])
    with pytest.raises(UserError, match="is in both"):
        LabelledTable(tmp_path / "t.csv", "class", split_column="part").pools()


def test_too_few_classes_for_the_ways_say_which_option_gives_more(tmp_path: Path) -> None:
    write(tmp_path / "t.csv")
    data = EpisodicDataModule(LabelledTable(tmp_path / "t.csv", "class"), ways=4, shots=1, queries=2)
    with pytest.raises(UserError, match="with least_classes=4 of LabelledTable"):
        data.setup("fit")
