"""Weights of rows: they follow their rows everywhere, weigh losses as in scikit-learn, and no metric knows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from sklearn.linear_model import LogisticRegression, Ridge
from torch import Tensor

import lightning_meta as lm
from lightning_meta.batches import Split, TaskBatch
from lightning_meta.describing import describe
from lightning_meta.functional.linear_models import Labelled, linear_models
from lightning_meta.sources import Table, Target
from lightning_meta.tasks import Binary, Regression, Task

ROWS = 120


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A table whose weight is 1 + the square of its first feature; every fifth number is missing."""
    random = np.random.default_rng(0)
    lines = ["a,b,number,label,group,weight"]
    for row in range(ROWS):
        a, b, noise = random.normal(size=3)
        number = "" if row % 5 == 0 else f"{a - b + noise:.5f}"
        lines.append(f"{a:.5f},{b:.5f},{number},{int(a + noise > 0)},{'uvw'[row % 3]},{1 + a**2:.6f}")
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "t.csv"


def columns(path: Path) -> lm.MultiTaskDataModule:
    targets = {"number": "regression", "label": "binary"}
    return set_up(Table(path, targets, features=["a", "b"], weights="weight"))


def set_up(source: Table, **options: object) -> lm.MultiTaskDataModule:
    data = lm.MultiTaskDataModule(source, batch_size=16, **options)  # type: ignore[arg-type]
    data.prepare_data()
    data.setup("fit")
    return data


def follow(batch: TaskBatch) -> None:
    """The weights of a batch are those of its rows, up to a factor for each task."""
    assert batch.weights is not None
    assert isinstance(batch.inputs, Tensor)
    for name, rows in batch.rows.items():
        a = batch.inputs[rows][:, 0].double()
        design = torch.stack([torch.ones_like(a), a, a.square()], 1)  # 1 + a², in standard units a polynomial
        weights = batch.weights[name].double()
        if len(a) > 5:
            fit = torch.linalg.lstsq(design, weights[:, None]).solution
            torch.testing.assert_close(design @ fit, weights[:, None], rtol=1e-3, atol=1e-3)


def test_weights_follow_their_rows(path: Path) -> None:
    for source in (
        Table(path, {"number": "regression", "label": "binary"}, features=["a", "b"], weights="weight"),
        Table(path, {"label": "binary"}, features=["a", "b"], task_column="group", weights="weight"),
    ):
        names = list(source.tasks())
        for data in (set_up(source), set_up(source, tasks=names[::-1][:2])):
            loaders = [data.train_dataloader(), data.val_dataloader(), *data.test_dataloader()]
            for loader in loaders:
                for batch, _ in zip(loader, range(3), strict=False):
                    follow(batch)
            train = data.sets["train"].weights
            assert train is not None
            for weights in train.values():
                assert float(weights.mean()) == pytest.approx(1, abs=1e-5)


def labelled(data: lm.MultiTaskDataModule, split: Split = "train") -> dict[str, Labelled]:
    rows, spec = data.sets[split], data.spec
    assert spec is not None
    assert rows.weights is not None
    assert isinstance(rows.inputs, Tensor)
    x = rows.inputs.double()
    return {n: Labelled(spec.tasks[n], x[rows.rows[n]], rows.targets[n], rows.weights[n].double()) for n in spec.tasks}


def test_optima_are_scikit_learn_s_with_sample_weight(path: Path) -> None:
    of = labelled(columns(path))
    strength = 0.05
    for name, (_, x, y, weights) in of.items():
        assert weights is not None
        ((weight, intercept),) = linear_models([of[name]], [strength])
        mean = weights @ x / weights.sum()
        alpha = len(x) * strength * float((weights @ (x - mean).square() / weights.sum()).mean())
        if name == "number":
            wanted = (y[:, 0] - y.mean()) / y.std(correction=0)
            ridge = Ridge(alpha=alpha).fit(x.numpy(), wanted.numpy(), sample_weight=weights.numpy())
            np.testing.assert_allclose(weight[:, 0], ridge.coef_, atol=1e-6)
            np.testing.assert_allclose(intercept[0, 0], ridge.intercept_, atol=1e-6)
        else:
            logistic = LogisticRegression(C=1 / alpha, tol=1e-10, max_iter=10_000)
            logistic.fit(x.numpy(), y.numpy(), sample_weight=weights.numpy())
            np.testing.assert_allclose(weight[:, 0], logistic.coef_[0], atol=1e-4)
            np.testing.assert_allclose(intercept[0, 0], logistic.intercept_[0], atol=1e-4)


