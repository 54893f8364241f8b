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
from lightning_meta.functional.precision import at_least_float32, in_float32
from lightning_meta.functional.tensor_bits import bits
from lightning_meta.meta.all_classes import features_after_training, features_in_training, images_of_all_classes
from lightning_meta.meta.base import MetaModule, Outcome
from lightning_meta.meta.teachers import Teacher
from lightning_meta.nn.stateless import Tensors
from lightning_meta.resuming import ANEW
from lightning_meta.tasks import EpisodeSpec

TEMPERATURE = 4.0
"""T of distillation, as in the authors' code."""


class RFS(MetaModule):
    r"""Classify all training classes at once; then, for a task, fit logistic regression to augmented support images.

    The baseline of Tian, Wang, Krishnan, Tenenbaum and Isola, Rethinking Few-Shot Image Classification: A Good
    Embedding Is All You Need? (ECCV 2020, https://arxiv.org/abs/2003.11539), after their code
    (https://github.com/WangYueFt/rfs). A network f with a linear layer learns to classify the training split (section
    3.2). For a task, f is frozen, and the classifier is the optimum of

    $$\min_{W, b} \sum_{(x, y)} -\log \mathrm{softmax}_y(W \hat f(x) + b) + \frac{1}{2} \lVert W \rVert^2, \qquad
    \hat f(x) = f(x) / \lVert f(x) \rVert$$

    over `support_views` augmented images of each support image. Tasks may have any number of ways.

    With a `teacher`, the run of an earlier generation, the network learns its predictions p_t beside the labels, at
    temperature T = 4 (section 3.3):

    $$\frac{1}{2} \big( -\log p_s(y \mid x) + T^2\, \mathrm{KL}(p_t^{1/T} \parallel p_s^{1/T}) \big)$$

    At a glance:
        - Shared: features θ of a classifier of all training classes.
        - Own: a logistic regression.
        - New task: solve it, to the optimum.

    Run it:
        `python scripts/fit.py --config configs/rfs_glyphs.yaml`. The next generation learns from that run:
        `python scripts/fit.py --config configs/rfs_glyphs.yaml --name born_again --model.teacher
        runs/rfs_glyphs/0`. Training images are augmented by `augmentation` of the data module, support images by that
        of the model.

    Logged:
        - `train/loss`, `train/accuracy`: on all images of one step, classified among all training classes; chance level
          is one over their number. With a teacher, the loss is the sum above.
        - `val/accuracy`, `test/accuracy`, `val/loss`, `test/loss`: of few-shot tasks, with a classifier fitted to each
          support set, the mean over tasks; the loss is without the penalty. They are not to be compared with the
          training figures. θ has no inner loop, so there is no `_step_<j>`.

        `MetaModule` explains the other metrics and what the intervals cover.

    Deviations:
        - A step's images are those of a meta-batch. The configurations draw two images of each of 32 classes anew for
          each step; the authors go through a shuffled training split, 64 images at a time, which are of 41 out of 64
          classes on average.
        - The random numbers that a support image is augmented by follow from the image: it has the same views in every
          task and every evaluation. The authors draw them anew. `Augmentation` says what else differs.
        - Logistic regression is solved to the optimum; the authors stop L-BFGS at a gradient of 1e-4.
        - On several ranks, batch normalisation takes the statistics of each rank's share of the images.
        - The best checkpoint is chosen by tasks of the validation split; the authors take the last.
        - The classifier of two classes is the multinomial one, too.

    Args:
        backbone: Feature extractor f.
        augmentation: How support images of a task are augmented; None takes them as they are, once.
        support_views: How many augmented images a support image becomes, at least 1.
        teacher: The run to learn from, a run directory or a checkpoint of `RFS` on the same training classes. It is
            read when training begins or is resumed; the trained model does without it.
        **options: Options of `MetaModule`.
    """

    inner_gradients = False
    classifies_only = True

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
        self._taught_by = ""  # the hash of the teacher's weights in the checkpoint

    @property
    def needs_images(self) -> bool:  # type: ignore[override]  # other methods set it
        """Whether support images are augmented, or a teacher is asked about images."""
        return self.augmentation is not None or self.teacher is not None

    def build(self, episodes: EpisodeSpec) -> None:
        """Make the classifier of the training classes, which new tasks do not use."""
        if self.augmentation is not None:
            self.augmentation.check(episodes.input_shape, getattr(torch, episodes.input_dtype or "float32"))
        self.classifier = nn.Linear(self.feature_size, episodes.classes)

    def setup(self, stage: str) -> None:
        """Also read the teacher before training begins."""
        super().setup(stage)
        if stage == "fit" and self.teacher is not None:
            self.teacher.load(self)

    def meta_batch_loss(self, batch: Episode) -> Outcome:
        """The loss over all training classes, of every image of the meta-batch."""
        x, y = images_of_all_classes(batch)
        features, statistics = features_in_training(self, x)
        outputs = self.classifier(features)
        loss = self.task.loss(outputs, y)
        if self.teacher is not None:
            loss = (loss + distillation_loss(outputs, self.teacher(x))) / 2
        return Outcome(loss.unsqueeze(0), outputs, y, statistics)

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
        """Every example `support_views` times, augmented by random numbers that follow from its image alone."""
        if self.augmentation is None:
            return support
        keys = content_keys(Examples(support.x, torch.zeros_like(support.y)))
        x, y = (part.repeat_interleave(self.support_views, dim=0) for part in support)
        return Examples(self.augmentation(x, bits(keys, self.support_views).flatten()), y)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also note which weights taught."""
        super().on_save_checkpoint(checkpoint)
        if self.teacher is not None:
            checkpoint["lightning_meta"]["taught_by"] = self.teacher.digest or self._taught_by

    def take_state(self, stored: Mapping[str, Any]) -> None:
        """Also take which weights taught.

        Raises:
            UserError: The run to resume learned from others than those that were read.
        """
        super().take_state(stored)
        self._taught_by = str(stored.get("taught_by", ""))
        if self.teacher is None or not self.teacher.digest:  # it is not trained
            return
        if self._taught_by and self._taught_by != self.teacher.digest:
            raise UserError(f"teacher: {self.teacher.path} is not the model that the run has learned from so far{ANEW}")

    def _unit_features(self, x: Tensor) -> Tensor:
        return F.normalize(at_least_float32(features_after_training(self, x)), dim=-1)


@in_float32
def distillation_loss(outputs: Tensor, taught: Tensor) -> Tensor:
    r"""How far predictions are from a teacher's (Hinton et al. 2015, https://arxiv.org/abs/1503.02531).

    $$T^2\, \mathrm{KL}(p_t^{1/T} \parallel p_s^{1/T})$$

    Args:
        outputs: The student's logits `(M, N)`.
        taught: The teacher's `(M, N)`.

    Returns:
        The mean over examples, a scalar.
    """
    student, teacher = (outputs / TEMPERATURE).log_softmax(-1), (taught / TEMPERATURE).softmax(-1)
    return TEMPERATURE**2 * F.kl_div(student, teacher, reduction="batchmean")


_linear = in_float32(F.linear)
