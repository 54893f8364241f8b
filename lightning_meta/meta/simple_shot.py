"""SimpleShot: the nearest class mean on centred features of length 1."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from lightning_meta.batches import Examples
from lightning_meta.errors import UserError
from lightning_meta.functional.prototypes import class_means, squared_euclidean, unit_length
from lightning_meta.meta.all_classes import ClassifierLearner
from lightning_meta.meta.predictor import evaluating
from lightning_meta.nn.stateless import Tensors
from lightning_meta.tasks import EpisodeSpec

MOST_IMAGES, BATCH = 2000, 64
"""Images that the centre is the mean of, and how many of them are run at once."""


class SimpleShot(ClassifierLearner):
    r"""Classify all training classes at once; then take the nearest class mean of centred features of length 1.

    The CL2N variant of Wang, Chao, Weinberger and van der Maaten, SimpleShot: Revisiting Nearest-Neighbor
    Classification for Few-Shot Learning (2019, https://arxiv.org/abs/1911.04623, section 3):

    $$\hat z = (f(x) - \bar z) / \lVert f(x) - \bar z \rVert, \qquad \hat y = \arg\min_n \lVert \hat z - c_n \rVert$$

    with f the backbone, $\bar z$ the mean feature of the training classes and $c_n$ the mean $\hat z$ of class n's
    support examples. Any way is served.

    At a glance:
        - Shared: features θ of a classifier of all training classes, and their mean.
        - Own: prototypes of the support set.
        - New task: embed.

    Run it:
        `python scripts/fit.py --config configs/simple_shot_glyphs.yaml`. On the network of another run:
        `--model.backbone_weights runs/rfs_glyphs/0 --trainer.max_steps 0`.

    Logged:
        - `train/loss`, `train/accuracy`: of all images of one step among all training classes; chance is one in their
          number.
        - `val/accuracy`, `test/accuracy`: of few-shot tasks, the mean over tasks, with its `_ci95`. They are not to be
          compared with the training figures. There is no inner loop, so no `_step_<j>`.
        - `val/loss`, `test/loss`: with minus the squared distances as logits.

        The rest, and what the intervals are over, is said at `MetaModule`.

    Deviations:
        - The mean $\bar z$ is over at most 2000 images, spread evenly over the training classes, where the authors take
          all. It is taken when training begins, before each validation and at the end, and kept in the checkpoint.
        - A step's images are those of a meta-batch; the authors go through a shuffled training split. They are
          augmented only where the data module is given an `Augmentation`.
        - The best checkpoint is chosen by tasks of the validation split, of the ways and shots of testing.
    """

    centre: Tensor
    _centred_at: int | None = None  # the training step of the network that `centre` is of

    def build(self, episodes: EpisodeSpec) -> None:
        """Also make room for the mean feature, which is 0 until training begins."""
        super().build(episodes)
        self.register_buffer("centre", torch.zeros(self.feature_size))

    def adapt(self, support: Examples, ways: int) -> Tensors:
        """Prototypes `(N, F)`."""
        return {"prototypes": class_means(self.scaled_features(support.x), support.y, ways)}

    def predict(self, state: Tensors, x: Tensor) -> Tensor:
        """Minus the squared distances to the prototypes, `(M, N)`."""
        return -squared_euclidean(self.scaled_features(x), state["prototypes"])

    def scaled_features(self, x: Tensor) -> Tensor:
        """The features `(M, F)` of inputs, centred by the training classes and of length 1."""
        return unit_length(self.features(x) - self.centre)

    def on_fit_start(self) -> None:
        """Take the mean feature of the network as it is."""
        super().on_fit_start()
        self._centred_at = None
        self.take_centre()

    def on_validation_start(self) -> None:
        """Take the mean feature of the network as it is by now, where this is a validation during training."""
        super().on_validation_start()
        if self.trainer.state.fn == TrainerFn.FITTING:
            self.take_centre()

    def on_train_end(self) -> None:
        """Take the mean feature of the trained network."""
        super().on_train_end()
        self.take_centre()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the mean feature of the network that is stored: it may have been trained since the last validation."""
        super().on_save_checkpoint(checkpoint)
        if self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING:
            self.take_centre()
            checkpoint["state_dict"]["centre"] = self.centre.clone()

    def take_centre(self) -> None:
        """Set `centre` to the mean feature of the training classes, where it is not that of this network already.

        Raises:
            UserError: The training classes are not at hand, as there is no data module.
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
            for part in images.split(BATCH):
                total += self.features(self.inputs(part.to(self.device))).sum(0)
        self.centre.copy_(total / len(images))
        self._centred_at = step
