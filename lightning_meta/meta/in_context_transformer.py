"""A transformer that learns a task in its context."""

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
    r"""Learn in context: a transformer reads the support set as tokens and predicts each query, with no weight adapted.

    Support tokens are $E [f_\theta(x_i), y_i]$, query tokens $E [f_\theta(x), 0]$, with a label y as N numbers that are
    0 or 1. In each layer all tokens attend to the support tokens, and to no other:

    $$z' = z + \mathrm{attention}(\mathrm{LN}(z), \mathrm{LN}(Z_S)), \qquad z'' = z' + \mathrm{MLP}(\mathrm{LN}(z'))$$

    so queries are predicted independently, and there are no positions: the order of the support set does not matter.
    This is the architecture of the diagonal transformer neural process, TNP-D (Nguyen and Grover, ICML 2022, section
    3.2; https://arxiv.org/abs/2207.04179) and of prior-fitted networks (Müller et al. 2022,
    https://arxiv.org/abs/2112.10510). In regression it predicts a normal distribution, and the loss is the negative log
    likelihood of the query set; in classification it is the cross-entropy. Any number of examples is served, and the
    way that it was trained with.

    At a glance:
        - Shared: an embedding θ and a transformer.
        - Own: the support tokens before each layer.
        - New task: one pass over the support set.

    Run it:
        `python scripts/fit.py --config configs/in_context_transformer_gaussian_process.yaml`, without a download.

    Logged:
        - `val/loss`, `test/loss`, `train/loss`: the loss of the query set, in nats. Of stored regression data it is
          that of the standardised target.
        - `val/mse`, `test/mse`, `train/mse` in regression, `val/accuracy`, `test/accuracy`, `train/accuracy` in
          classification: of the query set. There is no inner loop, so no `_step_<j>`.

        The rest, and what the intervals are over, is said at `MetaModule`. Predictions in regression are
        `(M, 2 outputs)`: the means of all dimensions, then the standard deviations, in the units of the targets.

    Deviations:
        - TNP-D embeds x and y together by a network; here f embeds x, and E is linear in f and y.
        - TNP-D normalises after each sum; here before, with a last normalisation, as in GPT-2, whose decoder is that of
          Garg et al. 2022 (https://arxiv.org/abs/2208.01066). It trains without a warm-up.
        - The standard deviation is $s_{\min} + (1 - s_{\min})\, \mathrm{softplus}(\rho)$, as in `CNP`.
        - How classes are numbered matters a little to a prediction; training draws the numbers anew in each episode.

    Args:
        backbone: The embedding f of inputs.
        width: Numbers in a token.
        layers: Of the transformer.
        heads: Of each layer's attention; it divides the width.
        hidden: Width of the hidden layer of each layer's MLP.
        least_deviation: s_min in [0, 1), of regression.
        batch_norm: Which statistics normalise an embedding in evaluation: `running`, kept over training (training
            embeds support and query of a task together); `inductive`, those of the support set; `transductive`, those
            of the support set for itself and of the query set for itself.
        **options: Those of `MetricLearner`.
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
        """Negative log likelihood and mean squared error in regression; cross-entropy and accuracy of classes."""
        if self.spec.task == "classification":
            return super().task
        return GaussianRegression(self.spec.outputs, self.spec.target_mean, self.spec.target_scale)

    def check_ways(self, ways: int) -> None:
        """Refuse another way than that of the labels in a token."""
        if ways != self.spec.outputs:
            raise UserError(
                f"ways: this {type(self).__name__} reads labels of {self.spec.outputs} ways and serves no other, got "
                f"{ways or 'differing ways'}; a metric method such as ProtoNet serves any"
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
        """Examples as tokens, `(M, width)`: features `(M, F)` and targets or zeros `(M, outputs)`."""
        tokens: Tensor = self.embed(torch.cat([features, y.to(features.dtype)], -1))
        return tokens


class _Block(nn.Module):
    """A layer: attention to the support tokens, and an MLP, both added to a token."""

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
