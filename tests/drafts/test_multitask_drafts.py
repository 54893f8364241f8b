"""Drafts of multi-task methods pass the tests that users inherit, are right by their equations, and are short."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

from lightning_meta.batches import SPLITS, Examples
from lightning_meta.data import MultiTaskDataModule
from lightning_meta.data.task_set import TaskSet
from lightning_meta.multitask import MultiTaskModule
from lightning_meta.nn import MLP, Conv4
from lightning_meta.tasks import Classification
from lightning_meta.testing import MultiTaskModuleTests
from tests.drafts.mtan import MTAN
from tests.multitask.toys import Given, results_of, trainer


class DraftTests(MultiTaskModuleTests):
    @pytest.mark.slow
    def test_two_ranks_train_as_one_process(self) -> None:
        super().test_two_ranks_train_as_one_process()


class TestMTAN(DraftTests):
    def make(self) -> MultiTaskModule:
        return MTAN(MLP(4, (8, 8)))


@pytest.mark.parametrize(("file", "name"), [("mtan.py", "MTAN")])
def test_a_draft_has_at_most_25_lines(file: str, name: str) -> None:
    tree = ast.parse((Path(__file__).parent / file).read_text())
    (body,) = (node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    statements = [s for s in body if not isinstance(s, ast.Expr)]
    assert sum((s.end_lineno or 0) - s.lineno + 1 for s in statements) <= 25


# MTAN


def test_mtan_attends_to_pictures() -> None:
    """One task for each colour channel: both are learned from one convolutional backbone."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(2, (64, 2), generator=generator)
    x = (255 * y[:, :, None, None] * torch.rand(64, 2, 16, 16, generator=generator)).byte()
    task_set = TaskSet.of_examples({name: Examples(x, y[:, i]) for i, name in enumerate("ab")})
    tasks = {"a": Classification(2), "b": Classification(2)}
    given = MultiTaskDataModule(Given(tasks, dict.fromkeys(SPLITS, task_set)), batch_size=16)
    torch.manual_seed(0)
    module = MTAN(Conv4(2, width=4, blocks=2))
    trainer(30).fit(module, datamodule=given)
    assert results_of(module, given)["test/score"] > 0.9
