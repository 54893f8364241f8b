"""The tasks and the way of sharing that the docs show, as they stand there, train, test, save and load."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest

import lightning_meta
from lightning_meta.data import MultiTaskDataModule
from lightning_meta.nn import MLP
from tests.multitask.toys import results_of, trainer

PAGE = (Path(__file__).parents[2] / "docs" / "multi_task.md").read_text()


def written(marker: str) -> str:
    """The code block of the page that holds a marker."""
    (block,) = (b for b in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if marker in b)
    return block


@pytest.fixture
def users_module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The blocks in a module of the user's."""
    module = types.ModuleType("users_tasks")
    monkeypatch.setitem(sys.modules, "users_tasks", module)
    for marker in ("class Weather", "class SmallHeads"):
        exec(written(marker), module.__dict__)
    return module


def test_the_tasks_and_the_sharing_of_the_page(users_module: types.ModuleType, tmp_path: Path) -> None:
    data = MultiTaskDataModule(users_module.Weather(), batch_size=20)
    module = users_module.SmallHeads(MLP(8, (32, 24)))
    runner = trainer(120)
    runner.fit(module, datamodule=data)
    logged = results_of(module, data)
    assert logged["test/accuracy/rain"] > 0.8
    assert logged["test/r2/temperature"] > 0.8
    runner.save_checkpoint(tmp_path / "a.ckpt")
    loaded = lightning_meta.load(tmp_path / "a.ckpt", allow=[users_module.SmallHeads])
    assert {p.numel() for h in loaded.heads for p in h.parameters()} == {32, 2, 16, 1}
    with pytest.raises(lightning_meta.UserError, match="is not trusted"):
        lightning_meta.load(tmp_path / "a.ckpt")
