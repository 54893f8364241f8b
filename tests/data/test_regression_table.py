"""Few-shot regression on stored rows: what is read, how tasks are divided, drawn, standardised and refused."""

from __future__ import annotations

import csv
import logging
import re
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from scipy import stats

import lightning_meta as lm
from lightning_meta import EpisodicDataModule
from lightning_meta.batches import SPLITS, Episode
from lightning_meta.cli import main
from lightning_meta.data.pool import Pool
from lightning_meta.data.source import Source
from lightning_meta.errors import UserError
from lightning_meta.nn import MLP
from lightning_meta.sources import ParkinsonsFewShot, RegressionTable

CONFIG = Path(__file__).parents[2] / "configs" / "maml_table.yaml"
HEADER = ["row", "a", "b", "shift", "machine", "output"]
NAMES = [f"machine {i}" for i in range(12)]


def table(unit: float = 1.0, zero: float = 0.0) -> list[list[Any]]:
    """12 machines of 10 to 21 rows, in an order that mixes them: a line each, a text, and the number of the row."""
    generator = np.random.default_rng(0)
    slopes = generator.normal(0, 2, (12, 2))
    machines = generator.permutation([m for m in range(12) for _ in range(10 + m)])
    rows: list[list[Any]] = []
    for number, m in enumerate(machines.tolist()):
        a, b = generator.normal(5, 3, 2)
        y = slopes[m] @ (a, b) + m
        rows.append([number, a, b, "day" if a > 5 else "night", NAMES[m], zero + unit * y])
    return rows


def write(path: Path, rows: list[list[Any]], header: list[str] = HEADER) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def machines(path: Path, **options: Any) -> RegressionTable:
    return RegressionTable(path, **{"targets": "output", "task_column": "machine", **options})


def episodic(source: Source, **options: Any) -> EpisodicDataModule:
    few = {"shots": 3, "queries": 4, "meta_batch_size": 2, "meta_batches_per_epoch": 2, "val_tasks": 3, "test_tasks": 5}
    return EpisodicDataModule(source, **{**few, "evaluation_meta_batch_size": 2, **options})


def trainer(**options: Any) -> L.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    return L.Trainer(**{**quiet, "enable_model_summary": False, "num_sanity_val_steps": 0, **options})


def maml(inputs: int) -> lm.MAML:
    torch.manual_seed(0)
    return lm.MAML(MLP(inputs, (8,)), inner_lr=0.1, inner_steps=2)


def test_episodes_are_the_rows_of_one_task_standardised_by_the_training_tasks(tmp_path: Path) -> None:
    """The expected episodes are computed from the written rows with NumPy alone."""
    rows = table()
    source = machines(write(tmp_path / "t.csv", rows))
    data = episodic(source, seed=0)
    data.setup("fit")
    pools = source.pools()
    assert [len(pools[split].names) for split in SPLITS] == [7, 2, 3]
    assert sorted(name for pool in pools.values() for name in pool.names) == sorted(NAMES)
    numbers = np.array([row[:3] for row in rows], np.float64)
    day = np.array([[row[3] == "day", row[3] == "night"] for row in rows], np.float64)
    y, of = np.array([row[5] for row in rows]), np.array([row[4] for row in rows])
    train = np.isin(of, pools["train"].names)
    wanted = np.hstack([(numbers - numbers[train].mean(0)) / numbers[train].std(0), day])
    assert source.input_names == ["row", "a", "b", "shift=day", "shift=night"]
    assert data.spec is not None
    assert (data.spec.task, data.spec.outputs, data.spec.input_shape) == ("regression", 1, (5,))
    assert data.spec.target_mean == pytest.approx([y[train].mean()])
    assert data.spec.target_scale == pytest.approx([y[train].std()])
    for split in SPLITS:
        dataset = data.datasets[split]
        for number in range(4):
            episode = dataset[number]
            x = torch.cat([episode.support.x, episode.query.x], 1)[0].numpy()
            targets = torch.cat([episode.support.y, episode.query.y], 1)[0, :, 0].numpy()
            drawn = np.abs(x[:, :1] - wanted[:, 0]).argmin(1)
            assert len(set(drawn.tolist())) == 7
            assert set(of[drawn]) == {pools[split].names[int(dataset.classes([number])[0, 0])]}
            np.testing.assert_allclose(x, wanted[drawn], atol=1e-6)
            np.testing.assert_array_equal(targets, y[drawn])
            assert (episode.ways, episode.classes) == (0, None)


