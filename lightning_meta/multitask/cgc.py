"""Customized gate control: shared experts and experts of each task, mixed by a gate per task."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_meta.checks import switch, whole
from lightning_meta.functional.random_bits import key, name_key
from lightning_meta.multitask.base import MultiTaskModule
from lightning_meta.multitask.experts import check_gated, expert_like, mixed, new_gate
from lightning_meta.nn.features import output_size
from lightning_meta.tasks import TasksSpec


class CGC(MultiTaskModule):
    r"""Soft sharing by gates over shared and own experts (Tang, Liu, Zhao and Gong, RecSys 2020).

    $$g^k(x) = w^k(x)\, S^k(x), \quad w^k(x) = \mathrm{softmax}(W_g^k x), \quad
    S^k(x) = [E_{(s,1)}, \ldots, E_{(s,m_s)}, E_{(k,1)}, \ldots, E_{(k,m_k)}]^\top, \quad y^k(x) = t^k(g^k(x))$$

    (equations 1 to 4 of Progressive Layered Extraction, https://doi.org/10.1145/3383313.3412236). An input passes
    through all shared experts and the experts of its tasks. With `own_experts: 0` it is `MixtureOfExperts`.

    At a glance:
        - Shared: experts.
        - Own: experts, a gate and a head.
        - New task: —.

    Run it:
        `python scripts/fit.py --config configs/cgc_glyphs.yaml`.

    Logged:
        - `test/accuracy/<task>` or `test/r2/<task>`: score of each task on its test examples; `test/score`: the mean
          over tasks.
        - `train/loss`: sum of the losses over tasks, or their combination by `weighting`.
        - The gates are not logged.

        `MultiTaskModule` explains the other metrics.

    Deviations:
        - Experts are arbitrary backbones; the paper's are small perceptrons. Gates are linear in the flattened input,
          such as the pixels of an image. With stems, the inputs are the outputs of the stems.
        - All tasks have the same number of own experts.
        - Experts start from different weights; see `MixtureOfExperts`.

    Args:
        backbone: The first shared expert; the others have the same architecture and other initial weights. Pretrained
            weights are the same in all experts: those from `backbone_weights`, `nn.Pretrained` and `nn.Frozen`.
        shared_experts: Number $m_s$ of shared experts, at least 1.
        own_experts: Number $m_k$ of experts of each task, at least 0.
        same_start: Whether all experts start from the weights of `backbone`, for example those of a network that you
            have loaded.
        **options: Options of `MultiTaskModule`.
    """

    sets_first_weights = ("same_start",)

    def __init__(
        self,
        backbone: nn.Module,
        shared_experts: int = 2,
        own_experts: int = 1,
        same_start: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(backbone, **options)
        whole(1, shared_experts=shared_experts)
        whole(0, own_experts=own_experts)
        switch(same_start=same_start)
        self.shared_experts, self.own_experts, self.same_start = shared_experts, own_experts, same_start

    def build(self, spec: TasksSpec) -> None:
        """Make the experts, and a gate and a head for each task."""
        check_gated("CGC", self.input_shape, self.input_dtype)
        features, width = output_size(self.backbone, self.input_shape, self.input_dtype), math.prod(self.input_shape)
        first, same = self.backbone, self.same_start or self.backbone_weights is not None
        shared = [first, *(expert_like(first, int(key(self.key, e)), same) for e in range(1, self.shared_experts))]
        names = {name: name_key(name) for name in spec.tasks}
        own = [
            nn.ModuleList(expert_like(first, int(key(self.key, k, 2, e)), same) for e in range(self.own_experts))
            for k in names.values()
        ]
        self.backbone = nn.ModuleList([nn.ModuleList(shared), *own])  # the shared experts, then those of each task
        experts = self.shared_experts + self.own_experts
        self.gates = nn.ModuleList(
            new_gate(width, experts, int(key(self.key, k, 1)), self.input_codes) for k in names.values()
        )
        self.heads = nn.ModuleList(self.head(name, features) for name in names)

    def forward(self, x: Tensor, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Predict for several tasks; every input passes through all shared experts."""
        shared, *own = self._experts
        features, places = self.shared_features(torch.stack([expert(x) for expert in shared], 1), rows)
        outputs, numbers = {}, self.task_numbers
        for name, i in rows.items():
            task, task_input = numbers[name], x[i]
            own_features = [expert(task_input).unsqueeze(1) for expert in own[task]]
            both = torch.cat([features[places[name]], *own_features], 1)
            outputs[name] = self.heads[task](mixed(self.gates[task], task_input, both))
        return outputs

    def own_modules(self, task: int) -> list[nn.Module]:
        """The task's experts, gate, head and stem."""
        return [self._experts[1 + task], self.gates[task], *super().own_modules(task)]

    @property
    def _experts(self) -> list[nn.ModuleList]:
        """The shared experts, then the experts of each task."""
        assert isinstance(self.backbone, nn.ModuleList)
        return [part for part in self.backbone if isinstance(part, nn.ModuleList)]
