"""Tasks with rare and missing labels are as they say, and methods find what is planted in them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import lightning
import pytest
import torch
from best_possible import best_auroc
from torch import Tensor

import lightning_meta as lm
from lightning_meta.errors import UserError
from lightning_meta.nn import MLP
from lightning_meta.testing import RareTasks


def test_labels_are_as_rare_and_as_often_there_as_is_said() -> None:
    source = RareTasks(tasks=20, rows=1000, positives=0.06, missing=0.3)
    sets = source.sets()
    test = sets["test"]
    assert isinstance(test.inputs, Tensor)
    assert {split: len(of.inputs) for split, of in sets.items()} == {"train": 1000, "val": 500, "test": 4000}
    assert sum(map(len, test.targets.values())) / (20 * 4000) == pytest.approx(0.7, abs=0.01)
    labels = torch.cat(list(test.targets.values())).double()
    assert float(labels.mean()) == pytest.approx(0.06, abs=0.005)
    true = source.probabilities(test.inputs)
    chances = torch.cat([true[name][rows] for name, rows in test.rows.items()]).double()
    low, high = chances < 0.05, chances > 0.3  # the probabilities are those of the labels
    for part in (low, high):
        assert float(labels[part].mean()) == pytest.approx(float(chances[part].mean()), abs=0.03)
    assert 0.85 < best_auroc(source) < 0.95


def test_the_same_tasks_whatever_was_drawn_before_and_others_by_seed() -> None:
    one, again, other = (RareTasks(tasks=2, rows=10, seed=seed).sets()["train"].inputs for seed in (0, 0, 1))
    assert isinstance(one, Tensor)
    assert isinstance(again, Tensor)
    assert isinstance(other, Tensor)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(("name", "value"), [("tasks", 0), ("positives", 1.0), ("missing", 1.0), ("strength", 0.0)])
def test_what_cannot_be_is_refused(name: str, value: float) -> None:
    with pytest.raises(UserError, match=name):
        RareTasks(**{name: value})  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_shared_network_finds_what_a_linear_model_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = RareTasks(tasks=20, rows=2000, missing=0.5)
    scores = {}
    optimizer = partial(torch.optim.AdamW, lr=0.003, weight_decay=0.01)
    for module in (lm.Linear(), lm.MultiHead(MLP(10, (32, 32)), optimizer=optimizer)):
        lightning.seed_everything(0, verbose=False)
        data = lm.MultiTaskDataModule(source, batch_size=100, seed=0)
        run = lm.fit(module, data, max_epochs=40, enable_progress_bar=False)
        scores[type(module).__name__] = run.metrics["test/auroc"]
    assert scores["Linear"] == pytest.approx(0.5, abs=0.03)
    assert 0.8 < scores["MultiHead"] < best_auroc(source)
