"""Linear models: one for each task, or one for all tasks with separate intercepts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from math import log

import torch
from torch import Tensor, nn

from lightning_meta.batches import Split, TaskBatch
from lightning_meta.data.task_set import TaskSet
from lightning_meta.errors import UserError
from lightning_meta.functional.linear_models import Labelled, linear_models
from lightning_meta.multitask.base import MultiTaskModule
from lightning_meta.multitask.tables import mean_of_known
from lightning_meta.nn.categories import OneHot
from lightning_meta.nn.features import are_ids, as_input, output_size
from lightning_meta.tasks import TasksSpec

STRENGTHS = tuple(10.0 ** (1 - i) for i in range(6))
"""λ, from 10 to 10⁻⁴: at 1, a direction in which features vary as much as on average keeps half of its weight."""
NEGLIGIBLE = 1e-3
"""Loss of a task below which differences hardly matter; a constant prediction of a standardised target has 1."""


class Linear(MultiTaskModule):
    r"""A linear model of the flattened inputs: ridge and logistic regression, $f_i(x) = W_i^\top x + b_i$.

    The baseline for all networks: a network that is not better has learned nothing beyond a linear model. Hoerl and
    Kennard, Ridge regression, Technometrics 12 (1970), https://doi.org/10.1080/00401706.1970.10488634; Evgeniou and
    Pontil, Regularized multi-task learning, KDD 2004, https://doi.org/10.1145/1014052.1014067, for models between the
    two.

    The optimum is computed at the start of training from all training rows: in closed form for regression, by L-BFGS in
    float64 for labels. The penalty λ is selected by the geometric mean of the tasks' validation losses, in which no
    task with large errors decides alone, from 10⁻⁴ to 10 in units of the features' mean variance
    (`lightning_meta.functional.linear_models`). Training ends after the first validation.

    At a glance:
        - Shared: nothing (`pooled`: all weights but the intercepts).
        - Own: weights and an intercept (`pooled`: an intercept).
        - New task: refit.

    Run it:
        `python scripts/fit.py --config configs/linear_parkinsons.yaml`; compared with networks in a ladder: `python
        scripts/ladder.py --config configs/ladder_parkinsons.yaml`.

    Logged:
        - `test/accuracy/<task>` or `test/r2/<task>`: score of each task on its test examples; `test/score`: the mean
          over tasks.
        - `train/loss`: sum of the losses over tasks, at the optimum.

        `MultiTaskModule` explains the other metrics.

    Deviations:
        - All tasks share λ, since the few validation rows of one task select it poorly: with one λ per task, R² on
          Parkinson's telemonitoring is −0.045 instead of 0.010, and the AUROC on landmine differs by at most 0.002.
        - Real targets are standardised by the training rows, as in all methods here, so pooled slopes are equal in
          units of the standard deviation of each task's targets.
        - Intercepts also have a penalty, 10⁻⁶ relative to the mean loss, so that they are finite for constant labels.

    Args:
        pooled: Whether tasks of the same type and with the same number of outputs share the weights W and only have
            separate intercepts. There must be two such tasks at least.
        tasks: Specification of the tasks; filled in by the data module.
    """

    solved = True
    fixed_options = (
        "backbone",
        "optimizer",
        "lr_scheduler",
        "weighting",
        "stems",
        "head_hidden",
        "head_dropout",
        "backbone_lr_factor",
        "backbone_weights",
        "graph",
    )

    def __init__(self, pooled: bool = False, tasks: TasksSpec | None = None) -> None:
        # The weights are at the optimum when training begins; steps leave them there.
        super().__init__(OneHot(), optimizer=partial(torch.optim.SGD, lr=0.0), tasks=tasks)
        self.pooled = pooled

    def build(self, spec: TasksSpec) -> None:
        """Make the weights, which are 0 until training begins."""
        sizes = {name: torch.Size(shape).numel() for name, shape in spec.input_shapes.items()}
        if any(spec.codes):
            sizes = dict.fromkeys(sizes, output_size(self.backbone, self.input_shape))
        for name, shape in spec.input_shapes.items():
            if are_ids(shape, spec.input_dtypes.get(name, "")):
                raise UserError(f"task {name!r}: a linear model has no use for ids, such as tokens; leave Linear out")
        outputs = {name: task.outputs for name, task in spec.tasks.items()}
        self.shared = nn.ModuleList()
        if not self.pooled:
            self.heads = nn.ModuleList(_zero(nn.Linear(sizes[name], of)) for name, of in outputs.items())
            return
        assert self.input_shape == next(iter(spec.input_shapes.values()))  # refuses inputs of different shapes
        if all(len(group) == 1 for group in self._groups()):
            kinds = ", ".join(f"{n!r} ({type(t).__name__}, outputs: {t.outputs})" for n, t in spec.tasks.items())
            raise UserError(
                f"pooled: no two tasks are of one type and number of outputs, so none can share weights: {kinds}; use "
                "pooled: false"
            )
        for group in self._groups():
            self.shared.append(_zero(nn.Linear(sizes[group[0]], outputs[group[0]], bias=False)))
        self.heads = nn.ModuleList(Intercept(of) for of in outputs.values())

    def _groups(self) -> list[list[str]]:
        """The tasks that share weights: without `pooled` each alone, with it those of one type and width."""
        if not self.pooled:
            return [[name] for name in self.names]
        alike: dict[tuple[type, int], list[str]] = {}
        for name, task in self.spec.tasks.items():
            alike.setdefault((type(task), task.outputs), []).append(name)
        return list(alike.values())

    def forward(self, x: Tensor, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Predict for several tasks."""
        x, numbers = self.backbone(x), self.task_numbers
        products = dict.fromkeys(rows, x)
        for shared, group in zip(self.shared, self._groups(), strict=False):  # `shared` is empty without `pooled`
            products |= dict.fromkeys(rows.keys() & group, shared(x))
        return {name: self.heads[numbers[name]](products[name][i]) for name, i in rows.items()}

    def outputs(self, batch: TaskBatch) -> dict[str, Tensor]:
        """Predictions for a batch, by name of the tasks in it; their inputs may differ in shape."""
        if not isinstance(batch.inputs, dict):
            return super().outputs(batch)
        outputs: dict[str, Tensor] = {}
        for name, rows in batch.rows.items():
            outputs |= self(self.inputs(batch.inputs[name]), {name: rows})
        return outputs

    def on_train_start(self) -> None:
        """Fit, unless the run is resumed."""
        super().on_train_start()
        if self.trainer.global_step == 0:
            sets = getattr(getattr(self.trainer, "datamodule", None), "sets", None)
            if not sets:
                raise UserError("Linear reads all rows at once: give the Trainer datamodule=MultiTaskDataModule(...)")
            fitted = self.fitted(sets) if self.trainer.is_global_zero else {}
            fitted = self.trainer.strategy.broadcast(fitted)
            with torch.no_grad():
                for name, parameter in self.named_parameters():
                    parameter.copy_(fitted[name])

    def on_validation_epoch_end(self) -> None:
        """Log the scores; during training, stop."""
        super().on_validation_epoch_end()
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            self.trainer.should_stop = True

    def fitted(self, sets: Mapping[Split, TaskSet]) -> dict[str, Tensor]:
        """The optimal parameters by name.

        Args:
            sets: Task sets of the splits `train` and `val`.
        """
        groups, numbers = self._groups(), self.task_numbers
        train, val = ([self._rows(sets[split], n) for group in groups for n in group] for split in ("train", "val"))
        rows = iter(train)
        paths = zip(*(linear_models([next(rows) for _ in group], STRENGTHS) for group in groups), strict=True)
        models = min(paths, key=lambda models: self._mean_log_loss(val, models))
        parameters: dict[str, Tensor] = {}
        for i, (group, (weight, intercepts)) in enumerate(zip(groups, models, strict=True)):
            parameters[f"shared.{i}.weight" if self.pooled else f"heads.{numbers[group[0]]}.weight"] = weight.T
            parameters |= {f"heads.{numbers[n]}.bias": b for n, b in zip(group, intercepts, strict=True)}
        return parameters

    def _mean_log_loss(self, rows: Sequence[Labelled], models: Sequence[tuple[Tensor, Tensor]]) -> float:
        """The mean over tasks of the logarithm of the loss on a split, without tasks that have no rows."""
        each = [(weight, b) for weight, intercepts in models for b in intercepts]
        losses = [of.losses(of.x @ weight + b) for of, (weight, b) in zip(rows, each, strict=True) if len(of.y)]
        return mean_of_known([log(float(of_task.mean()) + NEGLIGIBLE) for of_task in losses])

    def _rows(self, data: TaskSet, name: str) -> Labelled:
        inputs = data.inputs[name] if isinstance(data.inputs, dict) else data.inputs
        x = self.backbone(as_input(inputs[data.rows[name]].cpu(), torch.float64))
        weights = None if data.weights is None else data.weights[name].cpu().double()
        return Labelled(self.spec.tasks[name], x, data.targets[name].cpu(), weights)


class Intercept(nn.Module):
    """Adds b.

    Args:
        outputs: Number of outputs.
    """

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Add b to predictions `(M, outputs)`."""
        return x + self.bias


def _zero(layer: nn.Linear) -> nn.Linear:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
