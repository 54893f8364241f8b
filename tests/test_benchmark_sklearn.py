"""The comparison with scikit-learn: what a child process did, and scores of models for each task."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import benchmark_sklearn
import numpy as np
import pytest
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score


def test_a_process_is_measured_and_its_error_told() -> None:
    code = "x = bytearray(300 << 20); print('first'); print('last')"
    last, seconds, gigabytes = benchmark_sklearn.in_process([sys.executable, "-c", code])
    assert last == "last"
    assert 0 < seconds < 60
    assert gigabytes > 0.29
    with pytest.raises(RuntimeError, match=r"ended with 3:\nwhy"):
        benchmark_sklearn.in_process([sys.executable, "-c", "import sys; print('why'); sys.exit(3)"])


def test_scores_are_means_over_tasks_with_a_defined_metric(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for task, labels in (("even", (0, 1)), ("all of one class", (1, 1))):
        for split, count in (("train", 60), ("val", 20), ("test", 40)):
            arrays[f"{split}/x/{task}"] = x = random.normal(size=(count, 3)).astype(np.float32)
            arrays[f"{split}/y/{task}"] = np.where(x[:, 0] > 0, *labels)
    np.savez(tmp_path / "labels.npz", **arrays)
    assert benchmark_sklearn.score_of_sklearn(tmp_path / "labels.npz", "linear", "test/auroc", 1) > 0.99
    assert benchmark_sklearn.score_of_sklearn(tmp_path / "labels.npz", "forest", "test/auroc", 1) > 0.95
    real = {name: a[:, 0] * 3 + 0.5 * a[:, 1] ** 2 for name, a in arrays.items() if "/x/" in name}
    numbers: dict[str, Any] = {**arrays, **{name.replace("/x/", "/y/"): y for name, y in real.items()}}
    np.savez(tmp_path / "numbers.npz", **numbers)
    expected = []
    for task in ("even", "all of one class"):
        x, y = (np.concatenate([numbers[f"{s}/{part}/{task}"] for s in ("train", "val")]) for part in "xy")
        fitted = RidgeCV(alphas=np.logspace(-3, 4, 15)).fit(x, y)
        expected.append(r2_score(numbers[f"test/y/{task}"], fitted.predict(numbers[f"test/x/{task}"])))
    found = benchmark_sklearn.score_of_sklearn(tmp_path / "numbers.npz", "linear", "test/r2", 1)
    assert found == pytest.approx(np.mean(expected))


def test_the_rows_of_a_table_are_those_of_the_runner(tmp_path: Path, data_folder: Path) -> None:
    benchmark_sklearn.write_rows("enb", tmp_path / "enb.npz")
    with np.load(tmp_path / "enb.npz") as stored:
        assert {name: len(stored[f"{name}/x/Y1"]) for name in benchmark_sklearn.SPLITS} == {
            "train": 461,
            "val": 153,
            "test": 154,
        }
    options, metric = benchmark_sklearn.rows()["multi_head_enb"]
    assert metric == "test/r2"
    assert not any(option.startswith("--seed_everything") for option in options)