@pytest.mark.parametrize("task", [Regression(1), Binary()], ids=["number", "label"])
def test_linear_models_do_not_know_rows_of_weight_0_and_count_those_of_weight_2_twice(task: Task) -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(30, 2, generator=random, dtype=torch.float64)
    y = (x @ x.new_tensor([1.0, -1.0]) + torch.randn(30, generator=random) > 0).double()
    y = y[:, None] if isinstance(task, Regression) else y
    task, far = task.fitted(y), x - 9999
    plain, (zero,), (twice,) = (
        [Labelled(task, torch.cat([x, x[:10]]), torch.cat([y, y[:10]]))],
        [
            Labelled(
                task, torch.cat([x, x[:10], far]), torch.cat([y, y[:10], 1 - y]), torch.tensor([1.75] * 40 + [0] * 30)
            )
        ],
        [Labelled(task, x, y, torch.tensor([1.5] * 10 + [0.75] * 20).double())],
    )
    ((weight, intercept),) = linear_models(plain, [0.1])
    for rows in (zero._replace(weights=zero.weights.double()), twice):  # type: ignore[union-attr]
        ((found, of_found),) = linear_models([rows], [0.1])
        torch.testing.assert_close(found, weight, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(of_found, intercept, rtol=1e-4, atol=1e-5)


def test_losses_are_weighted_and_metrics_are_not(path: Path, tmp_path: Path) -> None:
    data = columns(path)
    torch.manual_seed(0)
    model = lm.MultiHead(lm.nn.MLP(2, (4,)))
    run = lm.fit(model, data, runs=tmp_path / "runs", accelerator="cpu", enable_progress_bar=False, max_steps=2)
    batch = next(iter(data.train_dataloader()))
    assert batch.weights is not None
    outputs = model.outputs(batch)
    losses = model.task_losses(batch)
    for name, of_task in outputs.items():
        each = model.spec.tasks[name].losses(of_task, batch.targets[name])
        torch.testing.assert_close(losses[name], (each * batch.weights[name]).mean())
    tested = lm.load(run.directory or "")
    for name, rows in labelled(data, "test").items():
        assert rows.weights is not None
        predicted = tested(rows.x.float(), {name: torch.arange(len(rows.y))})[name].detach()
        weighted = (rows.task.losses(predicted, rows.y) * rows.weights).mean()
        assert run.metrics[f"test/loss/{name}"] == pytest.approx(float(weighted), rel=1e-4)
        plain = rows.task.evaluate(predicted, rows.y)
        assert run.metrics[f"test/{rows.task.selection}/{name}"] == pytest.approx(plain, rel=1e-4)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("1.", "-1."), "expected a weight of at least 0"),
        (("weight", "other"), "has no column 'weight'"),
        (("1.", "x1."), r"column .weight., row 120 \(line 121 of the file\) is .x1.*expected a number"),
    ],
)
def test_weights_that_are_none_are_refused(path: Path, change: tuple[str, str], expected: str) -> None:
    lines = path.read_text().splitlines()
    head, last = lines[0], lines[-1]
    if change[0] in head:
        head = head.replace(*change)
    else:
        before, _, weight = last.rpartition(",")
        last = f"{before},{change[1]}{weight.partition('.')[2]}"
    path.write_text("\n".join([head, *lines[1:-1], last]) + "\n")
    with pytest.raises(lm.UserError, match=expected):
        columns(path)


