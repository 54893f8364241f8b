"""Test whether recorded affinities predict which scripts of Glyphs help each other, by training every pair.

    python scripts/group_glyphs.py

Each seed trains all scripts in one network with recording of affinities and cosines, the same without recording to
measure its cost, every script alone, every pair of scripts, and the groups that the mean affinities over seeds propose.
All networks see the same number of examples of each script and are tested with their last weights. Finished runs are
stored in `runs.csv` and `pairs.csv`; run the same command again to resume.

The gain of script j with script i is the increase of its test accuracy, or the relative decrease of its test loss,
compared with training j alone.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import itertools
import logging
import math
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch import Callback
from scipy.stats import spearmanr

import lightning_meta as lm

SCRIPTS = ("Latin", "Greek", "Cyrillic", "Armenian", "Georgian", "Digit", "Symbol")
RUN_COLUMNS = ("seed", "run", "group", "task", "train_examples", "accuracy", "loss", "seconds")
PAIR_COLUMNS = ("seed", "task_i", "task_j", "affinity", "cosine")


class Processor(Callback):
    """Measures the processor time of the training alone."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Record the start."""
        self._began = time.process_time()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Record the duration."""
        self.seconds = time.process_time() - self._began


def rounds(scripts: Sequence[str]) -> list[list[list[str]]]:
    """Rounds of a tournament: each pair of an odd number of scripts once, and each script alone once."""
    count = len(scripts)
    pairs = [[[(r - i) % count, (r + i) % count] for i in range(1, count // 2 + 1)] for r in range(count)]
    return [[[scripts[r]], *([scripts[i] for i in sorted(pair)] for pair in drawn)] for r, drawn in enumerate(pairs)]


def train(options: argparse.Namespace, seed: int, run: str, groups: Sequence[Sequence[str]] | None) -> None:
    """Train one run and append its results to the files, unless they contain it already."""
    if any(row["seed"] == str(seed) and row["run"] == run for row in read(options.out / "runs.csv")):
        return
    lightning.seed_everything(seed, verbose=False)
    data = lm.MultiTaskDataModule(
        lm.sources.Glyphs(),
        tasks=options.scripts,
        batch_size=options.batch_size,
        batches_per_epoch=options.steps,
        train_subset=1,
    )
    arguments: dict[str, Any] = {
        "backbone": lm.nn.Conv4(in_channels=1, width=options.width, downsample="stride"),
        "optimizer": partial(torch.optim.Adam, lr=0.001),
    }
    module = lm.MultiHead(**arguments) if groups is None else lm.Grouped(**arguments, groups=groups)
    processor, recorder = Processor(), lm.GradientConflict(options.every_n_steps)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        done = lm.fit(
            module,
            data,
            runs=folder,
            callbacks=[processor, *([recorder] if run == "all" else [])],
            max_epochs=1,
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        assert done.directory is not None
        if run == "all":
            tasks, *matrices = lm.recorded_affinity(done.directory)
            places = itertools.product(range(len(tasks)), repeat=2)
            pairs = [(seed, tasks[i], tasks[j], *(float(m[i, j]) for m in matrices)) for i, j in places]
            append(options.out / "pairs.csv", PAIR_COLUMNS, pairs)
        with (done.directory / "per_task.csv").open(encoding="utf-8", newline="") as file:
            results = list(csv.DictReader(file))
    group_of = {name: "+".join(group) for group in groups or [options.scripts] for name in group}
    columns = ("task", "train_examples", "test", "test_loss")
    rows = [(seed, run, group_of[r["task"]], *(r[column] for column in columns), processor.seconds) for r in results]
    append(options.out / "runs.csv", RUN_COLUMNS, rows)
    print(f"seed {seed}, {run}: {processor.seconds:.1f} s of the processor", file=sys.stderr, flush=True)


def read(file: Path) -> list[dict[str, str]]:
    """Read the rows of a file; empty if it does not exist."""
    if not file.is_file():
        return []
    with file.open(encoding="utf-8", newline="") as rows:
        return list(csv.DictReader(rows))


def append(file: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Append the rows of a run."""
    new = not file.is_file()
    with file.open("a", encoding="utf-8", newline="") as target:
        csv.writer(target).writerows([columns, *rows] if new else rows)


def recorded(options: argparse.Namespace, column: str) -> np.ndarray:
    """The recorded values, `(S, T, T)`, with a row for each script whose step it is."""
    values = {(int(r["seed"]), r["task_i"], r["task_j"]): float(r[column]) for r in read(options.out / "pairs.csv")}
    return np.array([[[values[s, i, j] for j in options.scripts] for i in options.scripts] for s in options.seeds])


def gains(options: argparse.Namespace, metric: str) -> np.ndarray:
    """The gain of script j with script i over j alone, `(S, T, T)` in order i, j; NaN on the diagonal."""
    rows = [row for row in read(options.out / "runs.csv") if row["run"].startswith("round")]
    values = {(int(r["seed"]), r["group"], r["task"]): float(r[metric]) for r in rows}
    scripts = options.scripts
    gain = np.full((len(options.seeds), len(scripts), len(scripts)), math.nan)
    for s, (a, b) in itertools.product(range(len(options.seeds)), itertools.permutations(range(len(scripts)), 2)):
        pair = "+".join(scripts[t] for t in sorted((a, b)))
        together, alone = (values[options.seeds[s], group, scripts[b]] for group in (pair, scripts[b]))
        gain[s, a, b] = together - alone if metric == "accuracy" else 1 - together / alone
    return gain


