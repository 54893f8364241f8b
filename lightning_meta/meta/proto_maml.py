"""MAML whose head starts from class prototypes."""

from __future__ import annotations

import torch
from torch import nn

from lightning_meta.batches import Examples
from lightning_meta.functional.prototypes import class_means
from lightning_meta.meta.gradient_based import GradientBasedLearner
from lightning_meta.nn.stateless import Tensors, own_buffers, stateless_call
from lightning_meta.tasks import EpisodeSpec

_HEAD = frozenset(("head.weight", "head.bias"))


class ProtoMAML(GradientBasedLearner):
    r"""MAML whose head starts from the prototypes of each support set (Triantafillou et al., ICLR 2020).

    $$W_n = 2 c_n, \qquad b_n = -\lVert c_n \rVert^2, \qquad \text{then} \qquad
      (\theta_i, W, b) \leftarrow (\theta, W, b) - \alpha \nabla L(\theta, W, b; \mathrm{support}_i)
      \text{ (a few times)}$$

    (section 3.2; https://arxiv.org/abs/1903.03096) with $c_n$ the mean feature of class n's support examples. Without
    inner steps this is a prototypical network: $W_n f + b_n = \lVert f \rVert^2 - \lVert f - c_n \rVert^2$. The outer
    gradient flows through the initial head to the backbone. The head is built for each task, so tasks may have any
    number of ways.

    At a glance:
        - Shared: an initial backbone θ.
        - Own: a backbone and a head, a few gradient steps from θ and the prototypes.
        - New task: embed, then adapt by a few gradient steps.

    Run it:
        `python scripts/fit.py --config configs/proto_maml_glyphs.yaml` without a download; for MAML's data there is
        `configs/proto_maml_omniglot.yaml`.

    Logged:
        - `test/accuracy_step_<j>`, in validation too: the mean over tasks after j inner steps, from 0 to
          `test_inner_steps`, with its `_ci95`. Step 0 is the prototypical network.
        - `train/loss`, `train/accuracy`: on the query sets of one meta-batch, after `inner_steps` inner steps.

        `MetaModule` explains the other metrics and what the intervals cover.

    Deviations:
        - Those of `MAML`.
        - The paper's experiments omit second derivatives; set `first_order: true` for that.

    Args:
        backbone: The network below the head.
        **options: Options of `GradientBasedLearner`.
    """

    classifies_only = True

    def build(self, episodes: EpisodeSpec) -> None:
        """Make a placeholder for the head, whose weights are computed for each task."""
        self.head = nn.Linear(self.feature_size, 1)
        with torch.no_grad():
            for p in self.head.parameters():
                p.zero_()
        self.head.requires_grad_(False)

    def setup(self, stage: str) -> None:
        """Exclude the placeholder of the head from training, also after `unfreeze()`."""
        super().setup(stage)
        if self._built:
            self.head.requires_grad_(False)

    def check_ways(self, ways: int) -> None:
        """Accept any number of ways."""

    def trained(self) -> frozenset[str]:
        """Names of the parameters that are not frozen, and of the head, which is adapted in every task."""
        return super().trained() | _HEAD

    def start(self, support: Examples, ways: int) -> Tensors:
        """The initial weights φ_0: θ and a head computed from the prototypes."""
        parameters = super().start(support, ways)
        body = self._sequence("backbone")
        tensors = {name: p for name, p in parameters.items() if name not in _HEAD}
        features, _ = stateless_call(body, {**tensors, **own_buffers(body)}, support.x, "batch")
        prototypes = class_means(features, support.y, ways)  # at least float32
        weight, bias = 2 * prototypes, -prototypes.square().sum(-1)
        dtype = parameters["head.weight"].dtype
        return {**parameters, "head.weight": weight.to(dtype), "head.bias": bias.to(dtype)}
