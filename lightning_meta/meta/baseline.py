"""Pre-training on all classes, then a new head for each task: the baseline for meta-learning."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.batches import Examples
from lightning_meta.checks import not_negative, positive, whole
from lightning_meta.errors import one_of
from lightning_meta.functional.inner_loop import inner_loop
from lightning_meta.functional.precision import at_least_float32, in_float32
from lightning_meta.functional.prototypes import class_means, cosine_similarity
from lightning_meta.meta.all_classes import ClassifierLearner
from lightning_meta.nn.stateless import Tensors
from lightning_meta.tasks import EpisodeSpec

Head = Literal["linear", "cosine"]


class Baseline(ClassifierLearner):
    r"""Classify all training classes at once; then, for a task, train a head on the frozen features of its support set.

    With a linear head this resembles the baseline of Tian et al. (ECCV 2020, https://arxiv.org/abs/2003.11539),
    implemented in full by `RFS`; with a cosine head it is Baseline++ of Chen et al. (ICLR 2019,
    https://arxiv.org/abs/1904.04232):

    $$\min_{W, b} \frac{1}{NK} \sum_{(x, y)} -\log p(y \mid x; W, b) + \frac{\lambda}{2} \lVert W \rVert^2$$

    over the support set of a task, with f frozen. Training uses all support and query images of a meta-batch with their
    labels in the whole training split, so it sees the same images as a meta-learner with the same data settings. Tasks
    may have any number of ways.

    At a glance:
        - Shared: pre-trained features θ.
        - Own: a linear or cosine head.
        - New task: train a head.

    Run it:
        `python scripts/fit.py --config configs/baseline_glyphs.yaml`; for Baseline++ add `--model.head cosine`.

    Logged:
        - `train/loss`, `train/accuracy`: on the images of one step, among all training classes (chance level: 1 /
          number of classes).
        - `val/accuracy`, `test/accuracy`, `val/loss`, `test/loss`: averaged over few-shot tasks, with a head trained on
          each support set; the loss excludes the penalty. Not comparable with the training metrics.

        `MetaModule` explains the other metrics and what the intervals cover.

    Deviations:
        - The head is trained by full-batch gradient descent from the class means of the support set's features of
          length 1, which is deterministic; Chen et al. use SGD on batches of 4 from a random initialisation, Tian et
          al. L-BFGS.
        - The penalty λ is `weight_decay`, added to a mean loss and not applied to b; the default is that of Chen et al.
          The logistic regression of Tian et al. (C = 1) has λ = 1 / (N·K).
        - A linear head takes features scaled to length 1, in training as well; Tian et al. scale them only on new
          tasks, Chen et al. never.
        - The scale s is the same in training and on new tasks; the code of Chen et al. uses 2 for up to 200 classes and
          10 for more, and learns a length for each class.
        - The images of a training step come from the classes of its episodes, not from all; they are augmented only if
          the data module has an `Augmentation`.
        - No distillation (section 3.3 of Tian et al.) and no augmentation of support images; `RFS` has both.

    Args:
        backbone: The network below the head.
        head: `linear`: $W f(x) / \lVert f(x) \rVert + b$, or `cosine`: $s \cos(w_n, f(x))$.
        scale: Scale s > 0 of the cosine head.
        head_steps: Number of gradient steps on the head of a new task, at least 0.
        head_lr: Learning rate of these steps, > 0; divided by s² for the cosine head, whose curvature grows with s².
        weight_decay: λ >= 0 of the penalty λ/2 |W|² on the head of a new task.
        **options: Options of `MetaModule`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: Head = "linear",
        scale: float = 10.0,
        head_steps: int = 100,
        head_lr: float = 1.0,
        weight_decay: float = 0.001,
        **options: Any,
    ) -> None:
        super().__init__(backbone, **options)
        one_of("head", head, Head)
        positive(scale=scale, head_lr=head_lr)
        whole(0, head_steps=head_steps)
        not_negative(weight_decay=weight_decay)
        self.head, self.scale = head, scale
        self.head_steps, self.head_lr, self.weight_decay = head_steps, head_lr, weight_decay

    def training_logits(self, features: Tensor) -> Tensor:
        """The logits `(M, classes)` of features `(M, F)` over all training classes, by the same head as for tasks."""
        return self._logits(features, dict(self.classifier.named_parameters()))

    def adapt(self, support: Examples, ways: int) -> Tensors:
        """The head of a task: `weight` `(N, F)` and `bias` `(N,)`."""
        features = Examples(self.features(support.x), support.y)

        def loss(head: Tensors, buffers: Tensors, features: Examples) -> tuple[Tensor, Tensors]:
            penalty = self.weight_decay / 2 * head["weight"].square().sum()
            return self.task.loss(self._logits(features.x, head), features.y) + penalty, {}

        means = class_means(F.normalize(features.x, dim=-1), support.y, ways)
        start = {"weight": means, "bias": means.new_zeros(ways)}
        rate = self.head_lr / (self.scale**2 if self.head == "cosine" else 1)
        return inner_loop(loss, start, {}, features, self.head_steps, rate, first_order=True)[-1][0]

    def predict(self, state: Tensors, x: Tensor) -> Tensor:
        """Logits `(M, N)` of the task's head."""
        return self._logits(self.features(x), state)

    def build(self, episodes: EpisodeSpec) -> None:
        """Make the classifier of the training classes, which new tasks do not use."""
        self.classifier = nn.Linear(self.feature_size, episodes.classes, bias=self.head == "linear")

    def _logits(self, features: Tensor, head: Tensors) -> Tensor:
        if self.head == "cosine":
            return self.scale * cosine_similarity(features, head["weight"])
        weight, bias = at_least_float32(head["weight"]), at_least_float32(head["bias"])
        return _linear(F.normalize(at_least_float32(features), dim=-1), weight, bias)


_linear = in_float32(F.linear)
