"""Conditional neural processes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_meta.batches import Examples
from lightning_meta.checks import below_one, widths
from lightning_meta.errors import UserError
from lightning_meta.functional.precision import at_least_float32
from lightning_meta.meta.base import MetaModule, Outcome
from lightning_meta.nn.mlp import MLP
from lightning_meta.nn.normalization import task_norms
from lightning_meta.nn.stateless import own_buffers, stateless_call
from lightning_meta.tasks import EpisodeSpec, GaussianRegression, Task
from lightning_meta.tasks.gaussian import mean_and_deviation


class CNP(MetaModule):
    r"""Predict a normal distribution from the mean representation of the support set (Garnelo et al., ICML 2018).

    $$r = \frac1K \sum_{i=1}^{K} h_\theta(x_i, y_i), \qquad (\mu, \rho) = g_\theta(x, r), \qquad
      s = s_{\min} + (1 - s_{\min})\, \mathrm{softplus}(\rho)$$

    and the loss is the mean of $-\log N(y; \mu, s^2)$ over support and query examples (equations 1 to 3, section 2.2;
    https://arxiv.org/abs/1807.01613). The method is a black box: a network learns the task, without gradient steps.
    Predictions do not depend on the order of the support set. The method is for regression, with any number of support
    examples.

    At a glance:
        - Shared: an encoder h and a decoder g.
        - Own: r, the mean representation of the support set.
        - New task: encode and average.

    Run it:
        `python scripts/fit.py --config configs/cnp_gaussian_process.yaml`, without a download.

    Logged:
        - `val/loss`, `test/loss`: the negative log-likelihood of a query target in nats, averaged over queries and
          tasks. For stored data it is that of the standardised target.
        - `train/loss`: the same over support and query examples together; training minimises it.
        - `val/mse`, `test/mse`, `train/mse`: the mean squared error of μ on the query set.

        `MetaModule` explains the other metrics and what the intervals cover. Predictions are `(M, 2 outputs)`: μ of all
        dimensions, then s, both in the units of the targets.

    Deviations:
        - Section 2.2, equation 3: as in the paper's code, the training loss covers the support set and further
          examples, here the query set. Evaluation uses the query set alone.
        - Section 2.2: weights have torch's initialisation. As in the paper's code, s is at least s_min, and the
          dimensions of a target are independent given r.

    Args:
        backbone: The encoder h without its last layer. Its input is x and y concatenated, so it has as many inputs as
            x and y together. A linear layer of the same width follows.
        decoder: Widths of the hidden layers of g, whose input is r and x concatenated.
        least_deviation: The least standard deviation s_min, in [0, 1); 0.1 in the paper's code. Choose it no larger
            than the noise of the targets.
        **options: Options of `MetaModule`.
    """

    inner_gradients = False
    needs_images = True  # features cannot be stored, since the encoder takes y as well

    def __init__(
        self,
        backbone: nn.Module,
        decoder: Sequence[int] = (128, 128),
        least_deviation: float = 0.1,
        **options: Any,
    ) -> None:
        super().__init__(backbone, **options)
        widths(decoder=decoder)
        below_one(least_deviation=least_deviation)
        self.decoder_widths, self.least_deviation = tuple(decoder), least_deviation
        if task_norms(self.backbone):
            name = type(self).__name__
            raise UserError(
                f"backbone: {name} encodes each example alone; use layer normalisation in place of batch norm"
            )

    def backbone_input_shape(self, episodes: EpisodeSpec) -> tuple[int, ...]:
        """The shape of x and y concatenated; tasks other than regression are refused."""
        if episodes.task != "regression":
            raise UserError(f"{type(self).__name__} predicts real targets; for classification use ProtoNet")
        return (math.prod(episodes.input_shape) + episodes.outputs,)

    def build(self, episodes: EpisodeSpec) -> None:
        """Make the encoder's last layer and the decoder."""
        width, inputs = self.feature_size, math.prod(episodes.input_shape)
        self.last = nn.Linear(width, width)
        last = self.decoder_widths[-1] if self.decoder_widths else width + inputs
        layers: list[nn.Module] = [MLP(width + inputs, self.decoder_widths)] if self.decoder_widths else []
        self.decoder = nn.Sequential(*layers, nn.Linear(last, 2 * episodes.outputs))

    @property
    def task(self) -> Task:
        """Negative log-likelihood and mean squared error."""
        return GaussianRegression(self.spec.outputs, self.spec.target_mean, self.spec.target_scale)

    def adapt(self, support: Examples, ways: int) -> Any:
        """The mean representation r, `(F,)`."""
        encoded = self.encode(support)
        return at_least_float32(encoded).mean(0).to(encoded.dtype)

    def predict(self, state: Any, x: Tensor) -> Tensor:
        """μ and s, `(M, 2 outputs)`."""
        return self.decode(state.expand(x.shape[0], -1), x)

    def encode(self, support: Examples) -> Tensor:
        """The representation of each support example, `(K, F)`."""
        pairs = torch.cat([support.x.flatten(1), support.y.to(support.x.dtype)], 1)
        features, _ = stateless_call(self.backbone, own_buffers(self.backbone), pairs, "stored")
        encoded: Tensor = self.last(features)
        return encoded

    def decode(self, r: Tensor, x: Tensor) -> Tensor:
        """μ and s `(M, 2 outputs)` for queries `(M, *input_shape)`, each with its own r, `(M, F)`."""
        decoded = self.decoder(torch.cat([r, x.flatten(1).to(r.dtype)], 1))
        return mean_and_deviation(decoded, self.least_deviation)

    def task_loss(self, support: Examples, query: Examples, ways: int) -> Outcome:
        """The negative log-likelihood of support and query targets, given the support set."""
        outputs = self.predict(self.adapt(support, ways), torch.cat([support.x, query.x]))
        loss = self.task.loss(outputs, torch.cat([support.y, query.y]))
        return Outcome(loss, outputs[len(support.x) :], query.y, {})
