"""Features centred by the mean feature of the training classes."""

from __future__ import annotations

from abc import ABC
from typing import Any

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from lightning_meta.errors import UserError
from lightning_meta.functional.prototypes import unit_length
from lightning_meta.meta.all_classes import ClassifierLearner
from lightning_meta.meta.predictor import evaluating
from lightning_meta.tasks import EpisodeSpec

MOST_IMAGES, BATCH = 2000, 64
"""Number of images that the centre is the mean of, and of images per forward pass."""


class CentredClassifier(ClassifierLearner, ABC):
    """A method on features that are centred by the training classes and scaled to length 1.

    The centre is a buffer. It is computed when training begins, before each validation, at the end of training and
    when a checkpoint is written, so that it always belongs to the weights beside it.
    """

    centre: Tensor
    _centred_at: int | None = None  # training step whose weights `centre` was computed with

    def build(self, episodes: EpisodeSpec) -> None:
        """Make the classifier, and the buffer of the centre, which is 0 until training begins."""
        super().build(episodes)
        self.register_buffer("centre", torch.zeros(self.feature_size))

    def scaled_features(self, x: Tensor) -> Tensor:
        """The features `(M, F)` of inputs `(M, *input_shape)`, centred and divided by their lengths."""
        return unit_length(self.features(x) - self.centre)

    def on_fit_start(self) -> None:
        """Compute the centre with the initial weights."""
        super().on_fit_start()
        self._centred_at = None
        self.take_centre()

    def on_validation_start(self) -> None:
        """During training, compute the centre with the weights that are validated."""
        super().on_validation_start()
        if self.trainer.state.fn == TrainerFn.FITTING:
            self.take_centre()

    def on_train_end(self) -> None:
        """Compute the centre with the final weights."""
        super().on_train_end()
        self.take_centre()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the centre of the stored weights, which may have changed since the last validation."""
        super().on_save_checkpoint(checkpoint)
        if self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING:
            self.take_centre()
            checkpoint["state_dict"]["centre"] = self.centre.clone()

    def take_centre(self) -> None:
        """Set `centre` to the mean feature of the training classes, unless the weights have not changed since.

        Raises:
            UserError: There is no data module to take the training images from.
        """
        trains = any(p.requires_grad for p in self.backbone.parameters())
        step = self.trainer.global_step if trains else 0
        if step == self._centred_at:
            return
        data: Any = getattr(self.trainer, "datamodule", None)
        if data is None or not hasattr(data, "training_images"):
            name = type(self).__name__
            raise UserError(f"{name} centres features by the training classes: fit it with an EpisodicDataModule")
        total = torch.zeros_like(self.centre)
        images = data.training_images(MOST_IMAGES)
        with evaluating(self), self.trainer.precision_plugin.forward_context():
            for batch in images.split(BATCH):
                total += self.features(self.inputs(batch.to(self.device))).sum(0)
        self.centre.copy_(total / len(images))
        self._centred_at = step
