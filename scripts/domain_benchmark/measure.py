"""Train and test a method in one domain, as a child process: `python -m domain_benchmark.measure`.

What is done is noted in `measured.json` of the folder, after each step: the training, then each test. A later call
resumes.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch import Trainer
from reproducing.storing import RunFolder, read_json, write_json

import lightning_meta as lm
from domain_benchmark.domains import Domain, Setting, named
from domain_benchmark.entry import Entry, read_entry
from domain_benchmark.episodes import episodes_sha256
from lightning_meta.data.source import Source
from lightning_meta.errors import NonFiniteLossError, UserError, reason_of
from lightning_meta.fitting.checks import QUIET
from lightning_meta.loading import find_checkpoint
from lightning_meta.run.checkpoint_io import AtomicCheckpointIO
from lightning_meta.run.memory import keep_freed_memory
from lightning_meta.run.results import write_per_task

NOTED = "measured.json"
STEPS_OF_AN_EPOCH = 500  # at most: then a validation
VAL_TASKS = 200


def measured(folder: Path) -> dict[str, Any]:
    """The record of a folder: `tests` by setting, `problem` that stopped it, `data`, `trained`."""
    file = folder / NOTED
    return {"tests": {}, "problem": "", **(read_json(file) if file.is_file() else {})}


def note(folder: Path, **more: Any) -> None:
    """Add to the record."""
    write_json(folder / NOTED, {**measured(folder), **more})


def main(args: Sequence[str] | None = None) -> int:
    """Train and test; returns 0 if every test has a score or a reason."""
    parser = argparse.ArgumentParser()
    for name, kind in (("method", Path), ("domain", str), ("folder", Path), ("accelerator", str)):
        parser.add_argument(f"--{name}", type=kind, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    options = parser.parse_args(args)
    keep_freed_memory()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*is smaller than the logging interval.*")
    (domain,) = named([options.domain])
    try:
        measure(read_entry(options.method), domain, options.folder, options.steps, options.seed, options.accelerator)
    except (UserError, NonFiniteLossError) as error:
        print(reason_of(error), file=sys.stderr)
        return 1
    return 0


def measure(entry: Entry, domain: Domain, folder: Path, steps: int, seed: int, accelerator: str) -> None:
    """Train unless finished, then run the missing tests.

    Args:
        entry: The method.
        domain: The domain.
        folder: Folder of the run directory and `measured.json`.
        steps: Number of training steps, or 0.
        seed: Seed of weights and training tasks.
        accelerator: Accelerator of the Trainer.

    Raises:
        UserError: The method does not fit the domain.
        NonFiniteLossError: The training diverged.
    """
    source = domain.source()
    try:
        if isinstance(source, Source):
            source.prepare()
            source.pools()  # some sources read their files here
    except UserError as error:
        note(folder, problem=f"data not at hand: {reason_of(error)}")
        return
    note(folder, problem="")
    lightning.seed_everything(seed, verbose=False)
    module = entry.build(domain)
    assert module is not None
    trainer = {"accelerator": accelerator, "devices": 1, "enable_progress_bar": False}
    training = dict(entry.training(domain))
    train(module, domain, source, training, RunFolder(folder), steps, seed, trainer)
    for setting in domain.settings:
        if setting.name not in measured(folder)["tests"]:
            found = test(module, domain, setting, source, folder, trainer)
            note(folder, tests={**measured(folder)["tests"], setting.name: found})


def train(
    module: lm.MetaModule,
    domain: Domain,
    source: Any,
    training: dict[str, Any],
    stored: RunFolder,
    steps: int,
    seed: int,
    trainer: dict[str, Any],
) -> None:
    """Train or resume; validation tasks have the sizes of the first test, with other classes.

    Args:
        module: The module with initial weights.
        domain: The domain.
        source: Source of the domain.
        training: Options of training tasks.
        stored: Folder of the run directory.
        steps: Number of training steps, with evenly spaced validations.
        seed: Seed of the run.
        trainer: Options of the Trainer.
    """
    epochs = max(1, math.ceil(steps / STEPS_OF_AN_EPOCH))
    epoch = max(1, steps // epochs)
    few = {"val_tasks": VAL_TASKS, "test_tasks": 2}  # for the test of `fit`; the benchmark runs its tests later
    data = domain.data(domain.settings[0], source, **training, **few, meta_batches_per_epoch=epoch)
    if stored.trained:
        data.prepare_data()
        data.setup("fit")
        module.episodes = data.spec  # of training: the head does not fit the test tasks
        return
    resume = stored.run
    place = {"runs": stored.folder.parent, "name": stored.folder.name} if resume is None else {"resume": resume}
    checkpoint = lm.RunCheckpoint(domain.monitor)
    lm.fit(module, data, **place, seed=seed, checkpoint=checkpoint, max_steps=epoch * epochs if steps else 0, **trainer)


def test(
    module: lm.MetaModule, domain: Domain, setting: Setting, source: Any, folder: Path, trainer: dict[str, Any]
) -> dict[str, Any]:
    """Test the best checkpoint on the fixed tasks of a setting.

    Args:
        module: Module that receives the weights of the checkpoint.
        domain: The domain.
        setting: The tasks.
        source: The domain's source.
        folder: Folder with the run directory, for the list of tasks and `per_task_<setting>.csv`.
        trainer: Options of the Trainer.

    Returns:
        What is noted: the score with its interval, or the reason for which the method has none.
    """
    name = setting.name.replace(" ", "_")
    listed = folder / f"tasks_{name}.csv"
    data = domain.data(setting, source)
    sha256 = episodes_sha256(data, listed)
    if not data.regression:
        data = domain.data(setting, source, test_task_list=listed)
    data.prepare_data()
    data.setup("test")  # reading is not part of the time
    run = RunFolder(folder).run
    assert run is not None
    runner = Trainer(**{**QUIET, **trainer}, plugins=[AtomicCheckpointIO()])
    checkpoint, began = find_checkpoint(run), time.monotonic()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Be aware that when using `ckpt_path`")  # callbacks of training
            runner.test(module, datamodule=data, ckpt_path=checkpoint, verbose=False)
    except UserError as error:
        return {"problem": reason_of(error)}
    seconds = time.monotonic() - began
    metric = module.task.metric
    write_per_task(folder / f"per_task_{name}.csv", module.test_report["per_task"])
    score, half_width = (float(runner.callback_metrics[f"test/{metric}{of}"]) for of in ("", "_ci95"))
    scores = {key: value if math.isfinite(value) else None for key, value in (("score", score), ("half", half_width))}
    return {**scores, "metric": metric, "seconds": seconds, "episodes": sha256}


if __name__ == "__main__":
    sys.exit(main())