def test_tasks_and_rows_are_drawn_evenly(tmp_path: Path) -> None:
    data = episodic(machines(write(tmp_path / "t.csv", table())), seed=0, meta_batch_size=7000)
    data.setup("fit")
    draw = data.datasets["train"].draw(range(7000))  # type: ignore[attr-defined]
    pool = data.datasets["train"].origin
    assert isinstance(pool, Pool)
    assert stats.chisquare(torch.bincount(draw.classes.flatten(), minlength=7)).pvalue > 1e-6
    first = draw.support[draw.classes[:, 0] == 2, 0]
    assert stats.chisquare(torch.bincount(first.flatten(), minlength=int(pool.sizes[2]))).pvalue > 1e-6


def test_a_folder_of_files_is_the_table_with_a_task_column(tmp_path: Path) -> None:
    rows = table()
    whole = machines(write(tmp_path / "t.csv", rows))
    (tmp_path / "folder").mkdir()
    for name in NAMES:
        of_machine = [[*row[:4], row[5]] for row in rows if row[4] == name]
        write(tmp_path / "folder" / f"{name}.csv", of_machine, [*HEADER[:4], "output"])
    (tmp_path / "folder" / "notes.txt").write_text("no table")
    folder = RegressionTable(tmp_path / "folder", "output")
    assert folder.fingerprint() == whole.fingerprint()
    write(
        tmp_path / "folder" / "machine 3.csv",
        [["1", "2", "3", "day", "4"], ["1", "2", "x", "day", "4"]],
        [*HEADER[:4], "output"],
    )
    with pytest.raises(UserError, match=r"machine 3.csv: column 'b', row 2 \(line 3 of the file\) is 'x'"):
        RegressionTable(tmp_path / "folder", "output").pools()
    write(tmp_path / "folder" / "machine 3.csv", [["1", "2", "3", "day", "4"]], ["row", "a", "c", "shift", "output"])
    with pytest.raises(UserError, match=r"machine 3.csv: there is no column 'b', which machine 0.csv has"):
        RegressionTable(tmp_path / "folder", "output").pools()
    with pytest.raises(UserError, match="is a folder, whose files are the tasks; leave out task_column"):
        machines(tmp_path / "folder").pools()


def test_names_or_a_column_divide_and_neither_moves_with_the_order_of_rows(tmp_path: Path) -> None:
    rows = table()
    path = write(tmp_path / "t.csv", rows)
    write(tmp_path / "turned.csv", rows[::-1])
    names = {split: pool.names for split, pool in machines(path).pools().items()}
    assert names == {split: pool.names for split, pool in machines(tmp_path / "turned.csv").pools().items()}
    assert names["test"] != machines(path, seed=1).pools()["test"].names
    by_name = machines(path, division={"val": NAMES[3:5], "test": [NAMES[0]]}).pools()
    assert {split: set(pool.names) for split, pool in by_name.items()} == {
        "train": {*NAMES[1:3], *NAMES[5:]},
        "val": set(NAMES[3:5]),
        "test": {NAMES[0]},
    }
    split = {name: "val" if name in NAMES[3:5] else "test" if name == NAMES[0] else "train" for name in NAMES}
    write(tmp_path / "split.csv", [[*row, split[row[4]]] for row in rows], [*HEADER, "part"])
    by_column = machines(tmp_path / "split.csv", split_column="part")
    assert by_column.fingerprint() == machines(path, division={"val": NAMES[3:5], "test": [NAMES[0]]}).fingerprint()
    mixed = [[*row, split[row[4]] if i % 9 else "val"] for i, row in enumerate(rows)]
    write(tmp_path / "split.csv", mixed, [*HEADER, "part"])
    with pytest.raises(UserError, match=r"task 'machine .*' is in both"):
        machines(tmp_path / "split.csv", split_column="part").pools()


def test_missing_features_targets_and_small_tasks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = table()
    rows[0][1] = ""
    rows[1][5] = "NA"
    rows.append([999, 1.0, 1.0, "day", "alone", 1.0])
    with caplog.at_level(logging.INFO, "lightning_meta"):
        pools = machines(write(tmp_path / "t.csv", rows), least_rows=7).pools()
    assert "1 of 188 rows" not in caplog.text
    assert f"1 of {len(rows)} rows lack a target" in caplog.text
    assert "1 of 13 tasks have fewer than 7 rows and are left out, such as 'alone'" in caplog.text
    assert sum(len(pool.x) for pool in pools.values()) == len(rows) - 2
    assert sum(int((pool.x[:, 1] == 0).sum()) for pool in pools.values()) == 1


