"""Prototypical networks."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from lightning_meta.batches import Examples
from lightning_meta.checks import positive
from lightning_meta.errors import one_of
from lightning_meta.functional.prototypes import class_means, cosine_similarity, squared_euclidean
from lightning_meta.meta.metric import BatchNorm, MetricLearner

Distance = Literal["squared_euclidean", "cosine"]


class ProtoNet(MetricLearner):
    r"""Classify by the nearest class mean in a learned embedding (Snell, Swersky and Zemel, NeurIPS 2017).

    $$p(y = n \mid x) = \mathrm{softmax}_n\left(-d(f(x), c_n) / \tau\right)$$

    (equation 2; https://arxiv.org/abs/1703.05175) with $c_n$ the mean embedding of class n's support examples (equation
    1) and d the squared Euclidean distance or the negative cosine. Tasks may have any number of ways, whatever the
    number in training.

    At a glance:
        - Shared: an embedding θ.
        - Own: prototypes of the support set.
        - New task: embed.

    Run it:
        `python scripts/fit.py --config configs/protonet_glyphs.yaml` without a download, or
        `configs/protonet_glyphs_pictures.yaml` with all figures; the paper's experiments are
        `configs/protonet_omniglot.yaml` and `configs/protonet_mini_imagenet.yaml`. Others are
        `configs/protonet_cifar_fs.yaml` and, for your own images, `configs/protonet_image_folder.yaml`.

    Logged:
        - `val/accuracy`, `test/accuracy`: accuracy on the queries, averaged over tasks of `test_ways` classes, with its
          `_ci95`.
        - `train/accuracy`, `train/loss`: on the episodes of one step, with `ways` classes each. With more classes than
          in validation, as the paper advises, accuracy is lower for this reason alone.

        `MetaModule` explains the other metrics and what the intervals cover.

    Deviations:
        - Equation 2: the temperature τ is an addition; the paper has τ = 1.
        - The running variance follows the biased variance of each task's batch, averaged over tasks; torch's layers, as
          in the reference code, follow the unbiased one, n / (n - 1) times as large, with n values per
          channel in a batch.
        - Section 3.1: the paper trains on 1200 characters of Omniglot, and its code retrains on them once validation
          has chosen the epoch; here the 172 validation characters are never trained on.
        - Section 3.3, zero-shot classification from descriptions of classes, is not implemented.

    Args:
        backbone: Embedding network f.
        distance: Distance d.
        temperature: Temperature τ > 0; with `cosine` choose a small one, such as 0.1, since cosines lie in [-1, 1].
        batch_norm: Statistics that normalise features in evaluation: `running`, averaged over training as in the
            reference code (where the support and query examples of a task form one batch); `inductive`, those of the
            support set; `transductive`, those of the support set for support examples and of the query set for queries.
        **options: Options of `MetaModule`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        distance: Distance = "squared_euclidean",
        temperature: float = 1.0,
        batch_norm: BatchNorm = "running",
        **options: Any,
    ) -> None:
        super().__init__(backbone, batch_norm, **options)
        one_of("distance", distance, Distance)
        positive(temperature=temperature)
        self.distance, self.temperature = distance, temperature

    def summarise(self, support: Examples, ways: int) -> dict[str, Tensor]:
        """Prototypes `(N, F)`."""
        return {"prototypes": class_means(support.x, support.y, ways)}

    def logits(self, summary: dict[str, Tensor], features: Tensor) -> Tensor:
        """Negative distances to the prototypes over τ, `(M, N)`."""
        if self.distance == "cosine":
            return cosine_similarity(features, summary["prototypes"]) / self.temperature
        return -squared_euclidean(features, summary["prototypes"]) / self.temperature
