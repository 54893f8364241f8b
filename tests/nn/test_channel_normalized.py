"""Normalised channels: the numbers, with every family of methods, in checkpoints and exports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

import lightning_meta as lm
from lightning_meta.errors import UserError
from lightning_meta.multitask import MultiTaskModule
from lightning_meta.nn import ChannelNormalized, Conv4
from lightning_meta.nn.stateless import tensors_of
from lightning_meta.tasks import Classification, EpisodeSpec, TasksSpec
from tests.devices.pretend import accelerator

MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


def network() -> ChannelNormalized:
    torch.manual_seed(0)
    return ChannelNormalized(Conv4(3, width=4), MEAN, STD)


def test_each_channel_is_normalised_by_its_own_constants() -> None:
    x = torch.rand(5, 3, 16, 16, dtype=torch.float64)
    seen = ChannelNormalized(nn.Identity(), MEAN, STD).double()(x)
    for channel, (mean, std) in enumerate(zip(MEAN, STD, strict=True)):
        torch.testing.assert_close(seen[:, channel], (x[:, channel] - mean) / std, atol=1e-6, rtol=1e-6)


def test_constants_are_no_weights() -> None:
    own = network()
    assert own.state_dict().keys() == {f"backbone.{name}" for name in own.backbone.state_dict()}
    assert set(tensors_of(own)[1]) >= {"normalize.mean", "normalize.std"}, "they move to the device with the network"
    assert all(name.startswith("backbone.") for name in tensors_of(own)[0])


SPEC = TasksSpec({"a": Classification(3), "b": Classification(2)}, {"a": (3, 16, 16), "b": (3, 16, 16)})
DESCRIBED = replace(SPEC, descriptors={"a": (1.0, 0.0), "b": (0.5, 2.0)})
MULTI_TASK: dict[str, Callable[[nn.Module], MultiTaskModule]] = {
    "MultiHead": lambda network: lm.MultiHead(network, tasks=SPEC),
    "MultiHead, one stage shared": lambda network: lm.MultiHead(network, shared_depth=1, tasks=SPEC),
    "CrossStitch": lambda network: lm.CrossStitch(network, tasks=SPEC),
    "Independent": lambda network: lm.Independent(network, tasks=SPEC),
    "Conditioned by film": lambda network: lm.Conditioned(network, enters="film", at=[0], tasks=DESCRIBED),
    "Conditioned by concatenation": lambda network: lm.Conditioned(
        network, enters="concatenate", at=[0], tasks=DESCRIBED
    ),
}


@pytest.mark.parametrize("name", MULTI_TASK)
def test_every_way_of_sharing_sees_normalised_images(name: str) -> None:
    """Its predictions are those of the backbone with the same weights for images that are already normalised."""
    ours, plain = MULTI_TASK[name](network()).eval(), MULTI_TASK[name](Conv4(3, width=4)).eval()
    with torch.no_grad():
        for to, source in zip(plain.parameters(), ours.parameters(), strict=True):
            to.copy_(source)
    x = torch.rand(4, 3, 16, 16)
    normalised = (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    for task in SPEC.tasks:
        torch.testing.assert_close(ours.predict(task, x), plain.predict(task, normalised))
        assert not torch.allclose(ours.predict(task, x), plain.predict(task, x))


@pytest.mark.slow
def test_a_checkpoint_and_an_export_normalise_as_well(tmp_path: Path) -> None:
    module = lm.ProtoNet(network(), episodes=EpisodeSpec("classification", (3, 16, 16), 0, input_dtype="uint8"))
    trainer = Trainer(accelerator="cpu", logger=False, barebones=True)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "module.ckpt")
    loaded = lm.load(tmp_path / "module.ckpt")
    support, query = (torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8) for count in (6, 5))
    predictor = module.predictor(support, list("aabbcc"))
    expected = predictor.probabilities(query)
    assert torch.equal(loaded.predictor(support, list("aabbcc")).probabilities(query), expected)
    exported = torch.export.load(predictor.export(tmp_path / "task.pt2")).module()
    torch.testing.assert_close(exported(query / 255), expected, rtol=0, atol=1e-6)


def test_a_network_on_an_accelerator_has_its_constants_there() -> None:
    expected = network()(torch.full((2, 3, 16, 16), 0.25))
    with accelerator() as device:
        found = network().to(device)(torch.full((2, 3, 16, 16), 0.25, device=device))
        torch.testing.assert_close(found.cpu(), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((nn.Identity(), "0.5", [1.0]), "mean: a list of numbers is needed, got '0.5'"),
        ((nn.Identity(), [], []), "mean: a list of numbers is needed, got []"),
        ((nn.Identity(), [0.5], [float("nan")]), "std: a list of numbers is needed, got [nan]"),
        ((nn.Identity(), [0.5, 0.5], [1.0]), "std: one number for each of the 2 in mean is needed, got [1.0]"),
        ((nn.Identity(), [0.5], [0.0]), "std: numbers above 0 are needed, got [0.0]"),
        ((Conv4, [0.5], [1.0]), "backbone: a Module is needed, got the class Conv4; give an instance, Conv4(...)"),
    ],
)
def test_wrong_constants_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        ChannelNormalized(*arguments)
    assert str(error.value) == message


def test_images_of_other_channels_are_refused_before_training() -> None:
    with pytest.raises(
        UserError, match=r"mean, std: there is a number for each of 3 channels .* of shape \(1, 16, 16\)"
    ):
        lm.ProtoNet(network(), episodes=EpisodeSpec("classification", (1, 16, 16), 0))


def test_a_backbone_without_stages_says_so_itself() -> None:
    with pytest.raises(UserError, match=r"backbone: Flatten cannot be split into stages"):
        lm.CrossStitch(ChannelNormalized(nn.Flatten(), MEAN, STD), tasks=SPEC)
