"""The walks through the code in docs/extending.md are those of a run."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

import lightning_meta as lm
from lightning_meta.cli.fit import fit

PACKAGE = Path(lm.__file__).parent
PAGE = (PACKAGE.parent / "docs" / "extending.md").read_text()
WALKS = re.findall(r"\*\*(.+?)\*\*.*?: (\d+) functions\.\n\n((?:- .*\n)+)", PAGE)
CLASSES, ROWS = 9, 3

pytestmark = pytest.mark.slow

Call = tuple[str, str]

FEW_SHOT = """
model:
  class_path: ProtoNet
  init_args:
    backbone:
      class_path: torch.nn.Linear
      init_args: {in_features: 4, out_features: 4}
data:
  class_path: EpisodicDataModule
  init_args:
    source:
      class_path: LabelledTable
      init_args: {path: rows.csv, label: label, least_classes: 3}
    ways: 3
    queries: 2
    val_tasks: 1
    test_tasks: 1
trainer: {max_steps: 2}
"""


def followed(run: Callable[[], Any]) -> list[Call]:
    """Every call of a function of the package and every return from one, in order: the file and the name."""
    events: list[Call] = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event in ("call", "return") and code.co_filename.startswith(str(PACKAGE)):
            events.append((str(Path(code.co_filename).relative_to(PACKAGE)), code.co_qualname))

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(before)
    return events


def walk(name: str) -> Iterator[Call]:
    """The functions of a walk in the page."""
    _, count, lines = next(found for found in WALKS if found[0].startswith(name))
    steps = [(file, each) for file, names in re.findall(r"- `(.+?)`: (.+)", lines) for each in names.split(", ")]
    assert len(steps) == int(count)
    return ((file, each.strip("`")) for file, each in steps)


def assert_passes(events: list[Call], name: str) -> None:
    """The walk's functions are met in this order."""
    rest = iter(events)
    for step in walk(name):
        assert step in rest, f"{name}: {step} is not met, or not after what is before it"


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of numbers, a label and two targets."""
    monkeypatch.chdir(tmp_path)
    x = torch.randn(CLASSES * ROWS, 4)
    lines = [",".join([*(f"{v:.4f}" for v in row), f"class {i // ROWS}"]) for i, row in enumerate(x.tolist())]
    Path("rows.csv").write_text("\n".join(["a,b,y,z,label", *lines, ""]))


def test_a_support_set_and_the_arguments_of_a_model(rows: None) -> None:
    Path("config.yaml").write_text(FEW_SHOT)
    events = followed(lambda: fit(["--config", "config.yaml"]))
    events += followed(lambda: lm.load("runs/config/0"))
    assert_passes(events, "The arguments of a model")
    starts = [i for i, event in enumerate(events) if event == ("data/loader.py", "TrainLoader.__iter__")]
    assert_passes(events[starts[2] :], "A support set")  # from the second batch on, before which ways are tried


def test_the_target_of_a_table(rows: None) -> None:
    source = lm.sources.Table("rows.csv", {"y": "regression", "z": "regression"}, leave_out=["label"])
    module, data = lm.MultiHead(torch.nn.Identity()), lm.MultiTaskDataModule(source, batch_size=8)
    assert_passes(followed(lambda: lm.fit(module, data, name="table", max_steps=1)), "The target of a table")
