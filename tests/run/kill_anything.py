"""Kills a command at random moments, looks at what it left each time, and lets it end as one that was never killed.

python -m tests.run.kill_anything KIND FOLDER KILLS SEED

KIND is `fit`, `resume` (of a finished run, with changed options), `predict` or `ladder`. What it prints last is how
many were killed, by kind of moment.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
import yaml

from lightning_meta.run.programs import METADATA
from tests.run.moments import Moment, drawn, killed, measured
from tests.run.test_resume import MODEL, SCHEDULES, fingerprint
from tests.run.whole import check_files, check_run, rows_of
from tests.test_cli import TRAINER
from tests.test_ladder import LADDER, outcome
from tests.test_predict import SIZE, picture

STEPS, MORE_STEPS = 9, 15
LATE_RATE = 0.02
FIT = [
    "fit",
    *MODEL,
    "--model.optimizer=torch.optim.Adam",
    "--model.optimizer.lr=0.001",
    "--seed_everything=3",
    "--trainer.log_every_n_steps=1",
]


def fit(draw: random.Random) -> tuple[list[str], list[str]]:
    """The options of a run, and those that change when it goes on: more steps, and often others."""
    options = [*FIT, *SCHEDULES[draw.choice(sorted(set(SCHEDULES) - {"accumulating"}))]]
    more = [f"--trainer.max_steps={MORE_STEPS}"]
    if draw.random() < 0.5:
        more += ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=other_logger"]
    if draw.random() < 0.7:
        more += [f"--model.optimizer.lr={LATE_RATE}", "--allow_changes"]
    return [*options, f"--trainer.max_steps={STEPS}"], [*options, *more]


def the_run() -> Path | None:
    """The run directory; those that were killed before their first checkpoint go, as a user would start again."""
    for run in Path("runs").glob("toy/*"):
        check_run(run, "val/accuracy")
        if (run / "checkpoints" / "last.ckpt").is_file():
            return run
        shutil.rmtree(run)
    return None


def again(options: list[str]) -> list[str]:
    """The command that begins the run, or goes on with it."""
    return [*options, "--ckpt_path=last"] if the_run() else options


def kill(command: list[str], moment: Moment, count: Counter[str]) -> None:
    """Kill a command, and count it if it had not ended before."""
    count["before a change" if moment.change else "after CPU time"] += killed(command, moment)


def kill_fit(kills: int, draw: random.Random, count: Counter[str], finished_before: bool) -> None:
    """Kill a run, or the second part of one, and compare its end."""
    first, second = fit(draw)
    command = second if finished_before else first
    os.chdir(_made("whole"))
    if finished_before:
        measured(first)
        shutil.copytree("runs", "../killed/runs")
    length = measured(again(command))
    expected = fingerprint(_only(the_run()))
    os.chdir(_made("../killed"))
    while count.total() < kills:
        kill(again(command), drawn(draw, length), count)
        the_run()
    measured(again(command))
    found = fingerprint(_only(the_run()))
    for part, value in expected.items():
        assert found[part] == value, f"{part} differ: {found[part]} and not {value}"
    check_run(_only(the_run()), "val/accuracy")
    assert not list(Path().rglob("*.tmp")), "temporary files of killed processes"


def trained() -> None:
    """A run on images of noise, `runs/images/0`, and images to predict: labelled ones, and others."""
    for kind in range(12):
        for i in range(8):
            place = {0: "support", 1: "support", 2: "query"}.get(i) if kind < 3 else None
            for folder in ("images", place) if place else ("images",):
                Path(folder, f"class_{kind}").mkdir(parents=True, exist_ok=True)
                picture(kind % 3, 100 * kind + i).save(Path(folder, f"class_{kind}", f"{i}.png"))
    source = {"root": "images", "image_size": SIZE, "channels": 1, "fractions": [0.34, 0.33, 0.33]}
    sizes = {"ways": 3, "shots": 2, "queries": 3, "meta_batches_per_epoch": 2, "val_tasks": 4, "test_tasks": 4}
    backbone = {"class_path": "lightning_meta.nn.Conv4", "init_args": {"in_channels": 1, "width": 8, "blocks": 2}}
    config = {
        "model": {"class_path": "lightning_meta.ProtoNet", "init_args": {"backbone": backbone}},
        "data": {
            "class_path": "lightning_meta.EpisodicDataModule",
            "init_args": {
                "source": {"class_path": "lightning_meta.sources.ImageFolder", "init_args": source},
                **sizes,
            },
        },
        "trainer": {**TRAINER, "max_steps": 2},
    }
    Path("images.yaml").write_text(yaml.safe_dump(config))
    measured(["fit", "--config=images.yaml"])


def kill_predict(kills: int, draw: random.Random, count: Counter[str]) -> None:
    """Kill the labelling of one folder and then of another, with an export: each file is the old or the new one."""
    trained()
    commands, expected = [], []
    for number, query in enumerate(("query", "support")):
        files = ["--out=labels.csv", "--export=model.pt2"]
        options = ["predict", "--ckpt_path=runs/images/0", "--support=support", f"--query={query}", "--device=cpu"]
        options.append("--overwrite")
        commands.append([*options, *files, *(["--batch_norm=inductive"] if number else [])])
        length = measured(commands[-1])
        expected.append((rows_of(Path("labels.csv")), *exported()))
    while count.total() < kills:
        if draw.random() < 0.3:
            Path("labels.csv").unlink(missing_ok=True)
            Path("model.pt2").unlink(missing_ok=True)
        kill(draw.choice(commands), drawn(draw, length), count)
        check_files(Path())
        if Path("labels.csv").is_file():
            assert rows_of(Path("labels.csv")) in [table for table, *_ in expected]
        if Path("model.pt2").is_file():
            about, output = exported()
            assert any(about == a and torch.equal(output, o) for _, a, o in expected)
    for command, (table, about, output) in zip(commands, expected, strict=True):
        measured(command)
        assert rows_of(Path("labels.csv")) == table
        assert exported()[0] == about
        assert torch.equal(exported()[1], output)
    assert not list(Path().rglob("*.tmp")), "temporary files of killed processes"


def exported() -> tuple[str, torch.Tensor]:
    """The description of the exported model, and its predictions for some images."""
    extra = {METADATA: ""}
    program = torch.export.load("model.pt2", extra_files=extra)
    x = torch.rand(4, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    return extra[METADATA], program.module()(x)


def kill_ladder(kills: int, draw: random.Random, count: Counter[str]) -> None:
    """Kill a ladder of two rungs and two seeds."""
    Path("toy.yaml").write_text(yaml.safe_dump(LADDER))
    command = ["ladder", "--config=toy.yaml", "--threads=1"]
    length = measured([*command, "--name=whole"])
    while count.total() < kills:
        kill([*command, "--name=killed"], drawn(draw, length), count)
        check_ladder(Path("runs/killed"))
    measured([*command, "--name=killed"])
    check_ladder(Path("runs/killed"))
    assert outcome("killed") == outcome("whole")
    tables = [Path("runs", name, "report", "transfer.csv").read_text() for name in ("killed", "whole")]
    assert tables[0] == tables[1]


def check_ladder(folder: Path) -> None:
    """Check that the report and each run are complete."""
    if folder.is_dir():
        check_files(folder)
    for run in (run for rung in LADDER["rungs"] for run in folder.glob(f"{rung}/*")):
        check_run(run, "val/score")


def _made(name: str) -> Path:
    Path(name).mkdir(exist_ok=True)
    return Path(name)


def _only(run: Path | None) -> Path:
    assert run is not None
    return run


KINDS: dict[str, Callable[[int, random.Random, Counter[str]], None]] = {
    "fit": lambda kills, draw, count: kill_fit(kills, draw, count, finished_before=False),
    "resume": lambda kills, draw, count: kill_fit(kills, draw, count, finished_before=True),
    "predict": kill_predict,
    "ladder": kill_ladder,
}


if __name__ == "__main__":
    kind, folder, kills, seed = sys.argv[1:]
    torch.set_num_threads(1)
    os.chdir(folder)
    counted: Counter[str] = Counter()
    KINDS[kind](int(kills), random.Random(int(seed)), counted)
    print(json.dumps(counted))
