"""Cross-stitch networks: a network for each task, with activations mixed after each stage."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_meta.errors import UserError
from lightning_meta.multitask.base import MultiTaskModule
from lightning_meta.nn.features import output_size, shape_after
from lightning_meta.nn.stages import stages_of
from lightning_meta.tasks import TasksSpec


class CrossStitch(MultiTaskModule):
    r"""Soft sharing by mixing activations (Misra, Shrivastava, Gupta and Hebert, CVPR 2016).

    $$\tilde h_i^c = \sum_j \alpha_{ij}^c h_j^c$$

    (equation 1; https://arxiv.org/abs/1604.03539) after each stage, with an α for each channel c. Initially
    $\alpha_{ii}$ = `own`, and the other tasks share the rest equally. Every input passes through all T networks, so the
    cost per example grows with T.

    At a glance:
        - Shared: mixing weights.
        - Own: a network and a head.
        - New task: —.

    Run it:
        `python scripts/fit.py --config configs/cross_stitch_glyphs.yaml`.

    Logged:
        - `test/accuracy/<task>` or `test/r2/<task>`: score of each task on its test examples; `test/score`: the mean
          over tasks.
        - `train/loss`: sum of the losses over tasks, or their combination by `weighting`.
        - The α are not logged; they are in the checkpoint as `mixing.<stage>`, `(C, T, T)`.

        `MultiTaskModule` explains the other metrics.

    Deviations:
        - Section 4: all networks start from the same backbone, in the paper from T trained ones; and the α have the
          same learning rate as the other parameters, in the paper 100 times theirs.
        - Figure 4: activations are mixed after every stage of the backbone; the paper's AlexNets are stitched after
          pooling and fully connected layers, two of them for two tasks.

    Args:
        backbone: The network of each task, before its head.
        own: Initial weight of a task's own activations, in [0, 1].
        **options: Options of `MultiTaskModule`.
    """

    sets_first_weights = ("own",)

    def __init__(
        self,
        backbone: nn.Module,
        own: float = 0.9,
        **options: Any,
    ) -> None:
        super().__init__(backbone, **options)
        if not 0 <= own <= 1:
            raise UserError(f"own: expected a number from 0 to 1, got {own}")
        self.own = own

    def build(self, spec: TasksSpec) -> None:
        """Make the networks, the mixing weights α, and the heads."""
        features, count = output_size(self.backbone, self.input_shape, self.input_dtype), len(spec.tasks)
        stages, shape, dtype = stages_of(self.backbone), self.input_shape, self.input_dtype
        start = torch.full((count, count), (1 - self.own) / max(count - 1, 1))
        start.fill_diagonal_(self.own if count > 1 else 1.0)
        mixing = []
        for stage in stages:
            shape, dtype = shape_after(stage, shape, input_dtype=dtype), ""
            mixing.append(nn.Parameter(start.repeat(shape[0], 1, 1)))
        self.mixing = nn.ParameterList(mixing)
        self.backbone = nn.ModuleList(nn.ModuleList(copy.deepcopy(stages)) for _ in range(count))
        self.heads = nn.ModuleList(self.head(n, features) for n in spec.tasks)

    def forward(self, x: Tensor, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Predict for several tasks; every input passes through all networks."""
        assert isinstance(self.backbone, nn.ModuleList)
        columns = [x] * len(self.backbone)
        for stage, alpha in enumerate(self.mixing):
            h = torch.stack([net[stage](c) for net, c in zip(self.backbone, columns, strict=True)])  # type: ignore[index]
            mixed = torch.einsum("cij,jmcs->imcs", alpha, h.flatten(3) if h.dim() > 3 else h.unsqueeze(3))
            columns = list(mixed.reshape(h.shape).unbind())
        numbers = self.task_numbers
        order = {name: numbers[name] for name in rows}
        return {name: self.heads[i](columns[i][rows[name]]) for name, i in order.items()}
