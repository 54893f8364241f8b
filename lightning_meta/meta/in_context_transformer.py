"""A transformer that learns a task from its context."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_meta.batches import Examples
from lightning_meta.checks import below_one, whole
from lightning_meta.errors import UserError
from lightning_meta.functional.attention import attention
from lightning_meta.functional.prototypes import one_hot
from lightning_meta.meta.metric import BatchNorm, MetricLearner
from lightning_meta.tasks import EpisodeSpec, GaussianRegression, Task
from lightning_meta.tasks.gaussian import mean_and_deviation


class InContextTransformer(MetricLearner):
    r"""Learn in context: a transformer reads the support set as tokens and predicts queries without adapting weights.

    Support tokens are $E [f_\theta(x_i), y_i]$ and query tokens $E [f_\theta(x), 0]$; class labels are one-hot, `(N,)`.
    In each layer all tokens attend to the support tokens only:

    $$z' = z + \mathrm{attention}(\mathrm{LN}(z), \mathrm{LN}(Z_S)), \qquad z'' = z' + \mathrm{MLP}(\mathrm{LN}(z'))$$

    so queries are predicted independently. There are no positions: the order of the support set does not matter. This
    is the architecture of the diagonal transformer neural process, TNP-D (Nguyen and Grover, ICML 2022, section
    3.2; https://arxiv.org/abs/2207.04179) and of prior-fitted networks (Müller et al. 2022,
    https://arxiv.org/abs/2112.10510). In regression the prediction is a normal distribution and the loss the negative
    log-likelihood of the query set; in classification the loss is the cross-entropy. The support set may have any
    number of examples; the number of ways is that of training.

    At a glance:
        - Shared: an embedding θ and a transformer.
        - Own: the support tokens before each layer.
        - New task: one forward pass over the support set.

    Run it:
        `python scripts/fit.py --config configs/in_context_transformer_gaussian_process.yaml`, without a download.

    Logged:
        - `val/loss`, `test/loss`, `train/loss`: the loss on the query set in nats. For stored regression data it is
          that of the standardised target.
        - `val/mse`, `test/mse`, `train/mse` in regression, and `val/accuracy`, `test/accuracy`, `train/accuracy` in
          classification, on the query set. There is no inner loop, so no `_step_<j>`.

        `MetaModule` explains the other metrics and what the intervals cover. Predictions in regression are
        `(M, 2 outputs)`: the means of all dimensions, then the standard deviations, in the units of the targets.

    Deviations:
        - TNP-D embeds x and y together by a network; here f embeds x, and E is linear in f(x) and y.
        - TNP-D normalises after each residual sum. Here layers are normalised before attention and MLP, with a final
          normalisation, as in GPT-2, which Garg et al. 2022 use (https://arxiv.org/abs/2208.01066). There is no
          learning rate warm-up.
        - The standard deviation is $s_{\min} + (1 - s_{\min})\, \mathrm{softplus}(\rho)$, as in `CNP`.
        - The numbering of the classes changes a prediction a little; training draws a new numbering in each episode.

    Args:
        backbone: Embedding network f of the inputs.
        width: Size of a token.
        layers: Number of transformer layers.
        heads: Number of attention heads per layer, a divisor of the width.
        hidden: Width of the hidden layer of each MLP.
        least_deviation: The least standard deviation s_min in regression, in [0, 1).
        batch_norm: Statistics that normalise features in evaluation: `running`, averaged over training (where the
            support and query examples of a task form one batch); `inductive`, those of the support set; `transductive`,
            those of the support set for support examples and of the query set for queries.
        **options: Options of `MetricLearner`.
    """

    classifies_only = False

    def __init__(
        self,
        backbone: nn.Module,
        width: int = 64,
        layers: int = 6,
        heads: int = 4,
        hidden: int = 128,
        least_deviation: float = 0.01,
        batch_norm: BatchNorm = "running",
        **options: Any,
    ) -> None:
        super().__init__(backbone, batch_norm, **options)
        whole(1, width=width, layers=layers, heads=heads, hidden=hidden)
        below_one(least_deviation=least_deviation)
        if width % heads:
            raise UserError(f"heads: a divisor of the width {width} is needed, got {heads}")
        self.width, self.layers, self.heads, self.hidden = width, layers, heads, hidden
        self.least_deviation = least_deviation

    def build(self, episodes: EpisodeSpec) -> None:
        """Make the transformer."""
        self.embed = nn.Linear(self.feature_size + episodes.outputs, self.width)
        self.blocks = nn.ModuleList(_Block(self.width, self.heads, self.hidden) for _ in range(self.layers))
        self.norm = nn.LayerNorm(self.width)
        self.head = nn.Linear(self.width, episodes.outputs * (2 if episodes.task == "regression" else 1))

    @property
    def task(self) -> Task:
        """Negative log-likelihood and mean squared error in regression; cross-entropy and accuracy for classes."""
        if self.spec.task == "classification":
            return super().task
        return GaussianRegression(self.spec.outputs, self.spec.target_mean, self.spec.target_scale)

    def check_ways(self, ways: int) -> None:
        """Refuse a number of ways other than that of the labels in a token."""
        if ways != self.spec.outputs:
            raise UserError(
                f"ways: this {type(self).__name__} was trained with {self.spec.outputs} ways and supports no other "
                f"number, got {ways or 'differing ways'}; a metric method such as ProtoNet supports any"
            )

    def summarise(self, support: Examples, ways: int) -> dict[str, Tensor]:
        """The normalised support tokens before each layer, `(K, width)`."""
        tokens = self.tokens(support.x, one_hot(support.y, ways) if ways else support.y)
        summary = {}
        for number, block in enumerate(self.blocks):
            assert isinstance(block, _Block)
            summary[f"layer_{number}"] = context = block.norm(tokens)
            tokens = block(tokens, context)
        return summary

    def logits(self, summary: dict[str, Tensor], features: Tensor) -> Tensor:
        """Logits `(M, N)`, or means and standard deviations `(M, 2 outputs)`."""
        tokens = self.tokens(features, features.new_zeros(features.shape[0], self.spec.outputs))
        for number, block in enumerate(self.blocks):
            tokens = block(tokens, summary[f"layer_{number}"])
        outputs: Tensor = self.head(self.norm(tokens))
        if self.spec.task == "classification":
            return outputs
        return mean_and_deviation(outputs, self.least_deviation)

    def tokens(self, features: Tensor, y: Tensor) -> Tensor:
        """Tokens `(M, width)` of features `(M, F)` with targets, or with zeros for queries, `(M, outputs)`."""
        tokens: Tensor = self.embed(torch.cat([features, y.to(features.dtype)], -1))
        return tokens


class _Block(nn.Module):
    """A transformer layer: attention to the support tokens and an MLP, each with a residual connection."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))
        self.norm, self.norm_of_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        queries = self.query(self.norm(tokens))
        tokens = tokens + self.output(attention(queries, self.key(context), self.value(context), self.heads))
        after: Tensor = tokens + self.mlp(self.norm_of_mlp(tokens))
        return after
