"""RFS: a classifier of all training classes, then logistic regression on its features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.batches import Episode, Examples
from lightning_meta.checks import instance, whole
from lightning_meta.data.augmentation import Augmentation
from lightning_meta.errors import UserError
from lightning_meta.functional.logistic_regression import logistic_regression
from lightning_meta.functional.mini_batches import content_keys
from lightning_meta.functional.precision import in_float32
from lightning_meta.functional.tensor_bits import bits
from lightning_meta.meta.all_classes import ClassifierLearner, features_after_training, images_of_all_classes
from lightning_meta.meta.base import Outcome
from lightning_meta.meta.teachers import Teacher
from lightning_meta.nn.stateless import Tensors
from lightning_meta.resuming import ANEW
from lightning_meta.tasks import EpisodeSpec

TEMPERATURE = 4.0
"""T of distillation, as in the authors' code."""


class RFS(ClassifierLearner):
    r"""Classify all training classes at once; then, for a task, fit logistic regression to augmented support images.

    The baseline of Tian, Wang, Krishnan, Tenenbaum and Isola, Rethinking Few-Shot Image Classification: A Good
    Embedding Is All You Need? (ECCV 2020, https://arxiv.org/abs/2003.11539), after their code
    (https://github.com/WangYueFt/rfs). A network f with a linear layer is trained to classify the training split
    (section 3.2). For a task, f is frozen, and the classifier is the optimum of

    $$\min_{W, b} \sum_{(x, y)} -\log \mathrm{softmax}_y(W \hat f(x) + b) + \frac{1}{2} \lVert W \rVert^2, \qquad
    \hat f(x) = f(x) / \lVert f(x) \rVert$$

    over `support_views` augmented images of each support image. Tasks may have any number of ways.

    With a `teacher`, the run of an earlier generation, the network also learns its predictions p_t, at temperature T =
    4 (section 3.3):

    $$\frac{1}{2} ( -\log p_s(y \mid x) + T^2\, \mathrm{KL}(p_t^{1/T} \parallel p_s^{1/T}) )$$

    At a glance:
        - Shared: features θ of a classifier of all training classes.
        - Own: a logistic regression.
        - New task: solve it to the optimum.

    Run it:
        `python scripts/fit.py --config configs/rfs_glyphs.yaml`. The next generation learns from that run:
        `python scripts/fit.py --config configs/rfs_glyphs.yaml --name born_again --model.teacher
        runs/rfs_glyphs/0`. Training images are augmented by `augmentation` of the data module, support images by that
        of the model.

    Logged:
        - `train/loss`, `train/accuracy`: on the images of one step, among all training classes (chance level: 1 /
          number of classes). With a teacher, the loss is the sum above.
        - `val/accuracy`, `test/accuracy`, `val/loss`, `test/loss`: averaged over few-shot tasks, with a classifier
          fitted to each support set; the loss excludes the penalty. Not comparable with the training metrics.

        `MetaModule` explains the other metrics and what the intervals cover.

    Deviations:
        - A training step uses the images of a meta-batch. The configurations draw two images of each of 32 classes for
          each step; the authors iterate over the shuffled training split in batches of 64, with 41 of 64 classes on
          average.
        - The random numbers that augment a support image are computed from the image, so it has the same views in every
          task and evaluation; the authors draw new ones. See `Augmentation` for other differences.
        - Logistic regression is solved to the optimum; the authors stop L-BFGS at a gradient of 1e-4.
        - With several ranks, batch normalisation uses the statistics of each rank's images.
        - The best checkpoint is selected by tasks of the validation split; the authors take the last.
        - With two classes the classifier is multinomial, too.

    Args:
        backbone: Feature extractor f.
        augmentation: Augmentation of the support images of a task; None uses each image once, unchanged.
        support_views: Number of augmented images per support image, at least 1.
        teacher: Run directory or checkpoint of `RFS` on the same training classes to distil from. Read when training
            begins or is resumed; not needed afterwards.
        **options: Options of `MetaModule`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        augmentation: Augmentation | None = None,
        support_views: int = 5,
        teacher: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(backbone, **options)
        if augmentation is not None:
            instance("augmentation", augmentation, Augmentation)
        whole(1, support_views=support_views)
        if teacher is not None:
            instance("teacher", teacher, str)
        self.augmentation, self.support_views = augmentation, support_views
        self.teacher = None if teacher is None else Teacher(teacher, RFS)
        self._taught_by = ""  # hash of the teacher's weights, as stored in the checkpoint

    @property
    def needs_images(self) -> bool:  # type: ignore[override]  # a class attribute elsewhere
        """Whether support images are augmented or a teacher predicts training images."""
        return self.augmentation is not None or self.teacher is not None

    def build(self, episodes: EpisodeSpec) -> None:
        """Make the classifier of the training classes, which new tasks do not use."""
        if self.augmentation is not None:
            self.augmentation.check(episodes.input_shape, getattr(torch, episodes.input_dtype or "float32"))
        super().build(episodes)

    def setup(self, stage: str) -> None:
        """Also load the teacher before training."""
        super().setup(stage)
        if stage == "fit" and self.teacher is not None:
            self.teacher.load(self)

    def meta_batch_loss(self, batch: Episode) -> Outcome:
        """The loss over all training classes, of every image of the meta-batch; with a teacher, also its loss."""
        outcome = super().meta_batch_loss(batch)
        if self.teacher is None:
            return outcome
        taught = self.teacher(images_of_all_classes(batch).x)
        return outcome._replace(loss=(outcome.loss + distillation_loss(outcome.outputs, taught)) / 2)

    def class_logits(self, x: Tensor) -> Tensor:
        """Logits `(M, classes)` of inputs `(M, *input_shape)` over all training classes, after training."""
        logits: Tensor = self.classifier(features_after_training(self, x))
        return logits

    def adapt(self, support: Examples, ways: int) -> Tensors:
        """The classifier of a task: `weight` `(N, F)` and `bias` `(N,)`."""
        x, y = self.views(support)
        weight, bias = logistic_regression(self._unit_features(x), y, ways)
        return {"weight": weight, "bias": bias}

    def predict(self, state: Tensors, x: Tensor) -> Tensor:
        """Logits `(M, N)` of the task's classifier."""
        return _linear(self._unit_features(x), state["weight"], state["bias"])

    def views(self, support: Examples) -> Examples:
        """Each example `support_views` times, augmented by random numbers computed from its image."""
        if self.augmentation is None:
            return support
        keys = content_keys(Examples(support.x, torch.zeros_like(support.y)))
        x, y = (part.repeat_interleave(self.support_views, dim=0) for part in support)
        return Examples(self.augmentation(x, bits(keys, self.support_views).flatten()), y)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also store the hash of the teacher's weights."""
        super().on_save_checkpoint(checkpoint)
        if self.teacher is not None:
            checkpoint["lightning_meta"]["taught_by"] = self.teacher.digest or self._taught_by

    def take_state(self, stored: Mapping[str, Any]) -> None:
        """Also restore the hash of the teacher's weights.

        Raises:
            UserError: The resumed run had another teacher.
        """
        super().take_state(stored)
        self._taught_by = str(stored.get("taught_by", ""))
        if self.teacher is None or not self.teacher.digest:  # loaded for evaluation, without the teacher
            return
        if self._taught_by and self._taught_by != self.teacher.digest:
            raise UserError(f"teacher: {self.teacher.path} is not the model that the run has learned from so far{ANEW}")

    def _unit_features(self, x: Tensor) -> Tensor:
        return F.normalize(self.features(x), dim=-1)


@in_float32
def distillation_loss(outputs: Tensor, taught: Tensor) -> Tensor:
    r"""The divergence of predictions from a teacher's (Hinton et al. 2015, https://arxiv.org/abs/1503.02531).

    $$T^2\, \mathrm{KL}(p_t^{1/T} \parallel p_s^{1/T})$$

    Args:
        outputs: Logits `(M, N)` of the student.
        taught: Logits `(M, N)` of the teacher.

    Returns:
        The mean over examples, a scalar.
    """
    student, teacher = (outputs / TEMPERATURE).log_softmax(-1), (taught / TEMPERATURE).softmax(-1)
    return TEMPERATURE**2 * F.kl_div(student, teacher, reduction="batchmean")


_linear = in_float32(F.linear)
