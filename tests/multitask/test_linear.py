"""Linear models against scikit-learn and normal equations, as runs, and as rungs of a ladder."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from sklearn.linear_model import LogisticRegression, Ridge
from torch import Tensor

import lightning_meta as lm
from lightning_meta.batches import SPLITS, Examples, Split
from lightning_meta.cli import main
from lightning_meta.cli.ladder.tables import linear_table
from lightning_meta.functional.linear_models import Labelled, linear_models
from lightning_meta.multitask.linear import STRENGTHS
from lightning_meta.tasks import Binary, Classification, Regression, Task
from lightning_meta.testing import toys

SIZES = {"train": (60, 25, 40), "val": (30, 30, 0), "test": (40, 40, 40)}
STRENGTH = 0.03


class Planted(lm.TaskSource):
    """Three tasks of five features: the same slopes and another intercept each; the last has no validation rows.

    Args:
        kind: Kind of the tasks.
        apart: Scale of the differences between the slopes of the tasks.
    """

    def __init__(self, kind: str = "regression", apart: float = 0.0) -> None:
        self.kind, self.apart = kind, apart

    def tasks(self) -> dict[str, Task]:
        task = {"regression": Regression(1), "binary": Binary(), "classes": Classification(3)}[self.kind]
        return dict.fromkeys("abc", task)

    def sets(self) -> dict[Split, lm.TaskSet]:
        generator = torch.Generator().manual_seed(0)
        slopes = torch.randn(5, 3, generator=generator) + self.apart * torch.randn(3, 5, 3, generator=generator)
        return {
            split: lm.TaskSet.of_examples(
                {
                    name: self.examples(n, slopes[i], 3.0 * i, generator)
                    for i, (name, n) in enumerate(zip("abc", SIZES[split], strict=True))
                }
            )
            for split in SPLITS
        }

    def examples(self, n: int, slopes: Tensor, intercept: float, generator: torch.Generator) -> Examples:
        x = 5 + torch.randn(n, 5, generator=generator) * torch.tensor([1.0, 1.0, 2.0, 3.0, 0.5])
        scores = (x - 5) @ slopes + 0.7 * torch.randn(n, 3, generator=generator)
        labels = {"binary": (scores[:, 0] > 0).long(), "classes": scores.argmax(-1)}
        return Examples(x, labels.get(self.kind, scores[:, :1] + intercept))


def data(source: lm.TaskSource, **options: Any) -> lm.MultiTaskDataModule:
    module = lm.MultiTaskDataModule(source, **options)
    module.prepare_data()
    module.setup("fit")
    return module


def labelled(module: lm.MultiTaskDataModule, split: Split = "train") -> list[Labelled]:
    rows, spec = module.sets[split], module.spec
    assert spec is not None
    assert isinstance(rows.inputs, Tensor)
    return [Labelled(spec.tasks[n], rows.inputs[rows.rows[n]].double(), rows.targets[n]) for n in spec.tasks]


def run(model: lm.Linear, module: lm.MultiTaskDataModule, folder: Path, **options: Any) -> lm.Run:
    quiet = {"accelerator": "cpu", "enable_progress_bar": False, "max_epochs": 50, **options}
    return lm.fit(model, module, runs=folder, **quiet)


def variance(x: np.ndarray) -> float:
    return float(x.var(0).mean())


def test_ridge_is_scikit_learn_s_at_the_strength_of_the_least_validation_loss(tmp_path: Path) -> None:
    found = run(lm.Linear(), data(Planted(apart=0.5)), tmp_path)
    assert found.directory is not None
    model, module = lm.load(found.directory), data(Planted(apart=0.5))
    fits: dict[float, list[Ridge]] = {}
    losses = {}
    for strength in STRENGTHS:
        errors = []
        for train, val in zip(labelled(module), labelled(module, "val"), strict=True):
            x, y = train.x.numpy(), train.y.numpy()[:, 0].astype(float)
            fit = Ridge(alpha=len(x) * strength * variance(x)).fit(x, (y - y.mean()) / y.std())
            fits.setdefault(strength, []).append(fit)
            if len(val.y):
                wanted = (val.y.numpy()[:, 0] - y.mean()) / y.std()
                errors.append(np.mean((fit.predict(val.x.numpy()) - wanted) ** 2))
        losses[strength] = np.mean(np.log(np.array(errors) + 1e-3))
    best = fits[min(losses, key=lambda strength: losses[strength])]
    assert min(losses, key=lambda strength: losses[strength]) not in (STRENGTHS[0], STRENGTHS[-1])
    for name, of_task, fit in zip("abc", labelled(module, "test"), best, strict=True):
        units = module.sets["train"].targets[name].double()
        wanted = units.mean() + units.std(correction=0) * torch.from_numpy(fit.predict(of_task.x.numpy()))
        predicted = model.predict(name, of_task.x.float())[:, 0]
        torch.testing.assert_close(predicted.double(), wanted, rtol=1e-4, atol=1e-4)


def test_a_task_of_heavy_tailed_noise_does_not_choose_the_penalty_of_the_others(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    x = random.normal(size=(400, 25))
    columns = {f"x{i}": column for i, column in enumerate(x.T)}
    columns |= {f"y{i}": x @ random.normal(size=25) + random.normal(size=400) * 0.3 for i in range(4)}
    noise = np.full(400, np.nan)
    noise[random.choice(400, 60, replace=False)] = random.standard_t(1.5, size=60)
    table = tmp_path / "table.csv"
    pd.DataFrame({**columns, "noise": noise}).to_csv(table, index=False)
    targets = ["y0", "y1", "y2", "y3"]

    def fitted(*names: str) -> list[Tensor]:
        left_out = {"y0", "y1", "y2", "y3", "noise"} - {*names}
        module = data(lm.sources.Table(table, dict.fromkeys(names, "regression"), leave_out=sorted(left_out)))
        weights = lm.Linear(tasks=module.spec).fitted(module.sets)
        return [weights[f"heads.{i}.weight"] for i in range(len(targets))]

    for alone, beside in zip(fitted(*targets), fitted(*targets, "noise"), strict=True):
        assert float((alone - beside).norm() / alone.norm()) < 0.05  # 0.5 where the mean of the losses chose


@pytest.mark.parametrize("kind", ["binary", "two classes", "classes"])
def test_logistic_regression_is_scikit_learn_s(kind: str) -> None:
    rows = labelled(data(Planted("classes" if kind == "classes" else "binary")))[0]
    if kind == "two classes":  # softmax with a column each, whose difference scikit-learn penalises twice as much
        rows = rows._replace(task=Classification(2), y=rows.y.long())
    ((weight, intercepts),) = linear_models([rows], [STRENGTH])
    x, y = rows.x.numpy(), rows.y.numpy()
    inverse = (2 if kind == "two classes" else 1) / (len(x) * STRENGTH * variance(x))
    expected = LogisticRegression(C=inverse, tol=1e-10, max_iter=10_000).fit(x, y)
    ours = (rows.x @ weight + intercepts[0]).numpy()
    probabilities = expected.predict_proba(x)
    if kind == "binary":
        np.testing.assert_allclose(1 / (1 + np.exp(-ours[:, 0])), probabilities[:, 1], atol=1e-5)
    else:
        np.testing.assert_allclose(torch.from_numpy(ours).softmax(-1).numpy(), probabilities, atol=1e-5)


def test_the_pooled_ridge_solves_the_normal_equations_with_a_free_intercept_for_each_task() -> None:
    tasks = labelled(data(Planted()))
    x = np.concatenate([rows.x.numpy() for rows in tasks])
    dummies = np.repeat(np.eye(3), [len(rows.y) for rows in tasks], axis=0)
    targets = [rows.y.double().numpy()[:, 0] for rows in tasks]
    y = np.concatenate([(of_task - of_task.mean()) / of_task.std() for of_task in targets])
    centred = np.concatenate([rows.x.numpy() - rows.x.numpy().mean(0) for rows in tasks])
    penalty = np.diag([len(x) * STRENGTH * np.mean(centred**2)] * 5 + [0.0] * 3)
    design = np.concatenate([x, dummies], axis=1)
    expected = np.linalg.solve(design.T @ design + penalty, design.T @ y)
    ((weight, intercepts),) = linear_models(tasks, [STRENGTH])
    np.testing.assert_allclose(weight[:, 0], expected[:5], atol=1e-6)
    np.testing.assert_allclose(intercepts[:, 0], expected[5:], atol=1e-5)


def test_pooled_logistic_regression_is_scikit_learn_s_with_a_column_for_each_intercept() -> None:
    tasks = labelled(data(Planted("binary")))
    x = np.concatenate([rows.x.numpy() for rows in tasks])
    dummies = np.repeat(1000 * np.eye(3), [len(rows.y) for rows in tasks], axis=0)  # so that they cost next to nothing
    centred = np.concatenate([rows.x.numpy() - rows.x.numpy().mean(0) for rows in tasks])
    strength = len(x) * STRENGTH * np.mean(centred**2)
    expected = LogisticRegression(
        C=1 / strength, fit_intercept=False, tol=1e-8, max_iter=1000, solver="newton-cholesky"
    )
    expected.fit(np.concatenate([x, dummies], axis=1), np.concatenate([rows.y.numpy() for rows in tasks]))
    ((weight, intercepts),) = linear_models(tasks, [STRENGTH])
    np.testing.assert_allclose(weight[:, 0], expected.coef_[0, :5], atol=1e-4)
    np.testing.assert_allclose(intercepts[:, 0], 1000 * expected.coef_[0, 5:], atol=1e-3)


class Mixed(lm.TaskSource):
    """Three regressions and three binary tasks in turn, so that tasks of one type do not follow each other."""

    sources: ClassVar = {"regression": Planted(), "binary": Planted("binary")}

    def tasks(self) -> dict[str, Task]:
        return {f"{name} {kind}": of.tasks()[name] for name in "abc" for kind, of in self.sources.items()}

    def sets(self) -> dict[Split, lm.TaskSet]:
        sets = {kind: of.sets() for kind, of in self.sources.items()}

        def examples(of: lm.TaskSet, name: str) -> Examples:
            assert isinstance(of.inputs, Tensor)
            return Examples(of.inputs[of.rows[name]], of.targets[name])

        return {
            split: lm.TaskSet.of_examples(
                {f"{n} {kind}": examples(of[split], n) for n in "abc" for kind, of in sets.items()}
            )
            for split in SPLITS
        }


def test_tasks_of_one_type_are_pooled_where_there_are_several_types() -> None:
    module = data(Mixed())
    model = lm.Linear(pooled=True, tasks=module.spec)
    model.load_state_dict(model.state_dict() | model.fitted(module.sets))
    train, test = labelled(module), labelled(module, "test")
    fits = [list(linear_models(train[first::2], STRENGTHS)) for first in (0, 1)]
    shared = [weight for name, weight in model.named_parameters() if name.startswith("shared")]
    assert [weight.shape for weight in shared] == [(1, 5), (1, 5)]
    (chosen,) = [i for i, (w, _) in enumerate(fits[0]) if torch.allclose(shared[0], w.T.float())]
    for first in (0, 1):
        weight, intercepts = fits[first][chosen]
        torch.testing.assert_close(shared[first].double(), weight.T, rtol=1e-5, atol=1e-6)
        for rows, name, b in zip(test[first::2], model.names[first::2], intercepts, strict=True):
            found = model(rows.x.float(), {name: torch.arange(len(rows.y))})[name]
            torch.testing.assert_close(found.double(), rows.x @ weight + b, rtol=1e-4, atol=1e-4)


def test_pooling_helps_where_slopes_are_the_same_and_hurts_where_they_are_not() -> None:
    def score(pooled: bool, apart: float) -> float:
        module = data(Planted(apart=apart))
        model = lm.Linear(pooled, tasks=module.spec)
        model.load_state_dict(model.state_dict() | model.fitted(module.sets))
        tests = zip("abc", labelled(module, "test"), strict=True)
        outputs = [(rows, model(rows.x.float(), {n: torch.arange(len(rows.y))})[n]) for n, rows in tests]
        return float(np.mean([rows.task.evaluate(of.detach(), rows.y) for rows, of in outputs]))

    assert score(True, 0.0) >= score(False, 0.0) > 0.8
    assert score(True, 3.0) < score(False, 3.0) - 0.2


def test_labels_that_are_all_the_same_have_a_finite_intercept() -> None:
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)).double()
    ((weight, intercepts),) = linear_models([Labelled(Binary(), x, torch.zeros(50))], [STRENGTH])
    probabilities = (x @ weight + intercepts[0]).sigmoid()
    assert float(probabilities.max()) < 1e-3
    assert torch.isfinite(intercepts).all()


def test_a_run_ends_with_its_first_validation_and_a_resumed_one_keeps_its_weights(tmp_path: Path) -> None:
    def module() -> lm.MultiTaskDataModule:
        return data(Planted(), batches_per_epoch=4)

    first = run(lm.Linear(pooled=True), module(), tmp_path)
    assert first.directory is not None
    before = lm.load(first.directory)
    assert json.loads((first.directory / "results.json").read_text())["steps"] == 4
    again = run(lm.Linear(pooled=True), module(), tmp_path, max_epochs=60, resume=first.directory)
    assert again.directory is not None
    after = lm.load(again.directory)
    assert bool(after.shared[0].weight.detach().all())
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))
    assert again.metrics["test/score"] == first.metrics["test/score"]


class Shapes(lm.TaskSource):
    """Two tasks whose inputs differ in shape, and one of images as bytes."""

    def tasks(self) -> dict[str, Task]:
        return {"short": Regression(1), "square": Regression(1)}

    def sets(self) -> dict[Split, lm.TaskSet]:
        def split(seed: int) -> lm.TaskSet:
            generator = torch.Generator().manual_seed(seed)
            short = torch.randn(40, 2, generator=generator)
            square = torch.randint(256, (40, 1, 2, 2), generator=generator).byte()
            targets = short.sum(-1, keepdim=True), square[:, 0, 0, :1].float()
            return lm.TaskSet.of_examples(
                {"short": Examples(short, targets[0]), "square": Examples(square, targets[1])}
            )

        return {name: split(seed) for seed, name in enumerate(SPLITS)}


def test_inputs_are_flattened_and_may_differ_in_shape(tmp_path: Path) -> None:
    found = run(lm.Linear(), data(Shapes()), tmp_path)
    assert found.metrics["test/r2/short"] > 0.99
    assert found.metrics["test/r2/square"] > 0.99
    with pytest.raises(lm.UserError, match="'short' are"):
        run(lm.Linear(pooled=True), data(Shapes()), tmp_path)


def test_what_cannot_be_fitted_is_refused_before_training(tmp_path: Path) -> None:
    kinds = "'sum' \\(Regression, outputs: 1\\), 'largest' \\(Classification, outputs: 3\\)"
    with pytest.raises(lm.UserError, match=f"no two tasks are of one type and number of outputs.*: {kinds}"):
        run(lm.Linear(pooled=True), toys.sums(), tmp_path)
    with pytest.raises(lm.UserError, match="backbone: there is no such option of Linear"):
        lm.Linear(backbone=lm.nn.MLP(4))  # type: ignore[call-arg]
    module = data(Planted())
    model = lm.Linear(tasks=module.spec)
    trainer = L.Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    with pytest.raises(lm.UserError, match="give the Trainer datamodule="):
        trainer.fit(model, module.train_dataloader(), module.val_dataloader())


def test_rungs_that_do_not_beat_a_linear_one_are_marked() -> None:
    scores = {"linear": 0.5, "pooled": 0.6, "good": 0.61, "tied": 0.6, "poor": 0.4}
    table, marked = linear_table(scores, dict.fromkeys(scores, 1.0), ["linear", "pooled"], {})
    assert list(map(str, table.columns[3].cells)) == [
        "",
        "",
        "",
        "does not beat pooled",
        "does not beat linear and pooled",
    ]
    assert marked[1].startswith("poor does not beat linear (0.500) and pooled (0.600): its test/score is 0.400")
    assert "chance" not in "".join(marked)
    _, chance = linear_table(scores, dict.fromkeys(scores, 1.0), ["linear", "pooled"], {"linear": (5, 8)})
    assert "chance" not in chance[0]  # of tied, which beats linear
    end = "mean over seeds. linear itself is at chance level: it is not better than a constant in 5 of 8 tasks."
    assert chance[1].endswith(end)


def ladder(rungs: Mapping[str, Any], path: Path) -> str:
    """A ladder's file on what is linear, with a network that hardly learns."""
    content = {
        "seeds": [1],
        "baseline": "independent",
        "shared": {
            "data": {
                "class_path": "lightning_meta.MultiTaskDataModule",
                "init_args": {"source": {"class_path": "tests.multitask.test_linear.Planted"}},
            },
            "checkpoint": {"monitor": "val/score"},
            "trainer": {"max_steps": 3, "enable_progress_bar": False, "accelerator": "cpu"},
        },
        "model": {
            "init_args": {
                "backbone": {"class_path": "lightning_meta.nn.MLP", "init_args": {"in_features": 5}},
                "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.0001}},
            }
        },
        "rungs": rungs,
    }
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_a_ladder_with_linear_rungs_marks_what_does_not_beat_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    linear = {"class_path": "lightning_meta.Linear"}
    rungs = {"linear": linear, "independent": {"class_path": "lightning_meta.Independent"}}
    file, runs = ladder(rungs, tmp_path / "small.yaml"), tmp_path / "runs"
    assert main(["ladder", "--config", file, "--runs", str(runs), "--model.optimizer.lr", "0.0002"]) == 0
    said = capsys.readouterr().out
    assert any("independent" in line and line.rstrip().endswith("does not beat linear") for line in said.splitlines())
    assert "differ in model" not in said
    notes = json.loads((runs / "small" / "report" / "transfer.json").read_text())["notes"]
    assert [note for note in notes if note.startswith("independent does not beat linear")]
    configs = {r: yaml.safe_load((runs / "small" / r / "0" / "config.yaml").read_text())["model"] for r in rungs}
    assert configs["independent"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.0002
    assert "chance" not in said
    file_of_linear = runs / "small" / "linear" / "0" / "per_task.csv"
    with file_of_linear.open(newline="") as opened:
        of_tasks = list(csv.DictReader(opened))
    with file_of_linear.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, list(of_tasks[0]))
        writer.writeheader()
        writer.writerows({**row, "constant": 1.0 if i else -1.0} for i, row in enumerate(of_tasks))
    assert main(["ladder", "--config", file, "--runs", str(runs), "--model.optimizer.lr", "0.0002"]) == 0
    notes = json.loads((runs / "small" / "report" / "transfer.json").read_text())["notes"]
    end = "linear itself is at chance level: it is not better than a constant in 2 of 3 tasks."
    assert [note for note in notes if note.startswith("independent does not beat linear") and note.endswith(end)]
    assert "does not beat linear (at chance level)" in " ".join(capsys.readouterr().out.split())
    assert set(configs["linear"]["init_args"]) <= {"pooled", "tasks"}
    score = json.loads((runs / "small" / "linear" / "0" / "results.json").read_text())["test/score"]
    assert main(["test", "--ckpt_path", str(runs / "small" / "linear" / "0"), "--trust"]) == 0
    assert f"{score:.4f}" in capsys.readouterr().out