def correlations(predicted: np.ndarray, true: np.ndarray) -> tuple[float, float, float]:
    """Spearman's rank correlation of two `(T, T)` matrices: over all (i, j), within each j (mean), and over pairs."""
    off_diagonal, upper = ~np.eye(len(true), dtype=bool), np.triu_indices(len(true), 1)
    within = [spearman(predicted[rows, j], true[rows, j]) for j, rows in enumerate(off_diagonal.T)]
    pairs = spearman((predicted + predicted.T)[upper], (true + true.T)[upper])
    return spearman(predicted[off_diagonal], true[off_diagonal]), float(np.mean(within)), pairs


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation; NaN if all values of one are equal."""
    return math.nan if np.ptp(a) == 0 or np.ptp(b) == 0 else float(spearmanr(a, b).statistic)


def report(options: argparse.Namespace, groups: str) -> None:
    """Print the tables.

    Args:
        options: Options of the command.
        groups: Name of the runs of the proposed groups.
    """
    rows = [row for row in read(options.out / "runs.csv") if int(row["seed"]) in options.seeds]
    print(
        f"\n{options.steps} steps, {options.batch_size} examples of each script a step, Conv4-{options.width}, ", end=""
    )
    print(f"seeds {options.seeds}; recorded every {options.every_n_steps} steps\n")
    print(
        "| predictor | gain of | 42 directed pairs | within a script | 21 pairs |\n| --- | --- | ---: | ---: | ---: |"
    )
    predictors = {name: recorded(options, name).mean(0) for name in ("affinity", "cosine")}
    examples = {row["task"]: float(row["train_examples"]) for row in rows}
    sizes = np.array([examples[name] for name in options.scripts])
    predictors["training examples of script i"] = np.repeat(sizes[:, None], len(sizes), axis=1)
    for metric in ("accuracy", "loss"):
        true = gains(options, metric)
        for name, predicted in predictors.items():
            values = correlations(predicted, true.mean(0))
            print(f"| {name} | test {metric} |", " | ".join(f"{value:.2f}" for value in values), "|")
        between = [correlations(a, b) for a, b in itertools.combinations(true, 2)]
        if between:
            means = np.mean(between, axis=0)
            print(f"| true gains of another seed | test {metric} |", " | ".join(f"{value:.2f}" for value in means), "|")
    seconds: dict[str, dict[str, float]] = defaultdict(dict)
    for row in rows:
        seconds[row["run"]][row["seed"]] = float(row["seconds"])
    of = {run: float(np.mean(list(by_seed.values()))) for run, by_seed in seconds.items()}
    truth = sum(value for run, value in of.items() if run.startswith("round"))
    print(f"\nprocessor seconds of a seed: {of['plain']:.1f} all together, {of['all']:.1f} with recording", end="")
    print(f" ({of['all'] / of['plain']:.2f} times), {truth:.1f} every script alone and every pair\n")
    names = {"all": "all together", "alone": "each alone", groups: groups}
    print("| | mean test accuracy, by seed | mean | mean test loss |\n| --- | --- | ---: | ---: |")
    for kind, name in names.items():
        chosen = [r for r in rows if r["run"] == kind]
        if kind == "alone":
            chosen = [r for r in rows if r["run"].startswith("round") and r["group"] == r["task"]]
        accuracy, loss = (
            [np.mean([float(r[metric]) for r in chosen if int(r["seed"]) == seed]) for seed in options.seeds]
            for metric in ("accuracy", "loss")
        )
        by_seed = ", ".join(f"{value:.3f}" for value in accuracy)
        print(f"| {name} | {by_seed} | {np.mean(accuracy):.3f} | {np.mean(loss):.3f} |")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the missing runs, and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=Path("runs/group_glyphs"), help="folder of runs.csv and pairs.csv")
    parser.add_argument("--steps", type=int, default=400, help="training steps of every network")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--groups", type=int, default=3, help="largest number of groups")
    parser.add_argument("--width", type=int, default=16, help="channels of Conv4")
    parser.add_argument("--batch_size", type=int, default=32, help="examples of each script in a step")
    parser.add_argument("--every_n_steps", type=int, default=10, help="steps between two measurements")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--scripts", nargs="+", choices=SCRIPTS, default=SCRIPTS, help="an odd number of them")
    options = parser.parse_args(arguments)
    if len(options.scripts) % 2 == 0 or len(options.scripts) == 1:
        parser.error("--scripts: an odd number of scripts, at least three, makes rounds of pairs and one alone")
    torch.set_num_threads(options.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    budget = f"{options.steps}_steps_of_{options.batch_size}_width_{options.width}_every_{options.every_n_steps}"
    options.out = options.out / "_".join((budget, *(options.scripts if len(options.scripts) < len(SCRIPTS) else [])))
    options.out.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        train(options, seed, "all", None)
        train(options, seed, "plain", None)
        for number, groups in enumerate(rounds(options.scripts)):
            train(options, seed, f"round_{number}", groups)
    affinity = torch.from_numpy(recorded(options, "affinity").mean(0))
    proposed = lm.task_groups(affinity, options.groups)
    groups = [[options.scripts[t] for t in group] for group in proposed.groups]
    name = "groups " + ", ".join("+".join(group) for group in groups)
    for seed in options.seeds:
        train(options, seed, name, groups)
    report(options, name)


if __name__ == "__main__":
    main()
