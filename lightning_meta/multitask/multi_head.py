"""Multi-head learning: a shared backbone and a head for each task."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lightning_meta.checks import whole
from lightning_meta.multitask.base import MultiTaskModule
from lightning_meta.multitask.together import predictions, rows_of
from lightning_meta.nn.features import output_size
from lightning_meta.nn.stages import check_depth, stages_of
from lightning_meta.tasks import TasksSpec
from lightning_meta.weightings import Aggregator


class MultiHead(MultiTaskModule):
    r"""Hard parameter sharing (Caruana 1997): $f_i(x) = h(g(x; \theta_{sh}); \theta_i)$.

    Caruana, Multitask Learning, Machine Learning 28 (1997), https://doi.org/10.1023/A:1007379606734.

    At a glance:
        - Shared: a backbone θ_sh, or its first stages (`shared_depth`).
        - Own: a head θ_i.
        - New task: train a head.

    Run it:
        `python scripts/fit.py --config configs/multi_head_glyphs.yaml` without a download;
        `configs/multi_head_omniglot.yaml`, `configs/multi_head_cifar100.yaml`, `configs/multi_head_multi_mnist.yaml`,
        `configs/multi_head_parkinsons.yaml`, and for your own table `configs/multi_head_table.yaml`.

    Logged:
        - `test/accuracy/<task>` or `test/r2/<task>`: score of each task on its test examples, with the checkpoint of
          the best `val/score`, the same for all tasks. `best_step` in `per_task.csv` is the step of each task's own
          best validation in the whole training.
        - `test/score`: the mean over tasks.
        - `train/loss`: sum of the losses over tasks, or their combination by `weighting`.

        `MultiTaskModule` explains the other metrics.

    Deviations:
        - The paper's networks share one hidden layer, and every example has targets of all tasks. Here any number of
          layers is shared, heads may have hidden layers, and tasks may have different examples.

    Args:
        backbone: The backbone g.
        shared_depth: Number of shared stages of the backbone, counted from the input; all by default. Each task has a
            copy of the others, with the same initial weights; with 0, nothing is shared.
        **options: Options of `MultiTaskModule`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        shared_depth: int | None = None,
        **options: Any,
    ) -> None:
        whole(0, shared_depth=shared_depth)
        super().__init__(backbone, **options)
        self.shared_depth = shared_depth
        self.branches = nn.ModuleList()

    def build(self, spec: TasksSpec) -> None:
        """Split the backbone at `shared_depth`, and make a branch and a head for each task."""
        features = output_size(self.backbone, self.input_shape, self.input_dtype)
        if self.shared_depth is not None:
            stages = stages_of(self.backbone)
            check_depth("shared_depth", self.shared_depth, self.backbone, stages)
            rest = nn.Sequential(*stages[self.shared_depth :])
            self.backbone = nn.Sequential(*stages[: self.shared_depth])
            self.branches = nn.ModuleList(copy.deepcopy(rest) for _ in spec.tasks)
        self.heads = nn.ModuleList(self.head(n, features) for n in spec.tasks)

    def forward(self, x: Tensor, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Predict for several tasks; the shared part runs once on each input."""
        features, rows = self.shared_features(self.backbone(x), rows)
        heads, names = list(self.heads), self.names
        if list(rows) != names:
            by_name = dict(zip(names, heads, strict=True))
            heads = [by_name[name] for name in rows]
        # Most aggregators differentiate the loss of each task separately.
        separately = isinstance(self.weighting, Aggregator) and not self.weighting.rep_grad
        if len(self.branches):
            branches = dict(zip(self.spec.tasks, self.branches, strict=True))
            own = zip(rows, rows_of(features, rows, separately), strict=True)
            outputs = [head(branches[name](part)) for head, (name, part) in zip(heads, own, strict=True)]
        elif separately:
            parts = rows_of(features, rows, separately)
            outputs = [head(part) for head, part in zip(heads, parts, strict=True)]
        else:
            outputs = list(predictions(heads, features, rows))
        return dict(zip(rows, outputs, strict=True))

    def backbone_modules(self) -> list[nn.Module]:
        """The shared stages of the backbone, and the copies of the others."""
        return [self.backbone, self.branches]

    def own_modules(self, task: int) -> list[nn.Module]:
        """The task's branch, head and stem."""
        return [*super().own_modules(task), *([self.branches[task]] if len(self.branches) else [])]
