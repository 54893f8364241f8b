"""CAVIA: inner steps of context parameters alone."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from lightning_meta.batches import Examples
from lightning_meta.checks import whole
from lightning_meta.meta.gradient_based import GradientBasedLearner
from lightning_meta.nn.stateless import Tensors
from lightning_meta.tasks import EpisodeSpec

_CONTEXT = "context.values"


class CAVIA(GradientBasedLearner):
    r"""MAML whose inner steps adapt a context vector, which the network has as further inputs (Zintgraf et al. 2019).

    $$\phi_i = \phi_0 - \alpha \nabla_\phi L(\phi, \theta; \mathrm{support}_i)\big|_{\phi_0 = 0} \text{ (a few times)},
      \qquad \min_\theta \sum_i L(\phi_i, \theta; \mathrm{query}_i)$$

    (Fast Context Adaptation via Meta-Learning, ICML 2019, https://arxiv.org/abs/1810.03642, section 3) with φ beside
    each input, so that the first layer sees [x; φ], and θ all weights. φ starts at 0 in each task and θ is the same for
    all of them: a task is described by a few numbers, and a larger α is possible than with MAML. In classification a
    model serves the way it was trained with.

    At a glance:
        - Shared: all weights θ.
        - Own: a context vector φ, moved from 0.
        - New task: adapt φ by a few gradient steps.

    Run it:
        `python scripts/fit.py --config configs/cavia_sinusoid.yaml`, the paper's sine waves, without a download.

    Logged:
        - `test/mse_step_<j>` (`test/accuracy_step_<j>` in classification), in validation too: the mean over tasks after
          j inner steps, from 0 to `test_inner_steps`, with its `_ci95`.
        - `train/loss`, `train/mse`: of the query sets of one meta-batch, after `inner_steps` steps.

        The rest, and what the intervals are over, is said at `MetaModule`.

    Deviations:
        - Section 3.3: inputs are laid out flat, for a network such as `MLP`. Feature-wise modulation of convolutions by
          φ, as in the experiments on images, is not there.

    Args:
        backbone: The network below the head. It has `context_size` more inputs than an example has numbers.
        context_size: How many numbers φ has, at least 1.
        **options: Those of `GradientBasedLearner`, but for `inner_parameters`.
    """

    fixed_options = ("inner_parameters",)

    def __init__(self, backbone: nn.Module, context_size: int = 5, **options: Any) -> None:
        super().__init__(backbone, inner_parameters="context", **options)
        whole(1, context_size=context_size)
        self.context_size = context_size

    def backbone_input_shape(self, episodes: EpisodeSpec) -> tuple[int, ...]:
        """x and φ side by side."""
        return (math.prod(episodes.input_shape) + self.context_size,)

    def build(self, episodes: EpisodeSpec) -> None:
        """Make the head, and what puts φ beside inputs."""
        super().build(episodes)
        self.context = _Context(self.context_size)

    @property
    def network(self) -> nn.Module:
        """What adds φ, the backbone and the head, one after the other."""
        return self._sequence("context", "backbone", "head")

    def start(self, support: Examples, ways: int) -> Tensors:
        """θ, and φ_0 = 0, whose outer gradient is 0 as well: no optimiser moves it."""
        parameters = super().start(support, ways)
        return {**parameters, _CONTEXT: 0 * parameters[_CONTEXT]}


class _Context(nn.Module):
    """Puts the same numbers beside each input, laid out flat."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return torch.cat([x, self.values.expand(x.shape[0], -1).to(x.dtype)], 1)
