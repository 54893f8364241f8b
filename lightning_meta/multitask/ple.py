"""Progressive layered extraction: levels of shared and own experts, mixed by gates between them."""

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
from lightning_meta.nn.features import output_size, shape_after
from lightning_meta.nn.stages import stages_of
from lightning_meta.tasks import TasksSpec


class PLE(MultiTaskModule):
    r"""Soft sharing by gates over shared and own experts, level by level (Tang, Liu, Zhao and Gong, RecSys 2020).

    $$g^{k,j}(x) = w^{k,j}(g^{k,j-1}(x))\, S^{k,j}(x), \quad y^k(x) = t^k(g^{k,N}(x)), \quad g^{k,0}(x) = x$$

    (equations 5 and 6; https://doi.org/10.1145/3383313.3412236), with w and S at each of N levels as in `CGC`. The own
    experts of task k look at $g^{k,j-1}$, the shared ones at $g^{s,j-1}$, which a shared gate makes of all experts of
    its level, those of all tasks included; the last level has no shared gate. So what a task has in lower levels acts
    on all tasks, and is shared; its own are the experts of the last level and the gates of the last two. A level is one
    or more stages of the backbone. With one level it is `CGC`.

    Every input runs through the experts of all tasks but in the last level, where it runs through those of the tasks
    that it belongs to: the cost of an example grows with T.

    At a glance:
        - Shared: experts and gates.
        - Own: experts of the last level, two gates and a head.
        - New task: —.

    Run it:
        `python scripts/fit.py --config configs/ple_glyphs.yaml`.

    Logged:
        - `test/accuracy/<task>` or `test/r2/<task>`: score of each task on its test examples; `test/score`: the mean
          over tasks.
        - `train/loss`: sum of the losses over tasks, or their combination by `weighting`.
        - The gates are not logged.

        `MultiTaskModule` explains the other metrics.

    Deviations:
        - An expert is a part of any backbone, where the paper's is a small perceptron; a gate is linear in what it
          looks at, laid out flat. With stems, the inputs are the outputs of the stems.
        - All tasks have equally many own experts, at all levels alike.
        - Experts start from different weights; see `MixtureOfExperts`.

    Args:
        backbone: The first shared expert of each level; the others have the same architecture and other initial
            weights. Pretrained weights are the same in all experts: those from `backbone_weights`, `nn.Pretrained` and
            `nn.Frozen`.
        shared_experts: $m_s$, experts for all tasks in each level.
        own_experts: $m_k$, experts of each task in each level.
        stages_per_level: How many stages of the backbone a level has; the last level may have fewer.
        same_start: Whether all experts start from the weights of `backbone`, for example those of a network that you
            have loaded.
        **options: Options of `MultiTaskModule`.
    """

    sets_first_weights = ("same_start",)

    def __init__(
        self,
        backbone: nn.Module,
        shared_experts: int = 1,
        own_experts: int = 1,
        stages_per_level: int = 1,
        same_start: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(backbone, **options)
        whole(1, shared_experts=shared_experts, stages_per_level=stages_per_level)
        whole(0, own_experts=own_experts)
        switch(same_start=same_start)
        self.shared_experts, self.own_experts = shared_experts, own_experts
        self.stages_per_level, self.same_start = stages_per_level, same_start

    def build(self, spec: TasksSpec) -> None:
        """Make the experts and gates of each level, and a head for each task."""
        check_gated("PLE", self.input_shape, self.input_dtype)
        features = output_size(self.backbone, self.input_shape, self.input_dtype)
        first, same = self.backbone, self.same_start or self.backbone_weights is not None
        widths, shape, dtype = list[int](), self.input_shape, self.input_dtype
        columns = self.input_codes
        for level in self._cut(first):
            widths.append(math.prod(shape))
            shape, dtype = shape_after(level, shape, input_dtype=dtype), ""
        names = {name: name_key(name) for name in spec.tasks}
        networks = [
            [first, *(expert_like(first, int(key(self.key, e)), same) for e in range(1, self.shared_experts))],
            *(
                [expert_like(first, int(key(self.key, k, 2, e)), same) for e in range(self.own_experts)]
                for k in names.values()
            ),
        ]
        # For each level, the shared experts and then those of each task.
        groups = [[self._cut(network) for network in group] for group in networks]
        self.backbone = nn.ModuleList(
            nn.ModuleList(nn.ModuleList(levels[j] for levels in group) for group in groups) for j in range(len(widths))
        )
        chosen, every = (self.shared_experts + count * self.own_experts for count in (1, len(names)))
        self.gates = nn.ModuleList(
            nn.ModuleList(
                new_gate(width, chosen, int(key(self.key, k, 1, j)), () if j else columns)
                for j, width in enumerate(widths)
            )
            for k in names.values()
        )
        self.shared_gates = nn.ModuleList(
            new_gate(width, every, int(key(self.key, 0, 1, j)), () if j else columns)
            for j, width in enumerate(widths[:-1])
        )
        self.heads = nn.ModuleList(self.head(name, features) for name in names)

    def forward(self, x: Tensor, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Predict for several tasks; every input runs through the experts of all tasks but in the last level."""
        numbers = self.task_numbers
        *lower, (shared, *own) = self._levels
        common, of_tasks = x, dict.fromkeys(numbers.values(), x)  # what the experts of the next level look at
        for j, (below, *own_below) in enumerate(lower):
            for_all = [expert(common) for expert in below]
            for_one = [[expert(of_tasks[k]) for expert in experts] for k, experts in enumerate(own_below)]
            every = torch.stack([*for_all, *(f for features in for_one for f in features)], 1)
            common = mixed(self.shared_gates[j], common, every)
            # The last level has the tasks of the batch alone.
            needed = list(of_tasks) if j + 1 < len(lower) else [numbers[name] for name in rows]
            of_tasks = {
                k: mixed(self._gate(k, j), of_tasks[k], torch.stack([*for_all, *for_one[k]], 1)) for k in needed
            }
        features, outputs = [expert(common) for expert in shared], {}
        for name, i in rows.items():
            task = numbers[name]
            of_task = of_tasks[task][i]
            both = torch.stack([f[i] for f in features] + [expert(of_task) for expert in own[task]], 1)
            outputs[name] = self.heads[task](mixed(self._gate(task, -1), of_task, both))
        return outputs

    def own_modules(self, task: int) -> list[nn.Module]:
        """The task's experts of the last level, which no shared gate sees, its last two gates, its head and stem."""
        gates = self.gates[task]
        assert isinstance(gates, nn.ModuleList)
        return [self._levels[-1][1 + task], *list(gates)[-2:], *super().own_modules(task)]

    def _cut(self, network: nn.Module) -> list[nn.Sequential]:
        """The levels of an expert."""
        stages, size = stages_of(network), self.stages_per_level
        return [nn.Sequential(*stages[start : start + size]) for start in range(0, len(stages), size)]

    def _gate(self, task: int, level: int) -> nn.Module:
        gates = self.gates[task]
        assert isinstance(gates, nn.ModuleList)
        return gates[level]

    @property
    def _levels(self) -> list[list[nn.ModuleList]]:
        """For each level, the shared experts, and those of each task."""
        assert isinstance(self.backbone, nn.ModuleList)
        levels = [level for level in self.backbone if isinstance(level, nn.ModuleList)]
        return [[part for part in level if isinstance(part, nn.ModuleList)] for level in levels]
