"""Sources: one file a data set, which finds, verifies and decodes it."""

from lightning_meta.data.sources.base import Source, TaskGenerator
from lightning_meta.data.sources.cifar import CIFARFS, FC100
from lightning_meta.data.sources.dataset import FromDataset
from lightning_meta.data.sources.glyphs import Glyphs
from lightning_meta.data.sources.image_folder import ImageFolder
from lightning_meta.data.sources.mini_imagenet import MiniImageNet
from lightning_meta.data.sources.omniglot import Omniglot
from lightning_meta.data.sources.sinusoid import Sinusoid

__all__ = [
    "CIFARFS",
    "FC100",
    "FromDataset",
    "Glyphs",
    "ImageFolder",
    "MiniImageNet",
    "Omniglot",
    "Sinusoid",
    "Source",
    "TaskGenerator",
]
