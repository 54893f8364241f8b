"""Augment the images of episodes with `Augmentation` or a custom module."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from lightning_meta.batches import SPLITS, Episode
from lightning_meta.data.augmentation import Augmentation
from lightning_meta.data.episodes import AUGMENTED
from lightning_meta.data.pool import Pool
from lightning_meta.errors import UserError, reason_of
from lightning_meta.functional import random_bits
from lightning_meta.functional.generators import seeded_generators
from lightning_meta.functional.tensor_bits import fold
from lightning_meta.nn.features import as_input

Augmenter = Augmentation | nn.Module
TRIED = 16  # number of images that a custom module is tried on before training


def check_augmentation(augmentation: Augmenter, train: Pool) -> None:
    """Check that an augmentation fits the training images.

    Args:
        augmentation: The augmentation; a copy of a custom module is tried on a few images.
        train: Pool of training images.

    Raises:
        UserError: The examples are not images, the augmentation fails on them, or its results differ from the images of
            validation and test in shape or range.
    """
    rules = augmentation if isinstance(augmentation, Augmentation) else Augmentation(0, jitter=0)
    rules.check(train.input_shape, train.x.dtype)
    sample = as_input(train.x[:: -(-len(train.x) // TRIED)], torch.float32)
    low, high = (float(bound) for bound in sample.aminmax())
    if isinstance(augmentation, Augmentation):
        if not 0 <= low <= high <= 1:
            raise UserError(
                f"augmentation: images in [0, 1], or in uint8, are needed, these reach from {low:.4g} to {high:.4g}; "
                "let the source give uint8, and normalise by lightning_meta.nn.ChannelNormalized"
            )
        return
    name = type(augmentation).__name__
    try:
        result = _by_module(copy.deepcopy(augmentation), sample, 0)
    except UserError:
        raise
    except Exception as error:  # a custom module may raise anything
        raise UserError(f"augmentation: {name} fails on images {tuple(sample.shape)}: {reason_of(error)}") from error
    low, high = min(low, 0), max(high, 1)
    least, most = (float(bound) for bound in as_input(result, torch.float32).aminmax())
    if not low - (high - low) / 2 <= least <= most <= high + (high - low) / 2:
        raise UserError(
            f"augmentation: {name} turns images from {low:.4g} to {high:.4g} into numbers from {least:.4g} to "
            f"{most:.4g}, unlike the images of validation and test; take its normalisation out, and put it into the "
            "network by lightning_meta.nn.ChannelNormalized"
        )


def augmented(batch: Episode, augmentation: Augmenter, seed: int, first_task: int) -> Episode:
    """Augment the support and query images of a meta-batch on their device.

    Args:
        batch: T training tasks.
        augmentation: An `Augmentation`, which draws from (seed, task, position in the task), or a custom module, which
            is called once on all images, in [0, 1], with random generators seeded from (seed, first task).
        seed: Seed of the training tasks.
        first_task: Number of the first task; an argument, because reading it from `batch` would synchronise the device.

    Returns:
        The tasks with augmented images in [0, 1].
    """
    parts = batch.support.x, batch.query.x
    images = torch.cat([part.flatten(0, 1) for part in parts])
    root = int(random_bits.key(seed, SPLITS.index("train"), AUGMENTED))
    if isinstance(augmentation, Augmentation):
        counts = [part.shape[1] for part in parts]
        positions = torch.arange(sum(counts), device=batch.tasks.device)
        keys = fold(root, batch.tasks.unsqueeze(-1), positions).split(counts, dim=1)
        result = augmentation(images, torch.cat([part.flatten() for part in keys]))
    else:
        result = _by_module(augmentation, images, int(random_bits.fold(root, first_task)))
    support, query = result.split([part.shape[:2].numel() for part in parts])
    return batch._replace(
        support=batch.support._replace(x=support.unflatten(0, parts[0].shape[:2])),
        query=batch.query._replace(x=query.unflatten(0, parts[1].shape[:2])),
    )


def _by_module(module: nn.Module, images: Tensor, seed: int) -> Tensor:
    """Apply a custom module to images with separately seeded random generators, and check the result."""
    images = as_input(images, torch.float32)
    with seeded_generators(images.device, seed % 2**32), torch.no_grad():
        result = module.to(images.device)(images)
    if not isinstance(result, Tensor) or result.shape != images.shape:
        received = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
        raise UserError(
            f"augmentation: {type(module).__name__} turned images {tuple(images.shape)} into {received}; it must keep "
            "their shape"
        )
    return result