def test_a_task_whose_training_rows_all_weigh_0_is_refused(path: Path) -> None:
    lines = path.read_text().splitlines()
    without = [line.rpartition(",")[0] + ",0" if ",u," in line else line for line in lines]
    path.write_text("\n".join(without) + "\n")
    source = Table(path, {"label": "binary"}, features=["a", "b"], task_column="group", weights="weight")
    with pytest.raises(lm.UserError, match=r"training rows of 'u' have the weight 0; leave them out .*--data\.tasks"):
        set_up(source)
    others = [name for name in source.tasks() if name != "u"]
    data = lm.MultiTaskDataModule(source, tasks=others)
    data.setup("fit")
    assert data.sets["train"].names == others


def test_training_rows_of_weight_0_teach_nothing(tmp_path: Path) -> None:
    """What is learned from a table is the same without these rows: scales, texts, shares and the default metric."""
    random = np.random.default_rng(0)
    splits = ["train"] * 60 + ["val"] * 20 + ["test"] * 20
    good = [
        (f"{random.normal():.4f},{'uv'[i % 2]},{random.normal():.4f},{i % 2},1", split)
        for i, split in enumerate(splits)
    ]
    bad = [(f"-9999,w,{1e5 + i},0,0", "train") for i in range(300)]
    learned, trained = [], []
    for name, rows in (("with", [*good[:50], *bad, *good[50:]]), ("without", good)):
        file = tmp_path / f"{name}.csv"
        file.write_text("\n".join(["a,kind,number,label,weight,split", *(f"{row},{split}" for row, split in rows)]))
        targets: dict[str, Any] = {"number": "regression", "label": Target("binary", class_weight="balanced")}
        data = set_up(Table(file, targets, weights="weight", split_column="split"))
        spec = data.spec
        assert spec is not None
        assert spec.table is not None
        assert (
            spec.tasks["label"].selection == "accuracy"
        )  # a twelfth of all labels is yes, and half of those that count
        torch.manual_seed(0)
        model = lm.MultiHead(torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3)))
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
        Trainer(max_epochs=2, limit_val_batches=0, **quiet).fit(model, data)  # type: ignore[arg-type]
        trained.append(dict(model.state_dict()))
        learned.append(describe([spec.tasks, spec.table]))
    assert learned[0] == learned[1]
    torch.testing.assert_close(*trained)


def with_weights(path: Path, weights: list[float]) -> Table:
    """The table with other weights, in rows of which every fifth is for validation and every fifth for the test."""
    rows = [line.rpartition(",")[0] for line in path.read_text().splitlines()]
    splits = ["train", "train", "val", "train", "test"] * (ROWS // 5)
    lines = [f"{row},{split},{weight!r}" for row, split, weight in zip(rows[1:], splits, weights, strict=True)]
    other = path.with_name("weights.csv")
    other.write_text("\n".join([f"{rows[0]},split,weight", *lines]) + "\n")
    return Table(other, {"label": "binary"}, features=["a", "b"], weights="weight", split_column="split")


@pytest.mark.parametrize("unit", [1e-320, 1e-60, 1e30, 1e40, 1e306])
def test_the_unit_of_the_weights_does_not_matter(unit: float, path: Path) -> None:
    weights = [1 + i % 7 for i in range(ROWS)]
    expected = with_weights(path, [float(w) for w in weights]).sets()
    scaled = with_weights(path, [w * unit for w in weights]).sets()
    for split, data in expected.items():
        weight = (scaled[split].weights or {})["label"]
        assert weight.dtype == torch.float32
        torch.testing.assert_close(weight, (data.weights or {})["label"], rtol=1e-3 if unit < 1e-300 else 1e-6, atol=0)


def test_one_large_weight_is_not_said_to_be_0_and_refused_only_beyond_float32(path: Path) -> None:
    others = [1.0] * (ROWS - 1)
    train = (set_up(with_weights(path, [1e40, *others])).sets["train"].weights or {})["label"]
    assert float(train[0]) == pytest.approx(len(train))
    with pytest.raises(lm.UserError, match=r"test split, a weight of 'label' is more than 3e\+38 times the mean"):
        set_up(with_weights(path, [*others, 1e40]))
    zero = [0.0 if i % 5 in (0, 1, 3) else 1e40 for i in range(ROWS)]
    with pytest.raises(lm.UserError, match="all training rows of 'label' have the weight 0"):
        set_up(with_weights(path, zero))
