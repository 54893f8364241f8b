"""SimpleShot: the nearest class mean on centred features of length 1."""

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
        - `train/loss`, `train/accuracy`: on all images of one step, classified among all training classes; chance level
          is one over their number.
        - `val/accuracy`, `test/accuracy`: of few-shot tasks, the mean over tasks, with its `_ci95`. They are not to be
          compared with the training figures. There is no inner loop, so no `_step_<j>`.
        - `val/loss`, `test/loss`: with minus the squared distances as logits.

        `MetaModule` explains the other metrics and what the intervals cover.

    Deviations:
        - The mean $\bar z$ is over at most 2000 images, spread evenly over the training classes, where the authors take
          all. It is taken when training begins, before each validation and at the end, and kept in the checkpoint.
        - A step's images are those of a meta-batch; the authors go through a shuffled training split. They are
          augmented only where the data module is given an `Augmentation`.
        - The best checkpoint is chosen by tasks of the validation split, of the ways and shots of testing.
    """

    def adapt(self, support: Examples, ways: int) -> Tensors:
        """Prototypes `(N, F)`."""
        return {"prototypes": class_means(self.scaled_features(support.x), support.y, ways)}

    def predict(self, state: Tensors, x: Tensor) -> Tensor:
        """Minus the squared distances to the prototypes, `(M, N)`."""
        return -squared_euclidean(self.scaled_features(x), state["prototypes"])
