"""Augmented training episodes: the same everywhere, of training alone, and no random state but their own."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torch import Tensor, nn

import lightning_meta as lm
from lightning_meta.batches import SPLITS, Episode, Split
from lightning_meta.cli import main
from lightning_meta.data import Augmentation, EpisodicDataModule, Pool
from lightning_meta.errors import UserError
from lightning_meta.functional.random_bits import key
from lightning_meta.meta import ProtoNet
from lightning_meta.nn import Conv4
from lightning_meta.sources import Sinusoid
from lightning_meta.testing import EpisodicDataModuleTests
from lightning_meta.testing.toys import NoisyPictures
from tests.devices.pretend import accelerator
from tests.devices.pretend import trainer as on_the_accelerator


class Noise(nn.Module):
    """A user's augmentation: what it adds is drawn from torch, NumPy and Python."""

    calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        noise = torch.rand_like(images) + np.random.random() + random.random()  # noqa: NPY002
        return (0.8 * images + 0.05 * noise).clamp(0, 1)


class Vectors(lm.Source):
    def pools(self) -> dict[Split, Pool]:
        names = {split: tuple(f"{split} {c}" for c in range(5)) for split in SPLITS}
        return {split: Pool(torch.rand(40, 6), torch.full((5,), 8), names[split], names[split]) for split in SPLITS}


class Standardised(NoisyPictures):
    def pools(self) -> dict[Split, Pool]:
        made = super().pools()
        return {s: Pool((pool.x - 128) / 64.0, pool.sizes, pool.names, pool.groups) for s, pool in made.items()}


def episodes(augmentation: Any = None, source: Any = None, **options: Any) -> EpisodicDataModule:
    small = {"ways": 3, "shots": 2, "queries": 3, "meta_batch_size": 4, "meta_batches_per_epoch": 3}
    evaluation = {"val_tasks": 4, "test_tasks": 4, "evaluation_meta_batch_size": 4}
    every: dict[str, Any] = {**small, **evaluation, "seed": 7, **options}
    return EpisodicDataModule(source or NoisyPictures(), augmentation=augmentation, **every)


AUGMENTATIONS: dict[str, Any] = {"own": lambda: Augmentation(2), "a user's": Noise}
both = pytest.mark.parametrize("name", AUGMENTATIONS)


def images(batch: Episode) -> Tensor:
    """`(T, N*K + N*Q, C, H, W)`."""
    return torch.cat([batch.support.x, batch.query.x], 1)


def module() -> ProtoNet:
    torch.manual_seed(0)
    return ProtoNet(Conv4(1, width=4))


def trainer(**options: Any) -> Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    return Trainer(accelerator="cpu", enable_progress_bar=False, **{**quiet, **options})


class Seen(Callback):
    """The batches of each stage."""

    def __init__(self) -> None:
        self.batches: dict[str, list[Episode]] = {stage: [] for stage in ("train", "validate", "test", "predict")}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Episode, batch_idx: int) -> None:
        self.batches["train"].append(batch)

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, batch: Any, *indices: int) -> None:
        self.batches["validate"].append(batch)

    def on_test_batch_start(self, trainer: Any, pl_module: Any, batch: Any, *indices: int) -> None:
        self.batches["test"].append(batch)

    def on_predict_batch_start(self, trainer: Any, pl_module: Any, batch: Any, *indices: int) -> None:
        self.batches["predict"].append(batch)


# What is drawn


def test_each_image_has_the_key_of_its_task_and_position() -> None:
    data = episodes(Augmentation(2))
    loader = iter(data.train_dataloader())
    next(loader)
    plain = next(loader)
    batch = data.augmented(plain)
    for task, before, after in zip(range(4, 8), images(plain), images(batch), strict=True):
        keys = torch.stack([key(7, 0, 5, task, position) for position in range(15)])  # seed, split, purpose
        assert torch.equal(Augmentation(2)(before, keys), after)
    assert torch.equal(batch.support.y, plain.support.y)
    assert torch.equal(batch.tasks, plain.tasks)
    assert batch.ways == 3


@both
def test_another_seed_and_another_batch_are_augmented_otherwise(name: str) -> None:
    data, other = (episodes(AUGMENTATIONS[name](), seed=seed) for seed in (7, 8))
    first, second = list(data.train_dataloader())[:2]
    assert torch.equal(images(data.augmented(first)), images(data.augmented(first)))
    assert not torch.equal(images(data.augmented(first)), images(other.augmented(first)))
    same = second._replace(support=first.support, query=first.query)  # the same images in another batch
    assert not torch.equal(images(data.augmented(first)), images(data.augmented(same)))


def test_a_share_of_a_meta_batch_is_augmented_as_the_whole() -> None:
    data = episodes(Augmentation(2))
    data.setup("fit")
    whole = data.augmented(data.datasets["train"].__getitems__(range(4)))
    for rank in range(2):
        share = data.augmented(data.datasets["train"].__getitems__(range(2 * rank, 2 * rank + 2)))
        assert torch.equal(images(share), images(whole)[2 * rank : 2 * rank + 2])


