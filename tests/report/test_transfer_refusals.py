"""Runs that cannot be compared, or that somebody damaged, get one clear line."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_meta.errors import UserError
from lightning_meta.report.transfer import TransferReport, compare
from tests.report.transfer_runs import Simulated, write_predictions, write_run


def against_independent(root: Path) -> TransferReport:
    return compare([root / "shared"], [root / "independent"])


# What each does to a good set of runs, and what the one line says of it.
TASKS = {"a": Simulated(np.arange(40) % 2), "b": Simulated(np.arange(40) % 3 == 0)}


def other_tasks(root: Path) -> None:
    write_run(root / "shared" / "0", {"a": TASKS["a"], "z": TASKS["b"]})


def other_examples(root: Path) -> None:
    write_run(root / "shared" / "0", {**TASKS, "b": Simulated(np.arange(39) % 3 == 0)})


def other_targets(root: Path) -> None:
    write_run(root / "shared" / "0", {**TASKS, "b": TASKS["b"].but(targets=np.zeros(40))})


def other_sizes(root: Path) -> None:
    write_run(root / "shared" / "0", {**TASKS, "b": TASKS["b"].but(train_examples=7)})


def other_fingerprint(root: Path) -> None:
    write_run(root / "shared" / "0", TASKS, data_fingerprint="xyz")


def other_seed(root: Path) -> None:
    write_run(root / "shared" / "0", TASKS, seed=9)


def same_seed_twice(root: Path) -> None:
    write_run(root / "shared" / "1", TASKS)


def two_models_of_one_name(root: Path) -> None:
    write_run(root / "shared" / "1", TASKS, seed=2, config={"model": {"class_path": "shared", "depth": 2}})


def unfinished(root: Path) -> None:
    (root / "shared" / "0" / "results.json").unlink()
    (root / "shared" / "0" / "checkpoints").mkdir()
    (root / "shared" / "0" / "checkpoints" / "last.ckpt").touch()


def few_shot(root: Path) -> None:
    (root / "shared" / "0" / "per_task.csv").write_text("task,step_0,step_1\n0,0.2,0.8\n")


def no_run(root: Path) -> None:
    for file in (root / "shared" / "0").iterdir():
        file.unlink()
    (root / "shared" / "0").rmdir()
    (root / "shared" / "notes.txt").touch()


def bad_json(root: Path) -> None:
    (root / "shared" / "0" / "results.json").write_text('{"seed": 1, ')


def deep_json(root: Path) -> None:
    (root / "shared" / "0" / "results.json").write_text("[" * 200_000)


def list_json(root: Path) -> None:
    (root / "shared" / "0" / "results.json").write_text("[1]")


def seed_of_text(root: Path) -> None:
    write_run(root / "shared" / "0", TASKS, seed="1")  # type: ignore[arg-type]


def bad_yaml(root: Path) -> None:
    (root / "shared" / "0" / "config.yaml").write_text("model: !!python/object/apply:os.getcwd []")


def bad_number(root: Path) -> None:
    file = root / "shared" / "0" / "per_task.csv"
    file.write_text(file.read_text().replace("100", "many", 1))


def binary_csv(root: Path) -> None:
    (root / "shared" / "0" / "per_task.csv").write_bytes(b"\xff\xfe\x00")


def torn_csv(root: Path) -> None:
    file = root / "shared" / "0" / "per_task.csv"
    file.write_text(file.read_text()[:-60])


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("code in an array was run",))


def pickled(root: Path) -> None:
    np.savez(root / "shared" / "0" / "predictions.npz", names=np.array([Bomb(), Bomb()], dtype=object))


def bare_pickle(root: Path) -> None:
    (root / "shared" / "0" / "predictions.npz").write_bytes(pickle.dumps(Bomb()))


def torn_npz(root: Path) -> None:
    file = root / "shared" / "0" / "predictions.npz"
    file.write_bytes(file.read_bytes()[:-30])


def flipped_npz(root: Path) -> None:
    file = root / "shared" / "0" / "predictions.npz"
    content = bytearray(file.read_bytes())
    content[60:200] = bytes(140)
    file.write_bytes(bytes(content))


def wrong_arrays(root: Path) -> None:
    np.savez(root / "shared" / "0" / "predictions.npz", task=np.arange(3), output=np.zeros(3), target=np.zeros(3))


def twice_tested(root: Path) -> None:
    file = root / "shared" / "0" / "predictions.npz"
    stored = dict(np.load(file))
    stored["id"][:] = 0
    np.savez(file, **stored)


def contradicting(root: Path) -> None:
    write_predictions(root / "shared" / "0" / "predictions.npz", {**TASKS, "a": Simulated(np.ones(40))})


BAD: dict[Callable[[Path], None], str] = {
    other_tasks: "have different tasks: 'b' is in one only",
    other_examples: "were tested on different examples of task 'b'",
    other_targets: "were tested on different examples of task 'b'",
    other_sizes: "differ in the training examples of task 'b': 7 and 100",
    other_fingerprint: "were run on different data: their data_fingerprint differs (xyz and abc)",
    other_seed: "shared was trained with seed 9, and the baseline independent with 1; runs are paired by seed",
    same_seed_twice: "have the same seed, 1; leave one out",
    two_models_of_one_name: "that differ in model.depth: 2 and None",
    unfinished: "is not finished: it has no results.json; finish it with `fit --ckpt_path",
    few_shot: "is not a multi-task run: its per_task.csv has no column 'metric'",
    no_run: "is neither a run directory",
    bad_json: "results.json is damaged",
    deep_json: "results.json is damaged",
    list_json: "results.json is damaged",
    seed_of_text: "the seed must be a whole number, got '1'",
    bad_yaml: "config.yaml is damaged",
    bad_number: "per_task.csv is damaged: invalid literal",
    binary_csv: "per_task.csv is damaged",
    torn_csv: "per_task.csv",
    pickled: "predictions.npz is damaged: it has no array",
    bare_pickle: "predictions.npz is damaged, or holds more than plain arrays",
    torn_npz: "predictions.npz is damaged",
    flipped_npz: "predictions.npz",
    wrong_arrays: "predictions.npz is damaged: it has no array 'names'",
    twice_tested: "predictions.npz must have each test example of task 'a' exactly once",
    contradicting: "task 'a' scores 1 in predictions.npz and 0.5 in per_task.csv",
}


@pytest.mark.parametrize("damage", BAD, ids=lambda damage: damage.__name__)
def test_runs_that_cannot_be_compared_get_one_line(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    for method in ("independent", "shared"):
        write_run(tmp_path / method / "0", TASKS)
    damage(tmp_path)
    with pytest.raises(UserError) as caught:
        against_independent(tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    assert BAD[damage] in message


def test_pickles_among_whole_arrays_are_refused(tmp_path: Path) -> None:
    for method in ("independent", "shared"):
        write_run(tmp_path / method / "0", TASKS)
    file = tmp_path / "shared" / "0" / "predictions.npz"
    stored = dict(np.load(file))
    np.savez(file, **{**stored, "names": np.array([Bomb(), Bomb()], dtype=object)})
    with pytest.raises(UserError, match="holds more than plain arrays"):
        against_independent(tmp_path)


def test_a_baseline_is_one_method_and_something_stands_against_it(tmp_path: Path) -> None:
    for method in ("independent", "shared", "other"):
        write_run(tmp_path / method / "0", TASKS)
    with pytest.raises(UserError, match="expected the runs of one method, got independent, other"):
        compare([tmp_path / "shared"], [tmp_path / "independent", tmp_path / "other"])
    with pytest.raises(UserError, match="nothing to compare"):
        compare([tmp_path / "independent"], [tmp_path / "independent"])
    with pytest.raises(UserError, match="there is no such run directory"):
        compare([tmp_path / "none"], [tmp_path / "independent"])


def test_methods_of_one_name_in_two_folders_keep_apart(tmp_path: Path) -> None:
    for ladder in ("x", "y"):
        write_run(tmp_path / ladder / "shared" / "0", TASKS)
    report = compare([tmp_path / "y" / "shared"], [tmp_path / "x" / "shared"])
    assert (report.baseline, report.methods[0].method) == ("x/shared", "y/shared")


def test_how_a_run_is_computed_may_differ(tmp_path: Path) -> None:
    for seed, options in enumerate([{}, {"graph": "auto", "strategy": "loop"}], 1):
        write_run(tmp_path / "independent" / str(seed), TASKS, seed=seed)
        config = {"model": {"class_path": "shared", "init_args": options}}
        write_run(tmp_path / "shared" / str(seed), TASKS, seed=seed, config=config)
    assert len(against_independent(tmp_path).methods) == 1
