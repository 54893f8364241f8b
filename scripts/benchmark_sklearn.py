"""Compare multi-task methods with scikit-learn on the shipped tables: test metric, processor time and memory.

    python scripts/benchmark_sklearn.py

The methods of this package are the rows of `scripts/reproduce.py --table multi_task` for these tables, with the options
there. scikit-learn fits one model per task to the same training and validation rows, with the same inputs: a ridge
regression (`RidgeCV`) or a logistic regression (`LogisticRegressionCV`), whose penalties it selects by itself, and a
random forest of 300 trees. Metrics are means over tasks and seeds on the same test rows. Each training is a process of
its own; its processor time and its peak memory are those of the whole process, with imports.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

# Other packages are imported where they are used: a child process begins with the peak memory of this one.
TABLES = ("landmine", "enb", "parkinsons")
SPLITS = ("train", "val", "test")
METHODS = ("linear", "pooled_linear", "independent", "multi_head", "conditioned")
MODELS = ("linear", "forest")
FOREST: dict[str, Any] = {"n_estimators": 300, "min_samples_leaf": 2, "n_jobs": 1}


class Measured(NamedTuple):
    """One training: mean test metric over tasks, processor seconds, and peak memory in GB."""

    metric: float
    seconds: float
    gigabytes: float


def in_process(command: Sequence[str]) -> tuple[str, float, float]:
    """Run a command, and return the last line that it prints, its processor seconds and its peak memory in GB."""
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read().rstrip()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{text}")
    last = text.rpartition("\n")[2]
    return last, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


def of_package(arguments: Sequence[str], metric: str, folder: Path) -> Measured:
    """Train a method of this package."""
    name = str(len(list(folder.iterdir())))
    command = [sys.executable, "-m", "lightning_meta", "fit", *arguments, f"--runs={folder}", f"--name={name}"]
    _, seconds, gigabytes = in_process([*command, "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"])
    (results,) = folder.glob(f"{name}/*/results.json")
    return Measured(json.loads(results.read_text())[metric], seconds, gigabytes)


def of_sklearn(file: Path, model: str, metric: str, seed: int) -> Measured:
    """Train a model of scikit-learn for each task."""
    command = [sys.executable, __file__, "--fit", str(file), model, metric, str(seed)]
    score, seconds, gigabytes = in_process(command)
    return Measured(float(score), seconds, gigabytes)


def rows() -> dict[str, Any]:
    """Return the options of `fit` and the metric of each row of the runner, by name; the seed is left out."""
    from reproducing.rows import read_rows

    return {row.name: [row.arguments(0)[:-1], row.figures[0].metric] for row in read_rows("multi_task")}


def write_rows(table: str, file: Path) -> None:
    """Write X and y of each task and split of a table, divided and encoded as in the rows of the runner."""
    import numpy as np
    from torch import Tensor

    import lightning_meta as lm
    from lightning_meta.batches import SPLITS as PARTS
    from lightning_meta.data.files import data_folder

    tables = (data_folder() or Path()) / "tables"
    source: lm.TaskSource
    if table == "landmine":
        source = lm.sources.Table(tables / "landmine.csv", {"mine": "binary"}, task_column="field")
    elif table == "enb":
        source = lm.sources.Table(tables / "enb.csv", {"Y1": "regression", "Y2": "regression"})
    else:
        source = lm.sources.Parkinsons(tasks="subjects", target="total_UPDRS")
    data = lm.MultiTaskDataModule(source)
    data.prepare_data()
    data.setup("test")
    arrays: dict[str, Any] = {}
    for task in data.sets["test"].names:
        for split in PARTS:
            of_split = data.sets[split]
            assert isinstance(of_split.inputs, Tensor)
            arrays[f"{split}/x/{task}"] = of_split.inputs[of_split.rows[task]].numpy()
            arrays[f"{split}/y/{task}"] = of_split.targets[task].flatten().numpy()
    np.savez(file, **arrays)


def score_of_sklearn(file: Path, model: str, metric: str, seed: int) -> float:
    """Fit a model of scikit-learn to each task of a file, and return the mean of the defined test metrics."""
    import numpy as np
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
    from sklearn.linear_model import LogisticRegressionCV, RidgeCV
    from sklearn.metrics import r2_score, roc_auc_score

    warnings.simplefilter("ignore")  # a fold of few positives may have one class only
    with np.load(file) as stored:
        arrays = {name: stored[name] for name in stored.files}
    scores = []
    for task in [name.removeprefix("test/x/") for name in arrays if name.startswith("test/x/")]:
        x, y = (np.concatenate([arrays[f"{split}/{part}/{task}"] for split in SPLITS[:2]]) for part in "xy")
        x_test, y_test = (arrays[f"test/{part}/{task}"] for part in "xy")
        if metric == "test/auroc":
            if len(set(y_test)) < 2:
                continue
            logistic = LogisticRegressionCV(Cs=10, cv=5, scoring="neg_log_loss", max_iter=2000)
            classifier = logistic if model == "linear" else RandomForestClassifier(random_state=seed, **FOREST)
            scores.append(roc_auc_score(y_test, classifier.fit(x, y).predict_proba(x_test)[:, 1]))
        else:
            ridge = RidgeCV(alphas=np.logspace(-3, 4, 15))
            regressor = ridge if model == "linear" else RandomForestRegressor(random_state=seed, **FOREST)
            scores.append(r2_score(y_test, regressor.fit(x, y).predict(x_test)))
    return statistics.fmean(scores)


def line(name: str, of_seeds: Sequence[Measured]) -> str:
    """Return a line with means over seeds, in Markdown."""
    metric, seconds, gigabytes = (statistics.fmean(values) for values in zip(*of_seeds, strict=True))
    return f"| {name} | {metric:.3f} | {seconds:.1f} | {gigabytes:.2f} |"


def main(args: Sequence[str] | None = None) -> None:
    """Measure, and print a table for each data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=TABLES, help="data sets")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=METHODS, help="methods of this package")
    # What child processes do.
    parser.add_argument("--rows", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--write", nargs=2, metavar=("TABLE", "FILE"), help=argparse.SUPPRESS)
    parser.add_argument("--fit", nargs=4, metavar=("FILE", "MODEL", "METRIC", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args(args)
    if options.rows:
        print(json.dumps(rows()))
    elif options.write is not None:
        write_rows(options.write[0], Path(options.write[1]))
    elif options.fit is not None:
        file, model, metric, seed = options.fit
        print(score_of_sklearn(Path(file), model, metric, int(seed)))
    else:
        compare(options.tables, options.methods, range(1, options.seeds + 1))


def compare(tables: Sequence[str], methods: Sequence[str], seeds: Sequence[int]) -> None:
    """Print a table for each data set; each line once it is measured."""
    here = [sys.executable, __file__]
    known = json.loads(in_process([*here, "--rows"])[0])
    for table in tables:
        metric = known[f"linear_{table}"][1]
        print(f"\n| {table} | {metric} | processor, s | memory, GB |\n| --- | ---: | ---: | ---: |")
        with tempfile.TemporaryDirectory() as temporary:
            runs, file = Path(temporary) / "runs", Path(temporary) / "rows.npz"
            runs.mkdir()
            for method in methods:
                given = known[f"{method}_{table}"][0]
                of_seeds = [of_package([*given, f"--seed_everything={seed}"], metric, runs) for seed in seeds]
                print(line(f"`{method}`", of_seeds), flush=True)
            in_process([*here, "--write", table, str(file)])
            for model in MODELS:
                print(line(f"scikit-learn, {model}", [of_sklearn(file, model, metric, s) for s in seeds]), flush=True)


if __name__ == "__main__":
    main()
