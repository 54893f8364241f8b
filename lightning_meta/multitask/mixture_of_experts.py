"""Multi-gate mixture of experts: networks that all tasks share, mixed by each task in its own way."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_meta.checks import whole
from lightning_meta.errors import UserError
from lightning_meta.functional.random_bits import key, name_key
from lightning_meta.multitask.base import MultiTaskModule
from lightning_meta.nn.features import are_ids, output_size
from lightning_meta.nn.fresh import fresh
from lightning_meta.nn.heads import seeded
from lightning_meta.tasks import TasksSpec


class MixtureOfExperts(MultiTaskModule):
    r"""Soft sharing by gates (MMoE; Ma, Zhao, Yi, Chen, Hong and Chi, KDD 2018).

    $$f_i(x) = h_i\Big(\sum_e g_{ie}(x)\, f_e(x)\Big), \qquad g_i(x) = \mathrm{softmax}(W_i x)$$

    (section 4.2; https://doi.org/10.1145/3219819.3220007). Every input runs through all experts.

    At a glance:
        - Shared: experts.
        - Own: a gate and a head.
        - New task: —.

    Run it:
        `python scripts/fit.py --config configs/mixture_of_experts_glyphs.yaml`.

    Logged:
        - `test/accuracy/<task>` or `test/r2/<task>`: of each task, over its test examples; `test/score`: their mean.
        - `train/loss`: the sum over tasks, or what `weighting` makes of it.
        - The gates are not logged.

        The rest is said at `MultiTaskModule`.

    Deviations:
        - An expert is any backbone, where the paper's is one layer; a gate is linear in the input laid out flat, which
          are pixels where inputs are images. Inputs are those behind the stems, where there are any.

    Args:
        backbone: The first expert; the others are made like it and start from other values.
        experts: How many experts.
        **options: Those of `MultiTaskModule`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        experts: int = 4,
        **options: Any,
    ) -> None:
        super().__init__(backbone, **options)
        whole(1, experts=experts)
        self.number = experts

    def build(self, spec: TasksSpec) -> None:
        """Make the experts, and a gate and a head for each task."""
        if are_ids(self.input_shape, self.input_dtype):
            raise UserError(
                f"tasks: MixtureOfExperts gates by the inputs, and these are {self.input_dtype} ids, which have no "
                "order; give each task a stem with an embedding, or use MultiHead"
            )
        features, width = output_size(self.backbone, self.input_shape, self.input_dtype), math.prod(self.input_shape)
        taken = self.backbone_weights is not None  # then all experts start from these weights
        others = [
            copy.deepcopy(self.backbone) if taken else fresh(self.backbone, int(key(self.key, e)))
            for e in range(1, self.number)
        ]
        self.backbone = nn.ModuleList([self.backbone, *others])
        self.gates = nn.ModuleList(self._gate(name, width) for name in spec.tasks)
        self.heads = nn.ModuleList(self.head(n, features) for n in spec.tasks)

    def forward(self, x: Tensor, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Predict for several tasks; every input runs through all experts."""
        assert isinstance(self.backbone, nn.ModuleList)
        features, flat = torch.stack([expert(x) for expert in self.backbone], dim=1), x.flatten(1)
        outputs = {}
        for name, i in rows.items():
            task = self.names.index(name)
            gates = self.gates[task](flat[i]).softmax(-1)
            outputs[name] = self.heads[task](torch.einsum("me,mef->mf", gates, features[i]))
        return outputs

    def own_modules(self, task: int) -> list[nn.Module]:
        """The task's gate, head and stem."""
        return [self.gates[task], *super().own_modules(task)]

    def _gate(self, name: str, width: int) -> nn.Module:
        with seeded(int(key(self.key, name_key(name), 1))):
            return nn.Linear(width, self.number, bias=False)
