"""Relation networks."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.batches import Examples
from lightning_meta.building import is_rebuilt
from lightning_meta.checks import whole
from lightning_meta.errors import UserError
from lightning_meta.functional.precision import at_least_float32
from lightning_meta.functional.prototypes import class_means, one_hot
from lightning_meta.meta.base import Outcome
from lightning_meta.meta.metric import BatchNorm, MetricLearner
from lightning_meta.nn.features import IMAGE_DIMS, shape_after
from lightning_meta.nn.frozen import layers_of
from lightning_meta.nn.normalization import TaskBatchNorm, statistics_from
from lightning_meta.tasks import EpisodeSpec


class RelationNet(MetricLearner):
    r"""Learn how to compare a query with a class: a network scores their concatenated features (Sung et al. 2018).

    $$r_n(x) = \sigma\left(g_\phi([c_n, f_\theta(x)])\right) \in (0, 1), \qquad
      L = \frac1N \sum_{n=1}^{N} \left(r_n(x) - \mathbb{1}[y = n]\right)^2$$

    with $c_n$ the mean feature of class n (equations 1 and 2, section 3.2; https://arxiv.org/abs/1711.06025). The loss
    is the mean of L over queries. Features are maps of C channels, concatenated along the channels; the relation module
    g has two blocks of a convolution, batch normalisation, ReLU and 2x2 max-pooling, then two linear layers. The
    prediction is the class with the largest score. Tasks may have any number of ways.

    At a glance:
        - Shared: an embedding θ and a relation module φ.
        - Own: prototypes of the support set.
        - New task: embed the support set.

    Run it:
        `python scripts/fit.py --config configs/relation_net_glyphs.yaml` without a download. For the paper's
        experiments, use `configs/relation_net_omniglot.yaml` and `configs/relation_net_mini_imagenet.yaml` (results not
        reproduced here).

    Logged:
        - `val/accuracy`, `test/accuracy`: accuracy on the queries, averaged over tasks of `test_ways` classes, with its
          `_ci95`. There is no inner loop, so no `_step_<j>`.
        - `train/accuracy`, `train/loss`: of one step's episodes, of `ways` classes each; the loss is L. `val/loss` and
          `test/loss` are the cross-entropy of the probabilities $r_n / \sum_m r_m$.

        `MetaModule` explains the other metrics and what the intervals cover. Predictions are log r, `(M, N)`.

    Deviations:
        - Section 3.2: the features of the K examples of a class are averaged, not summed, so that a trained model can
          be tested with other numbers of shots. At a fixed K the first layer of g absorbs the factor.
        - Section 3.2, equation 2: the loss is the mean of the squared errors, as in the authors' code, not their sum.
        - Section 3.4: all convolutions are padded. In the authors' code some are not: on mini-ImageNet their feature
          map is 19x19, that of `Conv4` 21x21, and the input of the linear layers of g is 3x3 there, 5x5 here. Weights
          have torch's initialisation, and running statistics torch's momentum of 0.1.

    Args:
        backbone: The embedding f. The paper's is `Conv4(halvings=2)`.
        channels: Number of channels C of the square map that the backbone flattens. By default that of its map, if the
            last of its stages flattens one, as in `Conv4`. Otherwise each feature is a channel of a 1x1 map: there is
            nothing to pool, and the convolutions are linear layers.
        width: Number of channels of the blocks of g.
        hidden: Width of the hidden linear layer of g.
        batch_norm: Statistics that normalise features in evaluation: `running`, averaged over training (where the
            support and query examples of a task form one batch); `inductive`, those of the support set; `transductive`,
            those of the support set for support examples and of the query set for queries. The relation module g is
            normalised by the pairs of a task in training, and by running statistics in evaluation.
        **options: Options of `MetricLearner`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        channels: int | None = None,
        width: int = 64,
        hidden: int = 8,
        batch_norm: BatchNorm = "running",
        **options: Any,
    ) -> None:
        super().__init__(backbone, batch_norm, **options)
        whole(1, width=width, hidden=hidden)
        if channels is not None:
            whole(1, channels=channels)
        self.channels, self.width, self.hidden = channels, width, hidden

    def build(self, episodes: EpisodeSpec) -> None:
        """Make the relation module g for pairs of maps `(2 C, side, side)`."""
        channels = self.channels or self._channels_of_map(episodes)
        self.update_init_args(channels=channels)
        side = math.isqrt(self.feature_size // channels)
        if channels * side**2 != self.feature_size:
            raise UserError(
                f"channels: the backbone's {self.feature_size} features are not square maps of {channels} channels; "
                "give the width of its last block, and square images"
            )
        self.map_shape = (channels, side, side)
        layers: list[nn.Module] = []
        for inputs in (2 * channels, self.width):
            kernel = 3 if side > 1 else 1
            layers += [nn.Conv2d(inputs, self.width, kernel, padding=kernel // 2), TaskBatchNorm(self.width), nn.ReLU()]
            if side > 1:
                layers.append(nn.MaxPool2d(2))
                side //= 2
        last = [nn.Linear(self.width * side**2, self.hidden), nn.ReLU(), nn.Linear(self.hidden, 1)]
        self.relation = nn.Sequential(*layers, nn.Flatten(), *last)

    def _channels_of_map(self, episodes: EpisodeSpec) -> int:
        """The channels of the square map that the backbone flattens; all features if it flattens none."""
        layers = layers_of(self.backbone)
        # A checkpoint without the number was written by a version in which each feature was a channel by default.
        if is_rebuilt() or not layers or not isinstance(layers[-1], nn.Flatten):
            return self.feature_size
        shape, dtype = self.backbone_input_shape(episodes), episodes.input_dtype
        before = shape_after(nn.Sequential(*layers[:-1]), shape, input_dtype=dtype)
        return before[0] if len(before) == IMAGE_DIMS and before[1] == before[2] else self.feature_size

    @property
    def network(self) -> nn.Module:
        """The whole module, since the relation module has batch statistics as well."""
        return self

    def summarise(self, support: Examples, ways: int) -> dict[str, Tensor]:
        """The prototypes, `(N, F)`."""
        return {"prototypes": class_means(support.x, support.y, ways)}

    def logits(self, summary: dict[str, Tensor], features: Tensor) -> Tensor:
        """The logarithms of the relation scores, `(M, N)`."""
        prototypes = summary["prototypes"].to(features.dtype).unflatten(-1, self.map_shape)
        queries = features.unflatten(-1, self.map_shape)
        many, ways = queries.shape[0], prototypes.shape[0]
        pairs = torch.cat(
            [
                prototypes.unsqueeze(0).expand(many, -1, -1, -1, -1),
                queries.unsqueeze(1).expand(-1, ways, -1, -1, -1),
            ],
            2,
        )
        scores = self.relation(pairs.flatten(0, 1)).view(many, ways)
        return F.logsigmoid(at_least_float32(scores))

    def outer_loss(self, summary: dict[str, Tensor], query: Examples, outputs: Tensor) -> Tensor:
        """The mean squared error of the relation scores; targets are 1 for the class of the query and 0 for others."""
        scores = outputs.exp()
        return F.mse_loss(scores, one_hot(query.y, outputs.shape[-1]).to(scores.dtype))

    def predict(self, state: dict[str, Any], x: Tensor) -> Tensor:
        """The logarithms of the relation scores of query inputs `(M, *input_shape)`, `(M, N)`."""
        with statistics_from(self.relation, "stored"):
            return super().predict(state, x)

    def task_loss(self, support: Examples, query: Examples, ways: int) -> Outcome:
        """The loss of one task, with the relation module normalised by the pairs of the task."""
        outcome = super().task_loss(support, query, ways)
        return outcome._replace(buffers={f"backbone.{name}": tensor for name, tensor in outcome.buffers.items()})
