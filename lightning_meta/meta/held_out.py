"""How good a learned task is, by its support set alone: each example is predicted by a task learned from others."""

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
"""A fold an image of the largest class, if these are at most 10; else 5."""


class HeldOut(NamedTuple):
    """Predictions of support examples that were left out.

    Attributes:
        right: By label, how many examples were predicted right.
        tried: By label, how many were left out.
        folds: How often a task was learned.
    """

    right: Counter[Any]
    tried: Counter[Any]
    folds: int

    @property
    def accuracy(self) -> float:
        """The share that was predicted right, in [0, 1]."""
        return self.right.total() / self.tried.total()


def held_out(module: Learner, x: Tensor, labels: Sequence[Any]) -> HeldOut | None:
    """Predict each support example by a task that is learned without it.

    Example j of every class is left out together with the j-th of the others, so that the rest is as balanced as the
    whole; of classes with more than `MOST_FOLDS` examples, every `FOLDS`-th together. The only example of a class is
    never left out.

    Args:
        module: The learner of tasks; it is left as it is.
        x: Support inputs `(M, *input_shape)`.
        labels: M labels.

    Returns:
        What came out. None where no class has two examples, for learners with an inner loop, which would go through it
        for each fold, and where predictions depend on the queries beside them, of which a fold has few.
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
            found = check_outputs(module.predict(state, x[left])).argmax(-1)
            for true, label in zip(y[left].tolist(), found.tolist(), strict=True):
                tried[classes[true]] += 1
                right[classes[true]] += label == true
    return HeldOut(right, tried, folds)


def _folds(labels: Sequence[Any]) -> tuple[int, list[int]]:
    """How many folds there are, 0 if no class has two examples; the fold of each example, -1 for one that stays."""
    sizes, seen = Counter(labels), Counter[Any]()
    largest = max(sizes.values())
    folds = 0 if largest < 2 else largest if largest <= MOST_FOLDS else FOLDS
    fold_of = []
    for label in labels:
        fold_of.append(seen[label] % folds if sizes[label] > 1 else -1)
        seen[label] += 1
    return folds, fold_of
