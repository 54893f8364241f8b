"""Compare reading a large table with `Table` and with pandas and scikit-learn: time and memory.

    python scripts/benchmark_table.py

A CSV file of numbers, texts and missing values is made in a temporary folder. Each side reads it in a process of its
own, divides its rows, standardises numbers by the training rows with missing ones as the mean, makes texts one-hot, and
ends with float32 inputs of three splits; then the columns' moments are compared. `Table` reads it twice: at first it
stores the result in a cache, which is empty, and then it reads the cache. Times are of the work alone, without imports;
memory is the most that the process ever held, imports and pages of the cache included. Ratios are of the other side
over this package: above 1 is faster, or smaller. pandas is no requirement of this package: install it for this, or name
a folder where it is by --pandas.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

TEXTS, TARGETS = 4, 2  # numbers of text columns and targets; the other columns are numbers
SIDES = ("lightning_meta", "again", "pandas")  # "again" is lightning_meta with what it has stored


def make(path: Path, rows: int, columns: int) -> None:
    """Write a table: real and whole numbers, texts with 3 to 12 categories, 2 % of the values missing."""
    import pyarrow
    from pyarrow import csv

    rng = np.random.default_rng(0)
    table: dict[str, Any] = {}
    for i in range(columns - TEXTS - TARGETS):
        missing = rng.random(rows) < 0.02
        values = rng.integers(0, 1000, rows) if i % 4 == 3 else (rng.normal(i, 1 + i, rows) * 1e4).round() / 1e4
        table[f"number_{i}"] = pyarrow.array(values, mask=missing)
    for i in range(TEXTS):
        kinds = np.array([f"kind {k}" for k in range(3 * (i + 1))])
        table[f"text_{i}"] = pyarrow.array(kinds[rng.integers(0, len(kinds), rows)], mask=rng.random(rows) < 0.02)
    table["y"] = pyarrow.array(rng.normal(size=rows).round(4), mask=rng.random(rows) < 0.02)
    table["label"] = np.array(["no", "yes"])[rng.integers(0, 2, rows)]
    csv.write_csv(pyarrow.table(table), path)


def by_lightning_meta(path: Path) -> list[NDArray[np.float32]]:
    """Read the inputs of the splits with `Table`."""
    from lightning_meta.sources import Table

    source = Table(path, {"y": "regression", "label": "binary"})
    return [data.inputs.numpy() for data in source.sets().values()]  # type: ignore[union-attr]


def by_pandas(path: Path) -> list[NDArray[np.float32]]:
    """Read and split the table at random with pandas and scikit-learn."""
    import pandas as pd
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.model_selection import train_test_split
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    table = pd.read_csv(path)
    x = table.drop(columns=["y", "label"])
    numbers = [name for name in x if name.startswith("number")]
    texts = [name for name in x if name.startswith("text")]
    train, rest = train_test_split(x, train_size=0.6, random_state=0)
    val, test = train_test_split(rest, train_size=0.5, random_state=0)
    kinds = [sorted(train[name].dropna().unique()) for name in texts]  # without missing texts
    encoder = OneHotEncoder(categories=kinds, handle_unknown="ignore", sparse_output=False, dtype=np.float32)
    encode = ColumnTransformer(
        [("numbers", make_pipeline(StandardScaler(), SimpleImputer()), numbers), ("texts", encoder, texts)],
        sparse_threshold=0,
    )
    inputs = [encode.fit_transform(train), encode.transform(val), encode.transform(test)]
    return [part.astype(np.float32) for part in inputs]


def measured(side: str, path: Path) -> dict[str, Any]:
    """Measure time, memory and moments of one side in this process."""
    read: Callable[[Path], list[NDArray[np.float32]]]
    if side == "pandas":
        import pandas as pd  # noqa: F401 - imported before the clock starts
        import sklearn.compose  # noqa: F401

        read = by_pandas
    else:
        import pyarrow.csv  # noqa: F401

        import lightning_meta.sources.table  # noqa: F401

        read = by_lightning_meta
    began, cpu = time.perf_counter(), time.process_time()
    inputs = read(path)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    gigabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
    numbers = inputs[0][:, : inputs[0].shape[1] - sum(3 * (i + 1) for i in range(TEXTS))]
    moments = [float(abs(numbers.mean(0, dtype=np.float64)).max()), float(numbers.std(dtype=np.float64))]
    shape = [sum(map(len, inputs)), inputs[0].shape[1]]
    return {"seconds": seconds, "processor": cpu, "gigabytes": gigabytes, "shape": shape, "moments": moments}


def main() -> None:
    """Print the results of each side and the ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--columns", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each side, in turn")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--pandas", type=Path, help="a folder with pandas, where the environment has none")
    parser.add_argument("--folder", type=Path, help="keep the table here, and read it where it is there already")
    parser.add_argument("--read", nargs=2, metavar=("SIDE", "FILE"), help=argparse.SUPPRESS)  # in the child process
    options = parser.parse_args()
    if options.read is not None:
        print(json.dumps(measured(options.read[0], Path(options.read[1]))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        path = (options.folder or Path(temporary)) / f"table_{options.rows}_{options.columns}.csv"
        if not path.exists():
            make(path, options.rows, options.columns)
        found: dict[str, list[dict[str, Any]]] = {side: [] for side in options.sides}
        for repeat in range(options.repeats):
            for side in options.sides:
                paths = [os.environ.get("PYTHONPATH", "")]
                paths += [str(options.pandas)] if side == "pandas" and options.pandas else []
                env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
                env["LIGHTNING_META_CACHE"] = str(Path(temporary) / str(repeat))
                command = [sys.executable, __file__, "--read", side, str(path)]
                found[side].append(json.loads(subprocess.check_output(command, env=env).splitlines()[-1]))
        print(f"{options.rows:,} x {options.columns}, {path.stat().st_size / 1e6:.0f} MB")
    median = {}
    for side, runs in found.items():
        median[side] = {key: statistics.median(run[key] for run in runs) for key in ("seconds", "processor")}
        median[side]["gigabytes"] = max(run["gigabytes"] for run in runs)
        print(
            "{:15} {seconds:.1f} s, {processor:.1f} s of the processor, {gigabytes:.2f} GB".format(side, **median[side])
        )
        print(f"{'':15} inputs {runs[0]['shape']}; largest mean and spread in training {runs[0]['moments']}")
    for side in [side for side in SIDES[:2] if {side, "pandas"} <= median.keys()]:
        ours, other = median[side], median["pandas"]
        print(
            f"time {other['seconds'] / ours['seconds']:.2f}, processor {other['processor'] / ours['processor']:.2f}, "
            f"memory {other['gigabytes'] / ours['gigabytes']:.2f}: pandas over {side}"
        )


if __name__ == "__main__":
    main()
