"""SimpleShot: nearest class mean on centred features of length 1."""

from __future__ import annotations

from torch import Tensor

from lightning_meta.batches import Examples
from lightning_meta.functional.prototypes import class_means, squared_euclidean
from lightning_meta.meta.centred import CentredClassifier
from lightning_meta.nn.stateless import Tensors


class SimpleShot(CentredClassifier):
    r"""Classify all training classes at once; then take the nearest class mean of centred features of length 1.

    The CL2N variant of Wang, Chao, Weinberger and van der Maaten, SimpleShot: Revisiting Nearest-Neighbor
    Classification for Few-Shot Learning (2019, https://arxiv.org/abs/1911.04623, section 3):

    $$\hat z = (f(x) - \bar z) / \lVert f(x) - \bar z \rVert, \qquad \hat y = \arg\min_n \lVert \hat z - c_n \rVert$$

    with f the backbone, $\bar z$ the mean feature of the training classes and $c_n$ the mean $\hat z$ of class n's
    support examples. Tasks may have any number of ways.

    At a glance:
        - Shared: features θ of a classifier of all training classes, and their mean.
        - Own: prototypes of the support set.
        - New task: embed.

    Run it:
        `python scripts/fit.py --config configs/simple_shot_glyphs.yaml`. To reuse the network of another run:
        `--model.backbone_weights runs/rfs_glyphs/0 --trainer.max_steps 0`.

    Logged:
        - `train/loss`, `train/accuracy`: on the images of one step, among all training classes (chance level: 1 /
          number of classes).
        - `val/accuracy`, `test/accuracy`: averaged over few-shot tasks, with its `_ci95`; not comparable with the
          training metrics.
        - `val/loss`, `test/loss`: cross-entropy with the negative squared distances as logits.

        `MetaModule` explains the other metrics and what the intervals cover.

    Deviations:
        - The mean $\bar z$ is over at most 2000 images, evenly from all training classes; the authors use all images.
          It is computed when training begins, before each validation and at the end, and stored in the checkpoint.
        - A training step uses the images of a meta-batch; the authors iterate over the shuffled training split. Images
          are augmented only if the data module has an `Augmentation`.
        - The best checkpoint is selected by tasks of the validation split with the ways and shots of testing.
    """

    def adapt(self, support: Examples, ways: int) -> Tensors:
        """Prototypes `(N, F)`."""
        return {"prototypes": class_means(self.scaled_features(support.x), support.y, ways)}

    def predict(self, state: Tensors, x: Tensor) -> Tensor:
        """Negative squared distances to the prototypes, `(M, N)`."""
        return -squared_euclidean(self.scaled_features(x), state["prototypes"])
