"""Training a classifier of all training classes, for methods that see few-shot tasks only after training."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from lightning_meta.batches import Episode, Examples
from lightning_meta.functional.precision import at_least_float32
from lightning_meta.functional.prototypes import unit_length
from lightning_meta.meta.base import MetaModule, Outcome
from lightning_meta.nn.stateless import Tensors, own_buffers, stateless_call
from lightning_meta.overrides import CalledInPart
from lightning_meta.tasks import EpisodeSpec


class ClassifierLearner(MetaModule, ABC):
    """A method on the features of a network that is trained to classify all training classes at once.

    To add one, implement `adapt` and `predict` on `self.features(x)`. The network can also be taken from a run of any
    other method (`backbone_weights`) or be frozen, with `max_steps: 0`.
    """

    inner_gradients = False
    classifies_only = True
    called_in_part: ClassVar[Mapping[str, CalledInPart]] = {
        "task_loss": CalledInPart("in training", "override meta_batch_loss instead", ("meta_batch_loss",))
    }

    def build(self, episodes: EpisodeSpec) -> None:
        """Make the classifier of the training classes, which new tasks do not use."""
        self.classifier = nn.Linear(self.feature_size, episodes.classes)

    def meta_batch_loss(self, batch: Episode) -> Outcome:
        """Cross-entropy over all training classes, of every image of the meta-batch."""
        x, y = images_of_all_classes(batch)
        features, statistics = features_in_training(self, x)
        outputs = self.training_logits(features)
        return Outcome(self.task.loss(outputs, y).unsqueeze(0), outputs, y, statistics)

    def training_logits(self, features: Tensor) -> Tensor:
        """The logits `(M, classes)` of features `(M, F)` over all training classes."""
        logits: Tensor = self.classifier(features)
        return logits

    def features(self, x: Tensor) -> Tensor:
        """The features `(M, F)` of inputs `(M, *input_shape)` after training."""
        return at_least_float32(features_after_training(self, x))

    def scaled_features(self, x: Tensor) -> Tensor:
        """The features `(M, F)` of inputs `(M, *input_shape)`, divided by their lengths."""
        return unit_length(self.features(x))


def images_of_all_classes(batch: Episode) -> Examples:
    """All support and query examples of a meta-batch, with their labels in the whole training split.

    Args:
        batch: T tasks of M examples each.

    Returns:
        `x` `(T*M, *input_shape)`, `y` `(T*M,)` numbers of the classes in the split.
    """
    assert batch.classes is not None
    x = torch.cat([batch.support.x, batch.query.x], dim=1).flatten(0, 1)
    y = batch.classes.gather(1, torch.cat([batch.support.y, batch.query.y], dim=1)).flatten()
    return Examples(x, y)


def features_in_training(module: MetaModule, x: Tensor) -> tuple[Tensor, Tensors]:
    """The features `(M, F)` of a batch, normalised by its own statistics, and these statistics for an `Outcome`.

    Args:
        module: The module whose backbone is run.
        x: Inputs `(M, *input_shape)`.
    """
    features, buffers = stateless_call(module.backbone, own_buffers(module.backbone), x, "fused")
    statistics = {name: tensor.unsqueeze(0) for name, tensor in module.keep_buffers(buffers).items()}
    return features, statistics


def features_after_training(module: MetaModule, x: Tensor) -> Tensor:
    """The features `(M, F)` of inputs, normalised by the running statistics of training.

    Args:
        module: The module whose backbone is run.
        x: Inputs `(M, *input_shape)`.
    """
    return stateless_call(module.backbone, own_buffers(module.backbone), x, "stored")[0]
