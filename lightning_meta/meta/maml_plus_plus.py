"""MAML++: MAML with a loss, learning rates and normalisation per inner step."""

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

LEAST = 0.03  # smallest weight of any step but the last, in units of 1/S, as in the authors' code


class MAMLPlusPlus(GradientBasedLearner):
    r"""MAML with a loss after every inner step, and learned rates and normalisation per step (Antoniou et al. 2019).

    $$\min_{\theta, \alpha, \gamma, \beta} \sum_i \sum_{j=1}^S v_j L(\varphi_{i,j}; \mathrm{query}_i), \qquad
      \varphi_{i,j+1} = \varphi_{i,j} - \alpha_j \nabla L(\varphi_{i,j}; \mathrm{support}_i)$$

    (https://arxiv.org/abs/1810.09502). Section 4 adds to MAML:

    - The outer loss is the weighted sum of the losses after each inner step (MSL). Its weights are annealed from 1/S
      each towards the last step within `multi_step_loss_steps` training steps; then only the last loss counts.
    - Every parameter has a learned learning rate for each inner step (LSLR).
    - Batch normalisation has a learned scale γ and shift β for each inner step; the inner loop does not adapt them
      (BNWB).
    - The first `first_order_steps` training steps omit second derivatives (DA).

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
        - `train/loss`: weighted sum of the query losses of one meta-batch; `train/accuracy`: accuracy after the last
          inner step.

        `MetaModule` explains the other metrics and what the intervals cover.

    Deviations:
        - Those of `MAML`.
        - Section 4, BNRS: the paper normalises by running statistics per step. The authors' code keeps them but
          normalises by the batch, as `batch_norm: transductive` does; `inductive` normalises queries by the support
          set.
        - Section 4, LSLR: one rate per tensor and step, as in the authors' code, instead of per layer and step.
        - Section 4, CA: set `lr_scheduler` for the cosine schedule of the outer learning rate; the authors'
          configurations keep the rate at 0.001.
        - The weights of the losses change in every training step; in the authors' code in every epoch.
        - The published results are from an ensemble of five checkpoints of a run; here a single one is tested.
        - In evaluation, steps beyond S use the rates, scales and shifts of step S.

    Args:
        backbone: The network below the head.
        inner_lr: Initial value of all rates, > 0; 0.01 in the authors' configurations for mini-ImageNet.
        inner_steps: Number S of inner steps in training, at least 1.
        multi_step_loss_steps: Number of training steps over which the weights of the losses are annealed, at least 0;
            with 0 only the last loss counts. By default the authors' 15 epochs of 500 steps.
        first_order_steps: Number of training steps at the beginning without second derivatives, at least 0. Section 4
            of the paper has 50 epochs of 500 steps, the authors' configurations none.
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
        # A tensor, since a number that changes in every step would trigger recompilation.
        self.register_buffer("step_weights", torch.full((inner_steps,), 1 / inner_steps))

    def build(self, episodes: EpisodeSpec) -> None:
        """Make the head, the rates, and γ and β of steps 1, 2, ...; step 0 uses those of the network."""
        super().build(episodes)
        adapted, steps = self.adapted(), self.inner_steps
        self.alpha, self.norm_steps = nn.ParameterDict(), nn.ParameterDict()
        norms = self._norms()
        for name, p in self.network.named_parameters():
            key = parameter_key(name)
            if name in norms:
                if steps > 1:
                    self.norm_steps[key] = nn.Parameter(p.detach().repeat(steps - 1, 1), p.requires_grad)
            elif name in adapted or not p.requires_grad:  # frozen weights have fixed rates, so that checkpoints load
                self.alpha[key] = nn.Parameter(p.new_full((steps,), self.inner_lr), name in adapted)

    def adapted(self) -> frozenset[str]:
        """Names of the parameters that inner steps adapt: all but those of batch normalisation."""
        return super().adapted() - self._norms().keys()

    def rates(self, step: int) -> Tensors:
        """α_j, a number for each adapted parameter."""
        j = min(step, self.inner_steps - 1)
        keys = {name: parameter_key(name) for name in self.adapted()}
        return {name: self.alpha[key][j] for name, key in keys.items() if key in self.alpha}

    def of_step(self, step: int) -> Tensors:
        """γ_j and β_j of every batch normalisation layer."""
        j = min(step, self.inner_steps - 1)
        return {name: self.norm_steps[parameter_key(name)][j - 1] if j else p for name, p in self._norms().items()}

    def on_train_batch_start(self, batch: Episode, batch_idx: int) -> None:
        """Set the weights of the losses and the order of the gradient for this training step."""
        step = self.global_step
        self._multi_step_loss = step < self.multi_step_loss_steps
        self.first_order = self._always_first_order or step < self.first_order_steps
        if self._multi_step_loss:
            *others, last = step_weights(self.inner_steps, step / self.multi_step_loss_steps)
            self.step_weights.fill_(last)  # `fill_` does not synchronise with the GPU, a copy would
            if others:
                self.step_weights[:-1].fill_(others[0])
        super().on_train_batch_start(batch, batch_idx)

    def task_loss(self, support: Examples, query: Examples, ways: int) -> Outcome:
        """The weighted sum of the query losses after each inner step, or only the last."""
        states = self.trajectory(support, ways)
        if self._multi_step_loss:
            outcomes = [self.outcome(state, query) for state in states[1:]]
            losses = torch.stack([outcome.loss for outcome in outcomes])
            return outcomes[-1]._replace(loss=(self.step_weights.to(losses.dtype) * losses).sum())
        last = self.outcome(states[-1], query)
        if not self.first_order:
            return last
        # Without second derivatives, γ and β of the earlier steps are unused; DDP expects a gradient for each.
        unused = [p.sum() for p in self.norm_steps.values() if p.requires_grad]
        unused += [p.sum() for p in self._norms().values() if p.requires_grad]
        return last._replace(loss=last.loss + 0.0 * torch.stack(unused).sum()) if unused else last

    def _norms(self) -> Tensors:
        """The scales and shifts of batch normalisation, by name of the parameter of `network`."""
        norms = task_norms(self.network).items()
        return {f"{name}.{of}": p for name, norm in norms for of, p in norm.named_parameters(recurse=False)}


def step_weights(steps: int, progress: float) -> list[float]:
    r"""The weights $v_j$ of the losses after each inner step; they sum to 1.

    $$v_j = \frac{1}{S} \max(1 - p, 0.03) \quad (j < S), \qquad v_S = 1 - \sum_{j<S} v_j$$

    as in the authors' code, with p in place of epoch / epochs.

    Args:
        steps: Number of inner steps S.
        progress: Progress p of the annealing, in [0, 1].

    Returns:
        The S weights.
    """
    each = max(1 - progress, LEAST) / steps
    return [each] * (steps - 1) + [1 - (steps - 1) * each]