def test_a_users_module_is_called_once_on_all_images() -> None:
    noise = Noise()
    data = episodes(noise)
    batch = next(iter(data.train_dataloader()))
    noise.calls = 0
    augmented = images(data.augmented(batch))
    assert noise.calls == 1
    assert augmented.dtype == torch.float32
    added = (augmented - 0.8 * images(batch) / 255) / 0.05
    assert len(added.flatten(2).mean(-1).unique()) == 60, "no two images have the same noise"


@both
def test_no_random_state_but_its_own_moves(name: str) -> None:
    data = episodes(AUGMENTATIONS[name]())
    batch = next(iter(data.train_dataloader()))

    def drawn() -> list[Any]:
        return [torch.rand(1).item(), np.random.random(), random.random()]  # noqa: NPY002

    def seed() -> None:
        torch.manual_seed(1), np.random.seed(1), random.seed(1)  # noqa: NPY002

    seed()
    expected = drawn()
    seed()
    data.setup("fit")
    data.augmented(batch)
    assert drawn() == expected


def test_without_an_augmentation_a_batch_is_itself() -> None:
    data = episodes()
    batch = next(iter(data.train_dataloader()))
    assert data.augmented(batch) is batch


# In a Trainer


@both
def test_training_is_augmented_and_nothing_else_is(name: str) -> None:
    augmentation = AUGMENTATIONS[name]()
    seen, plain, data = Seen(), episodes(), episodes(augmentation)
    runs = trainer(max_epochs=2, callbacks=[seen], num_sanity_val_steps=1)
    runs.fit(module(), datamodule=data)
    for use in (runs.validate, runs.test, runs.predict):
        use(module(), datamodule=data)
    assert [len(batches) for batches in seen.batches.values()] == [6, 1 + 2 + 1, 1, 1]
    loader = plain.train_dataloader()
    for batch, stored in zip(seen.batches["train"][:3], loader, strict=True):
        assert torch.equal(images(batch), images(data.augmented(stored)))
    assert not torch.equal(images(seen.batches["train"][0]), images(seen.batches["train"][3]))
    expected = {"validate": plain.val_dataloader(), "test": plain.test_dataloader(), "predict": plain.test_dataloader()}
    for stage, loader in expected.items():
        for batch in seen.batches[stage]:
            assert torch.equal(images(batch), images(next(iter(loader)))), stage


def test_a_modules_own_hooks_are_called() -> None:
    calls: list[str] = []

    class Hooked(ProtoNet):
        def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
            calls.append(f"moved {batch.support.x.dtype}")
            return super().transfer_batch_to_device(batch, device, dataloader_idx)

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            calls.append(f"then {batch.support.x.dtype}")
            return batch

    own: LightningModule = Hooked(Conv4(1, width=4))
    with pytest.warns(UserWarning, match="on_after_batch_transfer|transfer_batch_to_device"):  # Lightning's remark
        trainer(max_steps=1, limit_val_batches=0).fit(own, datamodule=episodes(Augmentation(2)))
    assert calls == ["moved torch.uint8", "then torch.float32"]


@both
def test_two_workers_change_nothing(name: str) -> None:
    batches = []
    for workers in (0, 2):
        seen = Seen()
        data = episodes(AUGMENTATIONS[name](), num_workers=workers)
        trainer(max_steps=2, limit_val_batches=0, callbacks=[seen]).fit(module(), datamodule=data)
        batches.append([images(batch) for batch in seen.batches["train"]])
    for one, other in zip(*batches, strict=True):
        assert torch.equal(one, other)


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@both
def test_a_resume_is_exact(name: str, tmp_path: Path) -> None:
    def fit(steps: int, folder: str, resume: Path | None = None) -> dict[str, Tensor]:
        saving = ModelCheckpoint(tmp_path / folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        runs = trainer(max_steps=steps, enable_checkpointing=True, callbacks=[saving], num_sanity_val_steps=0)
        trained = module()
        runs.fit(trained, datamodule=episodes(AUGMENTATIONS[name]()), ckpt_path=resume)
        return trained.state_dict()

    whole = fit(5, "whole")
    fit(2, "first")
    resumed = fit(5, "second", tmp_path / "first" / "step=2.ckpt")
    for tensor, value in whole.items():
        assert torch.equal(resumed[tensor], value), tensor


@pytest.mark.parametrize("place", ["cpu", "accelerator"])
def test_an_accelerator_trains_on_the_same_images(place: Any) -> None:
    data = episodes(Augmentation(2))
    expected = [images(data.augmented(batch)) for batch in data.train_dataloader()]
    seen = Seen()
    with accelerator() as device:
        runs = on_the_accelerator(max_steps=2, limit_val_batches=0, callbacks=[seen])
        runs.fit(module(), datamodule=episodes(Augmentation(2), pool_on=place))
        for batch, one in zip(seen.batches["train"], expected[:2], strict=True):
            assert batch.support.x.device == device
            torch.testing.assert_close(images(batch).cpu(), one)


# What a run says


def test_a_changed_augmentation_is_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    quiet: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False, "limit_val_batches": 0}
    quiet |= {"checkpoint": lm.RunCheckpoint(monitor=None), "enable_model_summary": False}
    run = lm.fit(module(), episodes(Augmentation(2)), max_steps=2, **quiet)
    for augmentation, change in (
        (Augmentation(3), "data.augmentation.crop_padding 2 -> 3"),
        (None, "data.augmentation lightning_meta.Augmentation -> null"),
        (Noise(), "data.augmentation lightning_meta.Augmentation -> tests.data.test_augmented_episodes.Noise"),
    ):
        with pytest.raises(UserError) as error:
            lm.fit(module(), episodes(augmentation), resume=run.directory, max_steps=3, **quiet)
        assert change in str(error.value)
        assert "allow_changes" in str(error.value)
    lm.fit(module(), episodes(Augmentation(2)), resume=run.directory, max_steps=3, **quiet)


