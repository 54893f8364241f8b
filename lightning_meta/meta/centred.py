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
from lightning_meta.nn.stateless import Tensors, swapped
from lightning_meta.tasks import EpisodeSpec

MOST_IMAGES, BATCH = 2000, 64
"""Number of images that the centre is the mean of, and of images per forward pass."""


class CentredClassifier(ClassifierLearner, ABC):
    """A method on features that are centred by the training classes and scaled to length 1.

    The centre is a buffer. It is computed when training begins, before each validation, at the end of training and
    when a checkpoint is written, so that it always belongs to the weights beside it, also if a callback such as
    `WeightAveraging` validates and stores averages of them.
    """

    centre: Tensor
    _last_centre: tuple[Tensors, Tensor] | None = None  # the weights of the last computation, and their centre

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
        self._last_centre = None
        self.take_centre()

    def on_validation_epoch_start(self) -> None:
        """Compute the centre with the weights that are validated in training; callbacks have put in averages."""
        super().on_validation_epoch_start()
        if self.trainer.state.fn == TrainerFn.FITTING:
            self.take_centre()
        elif (centre := self._known_centre(self._weights())) is not None:
            self.centre.copy_(centre)  # after training, `WeightAveraging` puts in its average of earlier centres

    def on_train_end(self) -> None:
        """Compute the centre with the final weights."""
        super().on_train_end()
        self.take_centre()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the centre of the stored weights, which are averages if a callback has replaced the module's."""
        super().on_save_checkpoint(checkpoint)
        if self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING:
            stored = checkpoint["state_dict"]
            stored["centre"] = self._centre_of({name: stored.get(name, t) for name, t in self._weights().items()})

    def take_centre(self) -> None:
        """Set `centre` to the mean feature of the training classes, unless the weights have not changed since.

        Raises:
            UserError: There is no data module to take the training images from.
        """
        self.centre.copy_(self._centre_of(self._weights()))

    def _weights(self) -> Tensors:
        """The tensors by name that features may depend on."""
        tensors = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        return {n: t.detach() for n, t in tensors.items() if n != "centre" and not n.startswith("classifier.")}

    def _centre_of(self, weights: Tensors) -> Tensor:
        """The mean feature of the training classes with these weights, `(F,)`."""
        weights = {name: tensor.to(self.device) for name, tensor in weights.items()}
        if (known := self._known_centre(weights)) is not None:
            return known
        data: Any = getattr(self.trainer, "datamodule", None)
        if data is None or not hasattr(data, "training_images"):
            name = type(self).__name__
            raise UserError(f"{name} centres features by the training classes: fit it with an EpisodicDataModule")
        total = torch.zeros_like(self.centre)
        images = data.training_images(MOST_IMAGES)
        with swapped(self, weights), evaluating(self), self.trainer.precision_plugin.forward_context():
            for batch in images.split(BATCH):
                total += self.features(self.inputs(batch.to(self.device))).sum(0)
        centre = total / len(images)
        self._last_centre = {name: tensor.clone() for name, tensor in weights.items()}, centre
        return centre.clone()

    def _known_centre(self, weights: Tensors) -> Tensor | None:
        """The last centre that was computed, `(F,)`, if it was with these weights."""
        if self._last_centre is None:
            return None
        last, centre = self._last_centre
        same = weights.keys() == last.keys() and all(torch.equal(last[n].to(t.device), t) for n, t in weights.items())
        return centre.clone() if same else None