def test_nobody_guesses_a_number(tmp_path: Path) -> None:
    data = episodic(machines(write(tmp_path / "table.csv", table())))
    assert data.test_conditions.endswith("-shot")
    assert data.test_chance is None


def test_several_targets(tmp_path: Path) -> None:
    source = machines(write(tmp_path / "t.csv", table()), targets=["output", "b"])
    data = episodic(source)
    module = maml(4)
    trainer(max_steps=1).fit(module, data)
    assert module.spec.outputs == 2
    found = trainer().test(module, data, verbose=False)[0]
    stored = module.test_report["predictions"]
    errors = (stored["output"] - stored["target"]) ** 2
    assert found["test/mse"] == pytest.approx(errors.mean(), rel=1e-4)


def test_a_run_does_not_depend_on_the_units_of_the_targets_which_results_are_in(tmp_path: Path) -> None:
    """Targets in other units, far from 0: the same loss and weights, and errors and predictions in those units."""
    found = {}
    for name, unit, zero in (("plain", 1.0, 0.0), ("far", 1000.0, 5e6)):
        source = machines(write(tmp_path / f"{name}.csv", table(unit, zero)))
        data, module = episodic(source, seed=0), maml(5)
        trainer(max_steps=4).fit(module, data)
        metrics = trainer().test(module, data, verbose=False)[0]
        first: Any = trainer().predict(module, data)[0]  # type: ignore[index]
        found[name] = module, metrics, first, data.datasets["test"].__getitems__([0, 1])
    (one, plain, outputs, tasks), (other, far, far_outputs, far_tasks) = found["plain"], found["far"]
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)
    assert far["test/loss"] == pytest.approx(plain["test/loss"], rel=1e-3)
    assert far["test/mse"] == pytest.approx(1e6 * plain["test/mse"], rel=1e-3)
    torch.testing.assert_close(far_outputs.double(), 5e6 + 1000 * outputs.double(), rtol=1e-6, atol=1.0)
    stored = other.test_report["predictions"]
    assert ((stored["output"] - stored["target"]) ** 2).mean() == pytest.approx(far["test/mse"], rel=1e-3)
    np.testing.assert_array_equal(stored["target"][:2], far_tasks.query.y)
    predictor = other.predictor(far_tasks.support.x[0], far_tasks.support.y[0])
    torch.testing.assert_close(predictor(far_tasks.query.x[0]), far_outputs[0], rtol=1e-6, atol=1.0)
    torch.testing.assert_close(predictor.as_module()(far_tasks.query.x[0]), far_outputs[0], rtol=1e-6, atol=1.0)
    mean = (tasks.query.y[0] - outputs[0]).square().mean()
    assert float(mean) < float(tasks.query.y.square().mean())


def adapted_by_hand(module: lm.MAML, episode: Episode, mean: float, scale: float) -> torch.Tensor:
    """Predictions of the query set after two steps of plain gradient descent on standardised targets."""
    weights = [t.detach().clone().requires_grad_() for t in module.network.parameters()]

    def run(x: torch.Tensor) -> torch.Tensor:
        a, b, c, d = weights
        return (x @ a.T + b).relu() @ c.T + d

    for _ in range(2):
        loss = (run(episode.support.x[0]) - ((episode.support.y[0] - mean) / scale).float()).square().mean()
        weights = [
            (w - 0.1 * g).detach().requires_grad_()
            for w, g in zip(weights, torch.autograd.grad(loss, weights), strict=True)
        ]
    return mean + scale * run(episode.query.x[0])


def test_maml_on_a_task_by_hand_and_new_rows_as_inputs(tmp_path: Path) -> None:
    rows = table()
    source = machines(write(tmp_path / "t.csv", rows))
    data, module = episodic(source), maml(5)
    trainer(max_steps=2).fit(module, data)
    episode = data.datasets["val"][0]
    (mean,), (scale,) = module.spec.target_mean, module.spec.target_scale
    expected = adapted_by_hand(module, episode, mean, scale)
    predictor = module.predictor(episode.support.x[0], episode.support.y[0])
    torch.testing.assert_close(predictor(episode.query.x[0]), expected.detach(), rtol=1e-4, atol=1e-4)
    pool = source.pools()["test"]
    of_first = [row for row in rows if row[4] == pool.names[0]]
    columns = {name: [row[i] for row in of_first] for i, name in enumerate(HEADER[:4])}
    assert torch.equal(source.inputs_of(columns), pool.x[: len(of_first)])


