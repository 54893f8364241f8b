"""Progressive layered extraction: levels of shared and task-specific experts, with gates between the levels."""

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

    (equations 5 and 6; https://doi.org/10.1145/3383313.3412236), with w and S at each of N levels as in `CGC`. The
    input of task k's experts at level j is $g^{k,j-1}$; that of the shared experts is $g^{s,j-1}$, the mixture by a
    shared gate of all experts of level j − 1, including those of all tasks. The last level has no shared gate. The
    experts and gates of a task at lower levels therefore act on all tasks and count as shared parameters; only its
    experts of the last level and its gates of the last two levels are its own. A level consists of one or more stages
    of the backbone. With one level it is `CGC`.

    Below the last level every input passes through the experts of all tasks, so the cost per example grows with T. In
    the last level it passes through the shared experts and those of its tasks.

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
        - Experts are stages of an arbitrary backbone; the paper's are small perceptrons. Gates are linear in their
          flattened input. With stems, the inputs are the outputs of the stems.
        - All tasks have the same number of own experts, at all levels.
        - Experts start from different weights; see `MixtureOfExperts`.

    Args:
        backbone: The first shared expert of each level; the others have the same architecture and other initial
            weights. Pretrained weights are the same in all experts: those from `backbone_weights`, `nn.Pretrained` and
            `nn.Frozen`.
        shared_experts: Number $m_s$ of shared experts in each level, at least 1.
        own_experts: Number $m_k$ of experts of each task in each level, at least 0.
        stages_per_level: Number of stages of the backbone in a level, at least 1; the last level may have fewer.
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
        # Modules by level; in each level the shared experts, then those of each task.
        groups = [[self._cut(network) for network in group] for group in networks]
        self.backbone = nn.ModuleList(
            nn.ModuleList(nn.ModuleList(levels[j] for levels in group) for group in groups) for j in range(len(widths))
        )
        # Numbers of experts that a task's gate and a shared gate mix.
        per_task, every = (self.shared_experts + count * self.own_experts for count in (1, len(names)))
        self.gates = nn.ModuleList(
            nn.ModuleList(
                new_gate(width, per_task, int(key(self.key, k, 1, j)), () if j else columns)
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
        """Predict for several tasks; below the last level every input passes through the experts of all tasks."""
        numbers = self.task_numbers
        *lower, (shared, *own) = self._levels
        shared_input, task_inputs = x, dict.fromkeys(numbers.values(), x)  # inputs of the experts of the next level
        for j, (shared_experts, *own_experts) in enumerate(lower):
            from_shared = [expert(shared_input) for expert in shared_experts]
            from_own = [[expert(task_inputs[k]) for expert in experts] for k, experts in enumerate(own_experts)]
            every = torch.stack([*from_shared, *(f for features in from_own for f in features)], 1)
            shared_input = mixed(self.shared_gates[j], shared_input, every)
            # The last level needs the inputs of the tasks in the batch only.
            needed = list(task_inputs) if j + 1 < len(lower) else [numbers[name] for name in rows]
            task_inputs = {
                k: mixed(self._gate(k, j), task_inputs[k], torch.stack([*from_shared, *from_own[k]], 1)) for k in needed
            }
        features, outputs = [expert(shared_input) for expert in shared], {}
        for name, i in rows.items():
            task = numbers[name]
            task_input = task_inputs[task][i]
            both = torch.stack([f[i] for f in features] + [expert(task_input) for expert in own[task]], 1)
            outputs[name] = self.heads[task](mixed(self._gate(task, -1), task_input, both))
        return outputs

    def own_modules(self, task: int) -> list[nn.Module]:
        """The task's experts of the last level, its gates of the last two levels, its head and its stem.

        A shared gate mixes the outputs of all lower experts, and so the gates before them act on all tasks.
        """
        gates = self.gates[task]
        assert isinstance(gates, nn.ModuleList)
        return [self._levels[-1][1 + task], *list(gates)[-2:], *super().own_modules(task)]

    def _cut(self, network: nn.Module) -> list[nn.Sequential]:
        """Divide a network into the levels of one expert."""
        stages, size = stages_of(network), self.stages_per_level
        return [nn.Sequential(*stages[start : start + size]) for start in range(0, len(stages), size)]

    def _gate(self, task: int, level: int) -> nn.Module:
        gates = self.gates[task]
        assert isinstance(gates, nn.ModuleList)
        return gates[level]

    @property
    def _levels(self) -> list[list[nn.ModuleList]]:
        """The experts of each level: first the shared experts, then the experts of each task."""
        assert isinstance(self.backbone, nn.ModuleList)
        levels = [level for level in self.backbone if isinstance(level, nn.ModuleList)]
        return [[part for part in level if isinstance(part, nn.ModuleList)] for level in levels]
