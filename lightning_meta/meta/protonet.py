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
from lightning_meta.nn.stateless import Tensors, stateless_call, tensors_of

Distance = Literal["squared_euclidean", "cosine"]
BatchNorm = Literal["running", "inductive", "transductive"]

# Where support and query examples take their normalisation statistics from. Gradients flow through those of the
# support set where the query set is normalised by them, so there they are no constants.
_SUPPORT: dict[BatchNorm, Statistics] = {"running": "stored", "inductive": "batch", "transductive": "fused"}
_QUERY: dict[BatchNorm, Statistics] = {"running": "stored", "inductive": "stored", "transductive": "fused"}


class ProtoNet(MetaModule):
    r"""Classify by the nearest class mean in a learned embedding (Snell, Swersky and Zemel, NeurIPS 2017).

    $$p(y = n \mid x) = \mathrm{softmax}_n\left(-d(f(x), c_n) / \tau\right)$$

    with $c_n$ the mean embedding of class n's support examples (equation 1) and d the squared Euclidean distance
    (equation 2), or minus the cosine. Any way is served, whatever the training way was.

    Deviations from the reference code: the running variance follows the variance that normalised a task's batch,
    averaged over tasks; torch's layers follow the unbiased one, larger by n / (n - 1) with n the positions in a batch.

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
        parameters, buffers = tensors_of(self.network)
        features, tensors = stateless_call(self.network, {**parameters, **buffers, **(stored or {})}, x, statistics)
        return features, {name: tensors[name] for name in buffers}

    def _logits(self, features: Tensor, prototypes: Tensor) -> Tensor:
        if self.distance == "cosine":
            return cosine_similarity(features, prototypes) / self.temperature
        return -squared_euclidean(features, prototypes) / self.temperature
