"""How often sets and intervals hold the label, where its distribution is known.

`python -m tests.multitask.coverage_simulation` prints the table of docs/multi_task_results.md. Rows have two numbers x.
Their targets are a number, normal with a deviation that grows with |x|, a class of three, and yes or no, with known
probabilities; a fifth of the labels is missing. A network is trained on 200 rows, its epoch is chosen by validation
rows with n labels of each target, and the calibration is learned from these rows, or from as many others. Coverage is
exact for each of 10,000 new rows: the probability that the label lies in the set or interval.
"""

from __future__ import annotations

import csv
import io
import logging
import math
import tempfile
import warnings
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import lightning_meta as lm
from lightning_meta.nn import MLP
from lightning_meta.sources import Table

TRAIN, NEW, COVERAGE = 200, 10_000, 0.9
KINDS = {"number": "regression", "class": "multiclass", "yes": "binary"}
Numbers = NDArray[np.float64]


def distributions(x: Numbers) -> tuple[Numbers, Numbers, Numbers, Numbers]:
    """The mean and deviation of the number, the probabilities of the three classes, and of yes, given `(n, 2)` x."""
    powers = np.exp(2 * np.stack([x[:, 0], x[:, 1], -x.sum(1)], 1))
    classes = powers / powers.sum(1, keepdims=True)
    return 50 + 10 * x[:, 0], 3 + 2 * np.abs(x[:, 1]), classes, 1 / (1 + np.exp(-3 * x[:, 0] * x[:, 1]))


def write(path: Path, x: Numbers, split: list[str], rng: np.random.Generator) -> None:
    """Draw labels, and write a table."""
    mean, deviation, classes, yes = distributions(x)
    drawn = (classes.cumsum(1) < rng.random((len(x), 1))).sum(1)
    columns = {"number": rng.normal(mean, deviation), "class": [f"c{c}" for c in drawn]}
    columns["yes"] = rng.random(len(x)) < yes
    missing = rng.random((3, len(x))) < 0.2
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["a", "b", *columns, "split"])
        for i, row in enumerate(zip(*columns.values(), strict=True)):
            writer.writerow([*x[i], *("" if gone else v for gone, v in zip(missing[:, i], row, strict=True)), split[i]])


def covered(found: dict[str, NDArray[np.object_]], x: Numbers) -> dict[str, float]:
    """The probability that the label lies in its set or interval, the mean over rows."""
    mean, deviation, classes, yes = distributions(x)
    low, high = ((found[f"{end}(number)"] - mean) / deviation / math.sqrt(2) for end in ("lower", "upper"))
    inside = (torch.erf(torch.from_numpy(high)) - torch.erf(torch.from_numpy(low))) / 2
    of_class = [sum(p[int(c[1])] for c in labels) for p, labels in zip(classes, found["set(class)"], strict=True)]
    of_yes = [sum({"True": p, "False": 1 - p}[c] for c in s) for p, s in zip(yes, found["set(yes)"], strict=True)]
    return {"number": float(inside.mean()), "class": float(np.mean(of_class)), "yes": float(np.mean(of_yes))}


def simulated(seed: int, rows: int, folder: Path) -> tuple[dict[str, float], dict[str, float]]:
    """The coverage of a calibration by the n rows that chose the epoch, and by n others."""
    rng = np.random.default_rng(seed)
    rows_with_labels = round(rows / 0.8)
    split = ["train"] * TRAIN + ["val"] * rows_with_labels + ["test"] * rows_with_labels
    write(folder / "table.csv", rng.normal(size=(len(split), 2)), split, rng)
    lines = (folder / "table.csv").read_text().splitlines()
    swapped = [line.replace(",val", ",TEST").replace(",test", ",val").replace("TEST", "test") for line in lines]
    (folder / "swapped.csv").write_text("\n".join(swapped))
    chose, others = (
        lm.MultiTaskDataModule(Table(folder / name, KINDS, ["a", "b"], split_column="split"), seed=seed)
        for name in ("table.csv", "swapped.csv")
    )
    torch.manual_seed(seed)
    module = lm.MultiHead(MLP(2, (32, 32)), optimizer=partial(torch.optim.Adam, lr=0.01))
    quiet: Any = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    run = lm.fit(module, chose, name=f"{seed}", runs=folder, max_epochs=15, **quiet)
    assert run.directory is not None
    model, x = lm.load(run.directory), rng.normal(size=(NEW, 2))
    found = []
    for data in (chose, others):
        calibration = lm.calibrate_table(model, data, coverage=COVERAGE, accelerator="cpu").calibration
        calibrated = [of for of in calibration.tasks.values() if of is not None]
        assert len(calibrated) == len(calibration.tasks)
        assert all(abs(of.labels - rows) < 5 * math.sqrt(rows) for of in calibrated)
        found.append(covered(model.predict_table({"a": x[:, 0], "b": x[:, 1]}, calibration=calibration), x))
    return found[0], found[1]


def main() -> None:
    """Print the table."""
    logging.disable()
    warnings.simplefilter("ignore")
    print("| labels | divisions | number | class | yes | number, others | class, others | yes, others |")
    print("| ---: " * 8 + "|", flush=True)
    for rows, count in ((1000, 5), (100, 20)):
        found = []
        for seed in range(count):
            with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
                found.append(simulated(seed, rows, Path(folder)))
        means = [np.mean([each[i][name] for each in found]) for i in (0, 1) for name in KINDS]
        print(f"| {rows} | {count} | {' | '.join(f'{100 * mean:.1f}' for mean in means)} |", flush=True)


if __name__ == "__main__":
    main()
