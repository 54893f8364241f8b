"""The base class of methods that compare examples in a learned embedding."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from lightning_meta.batches import Examples
from lightning_meta.checks import switch
from lightning_meta.errors import UserError, one_of
from lightning_meta.functional.prototypes import unit_length
from lightning_meta.meta.base import MetaModule, Outcome
from lightning_meta.nn.normalization import Statistics, refuse_other_batch_norms, task_norms
from lightning_meta.nn.stateless import Tensors, own_buffers, stateless_call
from lightning_meta.overrides import CalledInPart

BatchNorm = Literal["running", "inductive", "transductive"]

# The origin of the normalisation statistics of support and query examples. If the query set is normalised by statistics
# of the support set, gradients flow through them: they are not constants.
_SUPPORT: dict[BatchNorm, Statistics] = {"running": "stored", "inductive": "batch", "transductive": "fused"}
_QUERY: dict[BatchNorm, Statistics] = {"running": "stored", "inductive": "stored", "transductive": "fused"}
_TRAINING = ("task_loss", "meta_batch_loss")


class MetricLearner(MetaModule, ABC):
    """A method that embeds examples by a backbone and compares their features; there is no inner loop.

    To add a method, implement `summarise` and `logits`, both on features. Which statistics batch normalisation uses is
    decided here; predictions are inductive unless `batch_norm` is "transductive".

    Args:
        backbone: The embedding f.
        batch_norm: Which statistics normalise an embedding in evaluation: `running`, kept over training as in the
            reference code of ProtoNet (training embeds support and query of a task together); `inductive`, those of
            the support set; `transductive`, those of the support set for itself and of the query set for itself.
        scale_features: Divide each feature vector by its length before features are compared, which helps where the
            backbone was trained for something else.
        **options: Options of `MetaModule`.
    """

    inner_gradients = False
    classifies_only = True
    called_in_part: ClassVar[Mapping[str, CalledInPart]] = {
        name: CalledInPart("in training", f"{instead} instead, or override task_loss as well", _TRAINING)
        for name, instead in (
            ("adapt", "override summarise"),
            ("predict", "override logits"),
            ("features", "change the backbone"),
        )
    }

    def __init__(
        self,
        backbone: nn.Module,
        batch_norm: BatchNorm = "running",
        scale_features: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(backbone, **options)
        one_of("batch_norm", batch_norm, BatchNorm)
        switch(scale_features=scale_features)
        self.batch_norm, self.scale_features = batch_norm, scale_features
        if batch_norm != "running":
            refuse_other_batch_norms(self.backbone)

    @abstractmethod
    def summarise(self, support: Examples, ways: int) -> dict[str, Tensor]:
        """Summarise a support set for predictions, for example by prototypes.

        Args:
            support: Support set: `x` are features `(M, F)`, `y` labels `(M,)` in [0, N).
            ways: Number of classes N.

        Returns:
            Tensors by name; the name "statistics" is reserved.
        """

    @abstractmethod
    def logits(self, summary: dict[str, Tensor], features: Tensor) -> Tensor:
        """Logits `(M, N)` of query features `(M, F)`, from the result of `summarise`."""

    def outer_loss(self, summary: dict[str, Tensor], query: Examples, outputs: Tensor) -> Tensor:
        """The loss of one training task, a scalar: the cross-entropy of the query set, unless a method adds to it.

        Args:
            summary: Result of `summarise`.
            query: Query set: `x` are features `(M, F)`, `y` labels `(M,)` in [0, N).
            outputs: Logits of the query set, `(M, N)`.
        """
        return self.task.loss(outputs, query.y)

    def adapt(self, support: Examples, ways: int) -> dict[str, Any]:
        """The result of `summarise`, and under "statistics" the normalisation statistics of the support set."""
        features, buffers = self._embed(support.x, _SUPPORT[self.batch_norm])
        own = own_buffers(self.backbone)
        statistics = {name: tensor for name, tensor in buffers.items() if name not in own}
        return {**self._summary(features, support.y, ways), "statistics": statistics}

    def predict(self, state: dict[str, Any], x: Tensor) -> Tensor:
        """Logits `(M, N)` of query inputs `(M, *input_shape)`."""
        return self.logits(state, self.features(state, x))

    def features(self, state: dict[str, Any], x: Tensor) -> Tensor:
        """The embedding `(M, F)` of query inputs `(M, *input_shape)`."""
        return self._embed(x, _QUERY[self.batch_norm], state["statistics"])[0]

    def task_loss(self, support: Examples, query: Examples, ways: int) -> Outcome:
        """The query loss; with running statistics, support and query are embedded as one batch."""
        state: dict[str, Any]
        if self.batch_norm == "running":
            features, buffers = self._embed(torch.cat([support.x, query.x]), "fused")
            embedded, features = features.split([len(support.x), len(query.x)])
            state = self._summary(embedded, support.y, ways)
        else:
            state = self.adapt(support, ways)
            features, buffers = self._embed(query.x, _QUERY[self.batch_norm], state["statistics"])
            own = own_buffers(self.backbone)
            buffers = {name: tensor for name, tensor in buffers.items() if name in own}
        outputs = self.logits(state, features)
        self.check_outputs(outputs, query, ways)
        loss = self.check_loss("outer_loss", self.outer_loss(state, Examples(features, query.y), outputs))
        return Outcome(loss, outputs, query.y, buffers)

    @property
    def transductive(self) -> bool:
        """Whether a prediction depends on the query set: also where a layer keeps no running statistics."""
        if self.uses_query_set:
            return True
        norms = task_norms(self.backbone).values()
        if self.batch_norm == "running":
            return any(norm.running_mean is None for norm in norms)
        return self.batch_norm == "transductive" and bool(norms)

    def _summary(self, features: Tensor, y: Tensor, ways: int) -> dict[str, Any]:
        """The result of `summarise`, whose type is checked."""
        summary = self.summarise(Examples(features, y), ways)
        if not isinstance(summary, Mapping):
            raise UserError(
                f"{type(self).__name__}.summarise returned {type(summary).__name__}; expected tensors by name, such "
                "as {'prototypes': ...}"
            )
        return dict(summary)

    def _embed(self, x: Tensor, statistics: Statistics, of_support: Tensors | None = None) -> tuple[Tensor, Tensors]:
        """Features, of length 1 with `scale_features`, and the buffers after the forward pass."""
        buffers = {**own_buffers(self.backbone), **(of_support or {})}
        features, after = stateless_call(self.backbone, buffers, x, statistics)
        return (unit_length(features) if self.scale_features else features), after
