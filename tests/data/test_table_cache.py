"""The cache of large tables: the same as a new reading, never outdated or damaged, and none for small tables."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import csv, parquet

from lightning_meta.batches import SPLITS
from lightning_meta.describing import describe
from lightning_meta.errors import UserError
from lightning_meta.sources import (
    LabelledTable,
    RegressionTable,
    Table,
    Target,
    labelled_table,
    regression_table,
    table,
    table_cache,
    table_folder,
)
from lightning_meta.sources.table_files import read_columns

TARGETS: dict[str, Any] = {"price": None, "sold": Target("binary", metric="auroc"), "grade": None}


def content(count: int = 300, seed: int = 0) -> dict[str, Any]:
    """Numbers beyond 2^53, text, missing values, a constant column and weights."""
    rng = np.random.default_rng(seed)
    style = np.array(["old", "new, fine", "mid\ncentury", "Grün"])[rng.integers(0, 4, count)]
    return {
        "area": pyarrow.array(rng.normal(0, 1e5, count), mask=rng.random(count) < 0.1),
        "id": 2**60 + rng.permutation(count) * 7919,
        "style": pyarrow.array(style, mask=rng.random(count) < 0.1),
        "same": np.full(count, 3),
        "town": np.array(["Ayr", "Bath", "Cork"])[rng.integers(0, 3, count)],
        "weight": rng.random(count) + 0.1,
        "price": pyarrow.array(rng.normal(300, 50, count).round(1), mask=rng.random(count) < 0.2),
        "sold": pyarrow.array(np.array(["no", "yes"])[rng.integers(0, 2, count)], mask=rng.random(count) < 0.2),
        "grade": np.array(list("ABC"))[rng.integers(0, 3, count)],
    }


@pytest.fixture
def path(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table that counts as large."""
    monkeypatch.setattr(table_cache, "LEAST", 1)
    csv.write_csv(pyarrow.table(content()), tmp_path / "t.csv")
    return tmp_path / "t.csv"


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are read."""
    files: list[Path] = []

    def counted(path: Path, *args: Any, **options: Any) -> Any:
        files.append(path)
        return read_columns(path, *args, **options)

    for module in (table, labelled_table, regression_table, table_folder):
        monkeypatch.setattr(module, "read_columns", counted)
    return files


def results(source: Table, caplog: pytest.LogCaptureFixture) -> tuple[list[Any], list[torch.Tensor]]:
    """The tasks, sets and warnings of a source."""
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="lightning_meta"):
        source.prepare()
        plain: list[Any] = [
            {name: describe(task) for name, task in source.tasks().items()},
            source.classes(),
            source.input_names,
        ]
        sets = source.sets()
    said = [(record.name, record.levelno, record.getMessage()) for record in caplog.records]
    plain += [describe(source.table()), source.fingerprint(), said]
    tensors: list[torch.Tensor] = []
    for split in SPLITS:
        data = sets[split]
        plain.append(data.names)
        assert isinstance(data.inputs, torch.Tensor)
        tensors += [data.inputs, *data.targets.values(), *data.rows.values(), *(data.weights or {}).values()]
    return plain, tensors


OPTIONS: list[dict[str, Any]] = [
    {"weights": "weight", "missing_indicators": True},
    {"targets": {"price": "regression"}, "task_column": "town", "categories": "codes", "leave_out": ["sold", "grade"]},
    {"features": ["area", "style"], "scaling": "quantile_normal", "group_column": "town", "seed": 3},
]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("options", OPTIONS)
def test_what_is_cached_is_the_same_as_a_new_reading(
    path: Path,
    suffix: str,
    options: dict[str, Any],
    readings: list[Path],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = path.with_suffix(suffix)
    if suffix == ".parquet":
        parquet.write_table(pyarrow.table(content()), path)
    options = {"targets": TARGETS, **options}
    with monkeypatch.context() as patch:
        patch.setattr(table_cache, "LEAST", 10**9)
        expected, tensors = results(Table(path, **options), caplog)
    assert expected[5]  # such as the warning of columns that are constant
    for count in (2, 2):  # the first encodes, the second reads what is stored
        found, others = results(Table(path, **options), caplog)
        assert found == expected
        assert [(x.dtype, x.shape) for x in others] == [(x.dtype, x.shape) for x in tensors]
        assert all(a.numpy().tobytes() == b.numpy().tobytes() for a, b in zip(others, tensors, strict=True))
        assert len(readings) == count


def test_pools_of_rows_are_the_same_as_those_of_a_new_reading(
    path: Path, readings: list[Path], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = path.with_name("towns")
    folder.mkdir()
    for seed in range(3):
        csv.write_csv(pyarrow.table(content(50, seed)), folder / f"town {seed}.csv")
    label: dict[str, Any] = {"label": "style", "features": ["area", "same", "grade"], "least_examples": 5}
    by_column: dict[str, Any] = {"targets": ["price", "area"], "task_column": "town", "leave_out": ["sold"]}
    makers: list[Callable[[], Any]] = [
        lambda: LabelledTable(path, **label),
        lambda: RegressionTable(path, **by_column),
        lambda: RegressionTable(folder, "price", leave_out=["sold"]),
    ]
    for make, files in zip(makers, (1, 1, 3), strict=True):
        readings.clear()
        found = []
        for least in (10**9, 1, 1):
            monkeypatch.setattr(table_cache, "LEAST", least)
            caplog.clear()
            with caplog.at_level(logging.INFO, logger="lightning_meta.sources"):
                source = make()
                source.prepare()
                pools = source.pools()
            said = [record.getMessage() for record in caplog.records if "is stored in" not in record.getMessage()]
            tensors = [pools[split].x.numpy().tobytes() for split in SPLITS]
            tensors += [pools[split].y.numpy().tobytes() for split in SPLITS if pools[split].y is not None]
            names = [(pools[split].names, pools[split].groups, pools[split].sizes.tolist()) for split in SPLITS]
            needs = dict.fromkeys(SPLITS, (9, 9))
            found.append([source.fingerprint(), source.input_names, source.more_classes(needs), said, names, tensors])
        assert found[0] == found[1] == found[2]
        assert found[0][3]
        assert len(readings) == 2 * files
    assert torch.equal(source.inputs_of(folder / "town 0.csv"), makers[2]().inputs_of(folder / "town 0.csv"))


def test_another_content_other_options_or_another_order_of_additions_is_read_anew(
    path: Path, cache: Path, readings: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Table(path, TARGETS).fingerprint()
    assert Table(path, TARGETS, seed=1).fingerprint() != first
    assert len(list((cache / "tables").iterdir())) == len(readings) == 2
    csv.write_csv(pyarrow.table(content(seed=1)), path)
    assert Table(path, TARGETS).fingerprint() != first
    assert len(list((cache / "tables").iterdir())) == 2  # in place of the earlier content
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    Table(path, TARGETS).sets()
    assert len(readings) == 4


def test_tables_that_no_run_opens_are_removed(path: Path, cache: Path) -> None:
    tables: list[Path] = []
    for seed in (0, 1):
        Table(path, TARGETS, seed=seed).sets()
        tables += set((cache / "tables").iterdir()).difference(tables)
    for file in tables:
        os.utime(file, (time.time() - 61 * 24 * 3600,) * 2)
    Table(path, TARGETS, seed=1).sets()
    Table(path, TARGETS, seed=2).sets()
    assert [file.exists() for file in tables] == [False, True]


def test_a_private_table_stays_private(path: Path, cache: Path) -> None:
    path.chmod(0o600)
    Table(path, TARGETS).sets()
    (stored,) = (cache / "tables").iterdir()
    assert stored.stat().st_mode & 0o777 == 0o600


def test_a_damaged_file_is_built_again(path: Path, cache: Path, readings: list[Path]) -> None:
    expected = Table(path, TARGETS).fingerprint()
    (file,) = (cache / "tables").iterdir()
    intact = file.read_bytes()
    rng = np.random.default_rng(0)
    for place in (*rng.integers(0, len(intact), 8).tolist(), len(intact) - 1, -1):
        damaged = bytearray(intact)
        damaged[place] ^= 1 << int(rng.integers(8))
        file.unlink()  # the intact file is mapped
        file.write_bytes(damaged if place >= 0 else damaged[: len(intact) // 2])
        readings.clear()
        assert Table(path, TARGETS).fingerprint() == expected
        assert len(readings) == 1
    assert Table(path, TARGETS).fingerprint() == expected
    assert len(readings) == 1


def test_a_table_that_changes_while_it_is_read_is_refused(
    path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changing(path: Path, **options: Any) -> Any:
        columns = read_columns(path, **options)
        path.write_text(path.read_text() + path.read_text().splitlines()[-1] + "\n")
        return columns

    monkeypatch.setattr(table, "read_columns", changing)
    with pytest.raises(UserError, match=r"t\.csv: the table changed while it was read; wait until it is complete"):
        Table(path, TARGETS).sets()
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_is_a_warning(
    path: Path, cache: Path, readings: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    cache.write_text("a file in place of the folder")
    assert len({Table(path, TARGETS).fingerprint() for _ in range(2)}) == 1
    assert len(readings) == 2
    assert "set LIGHTNING_META_CACHE to another folder; without it, every run reads and encodes" in caplog.text


class Doubled(Table):
    """A table that is read in another way, of which the cache knows nothing."""

    def _rows_in(self, split: Any) -> Any:
        return {name: rows[::2] for name, rows in super()._rows_in(split).items()}


def test_small_tables_and_subclasses_leave_no_files(path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Doubled(path, TARGETS).fingerprint() != Table(path, TARGETS).fingerprint()
    assert len(list((cache / "tables").iterdir())) == 1
    monkeypatch.undo()
    assert path.stat().st_size < table_cache.LEAST
    before = set((cache / "tables").iterdir())
    Table(path, TARGETS, seed=9).sets()
    assert set((cache / "tables").iterdir()) == before
