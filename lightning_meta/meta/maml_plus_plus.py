"""MAML with learned rates, normalisation and losses by inner step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_meta.batches import Episode, Examples
from lightning_meta.checks import whole
from lightning_meta.meta.base import Outcome
from lightning_meta.meta.gradient_based import GradientBasedLearner, parameter_key
from lightning_meta.nn.normalization import task_norms
from lightning_meta.nn.stateless import Tensors
from lightning_meta.tasks import EpisodeSpec

LEAST = 0.03  # the smallest weight of a step but the last, as a multiple of 1/S, as in the authors' code


class MAMLPlusPlus(GradientBasedLearner):
    r"""Train MAML by the losses after every inner step, with rates and normalisation by step (Antoniou et al. 2019).

    $$\min_{\theta, \alpha, \gamma, \beta} \sum_i \sum_{j=1}^S v_j L(\varphi_{i,j}; \mathrm{query}_i), \qquad
      \varphi_{i,j+1} = \varphi_{i,j} - \alpha_j \nabla L(\varphi_{i,j}; \mathrm{support}_i)$$

    (https://arxiv.org/abs/1810.09502, section 4), with what section 4 adds to MAML:

    - The outer loss is the weighted sum of the losses after each inner step (MSL). Its weights move from 1/S each to
      the last step within `multi_step_loss_steps`; after that the last loss counts alone.
    - Every parameter has a learned rate for each inner step (LSLR).
    - The scales γ and shifts β of batch normalisation are learned for each inner step, which adapts neither (BNWB).
    - The first `first_order_steps` training steps leave second derivatives out (DA).

    New tasks must have as many ways as in training.

    At a glance:
        - Shared: an initialisation θ, rates α and normalisation γ, β of each inner step.
        - Own: φ = θ − Σ_j α_j∇L(φ_j, support).
        - New task: adapt by a few gradient steps.

    Run it:
        `python scripts/fit.py --config configs/maml_plus_plus_glyphs.yaml` without a download; for the paper's data,
        use `configs/maml_plus_plus_mini_imagenet.yaml`.

    Logged:
        - `test/accuracy_step_<j>` (`test/mse_step_<j>` in regression), and likewise for `val`: the mean over tasks
          after j = 0, ..., `test_inner_steps` inner steps, with its `_ci95`.
        - `train/loss`: the weighted sum of the losses of the query sets of one meta-batch; `train/accuracy`: after the
          last inner step.

        `MetaModule` explains the other metrics and what the intervals cover.

    Deviations:
        - Those of `MAML`.
        - Section 4, BNRS: the paper normalises by running statistics of each step. The authors' code keeps them, but
          normalises by the statistics of the batch, and so does `batch_norm: transductive`; `inductive` normalises
          queries by the support set's.
        - Section 4, LSLR: a rate for each tensor and step, as in the code, in place of each layer and step.
        - Section 4, CA: the cosine schedule of the outer learning rate is `lr_scheduler`; the authors' configurations
          leave the rate at 0.001.
        - The weights of the losses change from step to step, in the code from epoch to epoch.
        - The published figures are of an ensemble of five checkpoints of a run; here a single one is tested.
        - Steps beyond S in evaluation use the rates, scales and shifts of step S.

    Args:
        backbone: The network below the head.
        inner_lr: What all rates start from, > 0; 0.01 in the authors' configurations for mini-ImageNet.
        inner_steps: S ≥ 1, inner steps in training.
        multi_step_loss_steps: Training steps within which the weights of the losses move to the last inner step; 0 for
            its loss alone. The authors' 15 epochs of 500 steps by default.
        first_order_steps: Training steps at the beginning that leave second derivatives out. The paper's section 4 has
            50 epochs of 500 steps, the authors' configurations none.
        **options: Options of `GradientBasedLearner`.
    """

    step_weights: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        inner_lr: float = 0.01,
        inner_steps: int = 5,
        multi_step_loss_steps: int = 7_500,
        first_order_steps: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(backbone, inner_lr=inner_lr, inner_steps=inner_steps, **options)
        whole(1, inner_steps=inner_steps)
        whole(0, multi_step_loss_steps=multi_step_loss_steps, first_order_steps=first_order_steps)
        self.multi_step_loss_steps, self.first_order_steps = multi_step_loss_steps, first_order_steps
        self._always_first_order = self.first_order
        self._multi_step_loss = multi_step_loss_steps > 0
        # A tensor, as it changes with every step: compiled code would be compiled anew for another number.
        self.register_buffer("step_weights", torch.full((inner_steps,), 1 / inner_steps))

    def build(self, episodes: EpisodeSpec) -> None:
        """Make the head, the rates, and the scales and shifts of the steps but the first, which has the network's."""
        super().build(episodes)
        adapted, steps = self.adapted(), self.inner_steps
        self.alpha, self.norm_steps = nn.ParameterDict(), nn.ParameterDict()
        norms = self._norms()
        for name, p in self.network.named_parameters():
            key = parameter_key(name)
            if name in norms:
                if steps > 1:
                    self.norm_steps[key] = nn.Parameter(p.detach().repeat(steps - 1, 1), p.requires_grad)
            elif name in adapted or not p.requires_grad:  # a frozen weight has fixed rates, so that checkpoints fit
                self.alpha[key] = nn.Parameter(p.new_full((steps,), self.inner_lr), name in adapted)

    def adapted(self) -> frozenset[str]:
        """Names of the parameters that inner steps move: none of batch normalisation."""
        return super().adapted() - self._norms().keys()

    def rates(self, step: int) -> Tensors:
        """α_j, a number for each adapted parameter."""
        j = min(step, self.inner_steps - 1)
        keys = {name: parameter_key(name) for name in self.adapted()}
        return {name: self.alpha[key][j] for name, key in keys.items() if key in self.alpha}

    def of_step(self, step: int) -> Tensors:
        """γ_j and β_j of every batch normalisation."""
        j = min(step, self.inner_steps - 1)
        return {name: self.norm_steps[parameter_key(name)][j - 1] if j else p for name, p in self._norms().items()}

    def on_train_batch_start(self, batch: Episode, batch_idx: int) -> None:
        """Take from the number of the step how much each loss counts, and whether there are second derivatives."""
        step = self.global_step
        self._multi_step_loss = step < self.multi_step_loss_steps
        self.first_order = self._always_first_order or step < self.first_order_steps
        if self._multi_step_loss:
            *others, last = step_weights(self.inner_steps, step / self.multi_step_loss_steps)
            self.step_weights.fill_(last)  # no copy from the CPU, for which a GPU would wait
            if others:
                self.step_weights[:-1].fill_(others[0])
        super().on_train_batch_start(batch, batch_idx)

    def task_loss(self, support: Examples, query: Examples, ways: int) -> Outcome:
        """The weighted sum of the query losses after each inner step, or the last alone."""
        states = self.trajectory(support, ways)
        if self._multi_step_loss:
            outcomes = [self.outcome(state, query) for state in states[1:]]
            losses = torch.stack([outcome.loss for outcome in outcomes])
            return outcomes[-1]._replace(loss=(self.step_weights.to(losses.dtype) * losses).sum())
        last = self.outcome(states[-1], query)
        if not self.first_order:
            return last
        # Steps but the last have scales and shifts that no loss reaches then; several ranks expect a gradient of each.
        unused = [p.sum() for p in self.norm_steps.values() if p.requires_grad]
        unused += [p.sum() for p in self._norms().values() if p.requires_grad]
        return last._replace(loss=last.loss + 0.0 * torch.stack(unused).sum()) if unused else last

    def _norms(self) -> Tensors:
        """The scales and shifts of the batch normalisations, by name of the parameter of `network`."""
        norms = task_norms(self.network).items()
        return {f"{name}.{of}": p for name, norm in norms for of, p in norm.named_parameters(recurse=False)}


def step_weights(steps: int, progress: float) -> list[float]:
    r"""How much the loss after each inner step counts: $v_j$, which add up to 1.

    $$v_j = \frac{1}{S} \max(1 - p, 0.03) \quad (j < S), \qquad v_S = 1 - \sum_{j<S} v_j$$

    as in the authors' code, with the progress p in place of epoch / epochs.

    Args:
        steps: S.
        progress: p, the share of the annealing that is over, in [0, 1].

    Returns:
        S weights.
    """
    each = max(1 - progress, LEAST) / steps
    return [each] * (steps - 1) + [1 - (steps - 1) * each]
