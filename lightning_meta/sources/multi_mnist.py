"""MultiMNIST: two overlapping digits in one image; to read the left one and the right one are two tasks."""

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
OFFSET = 6  # of the right digit, down and to the right
TRAINING_IMAGES = 60000


class MultiMNIST(TaskSource):
    """MultiMNIST (Sabour et al. 2017) by the recipe of Sener and Koltun 2018, section 5.1, and their published code.

    Each MNIST image is once the left digit of a pair. A canvas of 36x36 holds it at the top left and the right digit 6
    pixels lower and farther right, the larger grey value where they overlap, and is resized to 28x28 by the nearest
    pixel. Tasks are `left` and `right`, of ten classes; inputs are uint8 `(1, 28, 28)`, shared by both.

    The right digit is drawn at random from all images of the same split, the left one itself among them; the draw is a
    function of the seed, the split and the number of the left image alone, so it is the same on every machine.

    Deviations from that code: it trains on all 60,000 images, and here the last `validation` of them, in the order of
    the file, are kept apart to make the pairs that models are selected by; it also stretches the grey
    of each canvas to reach 255, where all reach 254 as they are, and that is left out here.

    Found in `$LIGHTNING_META_DATA/mnist/`, or downloaded (12 MB).

    At a glance:
        - Tasks: left and right digit of one image.
        - Held out: 5,000 of the training images, MNIST's test images.
        - From: MNIST, or `LIGHTNING_META_DATA`.

    Args:
        validation: How many training images make validation pairs, 1 to 59,999; fewer leave more for training.
        seed: Draws other pairs.
        url: The folder to download the four files of MNIST from.

    Raises:
        UserError: An argument is out of range.
    """

    def __init__(self, validation: int = 5000, seed: int = 0, url: str = URL) -> None:
        if not 1 <= validation < TRAINING_IMAGES:
            raise UserError(
                f"MultiMNIST: validation is {validation}, expected 1 to {TRAINING_IMAGES - 1} of the training images; "
                f"models are selected by them"
            )
        if not 0 <= seed < 2**63:
            raise UserError(f"MultiMNIST: seed is {seed}, expected a whole number from 0 to 2**63 - 1")
        self.validation, self.seed, self.url = validation, seed, url

    def prepare(self) -> None:
        """Download the files that are not there; runs in one process per machine."""
        self.sets()

    def tasks(self) -> dict[str, Task]:
        """Two classifications of ten digits."""
        return {"left": Classification(10), "right": Classification(10)}

    def sets(self) -> dict[Split, TaskSet]:
        """As many pairs as images: 60,000 − `validation`, `validation`, and 10,000 of MNIST's test images."""
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
        nearest = (2 * torch.arange(SIDE) + 1) * CANVAS // (2 * SIDE)  # the pixel at the centre of each new one
        everywhere = torch.ones(count, dtype=torch.bool)
        return TaskSet.of_columns(
            canvas[:, nearest][:, :, nearest].unsqueeze(1),
            {"left": digits.labels, "right": digits.labels[right]},
            {"left": everywhere, "right": everywhere},
        )
