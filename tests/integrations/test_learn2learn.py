"""Task sets, data and modules of learn2learn (built by `scripts/build_learn2learn.py`; not a dependency)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import lightning_meta
from lightning_meta.data import EpisodicDataModule
from lightning_meta.errors import UserError
from lightning_meta.integrations.learn2learn import GBML, FromTasksets
from lightning_meta.meta import ProtoNet
from lightning_meta.testing import EpisodicDataModuleTests
from tests.integrations.peer import l2l

SPLITS = {"train": range(6), "val": range(6, 9), "test": range(9, 12)}


def meta_dataset() -> Any:
    """12 classes of 10 images, 16x16."""
    generator = torch.Generator().manual_seed(0)
    picture = torch.rand(12, 1, 1, 16, 16, generator=generator)
    x = (0.6 * picture + 0.4 * torch.rand(12, 10, 1, 16, 16, generator=generator)).flatten(0, 1)
    return l2l.data.MetaDataset(TensorDataset(x, torch.arange(12).repeat_interleave(10)))


def drawing(dataset: Any) -> list[Any]:
    """The task transforms of its benchmarks."""
    transforms = l2l.data.transforms
    return [
        transforms.FusedNWaysKShots(dataset, n=3, k=5),
        transforms.LoadData(dataset),
        transforms.RemapLabels(dataset),
        transforms.ConsecutiveLabels(dataset),
    ]


def tasksets(leak: bool = False, also: Callable[[Any], list[Any]] = lambda dataset: []) -> list[Any]:
    """Task sets like those of learn2learn's benchmarks, one per split; leaking ones draw from all classes."""
    whole = meta_dataset()
    own = [l2l.data.FilteredMetaDataset(whole, labels=list(classes)) for classes in SPLITS.values()]
    return [
        l2l.data.Taskset(dataset, task_transforms=drawing(bound) + also(bound))
        for dataset, bound in zip(own, [whole] * 3 if leak else own, strict=True)
    ]


def data() -> EpisodicDataModule:
    return EpisodicDataModule(
        FromTasksets(*tasksets()),
        ways=3,
        shots=1,
        queries=4,
        meta_batch_size=4,
        meta_batches_per_epoch=20,
        val_tasks=10,
        test_tasks=40,
        seed=0,
    )


class TestTasksets(EpisodicDataModuleTests):
    def make(self) -> EpisodicDataModule:
        return data()


def test_every_class_is_served_under_its_own_label() -> None:
    pools = FromTasksets(*tasksets()).pools()
    assert {split: pools[split].names for split in SPLITS} == {  # type: ignore[index]
        split: tuple(map(str, classes)) for split, classes in SPLITS.items()
    }
    x, y = meta_dataset()[93]
    assert int(y) == 9
    assert torch.equal(pools["test"].x[3], x)


def test_leaking_splits_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"train: FusedNWaysKShots draws from another data set \(120 examples\).*own \(60\).* leak"
    ):
        FromTasksets(*tasksets(leak=True))
    whole = meta_dataset()
    with pytest.raises(UserError, match="class '0'"):
        FromTasksets(whole, whole, whole).pools()


def test_classes_that_transforms_leave_out_are_left_out() -> None:
    whole, transforms = meta_dataset(), l2l.data.transforms
    filtered = [[transforms.FilterLabels(whole, list(classes)), *drawing(whole)] for classes in SPLITS.values()]
    fused = [
        [transforms.FusedNWaysKShots(whole, n=3, k=5, filter_labels=list(classes)), *drawing(whole)[1:]]
        for classes in SPLITS.values()
    ]
    expected = FromTasksets(*tasksets()).fingerprint()
    for chosen in (filtered, fused):
        made = [l2l.data.Taskset(whole, task_transforms=each) for each in chosen]
        assert FromTasksets(*made).fingerprint() == expected


def test_rotations_are_told_how_to_be_had_here() -> None:
    rotation = l2l.vision.transforms.RandomClassRotation
    train, _, test = tasksets(also=lambda dataset: [rotation(dataset, [0.0, 90.0, 180.0, 270.0])])
    val = tasksets()[1]
    with pytest.warns(UserWarning, match=r"RandomClassRotation is not run; .* rotations=\['train', 'test'\]") as caught:
        source = FromTasksets(train, val, test)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    told = EpisodicDataModule(source, ways=3, shots=1, queries=1, rotations=["train", "test"])
    told.setup("fit")
    assert told.spec is not None
    assert told.spec.classes == 4 * 6
    silent = FromTasksets(train, val, test, ignore_transforms=True)
    assert silent.fingerprint() == source.fingerprint()
    slanted = tasksets(also=lambda dataset: [rotation(dataset, [0.0, 45.0])])
    with pytest.raises(UserError, match="train: the task transform RandomClassRotation would not be run"):
        FromTasksets(*slanted)


