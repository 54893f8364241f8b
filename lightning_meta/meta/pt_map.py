"""PT-MAP: optimal transport of the query set to class means."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_meta.batches import Examples
from lightning_meta.checks import positive, whole
from lightning_meta.functional.precision import in_float32
from lightning_meta.functional.prototypes import one_hot, squared_euclidean, unit_length
from lightning_meta.functional.span import in_their_span
from lightning_meta.meta.transductive import TransductiveClassifier
from lightning_meta.nn.stateless import Tensors

EPSILON = 1e-6
"""ε of the power transform, and what is added to probabilities."""
NEWTON_STEPS = 20
"""For a plan; each begins with the potentials of the one before."""


class PTMAP(TransductiveClassifier):
    r"""Make features more Gaussian, then alternate between an optimal transport of the queries and class means.

    Hu, Gripon and Pateux, Leveraging the Feature Distribution in Transfer-based Few-Shot Learning (ICANN 2021,
    https://arxiv.org/abs/2006.03806, algorithm 1), after their code (https://github.com/yhu01/PT-MAP). The power
    transform (PT, section 3.2) of features that are not negative is

    $$\hat f = (f + \epsilon)^\beta / \lVert (f + \epsilon)^\beta \rVert$$

    and MAP (section 3.3) repeats, from the class means c of the support set,

    $$P = \arg\min_{P \in U} \sum_{jn} P_{jn} \lVert \hat f_j - c_n \rVert^2 - \tfrac{1}{\lambda} H(P), \qquad
      c_n \leftarrow c_n + \alpha \left(\frac{\sum_{i:\, y_i = n} \hat f_i + \sum_j P_{jn} \hat f_j}
      {K + \sum_j P_{jn}} - c_n\right)$$

    with U the plans that give each query 1 and each class an equal share. P says how probable a class is. The network
    is trained to classify all training classes, or taken from another run. Tasks may have any number of ways.

    **Transductive, and needs balance**: predictions depend on the whole query set, and takes its classes to be equally
    frequent. Where they are not it loses much, by as much as 17 points (Veilleux et al. 2021). One query alone would be
    given every class with the same probability, so a predictor refuses it.

    At a glance:
        - Shared: features θ of a classifier of all training classes.
        - Own: class means and the assignment of all queries.
        - New task: embed, alternate between transport and means.

    Run it:
        `python scripts/fit.py --config configs/pt_map_glyphs.yaml`. To reuse the network of another run:
        `--model.backbone_weights runs/rfs_glyphs/0 --trainer.max_steps 0`.

    Logged:
        - `train/loss`, `train/accuracy`: on all images of one step, classified among all training classes; chance level
          is one over their number.
        - `val/accuracy`, `test/accuracy`, `val/loss`, `test/loss`: on few-shot tasks, averaged over tasks; not
          comparable with the training metrics. Without an inner loop there is no `_step_<j>`.

        `MetaModule` explains the other metrics and what the intervals cover.

    Deviations:
        - As in the authors' code, and not in the paper, features of support and query sets are centred by the mean of
          their set and scaled to length 1 again.
        - Negative features, which networks that end with ReLU do not have, become 0.
        - The plan is found by Newton's method; the authors' Sinkhorn iteration stops at a change of 1e-6 or after 1000
          steps, which can be before it has converged.
        - The network is no wide residual network trained with rotations and mixup.

    Args:
        backbone: Feature extractor f.
        steps: How often the class means are moved.
        rate: α > 0.
        regularisation: λ > 0; a larger one gives a plan that is closer to 0 and 1. Much above 10 the classes of a plan
            are no longer exactly balanced, since Newton's method takes 20 steps.
        power: β > 0.
        **options: Options of `MetaModule`.
    """

    uses_query_set = "takes all classes to be equally frequent among them"
    one_query_refused = f"{uses_query_set}: one alone would get every class with the same probability"

    def __init__(
        self,
        backbone: nn.Module,
        steps: int = 20,
        rate: float = 0.2,
        regularisation: float = 10.0,
        power: float = 0.5,
        **options: Any,
    ) -> None:
        super().__init__(backbone, **options)
        whole(0, steps=steps)
        positive(rate=rate, regularisation=regularisation, power=power)
        self.steps, self.rate, self.regularisation = steps, rate, regularisation
        self.power = power

    def adapt(self, support: Examples, ways: int) -> Tensors:
        """The transformed features of the support set, and which class each is of, one-hot `(M, N)`."""
        return {"features": self.transformed(support.x), "members": one_hot(support.y, ways)}

    def predict(self, state: Tensors, x: Tensor) -> Tensor:
        """The logarithms of the probabilities `(M, N)` of all queries, none below 1e-6."""
        settings = self.steps, self.rate, self.regularisation
        support, query = in_their_span(state["features"], self.transformed(x))
        plan = transport_and_means(support, state["members"], query, *settings)
        # Where classes lie far apart, many plans are balanced up to rounding: the logarithm of less would be noise.
        return (plan + EPSILON).log()

    def transformed(self, x: Tensor) -> Tensor:
        """The transformed features `(M, F)` of one set of inputs."""
        features = power_transform(self.features(x), self.power)
        return unit_length(features - features.mean(0))


@in_float32
def power_transform(features: Tensor, power: float) -> Tensor:
    """Features `(M, F)` to the power β, of length 1 (equation 1)."""
    return unit_length((features.clamp_min(0) + EPSILON).pow(power))


@in_float32
def transport_and_means(
    support: Tensor, members: Tensor, query: Tensor, steps: int, rate: float, regularisation: float
) -> Tensor:
    """MAP on transformed features of one task (algorithm 1).

    Args:
        support: `(K, F)`.
        members: One-hot `(K, N)`.
        query: `(M, F)`.
        steps: How often the means are moved.
        rate: α.
        regularisation: λ.

    Returns:
        The last plan, `(M, N)`; its rows add up to 1, its columns to M / N.
    """
    members = members.to(query.dtype)
    features = torch.cat([support, query])
    means = members.T @ support / members.sum(0).unsqueeze(-1)
    potentials = query.new_zeros(members.shape[-1])
    for step in range(steps + 1):
        scores = -regularisation * squared_euclidean(query, means)
        potentials = balanced(scores, potentials)
        plan = (scores + potentials).softmax(-1)
        if step < steps:
            weights = torch.cat([members, plan])
            means = means + rate * (weights.T @ features / weights.sum(0).unsqueeze(-1) - means)
    return plan


def balanced(scores: Tensor, potentials: Tensor) -> Tensor:
    r"""What to add to the scores of each class so that the plan gives all classes as many queries.

    The plan is the softmax of scores plus potentials β, and β the maximum of a concave function of N numbers, the dual
    of the transport problem (Cuturi 2013, https://arxiv.org/abs/1306.0895):

    $$\sum_n \tfrac{M}{N} \beta_n - \sum_j \log \sum_n \exp(s_{jn} + \beta_n)$$

    Sinkhorn's iteration climbs it a coordinate at a time, and needs thousands of steps where classes lie far apart;
    Newton's method needs a few.

    Args:
        scores: s `(M, N)`.
        potentials: β to begin with, `(N,)`.

    Returns:
        β `(N,)`.
    """
    share = len(scores) / scores.shape[-1]
    for _ in range(NEWTON_STEPS):
        plan = (scores + potentials).softmax(-1)
        # The Hessian is a graph's Laplacian: its diagonal as a sum, since differences of numbers near 1 would cancel.
        coupling = plan.T @ plan
        coupling = coupling - coupling.diagonal().diag_embed()
        degrees = coupling.sum(-1)
        curvature = degrees.diag_embed() - coupling + _regular(degrees)
        change = torch.linalg.solve_ex(curvature, share - plan.sum(0)).result
        # Softmax is self-concordant in the range of its logits' change, see `logistic_regression`: it never overshoots.
        size = (change.amax() - change.amin()).clamp_min(torch.finfo(change.dtype).tiny)
        potentials = potentials + size.log1p() / size * (change - change.mean())
    return potentials


def _regular(degrees: Tensor) -> Tensor:
    """What keeps the Laplacian `(N, N)` invertible: it sees neither a constant nor classes that no query is between."""
    numbers = torch.finfo(degrees.dtype)
    ridge = 64 * numbers.eps * degrees.amax() + numbers.tiny**0.5
    added: Tensor = ridge * torch.eye(len(degrees)).to(degrees) + degrees.mean() / len(degrees)
    return added
