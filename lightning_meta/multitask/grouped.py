"""Task grouping: a backbone for each group of tasks, and a head for each task."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_meta.batches import Common, Consecutive
from lightning_meta.errors import UserError
from lightning_meta.multitask.base import MultiTaskModule
from lightning_meta.multitask.combining import clip_groups, drop_gradients
from lightning_meta.multitask.together import predictions
from lightning_meta.nn.features import output_size
from lightning_meta.tasks import TasksSpec
from lightning_meta.weightings import Equal


class Grouped(MultiTaskModule):
    r"""Groups of tasks with a network each: $f_i(x) = h(g(x; \theta_{G(i)}); \theta_i)$ for task i of group G(i).

    Fifty et al., Efficiently Identifying Task Groupings for Multi-Task Learning (NeurIPS 2021), section 1;
    Standley et al., Which Tasks Should Be Learned Together in Multi-task Learning? (ICML 2020), section 3.

    Each group is trained like a separate `MultiHead` on its tasks (`tasks: [...]` in the data module): its batches,
    initial weights, batch normalisation, gradient clipping and steps do not depend on the other groups. A single group
    is `MultiHead`, and one group per task is `Independent`. All three use the same number of examples per task and
    step, so they can be compared at equal budget.

    The equality requires the same number of batches per epoch, `batches_per_epoch`; a network without dropout, since
    the groups draw from one random stream; and, if tasks share inputs, that no label is missing, since every group sees
    all inputs.

    `task_groups` proposes groups, and `ladder --groups RUN` trains the proposed groups.

    At a glance:
        - Shared: a backbone in each group.
        - Own: a head.
        - New task: train a head on the backbone of a group.

    Run it:
        `python scripts/fit.py --config configs/grouped_glyphs.yaml`; for groups by recorded affinities, compared with
        methods that share all or nothing, see `docs/multi_task.md`.

    Logged:
        - `test/accuracy/<task>` or `test/r2/<task>`: score of each task, with the checkpoint of the best
          `val/score`, the same for all groups.
        - `test/score`: the mean over tasks.
        - `train/loss`: sum of the losses over tasks.

        `MultiTaskModule` explains the other metrics.

    Deviations:
        - Each task is in one group; in the papers a task may be trained in several networks and predicted by one.
        - Compared with separate trainings, one checkpoint is selected for all groups, by the mean over all tasks, as in
          `MultiHead`.

    Args:
        backbone: The backbone g; each group has a copy with the same initial weights.
        groups: Names of the tasks of each group; every task is in exactly one. There is no default; one group of all
            tasks is `MultiHead`.
        **options: Options of `MultiTaskModule`; `weighting` must be `Equal`, since the loss of a group is the sum over
            its tasks.
    """

    def __init__(
        self,
        backbone: nn.Module,
        groups: Sequence[Sequence[str]] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(backbone, **options)
        if not isinstance(self.weighting, Equal):
            raise UserError(
                f"weighting: Grouped gives all losses the same weight, so that groups do not depend on each other; got "
                f"{type(self.weighting).__name__}, leave it out"
            )
        if groups is None:
            raise UserError(
                "groups: the names of the tasks of each group are needed, such as [[a, b], [c]]; for one group of all "
                "tasks use MultiHead"
            )
        self.groups = _checked(groups)

    def build(self, spec: TasksSpec) -> None:
        """Make a copy of the backbone for each group and a head for each task."""
        grouped = [name for group in self.groups for name in group]
        if unknown := [name for name in grouped if name not in spec.tasks]:
            raise UserError(f"groups: there is no task {unknown[0]!r}; expected {', '.join(map(repr, spec.tasks))}")
        if missing := [name for name in spec.tasks if name not in grouped]:
            raise UserError(f"groups: task {missing[0]!r} is in no group; add it to a group, or as a separate group")
        features = output_size(self.backbone, self.input_shape, self.input_dtype)
        self.backbone = nn.ModuleList(copy.deepcopy(self.backbone) for _ in self.groups)
        self.heads = nn.ModuleList(self.head(n, features) for n in spec.tasks)

    def forward(self, x: Tensor, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Predict for several tasks, each group with its own backbone."""
        heads = dict(zip(self.spec.tasks, self.heads, strict=True))
        consecutive = isinstance(rows, Consecutive)
        parts = dict(zip(rows, torch.split(x, [i.shape[0] for i in rows.values()]), strict=True)) if consecutive else {}
        outputs: dict[str, Tensor] = {}
        for backbone, group in self._networks():
            if not (names := [name for name in rows if name in group]):
                continue
            own: dict[str, Tensor] = {name: rows[name] for name in names}
            if consecutive:
                own = Consecutive(own)
                features = backbone(torch.cat([parts[name] for name in names]))
            else:
                own = Common(own) if isinstance(rows, Common) else own
                features = backbone(x)
            outputs |= zip(names, predictions([heads[name] for name in names], features, own), strict=True)
        return {name: outputs[name] for name in rows}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradient of each group separately."""
        numbers = self.task_numbers
        groups = (
            [backbone, *(module for name in group for module in self.own_modules(numbers[name]))]
            for backbone, group in self._networks()
        )
        clip_groups(groups, gradient_clip_val, gradient_clip_algorithm)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Drop the gradients of groups without any task since the last step, and those of absent tasks."""
        absent = self.absent_tasks(optimizer)
        drop_gradients((backbone for backbone, group in self._networks() if absent.issuperset(group)), optimizer)
        super().on_before_optimizer_step(optimizer)

    def _networks(self) -> list[tuple[nn.Module, list[str]]]:
        """The backbone of each group, and the names of its tasks."""
        assert isinstance(self.backbone, nn.ModuleList)
        return list(zip(self.backbone, self.groups, strict=True))


def _checked(groups: Sequence[Sequence[str]]) -> list[list[str]]:
    """Refuse anything but non-empty lists of distinct names, and return them as lists."""
    is_list = isinstance(groups, Sequence) and not isinstance(groups, str) and len(groups)
    for group in groups if is_list else [""]:  # the empty text is refused in the loop
        if isinstance(group, str) or not isinstance(group, Sequence) or not len(group):
            raise UserError(f"groups: expected lists of names of tasks, such as [[a, b], [c]], got {groups!r}")
    for name, count in Counter(name for group in groups for name in group).items():
        if not isinstance(name, str):
            raise UserError(f"groups: expected names of tasks, got {name!r}")
        if count > 1:
            raise UserError(f"groups: task {name!r} is in {count} places; a task is in one group")
    return [list(group) for group in groups]