def test_draws_with_replacement_are_refused() -> None:
    given = tasksets(also=lambda dataset: [l2l.data.transforms.KShots(dataset, k=2, replacement=True)])
    with pytest.raises(UserError, match="train: KShots draws with replacement, which EpisodicDataModule does not"):
        FromTasksets(*given)
    train, val, test = given
    FromTasksets(train, val, test, ignore_transforms=True)


def unheard_of(description: Any) -> Any:
    return description


class Doubled(l2l.data.transforms.KShots):
    """A transform of learn2learn's that somebody changed."""


@pytest.mark.parametrize(
    ("also", "name"),
    [(lambda dataset: [unheard_of], "unheard_of"), (lambda dataset: [Doubled(dataset, k=2)], "Doubled")],
    ids=["function", "subclass"],
)
def test_transforms_of_other_makes_are_refused(also: Callable[[Any], list[Any]], name: str) -> None:
    train, val, _ = tasksets()
    test = tasksets(also=also)[2]
    with pytest.raises(UserError, match=f"test: the task transform {name} would not be run.*ignore_transforms=True"):
        FromTasksets(train, val, test)
    source = FromTasksets(train, val, test, ignore_transforms=True)
    assert source.fingerprint() == FromTasksets(*tasksets()).fingerprint()


def test_one_function_in_place_of_a_list_is_a_transform_too() -> None:
    given = [l2l.data.Taskset(each.dataset, task_transforms=unheard_of) for each in tasksets()]
    with pytest.raises(UserError, match="train: the task transform unheard_of"):
        FromTasksets(*given)


def backbone() -> nn.Module:
    return l2l.vision.models.ConvBase(hidden=8, channels=1, layers=2)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ProtoNet(nn.Sequential(backbone(), nn.Flatten())),
        lambda: GBML(nn.Sequential(backbone(), nn.Flatten()), "meta_curvature", inner_lr=0.1, inner_steps=1),
    ],
    ids=["ProtoNet", "GBML"],
)
def test_vision_models_train_validate_and_test(make: Callable[[], Any], tmp_path: Path) -> None:
    L.seed_everything(1)
    trainer = L.Trainer(
        max_steps=40,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    module, given = make(), data()
    trainer.fit(module, datamodule=given)
    (validated,) = trainer.validate(module, datamodule=given, verbose=False)
    (before,) = trainer.test(module, datamodule=given, verbose=False)
    assert 0 <= validated["val/accuracy"] <= 1
    assert before["test/accuracy"] > 0.6  # chance is a third
    assert not any(isinstance(m, nn.BatchNorm2d) for m in module.modules())


CONFIG = """
model:
  class_path: lightning_meta.integrations.learn2learn.GBML
  init_args:
    transform: meta_sgd
    inner_steps: 1
    inner_lr: 0.1
    backbone:
      class_path: learn2learn.vision.models.CNN4Backbone
      init_args: {hidden_size: 4, layers: 2, channels: 1, max_pool: true}
data:
  class_path: EpisodicDataModule
  init_args:
    source: {class_path: lightning_meta.testing.toys.NoisyPictures}
    ways: 3
    shots: 1
    queries: 3
    val_tasks: 4
    test_tasks: 4
trainer: {max_steps: 2, limit_val_batches: 1, accelerator: cpu}
"""


def test_from_the_command_line_and_back(tmp_path: Path) -> None:
    """A configuration names its network and this package's GBML; the checkpoint loads by its path."""
    config = tmp_path / "gbml.yaml"
    config.write_text(CONFIG)
    command = [sys.executable, "-W", "ignore", "-m", "lightning_meta", "fit", "--config", str(config)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0, done.stderr[-2000:]
    module = lightning_meta.load(tmp_path / "runs/gbml/0", allow=["learn2learn"])
    assert isinstance(module, GBML)
    assert len(module.transforms) == len(list(module.network.parameters()))
    with pytest.raises(UserError, match="allow"):
        lightning_meta.load(tmp_path / "runs/gbml/0")
