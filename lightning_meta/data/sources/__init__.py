"""Sources: one file a data set, which finds, verifies and decodes it."""

from lightning_meta.data.sources.base import Source, TaskGenerator, TaskSource
from lightning_meta.data.sources.cifar import CIFARFS, FC100
from lightning_meta.data.sources.cifar100 import CIFAR100
from lightning_meta.data.sources.dataset import FromDataset
from lightning_meta.data.sources.glyphs import Glyphs
from lightning_meta.data.sources.image_folder import ImageFolder
from lightning_meta.data.sources.mini_imagenet import MiniImageNet
from lightning_meta.data.sources.multi_mnist import MultiMNIST
from lightning_meta.data.sources.omniglot import Omniglot
from lightning_meta.data.sources.parkinsons import Parkinsons
from lightning_meta.data.sources.sinusoid import Sinusoid
from lightning_meta.data.sources.table import Table
from lightning_meta.data.sources.table_targets import Target

__all__ = [
    "CIFAR100",
    "CIFARFS",
    "FC100",
    "FromDataset",
    "Glyphs",
    "ImageFolder",
    "MiniImageNet",
    "MultiMNIST",
    "Omniglot",
    "Parkinsons",
    "Sinusoid",
    "Source",
    "Table",
    "Target",
    "TaskGenerator",
    "TaskSource",
]
