"""Inputs unlike those of training are refused or warned of once; those that are like them never are."""

from __future__ import annotations

import gzip
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_meta.data import EpisodicDataModule, MultiTaskDataModule
from lightning_meta.errors import UserError
from lightning_meta.meta import MAML, R2D2, ProtoNet
from lightning_meta.multitask import MultiHead
from lightning_meta.nn import MLP, Conv4, Pretrained
from lightning_meta.nn.likeness import InputWarning, Likeness, check_outputs, input_statistics
from lightning_meta.nn.published import Published
from lightning_meta.sources import FromDataset
from lightning_meta.tasks import Classification, EpisodeSpec, TasksSpec

SIZE = 10


def drawings(count: int, seed: int = 0, channels: int = 1) -> Tensor:
    """Thin light strokes on black, uint8."""
    g = torch.Generator().manual_seed(seed)
    x = torch.zeros(count, channels, SIZE, SIZE, dtype=torch.uint8)
    for image, row, column in zip(x, *torch.randint(SIZE, (2, count), generator=g).tolist(), strict=True):
        image[:, row, :] = 250
        image[:, : SIZE // 2, column] = 220
    return x


STORED = drawings(50, channels=3)
PHOTOGRAPHS = (torch.rand(50, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)) - 0.45) / 0.25
VECTORS = torch.randn(50, 4, generator=torch.Generator().manual_seed(2))