COMMAND = [
    *("--model=ProtoNet", "--model.backbone=Conv4", "--model.backbone.width=4", "--model.backbone.in_channels=3"),
    *("--data=EpisodicDataModule", "--data.source=ImageFolder", "--data.source.root=photographs"),
    *("--data.source.image_size=16", "--data.ways=2", "--data.test_ways=2", "--data.queries=2", "--data.val_tasks=2"),
    *("--data.test_tasks=2", "--trainer.max_steps=1", "--trainer.accelerator=cpu", "--trainer.devices=1"),
    *("--trainer.enable_progress_bar=false", "--name=mine"),
]
USERS = """
import torch

class Darker(torch.nn.Module):
    def __init__(self, by: float = 0.5) -> None:
        super().__init__()
        self.by = by

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images * self.by
"""


def test_a_users_module_by_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "users_augmentation.py").write_text(USERS)
    for name in map(str, range(16)):
        (tmp_path / "photographs" / name).mkdir(parents=True)
        for i in range(3):
            noise = np.random.default_rng([int(name), i]).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / "photographs" / name / f"{i}.png")
    given = "--data.augmentation=users_augmentation.Darker"
    assert main(["fit", *COMMAND, given, "--data.augmentation.by=0.9"]) == 0
    assert "by: 0.9" in (tmp_path / "runs/mine/0/config.yaml").read_text()
    test = ["test", "--ckpt_path=runs/mine/0", "--trainer.enable_progress_bar=false"]
    assert main(test) == 0, "a test needs no trust in what augments training images"
    capsys.readouterr()
    assert main(["fit", *COMMAND, given, "--data.augmentation.by=4"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("lightning-meta: error: --data.augmentation: Darker turns images from 0 to 1 into numbers")
    assert said.count("\n") == 1
    assert main(["fit", *COMMAND, "--data.augmentation=Augmentation", "--data.augmentation.jitter=1.5"]) == 2
    assert "--data.augmentation.jitter: a number from 0 to below 1 is needed" in capsys.readouterr().err


# What cannot be augmented


class Cuts(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images[..., 1:]


class Fails(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        raise ZeroDivisionError("by nothing")


class Normalises(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return (images - 0.5) / 0.25


@pytest.mark.parametrize(
    ("augmentation", "source", "message"),
    [
        (Augmentation(), Sinusoid(), "augmentation: regression tasks have no images; leave it out"),
        (Augmentation, None, "augmentation: an Augmentation or Module is needed, got the class Augmentation"),
        ("crop", None, "augmentation: an Augmentation or Module is needed, got str 'crop'"),
        (Augmentation(), Vectors(), r"augmentation: images .* are needed, got examples in float32 of shape \(6,\)"),
        (Noise(), Vectors(), r"augmentation: images .* are needed, got examples in float32 of shape \(6,\)"),
        (Augmentation(16), None, "crop_padding: less than the 16 pixels of an image are needed, got 16"),
        (
            Augmentation(),
            Standardised(),
            r"augmentation: images in \[0, 1\], or in uint8, are needed, these reach from",
        ),
        (Cuts(), None, r"augmentation: Cuts turned images \(16, 1, 16, 16\) into \(16, 1, 16, 15\); it must keep"),
        (Fails(), None, r"augmentation: Fails fails on images \(16, 1, 16, 16\): by nothing"),
        (Normalises(), None, "augmentation: Normalises turns images from 0 to 1 into numbers from -2 to .*Channel"),
    ],
)
def test_what_cannot_be_augmented_is_refused_before_training(augmentation: Any, source: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        episodes(augmentation, source, ways=3).setup("fit")


def test_standardised_images_may_be_augmented_by_a_module() -> None:
    episodes(nn.Identity(), Standardised()).setup("fit")


class TestAugmented(EpisodicDataModuleTests):
    def make(self) -> EpisodicDataModule:
        return episodes(Augmentation(2))
