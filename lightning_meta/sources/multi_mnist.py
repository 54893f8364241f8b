"""MultiMNIST: images of two overlapping digits; recognising the left and the right digit are two tasks."""

from __future__ import annotations

from functools import cached_property

import torch

from lightning_meta.batches import SPLITS, Split
from lightning_meta.data.source import TaskSource
from lightning_meta.data.task_set import TaskSet
from lightning_meta.errors import UserError
from lightning_meta.functional.random_bits import integers, key
from lightning_meta.sources.mnist import SIDE, URL, Digits, read_mnist
from lightning_meta.tasks import Classification, Task

CANVAS = 36
OFFSET = 6  # pixels by which the right digit is shifted, down and to the right
TRAINING_IMAGES = 60000


class MultiMNIST(TaskSource):
    """MultiMNIST (Sabour et al. 2017) by the recipe of Sener and Koltun 2018, section 5.1, and their published code.

    Each MNIST image is the left digit of exactly one pair. It is placed at the top left of a canvas of 36x36 pixels,
    and the right digit 6 pixels lower and farther right; where they overlap, the larger grey value is used. The canvas
    is resized to 28x28 by nearest-neighbour interpolation. The tasks are `left` and `right`, of ten classes; both share
    the inputs, uint8 `(1, 28, 28)`.

    The right digit is drawn at random from all images of the same split, including the left one. The draw depends only
    on the seed, the split and the number of the left image, so it is the same on every machine.

    Deviations from that code: it trains on all 60,000 images, while here the last `validation` images, in the order of
    the file, make the pairs for validation. It also stretches the grey values of each canvas so that they reach 255;
    this is left out here, as all canvases already reach 254.

    The files are read from `$LIGHTNING_META_DATA/mnist/`, or downloaded (12 MB).

    At a glance:
        - Tasks: left and right digit of one image.
        - Held out: 5,000 of the training images, MNIST's test images.
        - From: MNIST, or `LIGHTNING_META_DATA`.

    Args:
        validation: Number of training images for validation pairs, from 1 to 59,999; the others are for training.
        seed: Seed of the pairs, from 0 to 2^63 - 1.
        url: URL of the folder from which to download the four files of MNIST.

    Raises:
        UserError: An argument is out of range.
    """

    def __init__(self, validation: int = 5000, seed: int = 0, url: str = URL) -> None:
        if not 1 <= validation < TRAINING_IMAGES:
            raise UserError(
                f"MultiMNIST: validation is {validation}, expected 1 to {TRAINING_IMAGES - 1} of the training images, "
                f"which are used for model selection"
            )
        if not 0 <= seed < 2**63:
            raise UserError(f"MultiMNIST: seed is {seed}, expected a whole number from 0 to 2**63 - 1")
        self.validation, self.seed, self.url = validation, seed, url

    def prepare(self) -> None:
        """Download the missing files; runs in one process per machine."""
        self.sets()

    def tasks(self) -> dict[str, Task]:
        """Return two classification tasks of ten digits each."""
        return {"left": Classification(10), "right": Classification(10)}

    def sets(self) -> dict[Split, TaskSet]:
        """Return one pair per image: 60,000 − `validation` for train, `validation` for val, and 10,000 for test."""
        return self._sets

    @cached_property
    def _sets(self) -> dict[Split, TaskSet]:
        train, test = read_mnist(self.url)
        first = len(train.labels) - self.validation
        digits: dict[Split, Digits] = {
            "train": Digits(train.images[:first], train.labels[:first]),
            "val": Digits(train.images[first:], train.labels[first:]),
            "test": test,
        }
        return {split: self._pairs(digits[split], SPLITS.index(split)) for split in SPLITS}

    def _pairs(self, digits: Digits, split: int) -> TaskSet:
        count = len(digits.labels)
        right = integers(key(self.seed, split, torch.arange(count)), 0, count - 1)
        canvas = digits.images.new_zeros(count, CANVAS, CANVAS)
        canvas[:, :SIDE, :SIDE] = digits.images
        overlay = canvas[:, OFFSET : OFFSET + SIDE, OFFSET : OFFSET + SIDE]
        torch.maximum(overlay, digits.images[right], out=overlay)
        nearest = (2 * torch.arange(SIDE) + 1) * CANVAS // (2 * SIDE)  # index of the canvas pixel at each centre
        everywhere = torch.ones(count, dtype=torch.bool)
        return TaskSet.of_columns(
            canvas[:, nearest][:, :, nearest].unsqueeze(1),
            {"left": digits.labels, "right": digits.labels[right]},
            {"left": everywhere, "right": everywhere},
        )
