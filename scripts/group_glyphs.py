"""Do recorded affinities predict which scripts of Glyphs gain from which? Train every pair, and compare.

    python scripts/group_glyphs.py

For each seed: all scripts in one network, whose affinities and cosines are recorded; the same without recording, for
its cost; every script alone and every pair of scripts in a network of its own; and, with the affinities' mean over
seeds, the groups that they propose. Every network sees as many examples of each of its scripts, and its last weights
are tested. What is done is kept in `runs.csv` and `pairs.csv`, so the same command goes on where it was stopped.

The gain of script j with script i is that of its test accuracy, or the relative fall of its test loss, over j alone.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import itertools
import logging
import math
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
    """The processor seconds of the training, without what comes before and after it."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Note when it begins."""
        self._began = time.process_time()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Note how long it took."""
        self.seconds = time.process_time() - self._began


def rounds(scripts: Sequence[str]) -> list[list[list[str]]]:
    """Every two of an odd number of scripts once, and every script alone once: the rounds of a tournament."""
    count = len(scripts)
    pairs = [[[(r - i) % count, (r + i) % count] for i in range(1, count // 2 + 1)] for r in range(count)]
    return [[[scripts[r]], *([scripts[i] for i in sorted(pair)] for pair in of)] for r, of in enumerate(pairs)]


def train(options: argparse.Namespace, seed: int, run: str, groups: Sequence[Sequence[str]] | None) -> None:
    """Train one run, and add what it found to the files; nothing where they have it."""
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
    made: dict[str, Any] = {
        "backbone": lm.nn.Conv4(in_channels=1, width=options.width, downsample="stride"),
        "optimizer": partial(torch.optim.Adam, lr=0.001),
    }
    module = lm.MultiHead(**made) if groups is None else lm.Grouped(**made, groups=groups)
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
            found = list(csv.DictReader(file))
    of_task = {name: "+".join(group) for group in groups or [options.scripts] for name in group}
    columns = ("task", "train_examples", "test", "test_loss")
    rows = [(seed, run, of_task[r["task"]], *(r[column] for column in columns), processor.seconds) for r in found]
    append(options.out / "runs.csv", RUN_COLUMNS, rows)
    print(f"seed {seed}, {run}: {processor.seconds:.1f} s of the processor", flush=True)


def read(file: Path) -> list[dict[str, str]]:
    """The rows of a file; none where there is none."""
    if not file.is_file():
        return []
    with file.open(encoding="utf-8", newline="") as rows:
        return list(csv.DictReader(rows))


def append(file: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Add the rows of a run."""
    new = not file.is_file()
    with file.open("a", encoding="utf-8", newline="") as target:
        csv.writer(target).writerows([columns, *rows] if new else rows)


def recorded(options: argparse.Namespace, column: str) -> np.ndarray:
    """What was recorded, `(S, T, T)`, a row for each script that steps."""
    values = {(int(r["seed"]), r["task_i"], r["task_j"]): float(r[column]) for r in read(options.out / "pairs.csv")}
    return np.array([[[values[s, i, j] for j in options.scripts] for i in options.scripts] for s in options.seeds])


def gains(options: argparse.Namespace, metric: str) -> np.ndarray:
    """What script j gains with script i over j alone, `(S, T, T)`; NaN on the diagonal."""
    rows = [row for row in read(options.out / "runs.csv") if row["run"].startswith("round")]
    values = {(int(r["seed"]), r["group"], r["task"]): float(r[metric]) for r in rows}
    scripts = options.scripts
    found = np.full((len(options.seeds), len(scripts), len(scripts)), math.nan)
    for s, (a, b) in itertools.product(range(len(options.seeds)), itertools.permutations(range(len(scripts)), 2)):
        pair = "+".join(scripts[t] for t in sorted((a, b)))
        together, alone = (values[options.seeds[s], group, scripts[b]] for group in (pair, scripts[b]))
        found[s, a, b] = together - alone if metric == "accuracy" else 1 - together / alone
    return found


def correlations(predicted: np.ndarray, true: np.ndarray) -> tuple[float, float, float]:
    """Spearman's rank correlation of two matrices `(T, T)`: of all (i, j); within each j, their mean; of pairs."""
    apart, upper = ~np.eye(len(true), dtype=bool), np.triu_indices(len(true), 1)
    within = [spearman(predicted[apart[:, j], j], true[apart[:, j], j]) for j in range(len(true))]
    pairs = spearman((predicted + predicted.T)[upper], (true + true.T)[upper])
    return spearman(predicted[apart], true[apart]), float(np.mean(within)), pairs


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation; NaN where all values of one are equal."""
    return math.nan if np.ptp(a) == 0 or np.ptp(b) == 0 else float(spearmanr(a, b).statistic)


def report(options: argparse.Namespace, groups: str) -> None:
    """Print the tables.

    Args:
        options: Those of the command.
        groups: The name of the runs of the proposed groups.
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
            found = correlations(predicted, true.mean(0))
            print(f"| {name} | test {metric} |", " | ".join(f"{value:.2f}" for value in found), "|")
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
    """Train what is not trained yet, and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=Path("runs/group_glyphs"), help="folder of runs.csv and pairs.csv")
    parser.add_argument("--steps", type=int, default=400, help="training steps of every network")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--groups", type=int, default=3, help="the most groups to propose")
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
