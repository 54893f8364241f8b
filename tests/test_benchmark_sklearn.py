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


# Options of the source in the rows of the runner, without the path. The first row of Parkinson's has a configuration.
SOURCES = {
    "landmine": {"targets={mine: binary}", "task_column=field"},
    "enb": {"targets={Y1: regression, Y2: regression}"},
    "parkinsons": {"tasks=subjects", "target=total_UPDRS"},
}


@pytest.mark.parametrize("table", benchmark_sklearn.TABLES)
def test_scikit_learn_has_the_rows_of_the_runner(table: str, tmp_path: Path, data_folder: Path) -> None:
    benchmark_sklearn.write_rows(table, tmp_path / "rows.npz")
    labels = {"landmine": 14_820, "enb": 2 * 768, "parkinsons": 5875}[table]
    with np.load(tmp_path / "rows.npz") as stored:
        examples = [
            sum(len(stored[name]) for name in stored if name.startswith(f"{split}/y/"))
            for split in benchmark_sklearn.SPLITS
        ]
    assert sum(examples) == labels
    assert [count / labels for count in examples] == pytest.approx([0.6, 0.2, 0.2], abs=0.02)
    rows = benchmark_sklearn.rows()
    for method in benchmark_sklearn.METHODS:  # none divides or encodes the table in another way
        options, metric = rows[f"{method}_{table}"]
        prefix = "--data.source."
        given = {option.removeprefix(prefix) for option in options if option.startswith(prefix)}
        source = {option for option in given if not option.startswith("path=")}
        assert source == (set() if options[0].endswith("linear_parkinsons.yaml") else SOURCES[table])
        assert metric == ("test/auroc" if table == "landmine" else "test/r2")
        assert not any(option.startswith("--seed_everything") for option in options)
