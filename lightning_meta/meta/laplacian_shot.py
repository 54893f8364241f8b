"""LaplacianShot: nearest prototypes with a term that favours equal labels of neighbouring queries."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.checks import not_negative, positive, whole
from lightning_meta.functional.precision import in_float32
from lightning_meta.functional.prototypes import squared_euclidean
from lightning_meta.meta.bd_cspn import SHIFTED, labelled, shifted
from lightning_meta.meta.centred import CentredClassifier
from lightning_meta.meta.transductive import TransductiveClassifier
from lightning_meta.nn.stateless import Tensors


class LaplacianShot(CentredClassifier, TransductiveClassifier):
    r"""Assign queries to the nearest prototypes, with a Laplacian term that favours equal labels of neighbours.

    Ziko, Dolz, Granger and Ben Ayed, Laplacian Regularized Few-Shot Learning (ICML 2020,
    https://arxiv.org/abs/2006.15486). With the features x of `SimpleShot`, centred by the training classes and of
    length 1, prototypes $m_n$ and squared distances $a_{jn} = \lVert x_j - m_n \rVert^2$, the soft assignments y of the
    queries reduce

    $$\sum_j y_j^\top a_j + \tfrac{\lambda}{2} \sum_{j, k} w_{jk} \lVert y_j - y_k \rVert^2$$

    with $w_{jk} = 1$ if query k is among the nearest neighbours of query j, else 0, by bound updates (algorithm 1):

    $$y_j \propto \exp(-a_j), \quad\text{then}\quad y_j \propto \exp\left(-a_j + \lambda \sum_k w_{jk} y_k\right)$$

    for `steps` updates. Before that, as in `BDCSPN`, queries are shifted to the mean of the support set and
    pseudo-labelled by the class mean $\bar x_n$ with the largest cosine. With $X_n$ the support examples of class n and
    the queries of that pseudo-label,

    $$m_n = \frac{1}{|X_n|} \sum_{i \in X_n} p_{in} x_i, \qquad
      p_{in} = \mathrm{softmax}_n(\varepsilon \cos(x_i, \bar x_n))$$

    The network is trained to classify all training classes, or taken from another run. Tasks may have any number of
    ways.

    **Transductive, and assumes balance** for the shift, as in `BDCSPN`; the Laplacian term does not assume it. A
    predictor refuses a single query.

    At a glance:
        - Shared: features θ of a classifier of all training classes, and their mean.
        - Own: prototypes and the assignment of all queries.
        - New task: embed, rectify prototypes, update assignments of neighbours.

    Run it:
        `python scripts/fit.py --config configs/laplacian_shot_glyphs.yaml`. To reuse the network of another run:
        `--model.backbone_weights runs/rfs_glyphs/0 --trainer.max_steps 0`. For the paper's data, use
        `configs/laplacian_shot_mini_imagenet.yaml` (results not reproduced here).

    Logged:
        - `train/loss`, `train/accuracy`: on the images of one step, among all training classes (chance level: 1 /
          number of classes).
        - `val/accuracy`, `test/accuracy`, `val/loss`, `test/loss`: averaged over few-shot tasks; not comparable with
          the training metrics.

        `MetaModule` explains the other metrics and what the intervals cover.

    Deviations:
        - The centre of the training classes is that of `SimpleShot`, over at most 2000 images.
        - In the prototypes, support examples count for their true class; in the authors' code for the predicted one.
        - The number of updates is always `steps`; the authors stop once the relative change of the bound is below 1e-6.
        - λ is fixed; the authors tune it in [0.1, 1.5] on validation classes, for each number of shots.

    Args:
        backbone: Feature extractor f.
        regularisation: Weight λ >= 0 of the Laplacian term.
        neighbours: Number of nearest neighbours of each query, at least 1; the authors' k = 3 includes the query.
        steps: Number of updates of the assignments, at least 0.
        scale: Scale ε > 0 of the cosines in the prototypes; 10 in the authors' code.
        **options: Options of `MetaModule`.
    """

    uses_query_set = "takes their classes to be as frequent as in the support set"
    one_query_refused = SHIFTED

    def __init__(
        self,
        backbone: nn.Module,
        regularisation: float = 0.7,
        neighbours: int = 2,
        steps: int = 20,
        scale: float = 10.0,
        **options: Any,
    ) -> None:
        super().__init__(backbone, **options)
        not_negative(regularisation=regularisation)
        whole(1, neighbours=neighbours)
        whole(0, steps=steps)
        positive(scale=scale)
        self.regularisation, self.neighbours, self.steps, self.scale = regularisation, neighbours, steps, scale

    def predict(self, state: Tensors, x: Tensor) -> Tensor:
        """Logits `(M, N)` of all queries."""
        query = shifted(self.scaled_features(x), state["features"])
        features, cosines, members = labelled(query, state["features"], state["members"])
        weights = (self.scale * cosines).softmax(-1) * members
        prototypes = weights.T @ features / members.sum(0).unsqueeze(-1)
        affinity = nearest_neighbours(query, self.neighbours)
        return bound_updates(squared_euclidean(query, prototypes), affinity, self.regularisation, self.steps)


@in_float32
def nearest_neighbours(query: Tensor, count: int) -> Tensor:
    """w `(M, M)` of queries `(M, F)`: w_jk = 1 if k is among the `count` nearest neighbours of j, else 0."""
    distances = squared_euclidean(query, query)
    itself = torch.eye(query.shape[0], dtype=torch.bool, device=query.device)
    # Padded, so that there are always enough columns, also if M is only known later, in an exported model.
    padded = F.pad(distances.masked_fill(itself, math.inf), (0, count), value=math.inf)
    nearest = padded.topk(count, largest=False).indices
    return torch.zeros_like(padded).scatter(1, nearest, 1.0)[:, : query.shape[0]].masked_fill(itself, 0.0)


@in_float32
def bound_updates(distances: Tensor, affinity: Tensor, regularisation: float, steps: int) -> Tensor:
    """The log-assignments, up to a constant per query (algorithm 1).

    Args:
        distances: Squared distances a `(M, N)` to the prototypes.
        affinity: w `(M, M)`.
        regularisation: λ.
        steps: Number of updates.

    Returns:
        Logits `(M, N)`.
    """
    logits = -distances
    for _ in range(steps):
        logits = regularisation * (affinity @ logits.softmax(-1)) - distances
    return logits
