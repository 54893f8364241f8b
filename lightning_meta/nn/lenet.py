"""The small convolutional network of the multi-task literature on MultiMNIST."""

from __future__ import annotations

from torch import Tensor, nn

from lightning_meta.checks import below_one, whole
from lightning_meta.describing import Described
from lightning_meta.errors import UserError


class LeNet(Described, nn.Module):
    """Two 5x5 convolutions with max-pooling and a layer of 50 units (Sener and Koltun 2018, supplement, figure 5).

    Args:
        in_channels: Number of channels of the images.
        image_size: Height and width of the images in pixels, at least 16.
        features: Number of features, the width of the last layer.
        dropout: Probability that a channel of the second convolution is dropped in training, in [0, 1).

    Raises:
        UserError: The images are too small.
    """

    def __init__(self, in_channels: int = 1, image_size: int = 28, features: int = 50, dropout: float = 0.5) -> None:
        super().__init__()
        whole(1, in_channels=in_channels, image_size=image_size, features=features)
        below_one(dropout=dropout)
        if image_size < 16:
            raise UserError(f"image_size: LeNet needs images of at least 16 pixels, got {image_size}")
        side = ((image_size - 4) // 2 - 4) // 2
        self.layers = nn.Sequential(
            nn.Sequential(nn.Conv2d(in_channels, 10, 5), nn.MaxPool2d(2), nn.ReLU()),
            nn.Sequential(nn.Conv2d(10, 20, 5), nn.Dropout2d(dropout), nn.MaxPool2d(2), nn.ReLU()),
            nn.Sequential(nn.Flatten(), nn.Linear(20 * side * side, features), nn.ReLU()),
        )

    def stages(self) -> list[nn.Module]:
        """The layers in order."""
        return list(self.layers)

    def forward(self, x: Tensor) -> Tensor:
        """Images `(M, in_channels, image_size, image_size)` to features `(M, features)`."""
        features: Tensor = self.layers(x)
        return features