def test_a_checkpoint_keeps_the_units(tmp_path: Path) -> None:
    data, module = episodic(machines(write(tmp_path / "t.csv", table()))), maml(5)
    fitted = trainer(max_steps=1)
    fitted.fit(module, data)
    fitted.save_checkpoint(tmp_path / "last.ckpt")
    loaded = lm.load(tmp_path / "last.ckpt")
    support = data.datasets["test"][0].support
    assert loaded.spec == module.spec
    torch.testing.assert_close(
        loaded.predictor(support.x[0], support.y[0])(support.x[0]),
        module.predictor(support.x[0], support.y[0])(support.x[0]),
    )


def test_targets_that_float32_merges_are_refused_where_there_is_no_float64() -> None:
    y = torch.tensor([[1e9], [1e9 + 1], [1e9 + 2]], dtype=torch.float64)
    pool = Pool(torch.zeros(3, 1), torch.tensor([3]), ("a",), ("",), y=y)
    with pytest.raises(UserError, match="has no float64"):
        pool.without_float64()
    near = Pool(pool.x, pool.sizes, pool.names, pool.groups, y=y - 1e9).without_float64()
    assert near.y is not None
    assert near.y.dtype == torch.float32


class Given(Source):
    """The pools of a test."""

    def __init__(self, y: torch.Tensor | None, regression: bool = True) -> None:
        self.y, self.regression = y, regression

    def pools(self) -> dict[Any, Pool]:
        return {split: Pool(torch.zeros(6, 1), torch.tensor([6]), (split,), ("",), y=self.y) for split in SPLITS}


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (Given(None), "Given has regression=True; expected y of every pool"),
        (Given(torch.zeros(6, 1), regression=False), "expected pools without y, or regression = True"),
        (Given(torch.zeros(6, 1, dtype=torch.int64)), "are floating-point numbers, these are torch.int64"),
        (Given(torch.full((6, 1), torch.nan)), "the train split of Given: regression targets are finite numbers"),
    ],
)
def test_pools_that_are_not_as_a_source_says_are_refused(source: Source, said: str) -> None:
    with pytest.raises(UserError, match=said):
        episodic(source, shots=1, queries=1).setup("fit")


OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "ways": ({"test_ways": 3}, "test_ways: regression tasks have no classes"),
    "rotations": ({"rotations": ["train"]}, "rotations: regression tasks have no classes"),
    "augmentation": ({"augmentation": lm.Augmentation(2)}, "augmentation: regression tasks have no images"),
    "dirichlet": ({"test_dirichlet": 2.0}, "test_dirichlet: regression tasks have no classes"),
    "a list": ({"test_task_list": "tasks.csv"}, "test_task_list: tasks of classes are listed"),
    "rows": (
        {"shots": 12, "queries": 9},
        r"12 \+ 9 = 21 rows a task were asked for, but task 'machine .*set least_rows=21",
    ),
    "test rows": ({"test_queries": 40}, r"test_shots \+ test_queries: 3 \+ 40 = 43 rows a task"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options_of_the_data_module_that_do_not_fit_are_refused(case: str, tmp_path: Path) -> None:
    options, said = OPTIONS[case]
    with pytest.raises(UserError, match=said) as error:
        episodic(machines(write(tmp_path / "t.csv", table())), **options).setup("fit")
    assert "\n" not in str(error.value)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "target": ({"targets": "outputs"}, "targets: .* has no column 'outputs'; did you mean 'output'"),
    "no target": ({"targets": []}, "expected the name of at least one target column"),
    "task column": ({"task_column": "pump"}, "task_column: .* has no column 'pump'"),
    "no task column": ({"task_column": None}, "is not a folder; name the column of the tasks"),
    "target of text": ({"targets": "shift"}, r"column 'shift', row 1 \(line 2 of the file\) is .*: expected a number"),
    "two roles": ({"features": ["a", "machine"]}, "column 'machine' has two roles"),
    "left out": ({"leave_out": ["c"]}, "leave_out: .* has no column 'c'"),
    "categorical": ({"features": ["a"], "categorical": ["b"]}, "'b' is not a feature"),
    "no feature": ({"leave_out": ["row", "a", "b", "shift"]}, "no column is left for a feature"),
    "small": ({"least_rows": 20}, "train, val and test need a task each, but .* has 2 with 20 rows or more"),
    "unknown": ({"division": {"val": ["machine 1"], "test": ["pump"]}}, "'pump' for test is not a task"),
    "too small": (
        {"division": {"val": ["machine 1"], "test": ["machine 0"]}, "least_rows": 11},
        "'machine 0' for test has fewer than 11 rows",
    ),
    "none": ({"division": {"val": ["machine 1"], "test": []}}, "has no task for test"),
    "both": ({"division": {"val": ["machine 1"], "test": ["machine 1"]}}, "task 'machine 1' is in both val and test"),
    "no split": ({"division": {"val": ["machine 1"]}}, "expected lists of tasks for val and test"),
    "a name": ({"division": {"val": "machine 1", "test": ["machine 2"]}}, "expected lists of tasks"),
    "two divisions": ({"division": {"val": ["x"], "test": ["y"]}, "split_column": "a"}, "leave division out"),
    "split": (
        {"split_column": "shift"},
        r"column 'shift', row 1 \(line 2 of the file\) is .*: expected train, val or test",
    ),
    "fractions": ({"fractions": (0.5, 0.5, 0.5)}, "add up to 1"),
    "zero": ({"least_rows": 0}, "least_rows: at least 1"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    options, said = WRONG[case]
    with pytest.raises(UserError, match=said) as error:
        machines(write(tmp_path / "t.csv", table()), **options).pools()
    assert "\n" not in str(error.value)


def test_other_places_that_cannot_be_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the folder holds no table"):
        RegressionTable(tmp_path, "y").pools()
    with pytest.raises(UserError, match=r"RegressionTable path=.*none.csv: there is no such file"):
        machines(tmp_path / "none.csv").pools()
    rows = table()
    rows[3][4] = ""
    with pytest.raises(
        UserError, match=r"column 'machine', row 4 \(line 5 of the file\) is None: every row needs a value here"
    ):
        machines(write(tmp_path / "t.csv", rows)).pools()
    data = episodic(machines(write(tmp_path / "t.csv", table())))
    with pytest.raises(UserError, match="source: tasks of classes are listed"):
        data.write_test_tasks(tmp_path / "tasks.csv")


@pytest.mark.data
def test_parkinsons_is_the_table_of_its_file(data_folder: Path, tmp_path: Path) -> None:
    """The one source against the other, that reads the official file as a user's table."""
    text = (data_folder / "parkinsons" / "parkinsons_updrs.data").read_text()
    header, *lines = text.splitlines()
    with_names = [header, *(f"subject_{int(line.split(chr(9))[0]):02}\t{line.split(chr(9), 1)[1]}" for line in lines)]
    (tmp_path / "t.tsv").write_text("\n".join(with_names))
    names = [f"subject_{s:02}" for s in range(1, 43)]
    one = ParkinsonsFewShot().pools()
    assert [len(one[split].names) for split in SPLITS] == [25, 9, 8]
    other = RegressionTable(
        tmp_path / "t.tsv",
        targets="total_UPDRS",
        task_column="subject#",
        leave_out=["motor_UPDRS", "age", "sex", "test_time"],
        division={"val": names[1::5], "test": names[3::5]},
    ).pools()
    for split in SPLITS:
        mine, theirs = one[split], other[split]
        assert mine.y is not None
        assert theirs.y is not None
        assert (mine.names, mine.sizes.tolist()) == (theirs.names, theirs.sizes.tolist())
        for start, size in zip(mine.starts.tolist(), mine.sizes.tolist(), strict=True):
            a, b = (torch.cat([p.x, p.y.float()], 1)[start : start + size] for p in (mine, theirs))  # type: ignore[union-attr]
            order = [rows[:, [0, 5, 9, 16]].double().numpy() for rows in (a, b)]
            a, b = (rows[np.lexsort(o.round(4).T)] for rows, o in zip((a, b), order, strict=True))
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_shipped_configuration_learns_tests_and_writes_predictions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    write(Path("data/table.csv"), [[*row, *row] for row in table()], [*HEADER[:4], "task", "target", *"uvwxyz"])
    few = [
        "--trainer.max_steps=100",
        "--data.meta_batches_per_epoch=50",
        "--data.val_tasks=20",
        "--data.test_tasks=50",
    ]
    few += ["--data.source.features=[a, b]", "--model.backbone.in_features=2", "--data.shots=6", "--data.queries=6"]
    few += ["--data.source.least_rows=12", "--trainer.enable_progress_bar=false"]
    assert main(["fit", "--config", str(CONFIG), *few]) == 0
    results = yaml.safe_load(Path("runs/maml_table/0/results.json").read_text())
    assert results["test/mse"] < 0.5 * results["test/mse_step_0"]
    assert main(["test", "--ckpt_path", "runs/maml_table/0", "--shots", "2,6"]) == 0
    capsys.readouterr()
    for options in (["--table", "data/table.csv"], ["--support", "data", "--query", "data"]):
        assert main(["predict", "--ckpt_path", "runs/maml_table/0", *options]) == 2
        message = capsys.readouterr().err.strip()
        assert "lightning_meta.load(run).predictor(inputs, targets)" in message
        assert "\n" not in message


@pytest.mark.slow
def test_an_exported_task_predicts_in_the_units_of_the_targets(tmp_path: Path) -> None:
    data, module = episodic(machines(write(tmp_path / "t.csv", table(1000.0, 5e6)))), maml(5)
    trainer(max_steps=1).fit(module, data)
    episode = data.datasets["test"][0]
    predictor = module.predictor(episode.support.x[0], episode.support.y[0])
    program = torch.export.load(predictor.export(tmp_path / "task.pt2"))
    torch.testing.assert_close(program.module()(episode.query.x[0]), predictor(episode.query.x[0]))


def test_a_folder_of_files_with_semicolons_and_decimal_commas(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("plain", "european")]
    for folder in folders:
        folder.mkdir()
    for machine in range(5):
        rows = ["speed;flow", *(f"{i};{i},5" if machine else f"{i};{i}" for i in range(8))]  # whole numbers in one file
        (folders[1] / f"m{machine}.csv").write_text("\n".join(rows) + "\n")
        plain = [row.replace(",", ".").replace(";", ",") for row in rows]
        (folders[0] / f"m{machine}.csv").write_text("\n".join(plain) + "\n")
    sources = [
        RegressionTable(folders[0], "flow"),
        RegressionTable(folders[1], "flow", delimiter=";", decimal=","),
    ]
    for split in SPLITS:
        one, other = (source.pools()[split] for source in sources)
        assert one.y is not None
        assert other.y is not None
        assert torch.equal(one.x, other.x)
        assert torch.equal(one.y, other.y)
    with pytest.raises(lm.UserError, match="set delimiter=';'"):
        RegressionTable(folders[1], "flow").pools()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["CNP", "AttentiveCNP", "InContextTransformer"])
def test_points_with_uncertainty_as_the_page_says(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands and code of docs/data.md on sine waves with noise, whose deviations they find."""
    monkeypatch.chdir(tmp_path)
    generator, rows = np.random.default_rng(0), ["curve,x,y"]
    for curve in range(200):
        phase, x = generator.uniform(0, 2 * np.pi), generator.uniform(-2, 2, 40)
        y = 20 + 5 * np.sin(x + phase) + generator.normal(0, 1, 40)
        rows += [f"curve {curve},{a},{b}" for a, b in zip(x, y, strict=True)]
    Path("points.csv").write_text("\n".join(rows) + "\n")
    page = (CONFIG.parents[1] / "docs" / "data.md").read_text()
    section = page.partition("### Points (x, y)")[2]
    config, commands, *code = re.findall(r"^```(?:yaml|sh|python)\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    config = config.replace("lightning_meta.CNP", f"lightning_meta.{method}")
    if method == "InContextTransformer":
        config = config.replace("in_features: 2", "in_features: 1")
    Path("points.yaml").write_text(config)
    brief = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
    of_fit = ["--trainer.max_steps=600", "--seed_everything=1", "--data.val_tasks=100"]
    if method == "InContextTransformer":
        of_fit += ["--model.width=32", "--model.layers=2", "--trainer.max_steps=300"]
    for command in commands.splitlines():
        _, name, *options = command.split()
        assert main([name, *options, *brief, *(of_fit if name == "fit" else [])]) == 0
    names: dict[str, Any] = {}
    for block in code[:2]:
        exec(block, names)
    results = yaml.safe_load(Path("runs/points/0/results.json").read_text())
    assert results["test/mse"] < 0.5 * 13.5  # the variance of y
    with np.load("runs/points/0/predictions.npz") as stored:
        inside = np.abs(stored["target"] - stored["output"][..., :1]) < 1.645 * stored["output"][..., 1:]
    assert inside.mean() == pytest.approx(0.9, abs=0.05)
    assert names["mean"].shape == (3, 1)
    assert (names["deviation"] > 0.3).all()
