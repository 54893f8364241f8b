"""Multi-task attention: a shared backbone, and attention of each task to its features after every block of stages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_meta.checks import switch, whole
from lightning_meta.errors import UserError
from lightning_meta.functional.random_bits import key, name_key
from lightning_meta.multitask.base import MultiTaskModule
from lightning_meta.nn.features import IMAGE_DIMS, output_size, shape_after
from lightning_meta.nn.fresh import fresh
from lightning_meta.nn.frozen import FeatureExtractor
from lightning_meta.nn.heads import seeded
from lightning_meta.nn.normalization import TaskBatchNorm
from lightning_meta.nn.stages import stages_of
from lightning_meta.tasks import TasksSpec


class MTAN(MultiTaskModule):
    r"""Soft sharing by attention (Multi-Task Attention Network; Liu, Johns and Davison, CVPR 2019).

    $$\hat a_i^{(j)} = a_i^{(j)} \odot p^{(j)}, \qquad
    a_i^{(j)} = h_i^{(j)}(g_i^{(j)}([u^{(j)}; f^{(j)}(\hat a_i^{(j-1)})]))$$

    (equations 1 and 2; https://arxiv.org/abs/1803.10704). Block j consists of one or more stages of the backbone;
    $u^{(j)}$ are the features after its first stage and $p^{(j)}$ those after its last. g is a 1x1 convolution (a
    linear layer for features without spatial dimensions), batch normalisation and a ReLU; h is the same with a sigmoid.
    f is shared by the tasks and maps features to the shape of $u^{(j)}$; the first block has no f. The head of task i
    takes the last $\hat a_i^{(j)}$.

    At a glance:
        - Shared: a backbone, and layers between its blocks.
        - Own: attention and a head.
        - New task: train attention and a head.

    Run it:
        `python scripts/fit.py --config configs/mtan_glyphs.yaml`.

    Logged:
        - `test/accuracy/<task>` or `test/r2/<task>`: score of each task on its test examples; `test/score`: the mean
          over tasks.
        - `train/loss`: sum of the losses over tasks, or their combination by `weighting`.
        - The attention is not logged.

        `MultiTaskModule` explains the other metrics.

    Deviations:
        - Section 3.2: f has the architecture of the first stage of its block, with other weights; in the paper it is a
          3x3 convolution and pooling. For a `Conv4` it is both, for an `MLP` a layer. If the stage is frozen or
          pretrained, f has the same weights.
        - Figure 2: in a block of one stage, the default, u equals p; the paper's blocks have two or three convolutions.
        - Batch normalisation in the attention uses the statistics of the task's examples in the batch; under DDP, of
          those on the same rank, as in all other layers.

    Args:
        backbone: The shared network, in stages.
        stages_per_block: Number of stages in a block, at least 1; the last block may have fewer.
        batch_norm: Whether the attention has batch normalisation.
        **options: Options of `MultiTaskModule`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        stages_per_block: int = 1,
        batch_norm: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(backbone, **options)
        whole(1, stages_per_block=stages_per_block)
        switch(batch_norm=batch_norm)
        self.stages_per_block, self.batch_norm = stages_per_block, batch_norm

    def build(self, spec: TasksSpec) -> None:
        """Make f between the blocks, and the attention and the head of each task."""
        features = output_size(self.backbone, self.input_shape, self.input_dtype)
        shape, dtype, shapes = self.input_shape, self.input_dtype, []
        for j, block in enumerate(self._blocks()):
            first = shape_after(block[0], shape, input_dtype=dtype)
            last = shape_after(nn.Sequential(*block), shape, input_dtype=dtype)
            if len(last) not in (1, IMAGE_DIMS) or first[1:] != last[1:]:
                raise UserError(
                    "backbone: MTAN needs features (C,) or (C, H, W) with the same H and W within a block, but those "
                    f"of block {j} of {type(self.backbone).__name__} are {first} and {last}; set stages_per_block to "
                    "another number, or use MultiHead"
                )
            shapes.append((first[0], last))
            shape, dtype = last, ""
        firsts = [block[0] for block in self._blocks()]
        self.between = nn.ModuleList(self._like(stage, j) for j, stage in enumerate(firsts[1:], 1))
        self.attention = nn.ModuleList(
            nn.ModuleList(self._attention(name, j, u if j == 0 else 2 * u, p) for j, (u, p) in enumerate(shapes))
            for name in spec.tasks
        )
        self.heads = nn.ModuleList(self.head(name, features) for name in spec.tasks)

    def forward(self, x: Tensor, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Predict for several tasks; each input passes once through the backbone, and through f once for each task."""
        p, attended, numbers = x, dict[str, Tensor](), self.task_numbers
        for j, (first, *others) in enumerate(self._blocks()):
            u = p = first(p)
            for stage in others:
                p = stage(p)
            if j:  # one pass for all tasks, so that batch normalisation in f uses their joint statistics
                counts = [i.shape[0] for i in rows.values()]
                mapped = self.between[j - 1](torch.cat([attended[name] for name in rows])).split(counts)
                inputs = {n: torch.cat([u[i], f], 1) for (n, i), f in zip(rows.items(), mapped, strict=True)}
            else:
                inputs = {name: u[i] for name, i in rows.items()}
            for name, i in rows.items():
                attention = self.attention[numbers[name]][j]  # type: ignore[index]
                attended[name] = attention(inputs[name]) * p[i]
        return {name: self.heads[numbers[name]](features) for name, features in attended.items()}

    def own_modules(self, task: int) -> list[nn.Module]:
        """The task's attention, head and stem."""
        return [self.attention[task], *super().own_modules(task)]

    def _blocks(self) -> list[list[nn.Module]]:
        """The stages of each block."""
        stages, size = stages_of(self.backbone), self.stages_per_block
        return [stages[start : start + size] for start in range(0, len(stages), size)]

    def _like(self, stage: nn.Module, j: int) -> nn.Module:
        """Make f in front of block j, with the architecture of its first stage."""
        network = fresh(stage, int(key(self.key, j)))
        if not any(isinstance(part, FeatureExtractor) for part in network.modules()):
            # Trained even if the user froze the stage by `requires_grad`, since f does not have the stage's weights.
            network.requires_grad_(True)
        return network

    def _attention(self, name: str, j: int, inputs: int, shape: tuple[int, ...]) -> nn.Module:
        """Make g and h of a task in block j.

        Args:
            name: Name of the task.
            j: Index of the block.
            inputs: Number of input channels: C of u, and for j > 0 those of f as well.
            shape: Shape of p, `(C,)` or `(C, H, W)`.
        """
        width, layers = shape[0], list[nn.Module]()
        with seeded(int(key(self.key, name_key(name), 1, j))):
            for c, after in ((inputs, nn.ReLU()), (width, nn.Sigmoid())):
                layers.append(nn.Linear(c, width) if len(shape) == 1 else nn.Conv2d(c, width, 1))
                layers += [*([TaskBatchNorm(width)] if self.batch_norm else []), after]
        return nn.Sequential(*layers)
