"""Prototypical networks."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_meta.batches import Examples
from lightning_meta.errors import UserError, one_of
from lightning_meta.functional.prototypes import class_means, cosine_similarity, squared_euclidean
from lightning_meta.meta.base import MetaModule, Outcome
from lightning_meta.nn.normalization import Statistics
from lightning_meta.nn.stateless import Tensors, stateless_call

Distance = Literal["squared_euclidean", "cosine"]
BatchNorm = Literal["running", "inductive", "transductive"]

# Where support and query examples take their normalisation statistics from. Gradients flow through those of the
# support set where the query set is normalised by them, so there they are no constants.
_SUPPORT: dict[BatchNorm, Statistics] = {"running": "stored", "inductive": "batch", "transductive": "fused"}
_QUERY: dict[BatchNorm, Statistics] = {"running": "stored", "inductive": "stored", "transductive": "fused"}


class ProtoNet(MetaModule):
    r"""Classify by the nearest class mean in a learned embedding (Snell, Swersky and Zemel, NeurIPS 2017).

    $$p(y = n \mid x) = \mathrm{softmax}_n\left(-d(f(x), c_n) / \tau\right)$$

    (equation 2; https://arxiv.org/abs/1703.05175) with $c_n$ the mean embedding of class n's support examples
    (equation 1) and d the squared Euclidean distance, or minus the cosine. Any way is served, whatever the training way
    was.

    Run it:
        `python scripts/fit.py --config configs/protonet_glyphs.yaml` without a download, or
        `configs/protonet_glyphs_pictures.yaml` with every picture; the paper's experiments are
        `configs/protonet_omniglot.yaml` and `configs/protonet_mini_imagenet.yaml`; `configs/protonet_cifar_fs.yaml`,
        and your own images by `configs/protonet_image_folder.yaml`.

    Logged:
        - `val/accuracy`, `test/accuracy`: the share of right queries, the mean over tasks of `test_ways` classes, with
          its `_ci95`. There is no inner loop, so no `_step_<j>`.
        - `train/accuracy`, `train/loss`: of one step's episodes, of `ways` classes each. Where these are more, as the
          paper advises, the accuracy is lower than in validation for that alone.

        The rest, and what the intervals are over, is said at `MetaModule`.

    Deviations:
        - Equation 2: the temperature τ is an addition; 1 is the paper's.
        - The reference code's running variance: here it follows the variance that normalised a task's batch, averaged
          over tasks; torch's layers follow the unbiased one, larger by n / (n - 1) with n the positions in a batch.
        - Section 3.1: the paper trains on 1200 characters of Omniglot, as its code does once validation has chosen the
          epoch; here the 172 of them that are for validation are never trained on.
        - Section 3.3, classes that are described and have no examples (zero-shot), is not there.

    Args:
        backbone: The embedding f.
        distance: d.
        temperature: τ > 0; with `cosine` use a small one, such as 0.1, since cosines lie in [-1, 1].
        batch_norm: Which statistics normalise an embedding in evaluation: `running`, kept over training as in the
            reference code (training embeds support and query of a task together); `inductive`, those of the support
            set; `transductive`, those of the support set for itself and of the query set for itself.
        **options: Those of `MetaModule`.
    """

    inner_gradients = False
    classifies_only = True

    def __init__(
        self,
        backbone: nn.Module,
        distance: Distance = "squared_euclidean",
        temperature: float = 1.0,
        batch_norm: BatchNorm = "running",
        **options: Any,
    ) -> None:
        super().__init__(backbone, **options)
        one_of("distance", distance, Distance)
        one_of("batch_norm", batch_norm, BatchNorm)
        if temperature <= 0:
            raise UserError(f"temperature: a positive number is needed, got {temperature}")
        self.distance, self.temperature, self.batch_norm = distance, temperature, batch_norm

    def adapt(self, support: Examples, ways: int) -> dict[str, Any]:
        """Prototypes `(N, D)`, and the normalisation statistics of the support set."""
        features, statistics = self._embed(support.x, _SUPPORT[self.batch_norm])
        return {"prototypes": class_means(features, support.y, ways), "statistics": statistics}

    def predict(self, state: dict[str, Any], x: Tensor) -> Tensor:
        """Logits `(M, N)`: minus the distances to the prototypes."""
        return self._logits(self.features(state, x), state["prototypes"])

    def features(self, state: dict[str, Any], x: Tensor) -> Tensor:
        """The embedding `(M, D)` of query inputs `(M, *input_shape)`."""
        return self._embed(x, _QUERY[self.batch_norm], state["statistics"])[0]

    def task_loss(self, support: Examples, query: Examples, ways: int) -> Outcome:
        """The query loss; with running statistics, support and query are embedded as one batch."""
        if self.batch_norm != "running":
            return super().task_loss(support, query, ways)
        features, statistics = self._embed(torch.cat([support.x, query.x]), "fused")
        prototypes = class_means(features[: len(support.x)], support.y, ways)
        outputs = self._logits(features[len(support.x) :], prototypes)
        return Outcome(self.task.loss(outputs, query.y), outputs, query.y, statistics)

    def _embed(self, x: Tensor, statistics: Statistics, stored: Tensors | None = None) -> tuple[Tensor, Tensors]:
        buffers = dict(self.network.named_buffers())
        return stateless_call(self.network, {**buffers, **(stored or {})}, x, statistics)

    def _logits(self, features: Tensor, prototypes: Tensor) -> Tensor:
        if self.distance == "cosine":
            return cosine_similarity(features, prototypes) / self.temperature
        return -squared_euclidean(features, prototypes) / self.temperature
