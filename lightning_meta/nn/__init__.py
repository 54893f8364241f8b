"""Backbones, heads and normalisation."""

from lightning_meta.nn.conv4 import Conv4
from lightning_meta.nn.lenet import LeNet
from lightning_meta.nn.mlp import MLP
from lightning_meta.nn.normalization import TaskBatchNorm, per_task, statistics_from
from lightning_meta.nn.resnet12 import ResNet12

__all__ = ["MLP", "Conv4", "LeNet", "ResNet12", "TaskBatchNorm", "per_task", "statistics_from"]
