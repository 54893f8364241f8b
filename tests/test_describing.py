"""Objects become plain data and come back, and nothing untrusted is imported."""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lightning_meta.building import build
from lightning_meta.describing import Described, describe
from lightning_meta.errors import UserError
from lightning_meta.nn import MLP, Conv4
from lightning_meta.tasks import EpisodeSpec


class Parent(Described, nn.Module):
    def __init__(self, body: nn.Module, optimizer: Any = torch.optim.Adam, rate: float = 0.1) -> None:
        super().__init__()
        self.body = body


class Child(Parent):
    def __init__(self, body: nn.Module, steps: int = 3, **options: Any) -> None:
        super().__init__(body, **options)


@dataclass
class Foreign:
    x: int = 1


def test_arguments_come_back() -> None:
    module = Child(MLP(2, (3, 4)), rate=0.5, optimizer=partial(torch.optim.SGD, lr=0.1))
    spec = describe(module)
    again = build(spec, allow=[Child])
    assert describe(again) == spec
    assert spec["init_args"]["steps"] == 3
    assert spec["init_args"]["rate"] == 0.5
    assert [p.shape for p in again.parameters()] == [p.shape for p in module.parameters()]


def test_a_copy_is_described_alike() -> None:
    module = Child(Conv4(width=4))
    assert describe(copy.deepcopy(module)) == describe(module)


def test_arguments_that_are_filled_in_later() -> None:
    module = Parent(MLP())
    module.update_init_args(rate=EpisodeSpec("classification", (1, 28, 28), 5))
    rate = build(describe(module), allow=[Parent])._init_args["rate"]
    assert rate == EpisodeSpec("classification", (1, 28, 28), 5)


@pytest.mark.parametrize("value", [True, False])
def test_numpys_booleans_are_plain(value: bool) -> None:
    assert describe({"a": np.bool_(value)})["a"] is value


def test_an_instance_of_unknown_making_is_named() -> None:
    body = describe(Parent(nn.Linear(2, 3)))["init_args"]["body"]
    assert body == {"instance": "torch.nn.modules.linear.Linear"}


@pytest.mark.parametrize("nested", [False, True])
def test_a_foreign_class_is_refused_before_it_is_imported(
    nested: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.joinpath("hostile_module.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    hostile: Any = {"class_path": "hostile_module.Net", "init_args": {}}
    if nested:
        hostile = {"class_path": "lightning_meta.nn.MLP", "init_args": {"hidden": [hostile]}}
    with pytest.raises(UserError, match=r"hostile_module\.Net is not trusted"):
        build(hostile)
    assert "hostile_module" not in sys.modules


@pytest.mark.parametrize(
    "path",
    [
        "os.system",
        "subprocess.Popen",
        "torch.load",
        "torch.nnx.Linear",
        "torch.nn.modules.module.OrderedDict",  # a class from elsewhere, in a trusted module
        "torch.nn.functional.relu",  # not a class
        "lightning_meta.run.results.subprocess.Popen",
        "lightning_meta.run.files.Path",
        "builtins.eval",
        "lightning_meta",
        "",
    ],
)
def test_only_classes_of_trusted_packages_are_built(path: str) -> None:
    with pytest.raises(UserError):
        build({"class_path": path, "init_args": {}})


def test_the_caller_may_allow_a_class_or_a_module() -> None:
    spec = describe(Foreign(2))
    with pytest.raises(UserError, match="not trusted"):
        build(spec)
    assert build(spec, allow=[Foreign]) == Foreign(2)
    assert build(spec, allow=[__name__]) == Foreign(2)


@pytest.mark.parametrize("fitted", [["mean"], "mean", {1: 0.0}, {"mean": {"class_path": "os.system", "init_args": {}}}])
@pytest.mark.parametrize(
    "spec",
    [
        {"class_path": "lightning_meta.tasks.Regression", "init_args": {"outputs": 1}},
        {"class_path": "lightning_meta.nn.MLP", "init_args": {"in_features": 4, "widths": [8]}},
        {"class_path": "torch.nn.Linear", "init_args": {"in_features": 4, "out_features": 2}},
        {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.1}},
        {"import_path": "torch.nn.Linear"},
    ],
    ids=["task", "network", "layer", "optimiser", "class"],
)
def test_fitted_values_that_are_none_are_refused(spec: dict[str, Any], fitted: Any) -> None:
    with pytest.raises(UserError):
        build({**spec, "fitted": fitted})
