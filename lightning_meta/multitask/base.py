"""The base class of all multi-task modules: training, evaluation and prediction for a fixed set of tasks."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_meta.backbone_rate import as_groups, groups_of
from lightning_meta.batch_check import ChecksBatches
from lightning_meta.batches import Consecutive, TaskBatch
from lightning_meta.building import is_rebuilt
from lightning_meta.checks import instance
from lightning_meta.errors import UserError, meant, some_of
from lightning_meta.factories import LRSchedulerCallable, OptimizerCallable
from lightning_meta.functional.random_bits import key, name_key
from lightning_meta.functional.ranks import sum_over_ranks, world_size
from lightning_meta.metrics import NAMED, SMALL_IS_GOOD
from lightning_meta.modes import Mode
from lightning_meta.module import Graph
from lightning_meta.multitask.combining import drop_gradients, in_order, weighed_tasks
from lightning_meta.multitask.graphed_steps import GraphedSteps
from lightning_meta.multitask.presence import Presence
from lightning_meta.multitask.recorded_predictions import predictions_of
from lightning_meta.multitask.records import RecordTable, TaskRecords
from lightning_meta.multitask.selection import BestSoFar, Improved, monitored, of_tasks
from lightning_meta.multitask.step_features import StepFeatures
from lightning_meta.multitask.step_gradients import StepGradients
from lightning_meta.multitask.tables import (
    as_before,
    at_floor,
    by_task,
    check_same_tasks,
    comparable_of,
    counted,
    few_rows,
    mean_of_known,
    rows_of_tasks,
)
from lightning_meta.nn.categories import awaits_columns, take_columns
from lightning_meta.nn.checks import check_layers
from lightning_meta.nn.features import shape_after
from lightning_meta.nn.heads import check_head, make_head, seeded
from lightning_meta.nn.likeness import Likeness, check_outputs
from lightning_meta.nn.normalization import per_task
from lightning_meta.nn.stateless import in_evaluation_mode, parts_of, untouched
from lightning_meta.nn.tabular_mlp import TabularMLP
from lightning_meta.run.checkpoints import logged_step
from lightning_meta.run.gradient_table import gradient_shares
from lightning_meta.tasks import TasksSpec, TextFeature
from lightning_meta.tasks.base import one_each
from lightning_meta.tasks.together import Losses, LossesTogether
from lightning_meta.weightings import Aggregator, Equal, Weighting
from lightning_meta.weightings.base import check_shape

if TYPE_CHECKING:
    from lightning_meta.multitask.calibration import TableCalibration

_log = logging.getLogger(__name__)
_log_of_data = logging.getLogger("lightning_meta.data")  # a ladder shows what is said there once

EVALUATED = ("test", "val", "train")  # the splits that a test evaluates, in the order of the loaders


class MultiTaskModule(ChecksBatches, GraphedSteps, ABC):
    r"""Base class for learning a fixed set of tasks jointly: $\min \sum_i w_i L_i(\theta_{sh}, \theta_i)$.

    To add a method, implement `build`, which makes the parameters once the tasks are known, and `forward`.

    Logged:
        - `val/score`, `test/score`: mean over tasks of each task's selection metric; higher is better. By default it is
          `accuracy` or `r2`, and `auroc` for rare labels. Metrics for which lower is better enter with a minus sign,
          errors in units of the training targets' standard deviation. A torchmetrics class of errors is divided by the
          error of the training mean. A task's contribution is bounded below by twice the squared error of the mean (R²
          of −1), twice the log loss of a uniform guess, or for a class of errors −2, so that no single task dominates.
          A task with fewer than five examples in the split does not count, unless none has. A warning at the end of
          training names tasks at this bound in the best validation.
          Use `val/score` for checkpoints and early stopping: `lightning_meta.fit` does by default, and configurations
          set `checkpoint: {monitor: val/score}`.
        - `val/accuracy/<task>`, `val/f1/<task>` (macro average), `val/auroc/<task>`, `val/r2/<task>`, `val/mae/<task>`
          (in the units of the targets), and likewise for `test`: metrics of each task, over all labelled examples of
          the split. Each task has its selection metric; in addition, classification and multilabel tasks have accuracy
          and F1, binary tasks accuracy and AUROC, regression tasks R² and MAE. Undefined scores, such as the AUROC of a
          single class or R² of fewer than five rows, are NaN.
        - `val/accuracy`, `val/f1`, `val/auroc`, `val/r2`, `val/mae`: unweighted mean over the tasks that have the
          metric; `val/accuracy_tasks`, `val/f1_tasks`, `val/auroc_tasks`, `val/r2_tasks`, `val/mae_tasks`: the number
          of these tasks. Checkpoints can monitor a mean: `checkpoint: {monitor: val/auroc}`.
        - `val/loss/<task>`, `test/loss/<task>`: mean over these examples of the cross-entropy, or of the squared error
          of standardised targets; `val/loss`, `test/loss`: unweighted mean over tasks.
        - `train/loss`: the objective, by default the sum over the tasks in the batch. `train/loss/<task>`,
          `train/accuracy/<task>`, `train/accuracy` and so on: on one batch, every `log_every_n_steps` steps; tasks
          absent from the batch are not logged. `train/weight/<task>`: see `Weighting`.
        - `test/tasks`: the number of tasks T.

        For confidence intervals over seeds and test examples use `scripts/compare.py`.

    Args:
        backbone: The network below the heads. As usual, its batch normalisation uses the statistics of the whole batch,
            of all tasks together, in training, and running statistics in evaluation.
        optimizer: Optimizer of all parameters.
        lr_scheduler: Learning rate schedule, stepped once per training step.
        weighting: Combination of the tasks' losses; their sum by default.
        stems: Networks in front of the backbone by name of the task, for tasks with inputs of different shapes.
        tasks: Specification of the tasks; filled in by the data module.
        head_hidden: Widths of the hidden layers of each head; linear heads by default.
        head_dropout: Probability that a hidden unit of a head is dropped in training, in [0, 1).
        backbone_lr_factor: Learning rate of the backbone's parameters, as a multiple of the optimizer's, > 0; smaller
            than 1 for a pretrained backbone that is not frozen.
        backbone_weights: Run directory or checkpoint, such as `runs/baseline/0`, whose backbone weights the backbone
            starts from. Not needed to resume a run or load a checkpoint.
        graph: `auto` captures training and evaluation steps as CUDA graphs, which helps where the GPU waits for the CPU
            to launch small kernels; `off` does not. Batches must recur in shape: with missing labels most do not. A
            step that cannot be captured runs without a graph, and the log says why; training steps of a weighting that
            combines gradients (`Aggregator`) never are. Not yet run on a GPU. See `docs/gpus.md`.
    """

    batch_type, data_module, monitor = TaskBatch, "MultiTaskDataModule", "val/score"
    spec_name, spec_type = "tasks", TasksSpec
    wrong_data = "learns from a MultiTaskDataModule; the data has episodes"

    tasks: TasksSpec | None

    heads: nn.ModuleList
    key: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        weighting: Weighting | None = None,
        stems: dict[str, nn.Module] | None = None,
        tasks: TasksSpec | None = None,
        head_hidden: Sequence[int] = (),
        head_dropout: float = 0.0,
        backbone_lr_factor: float = 1.0,
        backbone_weights: str | None = None,
        graph: Graph = "off",
    ) -> None:
        super().__init__(backbone, tasks, optimizer, lr_scheduler, backbone_lr_factor, backbone_weights, graph)
        if hasattr(type(self), "selection_score"):
            raise UserError(
                f"{type(self).__name__}.selection_score is not called any more; give `followed`, what each task is "
                "selected by, or `kept`, what is logged in place of the scores of the current weights"
            )
        check_head(head_hidden, head_dropout)
        if stems is not None:
            instance("stems", stems, Mapping)
        if weighting is not None:
            instance("weighting", weighting, Weighting)
        for network in (backbone, *(stems or {}).values()):
            check_layers(network, inner_gradients=False)
        self.backbone = per_task(backbone, synchronised_too=False)
        self.weighting = Equal() if weighting is None else weighting
        self.head_hidden, self.head_dropout = head_hidden, head_dropout
        self.stems = nn.ModuleList()
        self.heads = nn.ModuleList()
        self.records: dict[str, TaskRecords] = {}
        self.test_report: dict[str, Any] = {}
        self._stems_by_name = {name: per_task(stem, synchronised_too=False) for name, stem in (stems or {}).items()}
        self.register_buffer("key", torch.randint(2**62, ()))  # seed of what is drawn for a single task
        self._likenesses: dict[str, Likeness] = {}
        self._presence = Presence()
        self._at_floor = ""  # a warning about tasks that were at their bound in the best validation
        self._step_gradients, self._step_features = StepGradients(), StepFeatures(type(self).__name__)
        self._last_batch: TaskBatch | None = None
        self._together: LossesTogether | None = None
        self._parts: list[nn.Module] = []  # the submodules with buffers, cached during an evaluation

    # Methods that subclasses must implement.

    @abstractmethod
    def build(self, spec: TasksSpec) -> None:
        """Make the parameters; called once, when the tasks are known."""

    @abstractmethod
    def forward(self, x: Tensor, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Predict for several tasks.

        Args:
            x: Inputs `(B, *input_shape)`, real-valued.
            rows: Indices of the inputs of each task, `(n_i,)` int64, by its name.

        Returns:
            Predictions `(n_i, outputs_i)` by name of the task, as the losses take them: standardised targets or logits.
            `predict` converts them to the units of the targets.
        """

    # Methods that subclasses may override.

    def own_modules(self, task: int) -> list[nn.Module]:
        """The modules that only one task uses: by default its head and stem. All others are shared."""
        return [modules[task] for modules in (self.heads, self.stems) if len(modules)]

    def kept(self, followed: Tensor, logged: Mapping[str, float]) -> dict[str, float]:
        """Metrics to log for other weights than the current ones, such as the best of each task.

        Args:
            followed: Score of each task that selection follows, `(T,)`.
            logged: Metrics of this validation by name.
        """
        return {}

    def selected_outputs(self, batch: TaskBatch) -> dict[str, Tensor]:
        """Predictions for a batch by the selected weights, as used in testing and predicting."""
        with self.selected_weights():
            return self._graphed_outputs(batch)

    def selected_weights(self) -> AbstractContextManager[None]:
        """A context in which the module has the weights for testing and predicting: by default the current ones."""
        return nullcontext()

    def on_improved(self, improved: Improved) -> None:
        """Called after each validation during training.

        Args:
            improved: Which scores are the best so far.
        """

    # Methods that all subclasses share.

    @property
    def spec(self) -> TasksSpec:
        """The specification of the tasks.

        Raises:
            UserError: It is not known yet.
        """
        if self.tasks is None:
            raise UserError("tasks: give the module a TasksSpec, or fit it with a MultiTaskDataModule first")
        return self.tasks

    @property
    def names(self) -> list[str]:
        """The names of the tasks, in order."""
        return list(self.spec.tasks)

    @property
    def task_numbers(self) -> dict[str, int]:
        """The index of each task, by name; avoids T² steps of `names.index` per batch."""
        return {name: i for i, name in enumerate(self.spec.tasks)}

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input of the backbone, which is an output of the stems if there are any."""
        shapes = {n: self.spec.input_shapes[n] for n in self.names}
        if self._stems_by_name:
            shapes = {n: self._behind_stem(n, shape) for n, shape in shapes.items()}
        first = next(iter(shapes))
        for name, shape in shapes.items():
            if shape != shapes[first]:
                fix = " behind their stems" if self._stems_by_name else "; give each task a stem with `stems`"
                raise UserError(f"stems: inputs of {first!r} are {shapes[first]}, of {name!r} {shape}{fix}")
        return shapes[first]

    @property
    def input_dtype(self) -> str:
        """The dtype of the backbone's stored inputs, such as "uint8"; "" with stems, or if it is not known."""
        dtypes = set(self.spec.input_dtypes.values())
        return dtypes.pop() if len(dtypes) == 1 and not self._stems_by_name else ""

    @property
    def input_codes(self) -> list[int]:
        """For each of the backbone's inputs how many codes it has, 0 for a number; empty behind stems."""
        return [] if self._stems_by_name else self.spec.codes

    def head(
        self, name: str, features: int, hidden: Sequence[int] | None = None, dropout: float | None = None
    ) -> nn.Module:
        """A new head for a task; its initial weights only depend on the seed of the run and the name of the task.

        Args:
            name: Name of the task.
            features: Width of its input.
            hidden: Widths of its hidden layers; `head_hidden` by default.
            dropout: Probability that a hidden unit is dropped in training; `head_dropout` by default.
        """
        hidden = self.head_hidden if hidden is None else hidden
        dropout = self.head_dropout if dropout is None else dropout
        with seeded(int(key(self.key, name_key(name)))):
            return make_head(features, self.spec.tasks[name].outputs, hidden, dropout)

    def setup(self, stage: str) -> None:
        """Take the specification of the tasks from the data module, or check that it matches."""
        if self.synchronises_batch_norm and self.trainer.strategy.root_device.type == "cpu":
            raise UserError("sync_batchnorm: torch synchronises batch normalisation on GPUs alone; leave it out")
        super().setup(stage)
        data = self.spec_of_data()
        if data is None or data.table == self.spec.table:
            return
        if stage == "fit":  # training continues on another table
            self.tasks = replace(self.spec, table=data.table)
            self.update_init_args(tasks=self.tasks)
        elif self.spec.table is not None and self.trainer.is_global_zero:
            _log.warning(
                "the rows are encoded differently than in training, since scales, texts or columns differ, so scores "
                "are not meaningful: give the table of training, or use predict_table, which encodes as in training"
            )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also restore the selection metrics of a resumed run of an earlier version, whose defaults were different."""
        super().on_load_checkpoint(checkpoint)
        if self.trainer.state.fn != "fit":
            return
        stored = (checkpoint.get("lightning_meta") or {}).get("init_args") or {}
        current = self.spec
        spec = as_before(current, stored.get("tasks"))
        if spec is not current:
            self.tasks = spec
            self.update_init_args(tasks=spec)
            if self.trainer.is_global_zero:
                changed = [n for n, task in spec.tasks.items() if task.selection != current.tasks[n].selection]
                if not changed:
                    _log.info(
                        "metric: the run was started by an earlier version, so errors by a class of torchmetrics stay "
                        "in their own units in val/score, without a bound"
                    )
                    return
                _log.info(
                    "metric: the run was started by an earlier version, so it keeps %s for its %d tasks of rare "
                    "labels, instead of %s",
                    *(spec.tasks[changed[0]].selection, len(changed), current.tasks[changed[0]].selection),
                )

    def forget_best(self) -> None:
        """Reset the best validations, when a resumed run has another metric or other data."""
        self.best.forget()

    def metric_modes(self) -> dict[str, Mode]:
        """Whether to maximise or minimise each metric, by its logged name."""
        modes: dict[str, Mode] = {name: "min" if name in SMALL_IS_GOOD else "max" for name in (*NAMED, "score")}
        return {**modes, "loss": "min", **{task.selection: task.selection_mode for task in self.spec.tasks.values()}}

    def check_data(self, spec: TasksSpec) -> None:
        """Refuse other tasks, and warn if inputs are distributed differently."""
        check_same_tasks(self.spec, spec)
        if spec.codes != self.spec.codes:
            raise UserError(
                f"the data's inputs have {spec.codes} codes of categories, those of training {self.spec.codes} (0 is a "
                "number); give the table of training, or use predict_table, which encodes as in training"
            )
        for name in self.names:
            warning = self._likeness(name).compare(spec.input_statistics.get(name, ()))
            if warning and self.trainer.is_global_zero:
                _log.warning("task %r: %s", name, warning)
                break

    def make_parts(self) -> None:
        """Make the stems, call `build`, and make the records of each task."""
        names = self.names
        if self._stems_by_name:
            if set(self._stems_by_name) != set(names):
                raise UserError(
                    f"stems: expected one for each task, {', '.join(names)}; got {list(self._stems_by_name)}"
                )
            self.stems = nn.ModuleList(self._stems_by_name[name] for name in names)
        stems = {f"stems.{name}": stem for name, stem in self._stems_by_name.items()}
        waits = awaits_columns(self.backbone)
        take_columns(stems or {"backbone": self.backbone}, self.spec.codes)
        if waits and self.backbone_weights is not None:
            super().take_first_weights()
        super().make_parts()
        self.weighting.configure(self.spec.tasks)
        self.best = BestSoFar(len(names))
        self.records = {stage: TaskRecords(self.spec.tasks, joined=stage == "test") for stage in EVALUATED}

    def take_first_weights(self) -> None:
        """As of every module; a network that has no layers before it knows its columns takes the weights then."""
        if is_rebuilt() or not awaits_columns(self.backbone):
            super().take_first_weights()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameter groups of the optimizer; those of the weighting have no weight decay."""
        weighting = list(self.weighting.parameters())
        of_weighting = {id(p) for p in weighting}
        others = (p for p in self.parameters() if id(p) not in of_weighting)
        groups = as_groups(groups_of(others, self.backbone_modules(), self.backbone_lr_factor))
        return groups + ([{"params": weighting, "weight_decay": 0.0}] if weighting else [])

    def backbone_modules(self) -> list[nn.Module]:
        """The modules that `backbone_lr_factor` applies to: the backbone, and parts of it that tasks do not share."""
        return [self.backbone]

    def outputs(self, batch: TaskBatch) -> dict[str, Tensor]:
        """Predictions for a batch by name of the task."""
        inputs, rows = batch.inputs, batch.rows
        if len(self.stems):
            x, rows = self._behind_stems(batch)
        elif isinstance(inputs, dict):
            raise UserError("stems: the tasks' inputs differ in shape; give each task a stem with `stems`")
        else:
            x = self.inputs(inputs)
        outputs: dict[str, Tensor] = self(x, rows)
        return outputs

    def _behind_stems(self, batch: TaskBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The outputs of the stems for all tasks, one task after the other, and the rows of each task in them."""
        inputs, parts, rows, start, numbers = batch.inputs, [], {}, 0, self.task_numbers
        for name, i in batch.rows.items():
            x = inputs[name][i] if isinstance(inputs, dict) else inputs[i]
            parts.append(self.stems[numbers[name]](self.inputs(x)))
            rows[name] = torch.arange(start, start + i.shape[0], device=x.device)
            start += i.shape[0]
        return torch.cat(parts), Consecutive(rows)

    def task_losses(self, batch: TaskBatch) -> dict[str, Tensor]:
        """The loss of each task in a batch, by name.

        Under DDP it is scaled so that the mean over ranks is the mean over the labels of all ranks.
        """
        losses, outputs = self._losses(batch)
        return dict(zip(outputs, losses.unbind(), strict=True))

    def training_step(self, batch: TaskBatch, batch_idx: int) -> Tensor:
        """The weighted loss of a batch of tasks."""
        weighting, ranks, self._weighed = self.weighting, world_size(), True
        # With an aggregator, the objective only weights the losses for the tasks' own parameters.
        own: list[list[nn.Parameter]] = []
        shared: list[nn.Parameter] = []
        by_features = False
        if isinstance(weighting, Aggregator):
            own = self._own_parameters()
            shared = [p for p in self._shared_parameters(own) if p.requires_grad]
            by_features = bool(shared) and weighting.rep_grad
        if self._captures_training():
            loss, losses, present, outputs = self._graphed_pass(batch)
        else:
            with self._step_features.recorded() if by_features else nullcontext():
                of_tasks, outputs = self._losses(batch)
            losses, present = in_order(of_tasks, list(outputs), self.names, weighed_tasks(batch, self.names))
            # Detached: the weights are the derivatives by the losses; the tasks' gradients are taken one by one below.
            weighed = losses.detach().requires_grad_() if shared else losses
            loss = weighting(weighed, present)
        self.check_finite(loss)
        # Weightings keep state, which must be the same on all ranks, so they observe means over ranks.
        means = sum_over_ranks(losses) / ranks if ranks > 1 else losses.detach()
        if self.logs_this_step():
            self._log_training(loss, means, present, outputs, batch)
        if shared:
            by_name = dict(zip(outputs, of_tasks.unbind(), strict=True))
            loss = self._collect_gradients(loss, weighed, by_name, shared, own, means, present)
        weighting.observe(means, present)
        self._last_batch = batch if weighting.looks_again else None
        if ranks > 1:  # DDP needs a gradient for every parameter on every rank; those of absent tasks are dropped below
            loss = loss + 0 * sum(p.sum() for p in self.parameters() if p.requires_grad)
        return loss

    def on_train_batch_start(self, batch: TaskBatch, batch_idx: int) -> None:
        """Check a training batch, and note its tasks for `on_before_optimizer_step`."""
        self._check_batch(batch)
        self._presence.note(batch.targets, len(self.spec.tasks))

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Drop the gradients of tasks absent since the last step: the optimizer would move their weights."""
        if absent := self._presence.absent(optimizer, self.spec.tasks):
            own = (module for i, name in enumerate(self.names) if name in absent for module in self.own_modules(i))
            drop_gradients(own, optimizer)
        self._presence.note_step(optimizer)

    def on_train_start(self) -> None:
        """Log the features of a table, since by default all remaining columns are inputs."""
        super().on_train_start()
        if self.spec.table is not None and self.trainer.is_global_zero:
            names = [repr(feature.name) for feature in self.spec.table.features]
            _log_of_data.info("table: inputs from the columns %s", some_of(names, 20))
            one_hot = [f.name for f in self.spec.table.features if isinstance(f, TextFeature) and not f.coded]
            if one_hot and any(isinstance(module, TabularMLP) for module in self.modules()):
                _log_of_data.warning(
                    "column %r is one-hot, so TabularMLP has no embedding for it; give the Table categories: codes",
                    one_hot[0],
                )

    def on_train_epoch_end(self) -> None:
        """Notify the weighting."""
        super().on_train_epoch_end()
        self.weighting.end_epoch()

    def validation_step(self, batch: TaskBatch, batch_idx: int) -> None:
        """Record the predictions."""
        with untouched(self, self._all_parts(batch_idx)):
            outputs = self._graphed_outputs(batch)
            self.records["val"].update(self._example_losses(outputs, batch), batch.ids, outputs, batch.targets)

    def test_step(self, batch: TaskBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Record the predictions."""
        with untouched(self, self._all_parts(batch_idx)):
            outputs, records = self.selected_outputs(batch), self.records[EVALUATED[dataloader_idx]]
            records.update(self._example_losses(outputs, batch), batch.ids, outputs, batch.targets)

    def _all_parts(self, batch_idx: int) -> list[nn.Module]:
        """All submodules with buffers, collected in the first batch: with many tasks this takes a while."""
        if batch_idx == 0 or not self._parts:
            self._parts = [part for part in parts_of(self) if part._buffers]
        return self._parts

    def predict_step(self, batch: TaskBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Predictions by name of the task, as `predict` returns them."""
        with untouched(self):
            outputs = self.selected_outputs(batch)
        # Copies, since a view would keep the outputs of all tasks in memory.
        return {name: self.spec.tasks[name].readable(y).clone() for name, y in outputs.items()}

    def on_validation_epoch_end(self) -> None:
        """Log the scores; during training, update the best of each task."""
        table = self.records["val"].compute()
        self.records["val"].reset()
        values = self._logged("val", table)
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            losses = torch.tensor([values[f"val/loss/{name}"] for name in self.names], dtype=torch.float64)
            followed = self.followed(table, values)
            improved = self.best.update(followed, losses, self.global_step)
            self.on_improved(improved)
            values |= self.kept(followed, values)
            if improved.mean:
                self._at_floor = self._floor_line(table)
        elif self.trainer.state.fn != "fit":
            self._warn("val", self._floor_line(table))
        score = values.pop("val/score")
        if self.trainer.state.fn == "fit":
            self._log_at_once({"val/score": score, **values})
            self.trainer.progress_bar_metrics["val/score"] = score
        else:
            self.log("val/score", score, prog_bar=True)
            self.log_dict(values)

    def _log_at_once(self, values: Mapping[str, float]) -> None:
        """Log as `log_dict` would in a validation during training, which takes a millisecond per value."""
        trainer, default = self.trainer, torch.get_default_dtype()
        dtype = default if default in (torch.float32, torch.float64) else torch.float32  # as Lightning keeps them
        kept = torch.tensor(list(values.values()), dtype=dtype, device=self.device)
        metrics = dict(zip(values, kept.unbind(), strict=True))
        trainer.callback_metrics.update(metrics)
        trainer.logged_metrics.update(metrics)
        if not trainer.sanity_checking:
            step = logged_step(trainer)
            numbers = {**dict(zip(values, kept.tolist(), strict=True)), "epoch": trainer.current_epoch}
            for logger in trainer.loggers:
                logger.log_metrics(numbers, step)
                logger.save()

    def on_train_end(self) -> None:
        """Warn about tasks whose score was at its bound in the best validation."""
        super().on_train_end()
        self._warn("val", self._at_floor)

    def followed(self, table: RecordTable, logged: Mapping[str, float]) -> Tensor:
        """The score of each task that selection follows, `(T,)`, higher is better: the terms of the monitored mean."""
        monitor, sign = monitored(self.trainer)
        few = few_rows(table)  # selected by the loss, as tasks without a score are
        own = comparable_of(table, self.spec.tasks)
        of_task = of_tasks(monitor, self.names, logged)
        scores = [sign * of_task[n] if n in of_task else score for n, score in zip(self.names, own, strict=True)]
        if monitor.partition("/")[2].partition("/")[0] != "loss":  # a loss is defined for any number of examples
            scores = [math.nan if n in few else score for n, score in zip(self.names, scores, strict=True)]
        return torch.tensor(scores, dtype=torch.float64)

    def on_test_epoch_end(self) -> None:
        """Log the scores of the test split, and store predictions and scores per task in `test_report`."""
        tables: dict[str, RecordTable] = {}
        for stage, records in self.records.items():
            tables[stage] = records.compute()
            records.reset()
        table = tables["test"]
        values = self._logged("test", table)
        self._warn("test", self._floor_line(table))
        self.log_dict({**values, "test/tasks": float(len(self.names))})
        directory = self.trainer.log_dir  # a collective call: all ranks must reach it
        shares = gradient_shares(directory) if directory else {}
        self.test_report = {
            "predictions": {
                "names": np.array(list(self.spec.tasks)),
                "score": table.example_scores(self.spec.tasks).numpy(),
                **{name: column.numpy() for name, column in table.columns.items()},
                "prediction": predictions_of(table, self.spec.tasks).numpy(),
            },
            "per_task": rows_of_tasks(self.spec, tables, self.best.steps, shares),
        }

    @torch.no_grad()
    def predict(self, task: str, x: Tensor) -> Tensor:
        """Predict for new inputs of a task.

        Args:
            task: Name of the task.
            x: Inputs `(M, *input_shape)` as in the data module; images as uint8 or real values in [0, 1].

        Returns:
            Real targets in their units or logits of classes or labels, `(M, outputs)`; for a binary task the
            probability of yes, `(M,)`.

        Raises:
            UserError: Unknown task, inputs that differ in type from those of training, or non-finite predictions.
        """
        if task not in self.names:
            known = ", ".join(map(repr, self.names))
            raise UserError(f"there is no task {task!r}; expected {known}{meant(task, self.names)}")
        self._likeness(task).check(x)
        inputs = {task: x.to(self.device)} if len(self.stems) else x.to(self.device)
        rows = torch.arange(len(x), device=self.device)
        with in_evaluation_mode(self), untouched(self):
            outputs = self.selected_outputs(TaskBatch(inputs, {}, {task: rows}, {}))
        return self.spec.tasks[task].readable(check_outputs(outputs[task]))

    def predict_table(
        self,
        data: Any,
        batch_size: int | None = None,
        delimiter: str | None = None,
        decimal: Literal[".", ","] | None = None,
        calibration: TableCalibration | None = None,
    ) -> dict[str, NDArray[Any]]:
        """Predict for new rows of a table like the one of training; the table of training is not needed.

        Unseen texts and missing values are handled as in training and named in a warning; targets and columns that the
        model does not use are ignored.

        Args:
            data: Path of a CSV or Parquet file; or a DataFrame, an Arrow table, or lists by column.
            batch_size: Number of rows per forward pass; by default 512, and up to 8192 for short rows and few tasks.
            delimiter: Column separator of a CSV file; by default as in training.
            decimal: Decimal separator of a CSV file; by default as in training.
            calibration: Result of `lightning_meta.calibrate_table`; adds the columns `set(target)`, a tuple of labels,
                and `abstained(target)` for targets with classes, whose `p(target=class)` then use the temperature, and
                `lower(target)` and `upper(target)` for numbers. A target that is not calibrated has none of them; rows
                of such a task have None, or NaN for numbers.

        Returns:
            Columns with one value per row, for example for `pandas.DataFrame`. Under the name of each target, with its
            unit in brackets, a number in that unit, or a label and the probability of each class, `p(target=class)`. If
            a column names the task of each row, it comes first.

        Raises:
            UserError: The model was not trained on a `Table`, or a column is missing or has values of another type.
        """
        from lightning_meta.multitask.table_predictions import predict_table

        return predict_table(self, data, batch_size, "data=", delimiter, decimal, calibration)

    def export(self, file: str | Path, dtype: torch.dtype | None = None, tasks: Sequence[str] | None = None) -> Path:
        """Export the model to a file that does not need this package: `.pt2`, by `torch.export`, or `.onnx`.

        The exported function runs on the CPU, for any number M of inputs, with the weights that testing uses. For each
        task it returns values in the unit of the target, `(M, outputs)`; the probabilities of classes, `(M, N)`, or of
        labels; or the probability of yes, `(M,)`. The result is a dictionary by name of the task in `.pt2`, and a list
        in the order of the tasks in `.onnx`.

        A model of a `Table` takes the cells of the table: `numbers` `(M, numbers)` float64, NaN if missing, and `codes`
        `(M, texts)` int64, the index of each text in its column's list, −1 if missing, −2 if no training row has it.
        The function itself scales and encodes them as in training. `lightning_meta.multitask.exported_rows.inputs_of`
        computes both from the rows of a CSV file and only needs numpy. If a column names the task of each row, the
        function predicts every task for every row. Other models take inputs `x` `(M, *input_shape)`.

        The file contains metadata, in `.pt2` as the extra file and in `.onnx` as the metadata entry
        `lightning_meta.json`: the columns, their texts, and for each task its name, target, unit and classes.

        Args:
            file: Output file; an existing file is replaced when the new one is complete.
            dtype: Dtype of the inputs, except for tables: float32 for images in [0, 1], uint8 for images in [0, 255],
                or int64 for ids. By default float32, or int64 if the model was trained on ids.
            tasks: Names of the tasks to predict, whose inputs must have the same shape; all by default.

        Returns:
            The file.

        Raises:
            UserError: Unknown suffix or dtype, tasks with different inputs, a missing package, or an operator that
                cannot be exported.
        """
        from lightning_meta.multitask.export import export

        return export(self, file, dtype, tasks)

    def _likeness(self, task: str) -> Likeness:
        if task not in self._likenesses:
            spec = self.spec
            dtype, statistics = spec.input_dtypes.get(task, ""), spec.input_statistics.get(task, ())
            coded = [i for i, codes in enumerate(spec.codes) if codes]
            self._likenesses[task] = Likeness(spec.input_shapes[task], dtype, statistics, coded)
        return self._likenesses[task]

    def _losses(self, batch: TaskBatch, totals: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The losses of the tasks in a batch, in the order of the outputs; and the outputs."""
        outputs, ranks = self.outputs(batch), world_size()
        if ranks > 1:
            by_group = [(group.names, group.sums()) for group in self._example_losses(outputs, batch)]
        elif batch.weights is not None:
            by_group = [(group.names, group.means()) for group in self._example_losses(outputs, batch)]
        else:
            by_group = self._losses_together(outputs, batch).means(outputs, batch.targets)
        names, losses = by_group[0]
        if len(by_group) > 1:
            names, losses = [n for names, _ in by_group for n in names], torch.cat([of for _, of in by_group])
        if names != list(outputs):
            places = {name: place for place, name in enumerate(names)}
            losses = losses[torch.tensor([places[name] for name in outputs], device=losses.device)]
        if ranks > 1:
            totals = self._totals(batch) if totals is None else totals
            assert totals is not None
            by_name = dict(zip(batch.targets, totals.unbind(), strict=True))
            of_outputs = torch.stack([by_name[name] for name in outputs])
            losses = losses * (ranks / of_outputs.clamp_min(1).to(losses.dtype))
        return losses, outputs

    def _example_losses(self, outputs: Mapping[str, Tensor], batch: TaskBatch) -> list[Losses]:
        """The loss of each example times its weight, grouped by type of task."""
        groups = self._losses_together(outputs, batch)(outputs, batch.targets)
        weights = batch.weights
        if weights is None:
            return groups
        weighted = []
        for group in groups:
            of_examples = torch.cat([weights[name] for name in group.names])
            weighted.append(group._replace(values=group.values * of_examples.to(group.values.dtype)))
        return weighted

    def _losses_together(self, outputs: Mapping[str, Tensor], batch: TaskBatch) -> LossesTogether:
        """Check the outputs, and return the object that computes the losses."""
        tasks = self.spec.tasks
        if not isinstance(outputs, Mapping) or outputs.keys() != batch.targets.keys():
            returned = ", ".join(outputs) if isinstance(outputs, Mapping) else f"a {type(outputs).__name__}"
            raise UserError(
                f"{type(self).__name__}.forward returned {returned or 'nothing'}; expected the outputs of each task of "
                f"the batch by name: {', '.join(batch.targets)}"
            )
        for name, of_task in outputs.items():  # the squared error of `(n,)` and `(n, 1)` is that of all pairs
            expected = (batch.targets[name].shape[0], tasks[name].outputs)
            shape = getattr(of_task, "shape", None)
            if shape != expected:
                received = type(of_task).__name__ if shape is None else tuple(shape)
                raise UserError(
                    f"{type(self).__name__}.forward returned {received} for task {name!r}; expected "
                    f"{expected}: the outputs of each example"
                )
        if self._together is None or self._together.tasks is not tasks:
            self._together = LossesTogether(tasks)
        return self._together

    def _log_training(
        self, loss: Tensor, means: Tensor, present: Tensor, outputs: dict[str, Tensor], batch: TaskBatch
    ) -> None:
        dtype = torch.promote_types(means.dtype, torch.float32)
        sums = torch.zeros(2, len(self.names), dtype=dtype, device=self.device)
        for i, name in enumerate(self.names):
            if name in outputs and len(outputs[name]) and self.spec.tasks[name].of_examples:
                task, of_task = self.spec.tasks[name], outputs[name].detach()
                scores = one_each(task, "example_scores", task.example_scores(of_task, batch.targets[name]), of_task)
                total = scores.sum()
                # R² of one example is not finite. Replaced by zeros without a synchronisation with the device.
                finite = torch.isfinite(scores).all()
                sums[0, i], sums[1, i] = torch.where(finite, total, 0), finite * len(scores)
        totals = zip(*sum_over_ranks(sums).tolist(), strict=True)
        by_name = zip(self.spec.tasks.items(), totals, strict=True)
        scores_by_name = {n: {task.selection: total / count} for (n, task), (total, count) in by_name if count}
        values = by_task("train", scores_by_name)
        weights = self.weighting.weights()
        check_shape(f"{type(self.weighting).__name__}.weights", weights, means, "task")
        columns = (column.tolist() for column in (means, weights.detach(), present))
        for name, value, weight, here in zip(self.names, *columns, strict=True):
            if not here:  # means of the logged weights are over the steps with the task
                continue
            values[f"train/loss/{name}"] = value
            if not isinstance(self.weighting, Equal | Aggregator):
                values[f"train/weight/{name}"] = weight
        # Not by `self.log`, which would repeat the last value of absent tasks.
        for logger in self.loggers:
            logger.log_metrics({name: value for name, value in values.items() if value == value}, self.global_step)
        self.log("train/loss", sum_over_ranks(loss) / world_size(), prog_bar=True, batch_size=1)

    def _behind_stem(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        dtype = self.spec.input_dtypes.get(name, "")
        return shape_after(self._stems_by_name[name], shape, f"stems.{name}", dtype)

    def _logged(self, stage: str, table: RecordTable) -> dict[str, float]:
        """The metrics of a split to log."""
        self._parts = []
        tasks = self.spec.tasks
        ranked, further = table.ranked_scores(tasks), table.metrics(tasks)
        scores = {n: {task.selection: ranked[n], **further[n]} for n, task in tasks.items()}
        losses = {f"{stage}/loss/{name}": loss for name, loss in table.ranked_losses().items()}
        few = few_rows(table)
        values = {**by_task(stage, scores, few), **counted(stage, scores, few), **losses}
        values[f"{stage}/loss"] = mean_of_known(list(losses.values()))
        values[f"{stage}/score"] = mean_of_known(comparable_of(table, tasks))
        return values

    def _floor_line(self, table: RecordTable) -> str:
        tasks = self.spec.tasks
        return at_floor(tasks, list(table.ranked_scores(tasks).values()), few_rows(table))

    def _warn(self, stage: str, line: str) -> None:
        if line and self.trainer.is_global_zero:
            _log.warning("%s: %s", stage, line)
