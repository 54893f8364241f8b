"""CAVIA: inner steps that only adapt context parameters."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from lightning_meta.batches import Examples
from lightning_meta.checks import whole
from lightning_meta.errors import UserError
from lightning_meta.meta.gradient_based import GradientBasedLearner
from lightning_meta.nn.features import shape_after
from lightning_meta.nn.stateless import Tensors
from lightning_meta.tasks import EpisodeSpec

_CONTEXT = "context.values"


class CAVIA(GradientBasedLearner):
    r"""MAML whose inner steps adapt a context vector, an additional input of the network (Zintgraf et al. 2019).

    $$\phi_i = \phi_0 - \alpha \nabla_\phi L(\phi, \theta; \mathrm{support}_i)|_{\phi_0 = 0} \text{ (a few times)},
      \qquad \min_\theta \sum_i L(\phi_i, \theta; \mathrm{query}_i)$$

    (Fast Context Adaptation via Meta-Learning, ICML 2019, https://arxiv.org/abs/1810.03642, section 3) with φ appended
    to each input, so that the first layer receives [x; φ], and θ all weights. φ starts at 0 in each task, and all tasks
    share θ: a few numbers describe a task, which allows a larger α than in MAML. In classification, new tasks must have
    as many ways as in training.

    At a glance:
        - Shared: all weights θ.
        - Own: a context vector φ, adapted from 0.
        - New task: adapt φ by a few gradient steps.

    Run it:
        `python scripts/fit.py --config configs/cavia_sinusoid.yaml`, the paper's sine waves, without a download.

    Logged:
        - `test/mse_step_<j>` (`test/accuracy_step_<j>` in classification), in validation too: the mean over tasks after
          j inner steps, from 0 to `test_inner_steps`, with its `_ci95`.
        - `train/loss`, `train/mse`: on the query sets of one meta-batch, after `inner_steps` inner steps.

        `MetaModule` explains the other metrics and what the intervals cover.

    Deviations:
        - Section 3.3: inputs are flattened, for a network such as `MLP`. Feature-wise modulation of convolutions by φ,
          as in the experiments on images, is not implemented.

    Args:
        backbone: The network below the head. Its first layer takes the numbers of an example and `context_size` more.
        context_size: Size of φ, at least 1.
        **options: Options of `GradientBasedLearner`, except `inner_parameters`.
    """

    fixed_options = ("inner_parameters",)

    def __init__(self, backbone: nn.Module, context_size: int = 5, **options: Any) -> None:
        super().__init__(backbone, inner_parameters="context", **options)
        whole(1, context_size=context_size)
        self.context_size = context_size

    def backbone_input_shape(self, episodes: EpisodeSpec) -> tuple[int, ...]:
        """The shape of [x; φ], flat."""
        return (math.prod(episodes.input_shape) + self.context_size,)

    def make_parts(self) -> None:
        """Make the head and φ, and refuse a backbone that does not take x and φ together.

        Raises:
            UserError: The number of inputs that the backbone needs.
        """
        flat = math.prod(self.spec.input_shape)
        try:
            shape_after(self.backbone, self.backbone_input_shape(self.spec))
        except UserError as error:
            reason = str(error.__cause__ or error).splitlines()[0]
            raise UserError(
                f"backbone: CAVIA appends context_size = {self.context_size} numbers to the {flat} of an example, so "
                f"its first layer must take {flat + self.context_size} inputs; change one of them (torch: {reason})"
            ) from error
        super().make_parts()

    def build(self, episodes: EpisodeSpec) -> None:
        """Make the head, and the layer that appends φ to inputs."""
        super().build(episodes)
        self.context = _Context(self.context_size)

    @property
    def network(self) -> nn.Module:
        """The layer that appends φ, the backbone and the head as one sequential network."""
        return self._sequence("context", "backbone", "head")

    def start(self, support: Examples, ways: int) -> Tensors:
        """The weights θ, and φ_0 = 0. Its outer gradient is 0, so the optimizer does not change it."""
        parameters = super().start(support, ways)
        return {**parameters, _CONTEXT: 0 * parameters[_CONTEXT]}


class _Context(nn.Module):
    """Flattens inputs and appends the same numbers to each."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return torch.cat([x, self.values.expand(x.shape[0], -1).to(x.dtype)], 1)
