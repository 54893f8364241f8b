"""Matching networks as a draft."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from lightning_meta import Examples, MetricLearner
from lightning_meta.functional import cosine_similarity


class MatchingNet(MetricLearner):
    """A query has the labels of the support examples that it attends to (Vinyals et al., NeurIPS 2016, equation 1)."""

    def summarise(self, support: Examples, ways: int) -> dict[str, Tensor]:
        return {"keys": support.x, "labels": F.one_hot(support.y, ways).to(support.x.dtype)}

    def logits(self, summary: dict[str, Tensor], features: Tensor) -> Tensor:
        attention = cosine_similarity(features, summary["keys"]).softmax(-1)
        return (attention @ summary["labels"]).log()
