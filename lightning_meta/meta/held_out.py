"""Cross-validation on a support set: each example is predicted by a task learned from the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_meta.batches import Examples
from lightning_meta.functional.inference import outside_inference_mode
from lightning_meta.meta.learner import Learner
from lightning_meta.meta.predictor import evaluating, in_features
from lightning_meta.nn.likeness import check_outputs

MOST_FOLDS, FOLDS = 10, 5
"""Leave-one-out if the largest class has at most 10 examples, else 5 folds."""


class HeldOut(NamedTuple):
    """The result of cross-validation on a support set.

    Attributes:
        right: Number of correctly predicted examples by label.
        tried: Number of predicted examples by label.
        folds: Number of folds.
    """

    right: Counter[Any]
    tried: Counter[Any]
    folds: int

    @property
    def accuracy(self) -> float:
        """Accuracy in [0, 1]."""
        return self.right.total() / self.tried.total()


def held_out(module: Learner, x: Tensor, labels: Sequence[Any]) -> HeldOut | None:
    """Predict each support example by a task that is learned without it.

    The j-th examples of all classes form a fold, so that the rest is as balanced as the whole; if a class has more than
    `MOST_FOLDS` examples, every `FOLDS`-th is in the same fold. The only example of a class is never left out.

    Args:
        module: The meta-learner; it is not changed.
        x: Support inputs `(M, *input_shape)`.
        labels: The M labels.

    Returns:
        The result. None if no class has two examples, for learners with an inner loop, which is too slow to repeat for
        each fold, and for transductive ones, since a fold has few queries.
    """
    folds, fold_of = _folds(labels)
    if not folds or module.inner_gradients or module.transductive:
        return None
    classes = list(dict.fromkeys(labels))
    y = torch.tensor([classes.index(label) for label in labels], device=module.device)
    x, numbers = module.inputs(x.to(module.device)), torch.tensor(fold_of, device=module.device)
    right, tried = Counter[Any](), Counter[Any]()
    with evaluating(module):
        x = in_features(module, x)  # once for all folds
        for fold in range(folds):
            rest, left = numbers != fold, numbers == fold
            state = outside_inference_mode(module.adapt, Examples(x[rest], y[rest]), len(classes))
            predicted = check_outputs(module.predict(state, x[left])).argmax(-1)
            for true, label in zip(y[left].tolist(), predicted.tolist(), strict=True):
                tried[classes[true]] += 1
                right[classes[true]] += label == true
    return HeldOut(right, tried, folds)


def _folds(labels: Sequence[Any]) -> tuple[int, list[int]]:
    """The number of folds, 0 if no class has two examples; and the fold of each example, -1 if it is never left out."""
    sizes, seen = Counter(labels), Counter[Any]()
    largest = max(sizes.values())
    folds = 0 if largest < 2 else largest if largest <= MOST_FOLDS else FOLDS
    fold_of = []
    for label in labels:
        fold_of.append(seen[label] % folds if sizes[label] > 1 else -1)
        seen[label] += 1
    return folds, fold_of
