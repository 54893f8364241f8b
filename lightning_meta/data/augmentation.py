"""Random crops, flips and colour jitter of training images: a pure function of the images and one key per image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from lightning_meta import checks
from lightning_meta.describing import Described
from lightning_meta.errors import UserError
from lightning_meta.functional.tensor_bits import below, bits, unit

# Index of each random number in the stream of an image.
DOWN, RIGHT, FLIP, BRIGHTNESS, CONTRAST, SATURATION = range(6)
# Weights of red, green and blue in the luma: ITU-R BT.601, as in torchvision and PIL.
LUMA = (0.2989, 0.587, 0.114)


class Augmentation(Described):
    r"""The usual augmentation of natural images in few-shot learning (Lee et al. 2019; Tian et al. 2020).

    In this order:

    1. Crop: the image is padded with `crop_padding` zeros on each side and cut to its size at one of the
       $(2p + 1)^2$ positions, drawn uniformly.
    2. Flip: left and right are swapped with probability 1/2.
    3. Colours: $x \leftarrow bx$, then $x \leftarrow cx + (1 - c)\bar g$ with the mean $\bar g$ of the grey image,
       then $x \leftarrow sx + (1 - s)g$ with the grey image g; each result is clipped to [0, 1], and the brightness b,
       the contrast c and the saturation s are drawn from [1 - jitter, 1 + jitter). Grey images have no saturation.

    It has no state: the result of an image depends only on the image and its key, not on the batch.
    `EpisodicDataModule(augmentation=...)` creates the keys. Called directly:

    >>> import torch
    >>> images = torch.zeros(8, 3, 32, 32, dtype=torch.uint8)
    >>> Augmentation()(images, torch.arange(8)).shape
    torch.Size([8, 3, 32, 32])

    Deviations from both papers' code, which is torchvision's: the order of the colour changes is fixed, not random,
    and values are not rounded to 256 levels after each operation.

    Args:
        crop_padding: Padding p in pixels, such as 4 for images of 32 pixels and 8 for 84; 0 disables the crop.
        flip: Whether to flip images.
        jitter: Largest deviation of the colour factors from 1, in [0, 1); 0 disables the colour changes.
    """

    def __init__(self, crop_padding: int = 4, flip: bool = True, jitter: float = 0.4) -> None:
        checks.whole(0, crop_padding=crop_padding)
        checks.below_one(jitter=jitter)
        self.crop_padding, self.flip, self.jitter = crop_padding, flip, jitter

    def __repr__(self) -> str:
        return f"Augmentation(crop_padding={self.crop_padding}, flip={self.flip}, jitter={self.jitter})"

    def check(self, shape: Sequence[int], dtype: torch.dtype) -> None:
        """Refuse examples that cannot be augmented.

        Args:
            shape: Shape of one example.
            dtype: Dtype of the stored examples.

        Raises:
            UserError: The examples are not images, or have the wrong size or number of channels for the options.
        """
        if len(shape) != 3 or not (dtype == torch.uint8 or dtype.is_floating_point):
            raise UserError(
                "augmentation: images (channels, height, width), in uint8 or real in [0, 1], are needed, got examples "
                f"in {str(dtype).removeprefix('torch.')} of shape {tuple(shape)}; leave augmentation out"
            )
        channels, *sides = shape
        if self.crop_padding >= min(sides):
            raise UserError(
                f"crop_padding: less than the {min(sides)} pixels of an image are needed, got {self.crop_padding}; the "
                "crop could miss the image"
            )
        if self.jitter and channels not in (1, 3):
            raise UserError(
                f"jitter: images of 1 or 3 channels are needed, these have {channels}; set jitter to 0, which leaves "
                "their colours as they are"
            )

    def __call__(self, images: Tensor, keys: Tensor) -> Tensor:
        """Augment images on their device.

        Args:
            images: Images `(M, C, H, W)`, uint8 or real in [0, 1].
            keys: Keys `(M,)`, int64: 64 random bits per image.

        Returns:
            Images `(M, C, H, W)` in [0, 1]: float32 for uint8 images, otherwise in their dtype.

        Raises:
            UserError: The images cannot be augmented, see `check`.
        """
        self.check(images.shape[1:], images.dtype)
        random = bits(keys, SATURATION + 1)
        moved = self._moved(images, random)  # before the conversion to float: gathering uint8 is cheaper
        moved = moved.float() / 255 if moved.dtype == torch.uint8 else moved
        return self._coloured(moved, 1 + self.jitter * (2 * unit(random) - 1)) if self.jitter else moved

    def _moved(self, images: Tensor, random: Tensor) -> Tensor:
        """Crop and flip with a single gather from the padded image."""
        if not (self.crop_padding or self.flip):
            return images
        p, (channels, height, width) = self.crop_padding, images.shape[1:]
        rows, columns = (torch.arange(size, device=images.device).expand(len(images), -1) for size in (height, width))
        if self.flip:
            columns = torch.where(random[:, FLIP, None] < 0, width - 1 - columns, columns)
        if p:
            images = pad(images, (p, p, p, p))
            rows = rows + below(random[:, DOWN, None], 2 * p + 1)
            columns = columns + below(random[:, RIGHT, None], 2 * p + 1)
        pixels = (rows * (width + 2 * p)).unsqueeze(-1) + columns.unsqueeze(-2)
        places = pixels.flatten(1).unsqueeze(1).expand(-1, channels, -1)
        fetched: Tensor = images.flatten(2).gather(2, places).unflatten(2, (height, width))
        return fetched

    @staticmethod
    def _coloured(x: Tensor, factors: Tensor) -> Tensor:
        b, c, s = factors.to(x.dtype)[:, BRIGHTNESS:, None, None, None].unbind(1)
        x = (b * x).clamp(0, 1)
        # The mean in two steps, so that its rounding does not depend on the size of the batch.
        mean = _grey(x).mean(-1, keepdim=True).mean(-2, keepdim=True)
        x = (c * x + (1 - c) * mean).clamp(0, 1)
        return (s * x + (1 - s) * _grey(x)).clamp(0, 1) if x.shape[1] == 3 else x


def _grey(x: Tensor) -> Tensor:
    """`(M, 1, H, W)` of `(M, 1 or 3, H, W)`."""
    if x.shape[1] == 1:
        return x
    red, green, blue = x[:, :1], x[:, 1:2], x[:, 2:]
    return red * LUMA[0] + green * LUMA[1] + blue * LUMA[2]
