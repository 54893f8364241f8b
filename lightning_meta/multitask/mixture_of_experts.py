"""Multi-gate mixture of experts: shared networks, mixed by a gate per task."""

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


class MixtureOfExperts(MultiTaskModule):
    r"""Soft sharing by gates (MMoE; Ma, Zhao, Yi, Chen, Hong and Chi, KDD 2018).

    $$f_i(x) = h_i\left(\sum_e g_{ie}(x)\, f_e(x)\right), \qquad g_i(x) = \mathrm{softmax}(W_i x)$$

    (section 4.2; https://doi.org/10.1145/3219819.3220007). Every input passes through all experts.

    At a glance:
        - Shared: experts.
        - Own: a gate and a head.
        - New task: —.

    Run it:
        `python scripts/fit.py --config configs/mixture_of_experts_glyphs.yaml`.

    Logged:
        - `test/accuracy/<task>` or `test/r2/<task>`: score of each task on its test examples; `test/score`: the mean
          over tasks.
        - `train/loss`: sum of the losses over tasks, or their combination by `weighting`.
        - The gates are not logged.

        `MultiTaskModule` explains the other metrics.

    Deviations:
        - Experts are arbitrary backbones; the paper's are single layers. Gates are linear in the flattened input, such
          as the pixels of an image. With stems, the inputs are the outputs of the stems.
        - Experts start from different weights. With equal weights, a mixture of experts equals a single expert until
          the gates have made their gradients different.

    Args:
        backbone: The first expert; the others have the same architecture and other initial weights. Pretrained weights
            are the same in all experts: those from `backbone_weights`, `nn.Pretrained` and `nn.Frozen`.
        experts: Number of experts, at least 1.
        same_start: Whether all experts start from the weights of `backbone`, for example those of a network that you
            have loaded.
        **options: Options of `MultiTaskModule`.
    """

    sets_first_weights = ("same_start",)

    def __init__(
        self,
        backbone: nn.Module,
        experts: int = 4,
        same_start: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(backbone, **options)
        whole(1, experts=experts)
        switch(same_start=same_start)
        self.number, self.same_start = experts, same_start

    def build(self, spec: TasksSpec) -> None:
        """Make the experts, and a gate and a head for each task."""
        check_gated("MixtureOfExperts", self.input_shape, self.input_dtype)
        features, width = output_size(self.backbone, self.input_shape, self.input_dtype), math.prod(self.input_shape)
        same = self.same_start or self.backbone_weights is not None
        others = [expert_like(self.backbone, int(key(self.key, e)), same) for e in range(1, self.number)]
        self.backbone = nn.ModuleList([self.backbone, *others])
        self.gates = nn.ModuleList(
            new_gate(width, self.number, int(key(self.key, name_key(name), 1)), self.input_codes) for name in spec.tasks
        )
        self.heads = nn.ModuleList(self.head(n, features) for n in spec.tasks)

    def forward(self, x: Tensor, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Predict for several tasks; every input passes through all experts."""
        assert isinstance(self.backbone, nn.ModuleList)
        features, own = self.shared_features(torch.stack([expert(x) for expert in self.backbone], 1), rows)
        outputs, numbers = {}, self.task_numbers
        for name, i in rows.items():
            task = numbers[name]
            outputs[name] = self.heads[task](mixed(self.gates[task], x[i], features[own[name]]))
        return outputs

    def own_modules(self, task: int) -> list[nn.Module]:
        """The task's gate, head and stem."""
        return [self.gates[task], *super().own_modules(task)]
