"""PT-MAP: optimal transport of the query set to class means."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_meta.batches import Examples
from lightning_meta.checks import positive, whole
from lightning_meta.functional.precision import in_float32
from lightning_meta.functional.prototypes import one_hot, squared_euclidean, unit_length
from lightning_meta.functional.repetition import repeated
from lightning_meta.functional.span import in_their_span
from lightning_meta.meta.transductive import TransductiveClassifier
from lightning_meta.nn.stateless import Tensors

EPSILON = 1e-6
"""ε of the power transform; also added to the probabilities before their logarithm."""
NEWTON_STEPS = 20
"""Newton steps per transport plan; each plan starts from the potentials of the previous one."""


class PTMAP(TransductiveClassifier):
    r"""Make features more Gaussian, then alternate between optimal transport of the queries and class means.

    Hu, Gripon and Pateux, Leveraging the Feature Distribution in Transfer-based Few-Shot Learning (ICANN 2021,
    https://arxiv.org/abs/2006.03806, algorithm 1), after their code (https://github.com/yhu01/PT-MAP). The power
    transform (PT, section 3.2) of non-negative features is

    $$\hat f = (f + \epsilon)^\beta / \lVert (f + \epsilon)^\beta \rVert$$

    and MAP (section 3.3) repeats, from the class means c of the support set,

    $$P = \arg\min_{P \in U} \sum_{jn} P_{jn} \lVert \hat f_j - c_n \rVert^2 - \tfrac{1}{\lambda} H(P), \qquad
      c_n \leftarrow c_n + \alpha \left(\frac{\sum_{i:\, y_i = n} \hat f_i + \sum_j P_{jn} \hat f_j}
      {K + \sum_j P_{jn}} - c_n\right)$$

    with U the plans whose rows sum to 1 and whose columns have equal sums. P are the class probabilities. The network
    is trained to classify all training classes, or taken from another run. Tasks may have any number of ways.

    **Transductive, and needs balance**: predictions depend on the whole query set, and classes are assumed to be
    equally frequent among the queries. If they are not, accuracy drops by up to 17 points (Veilleux et al. 2021). A
    single query would get equal probabilities for all classes, so a predictor refuses it.

    At a glance:
        - Shared: features θ of a classifier of all training classes.
        - Own: class means and the assignment of all queries.
        - New task: embed, alternate between transport and means.

    Run it:
        `python scripts/fit.py --config configs/pt_map_glyphs.yaml`. To reuse the network of another run:
        `--model.backbone_weights runs/rfs_glyphs/0 --trainer.max_steps 0`.

    Logged:
        - `train/loss`, `train/accuracy`: on the images of one step, among all training classes (chance level: 1 /
          number of classes).
        - `val/accuracy`, `test/accuracy`, `val/loss`, `test/loss`: averaged over few-shot tasks; not comparable with
          the training metrics.

        `MetaModule` explains the other metrics and what the intervals cover.

    Deviations:
        - As in the authors' code, and not in the paper, features of support and query sets are centred by the mean of
          their set and scaled to length 1 again.
        - Negative features are set to 0; networks that end with a ReLU have none.
        - The plan is found by Newton's method; the authors' Sinkhorn iteration stops at a change of 1e-6 or after 1000
          steps, which can be before convergence.
        - The paper's network is a wide residual network trained with rotations and mixup.

    Args:
        backbone: Feature extractor f.
        steps: Number of updates of the class means, at least 0.
        rate: Step size α > 0 of the class means.
        regularisation: λ > 0; with a larger one the plan is closer to 0 and 1. Much above 10, the 20 steps of Newton's
            method no longer balance the classes exactly.
        power: Exponent β > 0 of the power transform.
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
        """The transformed features `(K, F)` of the support set and its labels, one-hot `(K, N)`."""
        return {"features": self.transformed(support.x), "members": one_hot(support.y, ways)}

    def predict(self, state: Tensors, x: Tensor) -> Tensor:
        """Log-probabilities `(M, N)` of all queries; no probability is below 1e-6."""
        settings = self.steps, self.rate, self.regularisation
        support, query = in_their_span(state["features"], self.transformed(x))
        plan = transport_and_means(support, state["members"], query, *settings)
        # If classes are far apart, many plans are balanced up to rounding, so smaller probabilities are noise.
        return (plan + EPSILON).log()

    def transformed(self, x: Tensor) -> Tensor:
        """Features `(M, F)` of one set of inputs: power-transformed, centred by their mean, of length 1."""
        features = power_transform(self.features(x), self.power)
        return unit_length(features - features.mean(0))


@in_float32
def power_transform(features: Tensor, power: float) -> Tensor:
    """The power transform of features `(M, F)` (equation 1)."""
    return unit_length((features.clamp_min(0) + EPSILON).pow(power))


@in_float32
def transport_and_means(
    support: Tensor, members: Tensor, query: Tensor, steps: int, rate: float, regularisation: float
) -> Tensor:
    """MAP on transformed features of one task (algorithm 1).

    Args:
        support: Features `(K, F)`.
        members: Labels, one-hot `(K, N)`.
        query: Features `(M, F)`.
        steps: Number of updates of the means.
        rate: α.
        regularisation: λ.

    Returns:
        The last plan `(M, N)`; its rows sum to 1, its columns to M / N.
    """
    members = members.to(query.dtype)
    features = torch.cat([support, query])
    means = members.T @ support / members.sum(0).unsqueeze(-1)

    def plan_of(means: Tensor, potentials: Tensor) -> tuple[Tensor, Tensor]:
        scores = -regularisation * squared_euclidean(query, means)
        potentials = balanced(scores, potentials)
        return (scores + potentials).softmax(-1), potentials

    def step(state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        means, potentials = state
        plan, potentials = plan_of(means, potentials)
        weights = torch.cat([members, plan])
        return means + rate * (weights.T @ features / weights.sum(0).unsqueeze(-1) - means), potentials

    return plan_of(*repeated(step, steps, (means, query.new_zeros(members.shape[-1]))))[0]


def balanced(scores: Tensor, potentials: Tensor) -> Tensor:
    r"""The potentials that make the transport plan give every class the same number of queries.

    The plan is the softmax of scores plus potentials β, and β maximises the concave dual of the transport problem
    (Cuturi 2013, https://arxiv.org/abs/1306.0895):

    $$\sum_n \tfrac{M}{N} \beta_n - \sum_j \log \sum_n \exp(s_{jn} + \beta_n)$$

    Sinkhorn's iteration is coordinate ascent on it and needs thousands of steps if classes are far apart; Newton's
    method needs a few.

    Args:
        scores: s `(M, N)`.
        potentials: Initial β `(N,)`.

    Returns:
        β `(N,)`.
    """

    def step(potentials: Tensor) -> Tensor:
        plan = (scores + potentials).softmax(-1)
        # The Hessian is a graph Laplacian. Its diagonal is computed as a sum: p (1 - p) would lose digits for p near 1.
        coupling = plan.T @ plan
        coupling = coupling - coupling.diagonal().diag_embed()
        degrees = coupling.sum(-1)
        curvature = degrees.diag_embed() - coupling + _regular(degrees)
        share = scores.shape[0] / scores.shape[-1]
        change: Tensor = torch.linalg.solve_ex(curvature, share - plan.sum(0)).result
        # A damped step that cannot overshoot, since softmax is self-concordant; see `logistic_regression`.
        size = (change.amax(-1) - change.amin(-1)).clamp_min(torch.finfo(change.dtype).tiny)
        after: Tensor = potentials + size.log1p() / size * (change - change.mean())
        return after

    return repeated(step, NEWTON_STEPS, potentials)


def _regular(degrees: Tensor) -> Tensor:
    """The matrix to add to the Laplacian `(N, N)`, whose kernel holds constants and unconnected classes."""
    numbers = torch.finfo(degrees.dtype)
    ridge = 64 * numbers.eps * degrees.amax(-1) + numbers.tiny**0.5
    added: Tensor = ridge * torch.eye(len(degrees)).to(degrees) + degrees.mean() / len(degrees)
    return added
