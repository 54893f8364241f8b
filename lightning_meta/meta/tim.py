"""Transductive information maximisation."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lightning_meta.checks import not_negative, positive, whole
from lightning_meta.functional.precision import in_float32
from lightning_meta.functional.prototypes import squared_euclidean
from lightning_meta.functional.repetition import repeated
from lightning_meta.functional.span import in_their_span
from lightning_meta.meta.transductive import TransductiveClassifier
from lightning_meta.nn.stateless import Tensors


class TIM(TransductiveClassifier):
    r"""Adapt class weights to maximise the mutual information between the queries and their predicted classes.

    Boudiaf, Masud, Rony, Dolz, Piantanida and Ben Ayed, Transductive Information Maximization For Few-Shot Learning
    (NeurIPS 2020, https://arxiv.org/abs/2008.11297). With features z of length 1 and weights w, from the class means of
    the support set,

    $$p_{in} \propto \exp\left(-\tfrac{\tau}{2} \lVert w_n - z_i \rVert^2\right)$$

    (equation 1), and for each task the weights minimise

    $$\lambda\, \mathrm{CE}(\text{support}) - H(\bar p) + \alpha\, \tfrac{1}{M} \sum_j H(p_j)$$

    over the M queries j (equations 2 and 3), solved by the alternating direction method of section 2.3 (TIM-ADM). The
    network is trained to classify all training classes, or taken from another run. Tasks may have any number of ways.

    **Transductive, and assumes balance**: predictions depend on the whole query set, and the marginal entropy H favours
    equal class frequencies among the queries. If they are unequal, accuracy drops (Veilleux et al. 2021). A single
    query is pulled towards equal probabilities.

    At a glance:
        - Shared: features θ of a classifier of all training classes.
        - Own: class weights, moved by support and query set.
        - New task: embed, alternate between assignments and weights.

    Run it:
        `python scripts/fit.py --config configs/tim_glyphs.yaml`. To reuse the network of another run:
        `--model.backbone_weights runs/rfs_glyphs/0 --trainer.max_steps 0`.

    Logged:
        - `train/loss`, `train/accuracy`: on the images of one step, among all training classes (chance level: 1 /
          number of classes).
        - `val/accuracy`, `test/accuracy`, `val/loss`, `test/loss`: averaged over few-shot tasks; not comparable with
          the training metrics.

        `MetaModule` explains the other metrics and what the intervals cover.

    Deviations:
        - TIM-GD, gradient descent on the same loss, is not implemented; in the paper both reach the same accuracies.
        - No label smoothing in training.
        - The updates are those of the paper's code. Where classes differ little, they overshoot after some dozens of
          steps and then amplify rounding. With the features of an untrained network (cosines above 0.9 between all
          examples), another order of the queries changed a probability by more than 0.01 in 48 of 60 tasks, at most by
          0.46, and 1.8 % of the labels; float64 does not prevent it. In 20 tasks with a network trained for 300 steps,
          the median was 2e-6, the maximum 0.04, and no label changed. Fewer `steps` avoid this: with 60, differences
          were below 1e-5 in 4 tasks of the untrained network.
        - An exported model does not reduce features to their span, so that its results round differently, with the same
          consequences: up to 0.41 in 4 tasks of the untrained network.

    Args:
        backbone: Feature extractor f.
        steps: Number of updates of assignments and weights, at least 0.
        temperature: Temperature τ > 0.
        support_weight: Weight λ > 0 of the cross-entropy of the support set.
        entropy_weight: Weight α >= 0 of the conditional entropy.
        **options: Options of `MetaModule`.
    """

    uses_query_set = "draws the classes towards equal frequencies among them"

    def __init__(
        self,
        backbone: nn.Module,
        steps: int = 150,
        temperature: float = 15.0,
        support_weight: float = 0.1,
        entropy_weight: float = 0.1,
        **options: Any,
    ) -> None:
        super().__init__(backbone, **options)
        whole(0, steps=steps)
        positive(temperature=temperature, support_weight=support_weight)
        not_negative(entropy_weight=entropy_weight)
        self.steps, self.temperature = steps, temperature
        self.support_weight, self.entropy_weight = support_weight, entropy_weight

    def predict(self, state: Tensors, x: Tensor) -> Tensor:
        """Logits `(M, N)` of all queries."""
        support, query = in_their_span(state["features"], self.scaled_features(x))
        settings = self.steps, self.temperature, self.support_weight, self.entropy_weight
        weights = informative_weights(support, state["members"], query, *settings)
        return -self.temperature / 2 * squared_euclidean(query, weights)


@in_float32
def informative_weights(
    support: Tensor,
    members: Tensor,
    query: Tensor,
    steps: int,
    temperature: float,
    support_weight: float,
    entropy_weight: float,
) -> Tensor:
    """Class weights of one task by TIM-ADM (propositions 1 and 2).

    Args:
        support: Features `(K, F)` of length 1.
        members: Labels, one-hot `(K, N)`.
        query: Features `(M, F)` of length 1.
        steps: Number of updates.
        temperature: τ.
        support_weight: λ.
        entropy_weight: α.

    Returns:
        Class weights w `(N, F)`.
    """
    members = members.to(query.dtype)
    weights = members.T @ support / members.sum(0).unsqueeze(-1)
    share = support_weight / (1 + entropy_weight) / len(support)  # weight of a support example; a query has 1 / M
    of_support, sizes, count = share * (members.T @ support), share * members.sum(0), query.shape[0]

    def step(weights: Tensor) -> Tensor:
        logits = -temperature / 2 * squared_euclidean(query, weights)
        assigned = assignments(logits.log_softmax(-1), entropy_weight)
        p_support = (-temperature / 2 * squared_euclidean(support, weights)).softmax(-1)
        p_query = logits.softmax(-1)
        # Proposition 2: the stationary point of the loss in w, with the predictions fixed at the present weights.
        numerator = of_support + assigned.T @ query / count
        numerator += share * _repulsion(p_support, support, weights) + _repulsion(p_query, query, weights) / count
        return numerator / (sizes + assigned.mean(0)).unsqueeze(-1)

    return repeated(step, steps, weights)


def assignments(log_p: Tensor, entropy_weight: float) -> Tensor:
    r"""The auxiliary assignments q of the queries (proposition 1).

    $$q_{jn} \propto p_{jn}^{1 + \alpha} / (\sum_i p_{in}^{1 + \alpha})^{1/2}$$

    Args:
        log_p: Log-probabilities `(M, N)` of the queries.
        entropy_weight: α.

    Returns:
        Assignments `(M, N)`; each row sums to 1.
    """
    sharper = (1 + entropy_weight) * log_p
    return (sharper - sharper.logsumexp(0) / 2).softmax(-1)


def _repulsion(p: Tensor, features: Tensor, weights: Tensor) -> Tensor:
    """The sum over examples of p (w - z), `(N, F)`."""
    return p.sum(0).unsqueeze(-1) * weights - p.T @ features
