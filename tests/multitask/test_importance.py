"""Permutation importance equals that of scikit-learn, and that of inputs permuted by hand."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.inspection._permutation_importance as peer
import torch
from torch import Tensor

import lightning_meta as lm
from lightning_meta.cli.main import main
from lightning_meta.cli.test import _print_importances
from lightning_meta.fitting.importance import Importance
from lightning_meta.functional.random_bits import choose, key, name_key
from lightning_meta.nn import MLP
from lightning_meta.sources import Table


def made(folder: Path, **options: Any) -> tuple[lm.MultiHead, lm.MultiTaskDataModule]:
    """A model of a table with two numbers and a text, as it is before training."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "a": a,
            "b": b,
            "kind": "xyz"[i % 3],
            "y": 2 * a + b,
            "z": "" if i % 5 == 0 else int(b > 0),
            "town": "uv"[i % 2],
            "weight": 0 if b < 0 else abs(a),
        }
        for i, (a, b) in enumerate(rng.normal(size=(150, 2)).tolist())
    ]
    with (folder / "t.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    data = lm.MultiTaskDataModule(Table(folder / "t.csv", features=["a", "b", "kind"], **options), seed=0)
    data.setup("fit")
    torch.manual_seed(0)
    return lm.MultiHead(MLP(5, (8,)), tasks=data.spec), data


ROOT = Path(__file__).parents[2]
TWO: dict[str, Any] = {"targets": {"y": "regression", "z": "binary"}}


@torch.no_grad()
def loss_of(module: lm.MultiHead, task: str, x: Tensor, y: Tensor) -> float:
    outputs = module.eval().heads[module.names.index(task)](module.backbone(x))
    return float(module.spec.tasks[task].losses(outputs, y).double().mean())


@pytest.mark.parametrize("task", ["y", "z"])  # some rows have no label of z
def test_it_is_what_scikit_learn_says_of_the_same_permutations(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, data = made(tmp_path, **TWO)
    found = {f.column: f for f in lm.permutation_importance(module, data, repeats=1, seed=3) if f.task == task}
    test = data.sets["test"]
    assert isinstance(test.inputs, Tensor)
    draws = iter("ab")

    class Permutations:
        """A random state that draws the same."""

        def randint(self, high: int) -> int:
            return 0

        def shuffle(self, rows: Any) -> None:
            drawn = key(3, name_key(next(draws, "a")), 0, name_key(task))
            rows[:] = choose(drawn, len(rows), len(rows)).numpy()

    class Model:
        def fit(self) -> None: ...

    monkeypatch.setattr(peer, "check_random_state", lambda state: Permutations())

    def score(model: Model, x: Any, y: Any) -> float:
        return -loss_of(module, task, torch.from_numpy(x), torch.from_numpy(y))

    rows = test.rows[task]
    wanted = peer.permutation_importance(
        Model(), test.inputs[rows].numpy(), test.targets[task].numpy(), scoring=score, n_repeats=1
    ).importances_mean
    assert [found[name].mean for name in "ab"] == pytest.approx(wanted[:2], abs=1e-6)
    assert max(abs(found[name].mean) for name in "ab") > 0.01


def test_all_inputs_of_a_column_are_permuted_together_and_the_figures_written(tmp_path: Path) -> None:
    module, data = made(tmp_path, **TWO)
    importances = lm.permutation_importance(module, data, repeats=3, seed=1, out=tmp_path, batch_size=7)
    assert [(f.task, f.column) for f in importances] == [(t, c) for t in "yz" for c in ("a", "b", "kind")]
    test = data.sets["test"]
    assert isinstance(test.inputs, Tensor)
    assert len(test.rows["z"]) < len(test.inputs)
    for found in importances:
        inputs = {"a": [0], "b": [1], "kind": [2, 3, 4]}[found.column]
        for repeat, increase in enumerate(found.increases):
            x, rows, y = test.inputs.clone(), test.rows[found.task], test.targets[found.task]
            draw = key(1, name_key(found.column), repeat, name_key(found.task))
            x[rows[:, None], inputs] = x[rows[choose(draw, len(rows), len(rows))]][:, inputs]
            wanted = loss_of(module, found.task, x[rows], y) - loss_of(module, found.task, test.inputs[rows], y)
            assert increase == pytest.approx(wanted, abs=1e-5)
    with (tmp_path / "importance.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [float(row["loss_increase"]) for row in written] == [f.mean for f in importances]
    assert float(written[0]["standard_deviation"]) == pytest.approx(np.std(importances[0].increases))
    assert (tmp_path / "importance.png").read_bytes().startswith(b"\x89PNG")


def test_rows_count_by_their_weight(tmp_path: Path) -> None:
    module, data = made(tmp_path, **TWO, weights="weight")
    test = data.sets["test"]
    assert isinstance(test.inputs, Tensor)
    assert test.weights is not None

    def weighted(task: str, x: Tensor) -> float:
        y, weights = test.targets[task], test.weights[task].double()  # type: ignore[index]
        losses = [loss_of(module, task, x[i : i + 1], y[i : i + 1]) for i in range(len(y))]
        return float(np.average(torch.tensor(losses).numpy(), weights=weights.numpy()))

    for found in lm.permutation_importance(module, data, repeats=1, seed=1):
        if found.column == "a":
            rows = test.rows[found.task]
            draw, x = key(1, name_key("a"), 0, name_key(found.task)), test.inputs[rows].clone()
            x[:, 0] = x[choose(draw, len(rows), len(rows)), 0]
            wanted = weighted(found.task, x) - weighted(found.task, test.inputs[rows])
            assert found.mean == pytest.approx(wanted, abs=1e-5)
            assert abs(wanted) > 1e-3


def test_rows_of_a_task_keep_to_it(tmp_path: Path) -> None:
    """A column that is constant within each task is worth nothing to any."""
    module, data = made(tmp_path, targets={"y": "regression"}, task_column="town")
    inputs = data.sets["test"].inputs
    assert isinstance(inputs, Tensor)
    for i, rows in enumerate(data.sets["test"].rows.values()):
        inputs[rows, 0] = float(i)
    found = {(f.task, f.column): f.mean for f in lm.permutation_importance(module, data, repeats=2)}
    assert found["u", "a"] == found["v", "a"] == 0
    assert found["u", "b"] != 0


def test_data_of_another_table_are_refused(tmp_path: Path) -> None:
    module, data = made(tmp_path, **TWO)
    other = lm.MultiTaskDataModule(Table(tmp_path / "t.csv", {"y": "regression", "z": "binary"}, ["a"]), seed=0)
    with pytest.raises(lm.UserError, match="other columns or tasks than in training"):
        lm.permutation_importance(module, other)
    with pytest.raises(lm.UserError, match="not divided or scaled as in training"):
        lm.permutation_importance(module, made(tmp_path, **TWO, seed=7)[1])
    with pytest.raises(lm.UserError, match="repeats"):
        lm.permutation_importance(module, data, repeats=0)


@pytest.mark.slow
def test_the_command_tests_and_permutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The figures of the command are those of the function; a model of images has no columns."""
    monkeypatch.chdir(tmp_path)
    made(tmp_path, **TWO)
    options = [f"--data.source.path={tmp_path / 't.csv'}", "--data.source.targets={y: regression, z: binary}"]
    options += ["--data.source.features=[a, b, kind]", "--model.backbone.in_features=5"]
    options += ["--trainer.max_steps=2", "--trainer.enable_progress_bar=false"]
    config = ROOT / "configs" / "multi_head_table.yaml"
    assert main(["fit", "--config", str(config), *options]) == 0, capsys.readouterr().err
    (run,) = Path("runs").glob("*/0")
    capsys.readouterr()
    assert main(["test", "--ckpt_path", str(run), "--importance", "--trainer.enable_progress_bar=false"]) == 0
    (table,) = run.glob("tests/*/importance.csv")
    printed = capsys.readouterr().out
    assert f"importance of every column: {table}" in printed
    assert table.with_suffix(".png").stat().st_size > 0
    with table.open(newline="") as file:
        found = {(row["task"], row["column"]): float(row["loss_increase"]) for row in csv.DictReader(file)}
    data = lm.MultiTaskDataModule(Table("t.csv", features=["a", "b", "kind"], **TWO), seed=0)
    expected = lm.permutation_importance(lm.load(run), data, seed=1)  # the run's
    first = max((f for f in expected if f.task == "y"), key=lambda f: f.mean)
    assert f"{first.column} {first.mean:.3g}" in printed
    assert found == pytest.approx({(f.task, f.column): f.mean for f in expected}, rel=1e-6)


def test_tasks_that_are_not_printed_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    _print_importances([Importance(f"t{i}", "a", (0.5,)) for i in range(23)])
    said = capsys.readouterr().out
    assert "t19" in said
    assert "t20" not in said
    assert "3 more tasks are in the file" in said
