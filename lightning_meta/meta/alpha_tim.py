"""α-TIM: transductive information maximisation that tolerates unbalanced queries."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_meta.checks import not_negative, positive, whole
from lightning_meta.functional.inner_optimizers import InnerAdam
from lightning_meta.functional.precision import in_float32
from lightning_meta.functional.prototypes import squared_euclidean
from lightning_meta.functional.repetition import repeated
from lightning_meta.meta.transductive import TransductiveClassifier
from lightning_meta.nn.stateless import Tensors


class AlphaTIM(TransductiveClassifier):
    r"""TIM with α-entropies, which penalise unequal class frequencies less, for unbalanced query sets.

    Veilleux, Boudiaf, Piantanida and Ben Ayed, Realistic Evaluation of Transductive Few-Shot Learning (NeurIPS 2021,
    https://arxiv.org/abs/2204.11181, section 4). Predictions p are those of `TIM`, on features of length 1, and for
    each task the class weights minimise

    $$\lambda\, \mathrm{CE}(\text{support}) - H_\alpha(\bar p) + \mu\, \tfrac{1}{M} \sum_j H_\alpha(p_j), \qquad
      H_\alpha(p) = \tfrac{1}{\alpha - 1} \left(1 - \sum_n p_n^\alpha\right)$$

    over the M queries j, by Adam from the class means of the support set. The α-entropies of Tsallis become Shannon's
    as α approaches 1, where the loss is that of `TIM`; with a larger α the marginal entropy is flatter around equal
    frequencies. The network is trained to classify all training classes, or taken from another run. Tasks may have any
    number of ways.

    **Transductive**: predictions depend on the whole query set. Equal class frequencies are still favoured, but less
    than by `TIM`. A single query is pulled towards equal probabilities.

    At a glance:
        - Shared: features θ of a classifier of all training classes.
        - Own: class weights, moved by support and query set.
        - New task: embed, adapt the weights by gradient steps.

    Run it:
        `python scripts/fit.py --config configs/alpha_tim_glyphs.yaml`. To reuse the network of another run:
        `--model.backbone_weights runs/rfs_glyphs/0 --trainer.max_steps 0`. For the paper's data, use
        `configs/alpha_tim_mini_imagenet.yaml` (results not reproduced here).

    Logged:
        - `train/loss`, `train/accuracy`: on the images of one step, among all training classes (chance level: 1 /
          number of classes).
        - `val/accuracy`, `test/accuracy`, `val/loss`, `test/loss`: averaged over few-shot tasks; not comparable with
          the training metrics.

        `MetaModule` explains the other metrics and what the intervals cover.

    Deviations:
        - α is the same for any number of shots; the authors tuned it on validation classes to 2 for one shot and 7 for
          five or more. The cross-entropy is Shannon's, as in their code.
        - In the entropies, probabilities are clipped at 1e-12; the authors add 1e-12.

    Args:
        backbone: Feature extractor f.
        steps: Number of Adam steps, at least 0.
        step_size: Learning rate of Adam, > 0.
        alpha: Order α > 0 of the entropies; 1 is Shannon's entropy. The authors use 7 for five shots.
        temperature: Temperature τ > 0.
        support_weight: Weight λ > 0 of the cross-entropy of the support set.
        entropy_weight: Weight μ >= 0 of the conditional entropy.
        **options: Options of `MetaModule`.
    """

    uses_query_set = "draws the classes towards equal frequencies among them"

    def __init__(
        self,
        backbone: nn.Module,
        steps: int = 1000,
        step_size: float = 0.0001,
        alpha: float = 2.0,
        temperature: float = 15.0,
        support_weight: float = 1.0,
        entropy_weight: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(backbone, **options)
        whole(0, steps=steps)
        positive(step_size=step_size, alpha=alpha, temperature=temperature, support_weight=support_weight)
        not_negative(entropy_weight=entropy_weight)
        self.steps, self.step_size, self.alpha, self.temperature = steps, step_size, alpha, temperature
        self.support_weight, self.entropy_weight = support_weight, entropy_weight

    def predict(self, state: Tensors, x: Tensor) -> Tensor:
        """Logits `(M, N)` of all queries."""
        support, query = state["features"], self.scaled_features(x)
        members = state["members"].to(query.dtype)
        weights, optimizer = members.T @ support / members.sum(0).unsqueeze(-1), InnerAdam()
        settings = self.alpha, self.temperature, self.support_weight, self.entropy_weight

        def step(state: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
            weights, moments = state
            gradient = loss_gradient(weights, support, members, query, *settings)
            direction, moments = optimizer.update({"weights": gradient}, moments, {"weights": weights})
            return weights - self.step_size * direction["weights"], moments

        weights, _ = repeated(step, self.steps, (weights, optimizer.init({"weights": weights})))
        return -self.temperature / 2 * squared_euclidean(query, weights)


@in_float32
def loss_gradient(
    weights: Tensor,
    support: Tensor,
    members: Tensor,
    query: Tensor,
    alpha: float,
    temperature: float,
    support_weight: float,
    entropy_weight: float,
) -> Tensor:
    """The gradient of the loss of one task with respect to its class weights, in closed form.

    Args:
        weights: Class weights w `(N, F)`.
        support: Features `(K, F)`.
        members: Labels, one-hot `(K, N)`, of the dtype of the features.
        query: Features `(M, F)`.
        alpha: α.
        temperature: τ.
        support_weight: λ.
        entropy_weight: μ.

    Returns:
        The gradient `(N, F)`.
    """
    features = torch.cat([support, query])
    p_support, p = (
        (-temperature / 2 * squared_euclidean(features, weights)).softmax(-1).split([support.shape[0], query.shape[0]])
    )
    # Derivative of the entropies in the probabilities, up to a constant, which cancels in the softmax's Jacobian.
    in_p = alpha * (_log(p.mean(0), alpha) - entropy_weight * _log(p, alpha)) / query.shape[0]
    in_logits = torch.cat(
        [support_weight * (p_support - members) / len(support), p * (in_p - (p * in_p).sum(-1, keepdim=True))]
    )
    return temperature * (in_logits.T @ features - in_logits.sum(0).unsqueeze(-1) * weights)


def _log(p: Tensor, alpha: float) -> Tensor:
    """The logarithm of Tsallis: (p^(α-1) - 1) / (α - 1), which is the natural logarithm for α = 1."""
    log = p.clamp_min(1e-12).log()
    return log if alpha == 1 else ((alpha - 1) * log).expm1() / (alpha - 1)
