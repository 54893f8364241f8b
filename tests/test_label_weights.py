"""Weights of the loss by class, against torch and scikit-learn; metrics do not know them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from sklearn.linear_model import LogisticRegression
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F

import lightning_meta as lm
from lightning_meta.cli import main
from lightning_meta.functional.linear_models import Labelled, linear_models
from lightning_meta.tasks import Binary, Classification, Multilabel, Task

GENERATOR = torch.Generator().manual_seed(0)
LABELS = (torch.rand(80, generator=GENERATOR) < 0.2).long() + (torch.rand(80, generator=GENERATOR) < 0.3).long()
LOGITS = torch.randn(80, 3, generator=GENERATOR).double()
SEVERAL = (torch.rand(80, 3, generator=GENERATOR) < torch.tensor([0.1, 0.5, 0.8])).float()


def test_weighted_losses_are_torch_s() -> None:
    weights = torch.tensor([0.5, 2.0, 3.0]).double()
    task: Task = Classification(3, class_weight=weights.tolist())
    expected = F.cross_entropy(LOGITS, LABELS, weights, reduction="none")
    torch.testing.assert_close(task.losses(LOGITS, LABELS), expected)
    yes = SEVERAL[:, 0]
    expected = F.binary_cross_entropy_with_logits(
        LOGITS[:, 0], yes.double(), pos_weight=torch.tensor(4.0), reduction="none"
    )
    torch.testing.assert_close(Binary(class_weight=(1, 4)).losses(LOGITS[:, :1], yes), expected)
    expected = F.binary_cross_entropy_with_logits(LOGITS, SEVERAL.double(), pos_weight=weights, reduction="none")
    found = Multilabel(3, pos_weight=weights.tolist()).losses(LOGITS, SEVERAL)
    torch.testing.assert_close(found, expected.mean(-1))


def test_balanced_weights_are_scikit_learn_s() -> None:
    expected = compute_class_weight("balanced", classes=np.arange(3), y=LABELS.numpy())
    found = Classification(3, class_weight="balanced").fitted(LABELS)
    assert isinstance(found, Classification)
    torch.testing.assert_close(found.loss_weights(LOGITS), torch.from_numpy(expected))
    yes = SEVERAL[:, 0]
    binary = Binary(class_weight="balanced").fitted(yes)
    assert isinstance(binary, Binary)
    expected = compute_class_weight("balanced", classes=np.arange(2), y=yes.numpy())
    torch.testing.assert_close(binary.loss_weights(LOGITS), torch.from_numpy(expected))
    several = Multilabel(3, pos_weight="balanced").fitted(SEVERAL)
    assert isinstance(several, Multilabel)
    torch.testing.assert_close(several.loss_weights(LOGITS), ((SEVERAL == 0).sum(0) / SEVERAL.sum(0)).double())


def test_a_class_without_training_labels_weighs_1() -> None:
    found = Classification(4, class_weight="balanced").fitted(torch.tensor([0, 0, 0, 2]))
    assert isinstance(found, Classification)
    torch.testing.assert_close(found.loss_weights(torch.ones(1)), torch.tensor([4 / 6, 1.0, 2.0, 1.0]))


@pytest.mark.parametrize("metric", ["accuracy", "auroc", "f1", "log_loss"])
def test_metrics_are_not_weighted(metric: str) -> None:
    weighted, plain = Classification(3, metric, class_weight=(1, 5, 9)), Classification(3, metric)
    assert weighted.evaluate(LOGITS, LABELS) == plain.evaluate(LOGITS, LABELS)
    assert not torch.equal(weighted.losses(LOGITS, LABELS), plain.losses(LOGITS, LABELS))


@pytest.mark.parametrize("weights", ["balanced", {0: 1.0, 1: 6.0}])
def test_the_optimum_is_scikit_learn_s(weights: Any) -> None:
    y = (LOGITS[:, 0] + 0.5 * LOGITS[:, 1] > 1.2).long()
    given = weights if weights == "balanced" else tuple(weights.values())
    task = Binary(class_weight=given).fitted(y)
    strength, x = 0.05, LOGITS[:, 1:] - LOGITS[:, 1:].mean(0)
    ((weight, intercept),) = linear_models([Labelled(task, x, y)], [strength])
    c = 1 / (len(x) * strength * float(x.square().mean()))
    expected = LogisticRegression(C=c, class_weight=weights, tol=1e-10, max_iter=10_000).fit(x.numpy(), y.numpy())
    np.testing.assert_allclose(weight[:, 0], expected.coef_[0], atol=1e-4)
    np.testing.assert_allclose(intercept[0, 0], expected.intercept_[0], atol=1e-4)


def test_a_table_s_weights_are_those_of_its_training_labels_and_lie_in_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [f"{a:.4f},{b:.4f},{'yes' if a + b > 1.2 else 'no'}" for a, b, _ in LOGITS.tolist()]
    Path("t.csv").write_text("a,b,y\n" + "\n".join(rows) + "\n")
    table = {"path": "t.csv", "targets": {"y": {"kind": "binary", "class_weight": "balanced"}}}
    config = {
        "seed_everything": 1,
        "model": {"class_path": "lightning_meta.Linear"},
        "data": {
            "class_path": "lightning_meta.MultiTaskDataModule",
            "init_args": {"source": {"class_path": "lightning_meta.sources.Table", "init_args": table}},
        },
        "checkpoint": {"monitor": "val/score"},
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False},
    }
    Path("it.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", "it.yaml"]) == 0
    model = lm.load("runs/it/0")
    data = lm.MultiTaskDataModule(lm.sources.Table("t.csv", {"y": lm.sources.Target("binary")}))
    data.prepare_data()
    data.setup("fit")
    labels = data.sets["train"].targets["y"].numpy()
    expected = compute_class_weight("balanced", classes=np.arange(2), y=labels)
    np.testing.assert_allclose(model.spec.tasks["y"].loss_weights(torch.ones(1)), expected, rtol=1e-6)


@pytest.mark.parametrize("weights", [(1.0,), (1.0, -1.0), (0, 0), ("a", "b"), "heavy", (1.0, float("nan"))])
def test_weights_that_are_none_are_refused(weights: Any) -> None:
    with pytest.raises(lm.UserError, match="class_weight: expected 'balanced' or 2 numbers from 0 on, got"):
        Binary(class_weight=weights)


def test_balanced_without_labels_and_for_numbers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(lm.UserError, match="class_weight: 'balanced' needs training labels"):
        Binary(class_weight="balanced").losses(LOGITS[:, :1], LABELS > 0)
    (tmp_path / "t.csv").write_text("a,y\n1,2.5\n2,3.5\n3,4.5\n")
    target = lm.sources.Target("regression", class_weight="balanced")
    with pytest.raises(lm.UserError, match="targets: y: class_weight: a regression has no classes"):
        lm.sources.Table(tmp_path / "t.csv", {"y": target}).tasks()