def dtype_of(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def few_shot(train: Tensor) -> Any:
    """The check of the inputs that a predictor receives."""
    shape = tuple(train.shape[1:])
    spec = EpisodeSpec("classification", shape, 2, 0, dtype_of(train), input_statistics(train))
    backbone = Conv4(3, 4, blocks=2) if len(shape) == 3 else MLP(4, (5,))
    predictor = ProtoNet(backbone, episodes=spec).predictor(train[:4], "aabb")
    return predictor.outputs


def multi_task(train: Tensor) -> Any:
    shape = tuple(train.shape[1:])
    said: tuple[Any, ...] = ({"t": shape}, {"t": 50}, {}, {"t": dtype_of(train)}, {"t": input_statistics(train)})
    backbone = Conv4(3, 4, blocks=2) if len(shape) == 3 else MLP(4, (5,))
    module = MultiHead(backbone, tasks=TasksSpec({"t": Classification(2)}, *said))
    module.configure_model()
    return lambda x: module.predict("t", x)


SERVED = pytest.mark.parametrize("served", [few_shot, multi_task])


@SERVED
@pytest.mark.parametrize(
    ("train", "x", "message"),
    [
        (STORED, STORED[:4].float(), "images reach from 0 to 250, in training from 0 to 1; give numbers in [0, 1]"),
        (STORED, (STORED[:4] / 255 - 0.45) / 0.225, "give numbers in [0, 1], neither standardised nor up to 255"),
        (STORED, STORED[:4] / 127.5 - 1, "images reach from -1 to 0.9608"),
        (STORED, STORED[:4].double().index_fill(2, torch.tensor(3), torch.nan), "inputs contain NaN or infinity"),
        (STORED, STORED[:4].long(), "inputs are real numbers, or images as uint8 in [0, 255]; got torch.int64"),
        (STORED, STORED[:4] > 9, "inputs are real numbers, or images as uint8 in [0, 255]; got torch.bool"),
        (STORED, STORED[:4].to(torch.complex64), "got torch.complex64"),
        (STORED, STORED[:4].permute(0, 2, 3, 1), "channels come first: x.permute(0, 3, 1, 2)"),
        (STORED, STORED[:4, :, 1:], f"got (4, 3, 9, 10); resize them to {SIZE} x {SIZE} pixels"),
        (STORED, STORED[0], "got (3, 10, 10); for a single one give x[None]"),
        (PHOTOGRAPHS, STORED[:4], "those of training were real, from -1.8 to 2.2; give real numbers, scaled as in"),
        (VECTORS, VECTORS[:4].long(), "got torch.int64"),
        (VECTORS, torch.full((4, 4), torch.inf), "inputs contain NaN or infinity"),
    ],
)
def test_inputs_that_no_prediction_can_be_made_of_are_refused(
    served: Any, train: Tensor, x: Tensor, message: str
) -> None:
    outputs = served(train)
    with pytest.raises(UserError) as raised:
        outputs(x)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@SERVED
@pytest.mark.parametrize(
    ("train", "x", "message"),
    [
        (
            STORED,
            255 - STORED,
            "brightness of 0.87, those of training 0.14: they seem to be dark on light",
        ),
        (
            STORED,
            1 - STORED / 255,
            "they seem to be dark on light; invert them: 255 - x of uint8, 1 - x of real images",
        ),
        (255 - STORED, STORED, "brightness of 0.13, those of training 0.86: they seem to be light on dark"),
        (1 - STORED / 255, STORED / 255, "they seem to be light on dark"),
        (
            STORED,
            (STORED > 0).to(torch.uint8),
            "images in uint8 only contain 0 and 1, which are nearly black; 255 is white",
        ),
        (PHOTOGRAPHS, 100 * PHOTOGRAPHS, "in training from -1.8 to 2.2; scale them as in training"),
        (VECTORS, 1000 * VECTORS, "preprocess them as in the data module, for example by standardisation"),
    ],
)
def test_inputs_unlike_those_of_training_are_warned_of_once(
    served: Any, train: Tensor, x: Tensor, message: str
) -> None:
    outputs = served(train)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for batch in x[:20].split(5):
            outputs(batch)
    assert len(told) == 1
    assert told[0].category is InputWarning
    assert message in str(told[0].message)


@SERVED
@pytest.mark.parametrize("train", [STORED, 255 - STORED, STORED / 255, PHOTOGRAPHS, VECTORS])
def test_inputs_like_those_of_training_are_not(served: Any, train: Tensor) -> None:
    outputs = served(train)
    for x in (train, train.double(), train[:1], train[:0]):
        if train.dtype == torch.uint8 and x.dtype == torch.float64:
            x = x / 255 + torch.randn(x.shape) * 0.05  # noise leaves [0, 1] a little
        outputs(x)


def test_an_older_checkpoint_says_nothing_and_nothing_is_checked() -> None:
    spec = EpisodeSpec("classification", (3, SIZE, SIZE), 2)
    predictor = ProtoNet(Conv4(3, 4, blocks=2), episodes=spec).predictor(STORED[:4], "aabb")
    for x in (255 - STORED, STORED.float()):
        predictor(x)


def test_a_class_may_be_ruled_out() -> None:
    logits = torch.tensor([[0.0, -torch.inf], [1.0, 2.0]])
    assert check_outputs(logits) is logits
    for bad in (torch.tensor([[0.0, torch.nan]]), torch.tensor([[torch.inf]]), torch.ones(1, 2) * 1j):
        with pytest.raises(UserError, match="NaN, infinite or complex"):
            check_outputs(bad)


def test_predictions_that_are_no_numbers_are_an_error() -> None:
    spec = EpisodeSpec("classification", (4,), 2)
    diverging = MAML(MLP(4, (5,)), 1e20, 5, episodes=spec).predictor(VECTORS[:4], "aabb")
    with pytest.raises(UserError, match=r"the predictions are NaN, infinite or complex: .* fewer inner steps"):
        diverging(VECTORS)
    damaged = ProtoNet(MLP(4, (5,)), episodes=spec)
    with torch.no_grad():
        next(damaged.parameters()).fill_(torch.nan)
    with pytest.raises(UserError, match="the predictions are NaN, infinite or complex"):
        damaged.predictor(VECTORS[:4], "aabb").probabilities(VECTORS)
    served = multi_task(VECTORS)
    module = served.__closure__[0].cell_contents
    with torch.no_grad():
        next(module.parameters()).fill_(torch.inf)
    with pytest.raises(UserError, match="the predictions are NaN, infinite or complex"):
        served(VECTORS)


def test_no_test_image_of_mnist_is_taken_for_an_inverted_one_and_every_inverted_one_is(data_folder: Path) -> None:
    def images(name: str) -> Tensor:
        with gzip.open(data_folder / "mnist" / f"{name}-images-idx3-ubyte.gz") as file:
            return torch.from_numpy(np.frombuffer(file.read()[16:], np.uint8).copy().reshape(-1, 1, 28, 28))

    train, test = images("train"), images("t10k")[::5]
    for stored, others in ((train, 255 - test), (255 - train, test)):
        likeness = Likeness((1, 28, 28), "uint8", input_statistics(stored))
        for image in 255 - others:
            likeness.check(image[None])  # a warning is an error in tests
        for image in others:
            with pytest.raises(InputWarning, match="they seem to be"):
                Likeness((1, 28, 28), "uint8", likeness.statistics).check(image[None])


class Counting(R2D2):
    """Its state dict has an entry that is not a tensor."""

    def get_extra_state(self) -> dict[str, int]:
        return {"steps": 3}

    def set_extra_state(self, state: dict[str, int]) -> None:
        pass


@pytest.mark.parametrize(
    ("kind", "warned"),
    [
        ("nothing is trained", False),
        ("a layer is trained", True),
        ("it is trained", True),
        ("its head is trained", True),
        ("it keeps a state of its own", True),
    ],
)
def test_brightness_is_compared_if_something_was_learned_from_the_training_images(
    kind: str, warned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def published(*_: Any) -> Published:
        return Published(nn.Sequential(nn.AvgPool2d(5), nn.Flatten()), SIZE, (0.5,) * 3, (0.2,) * 3)

    monkeypatch.setattr("lightning_meta.nn.pretrained.published", published)
    spec = EpisodeSpec("classification", (3, SIZE, SIZE), 2, 0, "uint8", input_statistics(STORED))
    module = {
        "nothing is trained": lambda: R2D2(Pretrained(), episodes=spec),
        "a layer is trained": lambda: ProtoNet(nn.Sequential(Pretrained(), nn.Linear(12, 4)), episodes=spec),
        "it is trained": lambda: ProtoNet(Pretrained(frozen=False), episodes=spec),
        "its head is trained": lambda: MAML(Pretrained(), episodes=spec),
        "it keeps a state of its own": lambda: Counting(Pretrained(), episodes=spec),
    }[kind]()
    module.configure_model()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        module.predictor(255 - STORED[:4], "aabb")
    assert [one.category for one in caught] == [InputWarning] * warned


@pytest.mark.parametrize("family", ["few-shot", "multi-task"])
@pytest.mark.parametrize("change", ["none", "invert", "0 to 255"])
def test_a_trained_model_that_is_tested_on_other_data_says_how_they_differ(
    family: str, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    def data(change: str) -> Any:
        def pairs(first: int) -> list[tuple[Tensor, int]]:
            images = drawings(12, first, channels=3)
            x = {"none": images, "invert": 255 - images, "0 to 255": images.float()}[change]
            return [(image, i % 3 + (first if family == "few-shot" else 0)) for i, image in enumerate(x)]

        source = FromDataset(pairs(0), pairs(10), pairs(20))
        if family == "multi-task":
            return MultiTaskDataModule(source, batch_size=4)
        few: dict[str, Any] = {"ways": 3, "shots": 1, "queries": 1, "val_tasks": 2, "test_tasks": 2}
        return EpisodicDataModule(source, **few)

    backbone = Conv4(3, 4, blocks=2)
    module: Any = ProtoNet(backbone) if family == "few-shot" else MultiHead(backbone)
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_steps=1, accelerator="cpu", enable_model_summary=False, **quiet)
    trainer.fit(module, datamodule=data("none"))
    trainer.test(module, datamodule=data(change), verbose=False)
    told = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    said = {"none": "", "invert": "they seem to be dark on light", "0 to 255": "the data's images reach from 0 to 250"}
    assert len(told) == (change != "none")
    assert all(said[change] in line for line in told)
