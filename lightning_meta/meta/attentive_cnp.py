"""Attentive neural processes without their latent path."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from lightning_meta.batches import Examples
from lightning_meta.checks import whole
from lightning_meta.errors import UserError
from lightning_meta.functional.attention import attention
from lightning_meta.meta.cnp import CNP
from lightning_meta.nn.mlp import MLP
from lightning_meta.tasks import EpisodeSpec


class AttentiveCNP(CNP):
    r"""A conditional neural process in which each query attends to the support examples that are near it.

    This is the deterministic path of the attentive neural process of Kim et al. (ICLR 2019, section 3 and figure 2;
    https://arxiv.org/abs/1901.05761). Where `CNP` has one mean representation r, each query x has its own,

    $$r(x) = W_o\, \mathrm{attention}\left(W_q\, e(x),\; W_k\, e(x_{1:K}),\; W_v\, h_\theta(x_i, y_i)_{i=1}^K\right),
      \qquad (\mu, \rho) = g_\theta(x, r(x))$$

    with multi-head dot-product attention and a network e of the inputs. The standard deviation s and the loss are those
    of `CNP`. The mean over the support set in `CNP` loses the details of single examples, so `CNP` underfits the
    support set (section 1). There are no latent variables: targets are independent given the support set, and no
    functions can be sampled. The method is for regression, with any number of support examples.

    At a glance:
        - Shared: an encoder h, an embedding e of inputs, attention and a decoder g.
        - Own: keys and values of the support examples.
        - New task: encode the support set.

    Run it:
        `python scripts/fit.py --config configs/attentive_cnp_gaussian_process.yaml`, without a download.

    Logged:
        - `val/loss`, `test/loss`: the negative log-likelihood of a query target in nats, averaged over queries and
          tasks. For stored data it is that of the standardised target.
        - `train/loss`: the same over support and query examples together; training minimises it.
        - `val/mse`, `test/mse`, `train/mse`: the mean squared error of μ on the query set.

        `MetaModule` explains the other metrics and what the intervals cover. Predictions are `(M, 2 outputs)`: μ of all
        dimensions, then s, both in the units of the targets.

    Deviations:
        - Section 3: there is no latent path, so the loss is the negative log-likelihood and not a variational bound.
          Support examples do not attend to one another, as they may in figure 2.
        - Weights have torch's initialisation; the authors initialise the projections from a normal distribution.

    Args:
        backbone: The encoder h without its last layer. Its input is x and y concatenated, so it has as many inputs as
            x and y together. A linear layer of the same width follows.
        heads: Number of attention heads, a divisor of the number of features of the backbone.
        decoder: Widths of the hidden layers of g, whose input is r and x concatenated.
        least_deviation: The least standard deviation s_min, in [0, 1); 0.1 in the authors' code. Choose it no larger
            than the noise of the targets.
        **options: Options of `MetaModule`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        heads: int = 8,
        decoder: Sequence[int] = (128, 128),
        least_deviation: float = 0.1,
        **options: Any,
    ) -> None:
        super().__init__(backbone, decoder, least_deviation, **options)
        whole(1, heads=heads)
        self.heads = heads

    def build(self, episodes: EpisodeSpec) -> None:
        """Make e, the projections of the attention, and the layers of `CNP`."""
        super().build(episodes)
        width = self.feature_size
        if width % self.heads:
            raise UserError(f"heads: a divisor of the backbone's {width} features is needed, got {self.heads}")
        self.embedding = nn.Sequential(MLP(math.prod(episodes.input_shape), (width,)), nn.Linear(width, width))
        self.query, self.key, self.value, self.output = (nn.Linear(width, width, bias=False) for _ in range(4))

    def adapt(self, support: Examples, ways: int) -> dict[str, Tensor]:
        """Keys and values of the support examples, both `(K, F)`."""
        return {"keys": self.key(self.embedding(support.x)), "values": self.value(self.encode(support))}

    def predict(self, state: dict[str, Tensor], x: Tensor) -> Tensor:
        """μ and s, `(M, 2 outputs)`."""
        queries = self.query(self.embedding(x))
        return self.decode(self.output(attention(queries, state["keys"], state["values"], self.heads)), x)
