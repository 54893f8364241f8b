"""The Multi-Task Attention Network as a draft."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lightning_meta.functional.random_bits import key, name_key
from lightning_meta.multitask import MultiTaskModule
from lightning_meta.nn.features import output_size, shape_after
from lightning_meta.nn.fresh import fresh
from lightning_meta.nn.stages import stages_of
from lightning_meta.tasks import TasksSpec


class MTAN(MultiTaskModule):
    r"""Each task attends to the features of every stage of a shared backbone.

    $\hat a_i^{(j)} = a_i^{(j)} \odot p^{(j)}$ with $a_i^{(j)} = \sigma(g([p^{(j)}; f(\hat a_i^{(j-1)})]))$, where
    $p^{(j)}$ are the features after stage j, f is a stage like the backbone's, and g a layer that mixes channels.

    Liu, Johns and Davison, End-to-End Multi-Task Learning with Attention (CVPR 2019,
    https://arxiv.org/abs/1803.10704), equations 1 and 2. The paper's g has two layers, and its first stage has no f.
    """

    def build(self, spec: TasksSpec) -> None:
        shape, dtype, widths, stages = self.input_shape, self.input_dtype, [], stages_of(self.backbone)
        for stage in stages:
            shape, dtype = shape_after(stage, shape, input_dtype=dtype), ""
            widths.append(shape[0])
        self.attention = nn.ModuleList(
            nn.ModuleList(
                nn.ModuleList([fresh(stage, int(key(self.key, name_key(name), j))), nn.Linear(2 * width, width)])
                for j, (stage, width) in enumerate(zip(stages, widths, strict=True))
            )
            for name in spec.tasks
        )
        features = output_size(self.backbone, self.input_shape, self.input_dtype)
        self.heads = nn.ModuleList(self.head(name, features) for name in spec.tasks)

    def forward(self, x: Tensor, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        attended, p = {name: x[i] for name, i in rows.items()}, x
        for j, stage in enumerate(stages_of(self.backbone)):
            p = stage(p)
            for name, i in rows.items():
                f, g = self.attention[self.names.index(name)][j]  # type: ignore[index]
                both = torch.cat([p[i], f(attended[name])], 1).movedim(1, -1)
                attended[name] = torch.sigmoid(g(both)).movedim(-1, 1) * p[i]
        return {name: self.heads[self.names.index(name)](features) for name, features in attended.items()}

    def own_modules(self, task: int) -> list[nn.Module]:
        return [self.attention[task], *super().own_modules(task)]
