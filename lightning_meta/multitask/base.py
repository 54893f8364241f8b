"""The base of all multi-task modules: what is shared and what is a task's own, and everything around it."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_meta.backbone_rate import as_groups, groups_of
from lightning_meta.batch_check import ChecksBatches
from lightning_meta.batches import Consecutive, TaskBatch
from lightning_meta.building import is_rebuilt
from lightning_meta.checks import instance
from lightning_meta.errors import UserError
from lightning_meta.factories import LRSchedulerCallable, OptimizerCallable
from lightning_meta.functional.random_bits import key, name_key
from lightning_meta.functional.ranks import sum_over_ranks, world_size
from lightning_meta.metrics import NAMED, SMALL_IS_GOOD
from lightning_meta.modes import Mode
from lightning_meta.multitask.combining import CombinesGradients, in_order
from lightning_meta.multitask.records import RecordTable, TaskRecords
from lightning_meta.multitask.selection import BestSoFar, Improved, monitored, of_tasks
from lightning_meta.multitask.step_features import StepFeatures
from lightning_meta.multitask.step_gradients import StepGradients
from lightning_meta.multitask.tables import (
    as_before,
    at_floor,
    by_task,
    check_same_tasks,
    comparable,
    counted,
    mean_of_known,
    rows_of_tasks,
)
from lightning_meta.nn.categories import take_columns
from lightning_meta.nn.checks import check_layers
from lightning_meta.nn.features import shape_after
from lightning_meta.nn.heads import check_head, make_head, seeded
from lightning_meta.nn.likeness import Likeness, check_outputs
from lightning_meta.nn.normalization import per_task
from lightning_meta.nn.stateless import in_evaluation_mode, parts_of, untouched
from lightning_meta.nn.tabular_mlp import TabularMLP
from lightning_meta.run.gradient_table import gradient_shares
from lightning_meta.tasks import TasksSpec, TextFeature
from lightning_meta.tasks.together import Losses, LossesTogether
from lightning_meta.weightings import Aggregator, Equal, Weighting

if TYPE_CHECKING:
    from lightning_meta.multitask.calibration import TableCalibration

_log = logging.getLogger(__name__)

EVALUATED = ("test", "val", "train")  # what a test visits, in the order of the loaders


class MultiTaskModule(ChecksBatches, CombinesGradients, ABC):
    r"""Learns a fixed set of tasks together: $\min \sum_i w_i L_i(\theta_{sh}, \theta_i)$.

    A method of your own gives `build`, which makes its parameters once the tasks are known, and `forward`.

    Logged:
        - `val/score`, `test/score`: the mean over tasks of what each is selected by, `accuracy` or `r2` where nobody
          chose another metric, and `auroc` where labels are rare; a large value is good. Metrics of which less is
          better enter with a minus sign, errors in units of the training targets' standard deviation. No task counts as
          worse than twice the squared error of the mean (R² of −1) or twice the log loss of a uniform guess, so that
          one task cannot decide alone; a line at the end of training says where one does in the best validation. The
          best checkpoint and early stopping should follow `val/score`: `lightning_meta.fit` does by default, and a
          configuration says `checkpoint: {monitor: val/score}`.
        - `val/accuracy/<task>`, `val/f1/<task>` (macro average), `val/auroc/<task>`, `val/r2/<task>`, `val/mae/<task>`
          (in the units of the targets), and `test` alike: of each task, over every labelled example of the split. A
          task has the metric that it is selected by, and of these the first two if it has classes or several labels,
          accuracy and AUROC if it is yes or no, the last two if its targets are real. A score that is not defined, such
          as the AUROC of one class or R² of fewer than five rows, is NaN.
        - `val/accuracy`, `val/f1`, `val/auroc`, `val/r2`, `val/mae`: the plain mean over the tasks that have the
          metric; `val/accuracy_tasks`, `val/f1_tasks`, `val/auroc_tasks`, `val/r2_tasks`, `val/mae_tasks`: how many
          these are. Checkpoints can monitor a mean: `checkpoint: {monitor: val/auroc}`.
        - `val/loss/<task>`, `test/loss/<task>`: the mean over those examples of the cross-entropy, or of the squared
          error of targets standardised by the training split's mean and scale; `val/loss`, `test/loss`: the mean over
          tasks, not weighted.
        - `train/loss`: what is minimised, so by default the sum over the tasks in the batch. `train/loss/<task>`,
          `train/accuracy/<task>`, `train/accuracy` and so on are those of one batch, every `log_every_n_steps` steps; a
          task that the batch lacks has none. `train/weight/<task>`: see `Weighting`.
        - `test/tasks`: T.

        There are no intervals: `scripts/compare.py` has them, over seeds and test examples.

    Args:
        backbone: The network before the heads. Its batch normalisation normalises by the batch in training, all tasks
            of the batch together, and by running statistics afterwards, as in `torch.nn.BatchNorm`.
        optimizer: Optimizer of all parameters.
        lr_scheduler: Steps once per training step.
        weighting: How the losses of the tasks become one; their sum by default.
        stems: By name of the task, a network before the backbone, where inputs differ in shape.
        tasks: What the tasks are; filled in by the data module.
        head_hidden: Widths of hidden layers in each head; without any, a head is linear.
        head_dropout: Probability that a hidden unit of a head is dropped in training, in [0, 1).
        backbone_lr_factor: Learning rate of the backbone's parameters, as a multiple of the optimizer's, > 0; smaller
            than 1 for a pretrained backbone that is not frozen.
        backbone_weights: A run directory or checkpoint, such as `runs/baseline/0`: the backbone starts from the weights
            of its backbone. A resumed run and a checkpoint that is loaded do not need it.
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
    ) -> None:
        super().__init__(backbone, tasks, optimizer, lr_scheduler, backbone_lr_factor, backbone_weights)
        if hasattr(type(self), "selection_score"):
            raise UserError(
                f"{type(self).__name__}.selection_score is not called any more; give `followed`, what each task is "
                "selected by, or `kept`, what is logged in place of the scores of the weights at hand"
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
        self.register_buffer("key", torch.randint(2**62, ()))  # of whatever a task draws for itself
        self._likenesses: dict[str, Likeness] = {}
        self._stepped_on: set[str] = set()
        self._at_floor = ""  # a line on tasks that were at their floor in the best validation
        self._step_gradients, self._step_features = StepGradients(), StepFeatures(type(self).__name__)
        self._last_batch: TaskBatch | None = None
        self._together: LossesTogether | None = None
        self._parts: list[nn.Module] = []  # within an evaluation

    # What a method is.

    @abstractmethod
    def build(self, spec: TasksSpec) -> None:
        """Make the parameters, once the tasks are known."""

    @abstractmethod
    def forward(self, x: Tensor, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Predict for several tasks.

        Args:
            x: Inputs `(B, *input_shape)`, real-valued.
            rows: By name of the task, `(n_i,)` int64: the inputs to predict for.

        Returns:
            By name, `(n_i, outputs_i)`, as the losses take them: real targets standardised, labels as logits. `predict`
            gives what people read.
        """

    # What a method may change.

    def own_modules(self, task: int) -> list[nn.Module]:
        """What belongs to a task alone: its head and stem, by default. All else is shared."""
        return [modules[task] for modules in (self.heads, self.stems) if len(modules)]

    def kept(self, followed: Tensor, logged: Mapping[str, float]) -> dict[str, float]:
        """What is logged of other weights than those at hand, given what selection by task follows, `(T,)`."""
        return {}

    def selected_outputs(self, batch: TaskBatch) -> dict[str, Tensor]:
        """Predictions for a batch in testing and predicting: those of the selected weights."""
        with self.selected_weights():
            return self.outputs(batch)

    def selected_weights(self) -> AbstractContextManager[None]:
        """A context in which the module has the weights that testing and predicting use: by default those at hand."""
        return nullcontext()

    def on_improved(self, improved: Improved) -> None:
        """Called in training after a validation, with what it is the best of so far."""

    # What everyone shares.

    @property
    def spec(self) -> TasksSpec:
        """What the tasks are.

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
        """The place of each task in that order, by name; looking each up in a list takes T² steps for a batch."""
        return {name: i for i, name in enumerate(self.spec.tasks)}

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input of the backbone, behind the stems."""
        shapes = {n: self.spec.input_shapes[n] for n in self.names}
        if self._stems_by_name:
            shapes = {n: self._behind_stem(n, shape) for n, shape in shapes.items()}
        first = next(iter(shapes))
        for name, shape in shapes.items():
            if shape != shapes[first]:
                mend = " behind their stems" if self._stems_by_name else "; give each task a stem with `stems`"
                raise UserError(f"stems: inputs of {first!r} are {shapes[first]}, of {name!r} {shape}{mend}")
        return shapes[first]

    @property
    def input_dtype(self) -> str:
        """The dtype of the backbone's stored inputs, such as "uint8"; "" behind stems, and where nobody said so."""
        dtypes = set(self.spec.input_dtypes.values())
        return dtypes.pop() if len(dtypes) == 1 and not self._stems_by_name else ""

    @property
    def input_codes(self) -> list[int]:
        """For each of the backbone's inputs how many codes it has, 0 for a number; empty behind stems."""
        return [] if self._stems_by_name else self.spec.codes

    def head(
        self, name: str, features: int, hidden: Sequence[int] | None = None, dropout: float | None = None
    ) -> nn.Module:
        """A new head for a task; how it starts depends on the run's seed and the task's name alone.

        Args:
            name: The task.
            features: Width of its input.
            hidden: Widths of its hidden layers; `head_hidden` by default.
            dropout: Probability that a hidden unit is dropped in training; `head_dropout` by default.
        """
        hidden = self.head_hidden if hidden is None else hidden
        dropout = self.head_dropout if dropout is None else dropout
        with seeded(int(key(self.key, name_key(name)))):
            return make_head(features, self.spec.tasks[name].outputs, hidden, dropout)

    def setup(self, stage: str) -> None:
        """Take from the data module what the tasks are, or check that they fit."""
        if self.synchronises_batch_norm and self.trainer.strategy.root_device.type == "cpu":
            raise UserError("sync_batchnorm: torch synchronises batch normalisation on GPUs alone; leave it out")
        super().setup(stage)
        data = self.spec_of_data()
        if data is None or data.table == self.spec.table:
            return
        if stage == "fit":  # trained further, on another table
            self.tasks = replace(self.spec, table=data.table)
            self.update_init_args(tasks=self.tasks)
        elif self.spec.table is not None and self.trainer.is_global_zero:
            _log.warning(
                "the data's rows become other inputs than those of training, as scales, texts or columns differ; "
                "scores mean little: give the table of training, or use predict_table, which encodes as in training"
            )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As of every module; a resumed run of an earlier version keeps the metrics that it was selected by."""
        super().on_load_checkpoint(checkpoint)
        if self.trainer.state.fn != "fit":
            return
        stored = (checkpoint.get("lightning_meta") or {}).get("init_args") or {}
        before = self.spec
        spec = as_before(before, stored.get("tasks"))
        if spec is not before:
            self.tasks = spec
            self.update_init_args(tasks=spec)
            if self.trainer.is_global_zero:
                changed = [name for name, task in spec.tasks.items() if task is not before.tasks[name]]
                _log.info(
                    "metric: the run was begun by an earlier version, and goes on with %s for its %d tasks of rare "
                    "labels, in place of %s",
                    *(spec.tasks[changed[0]].selection, len(changed), before.tasks[changed[0]].selection),
                )

    def forget_best(self) -> None:
        """Let the best validations begin anew, where a resumed run follows another metric, or has other data."""
        self.best.forget()

    def metric_modes(self) -> dict[str, Mode]:
        """Whether a good value is large or small, by name of what is logged: named metrics and classes."""
        modes: dict[str, Mode] = {name: "min" if name in SMALL_IS_GOOD else "max" for name in (*NAMED, "score")}
        return {**modes, "loss": "min", **{task.selection: task.selection_mode for task in self.spec.tasks.values()}}

    def check_data(self, spec: TasksSpec) -> None:
        """Refuse other tasks, and warn of inputs that differ."""
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
        """Make the stems, call `build`, and make what records each task."""
        names = self.names
        if self._stems_by_name:
            if set(self._stems_by_name) != set(names):
                raise UserError(
                    f"stems: expected one for each task, {', '.join(names)}; got {list(self._stems_by_name)}"
                )
            self.stems = nn.ModuleList(self._stems_by_name[name] for name in names)
        stems = {f"stems.{name}": stem for name, stem in self._stems_by_name.items()}
        waits = self._waits_for_columns
        take_columns(stems or {"backbone": self.backbone}, self.spec.codes)
        if waits and self.backbone_weights is not None:
            super().take_first_weights()
        super().make_parts()
        self.weighting.configure(self.spec.tasks)
        self.best = BestSoFar(len(names))
        self.records = {stage: TaskRecords(self.spec.tasks) for stage in EVALUATED}

    def take_first_weights(self) -> None:
        """As of every module; a network that has no layers before it knows its columns takes the weights then."""
        if is_rebuilt() or not self._waits_for_columns:
            super().take_first_weights()

    @property
    def _waits_for_columns(self) -> bool:
        return any(isinstance(part, TabularMLP) and part.columns is None for part in self.backbone.modules())

    def parameter_groups(self) -> list[dict[str, Any]]:
        """All parameters; those of the weighting apart, without weight decay."""
        weighting = list(self.weighting.parameters())
        apart = {id(p) for p in weighting}
        others = (p for p in self.parameters() if id(p) not in apart)
        groups = as_groups(groups_of(others, self.backbone, self.backbone_lr_factor))
        return groups + ([{"params": weighting, "weight_decay": 0.0}] if weighting else [])

    def outputs(self, batch: TaskBatch) -> dict[str, Tensor]:
        """Predictions for a batch, by name of the tasks in it."""
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
        """The inputs of all tasks behind their stems, one after the other, and the rows of each task in them."""
        inputs, parts, rows, start, numbers = batch.inputs, [], {}, 0, self.task_numbers
        for name, i in batch.rows.items():
            x = inputs[name][i] if isinstance(inputs, dict) else inputs[i]
            parts.append(self.stems[numbers[name]](self.inputs(x)))
            rows[name] = torch.arange(start, start + i.shape[0], device=x.device)
            start += i.shape[0]
        return torch.cat(parts), Consecutive(rows)

    def task_losses(self, batch: TaskBatch) -> dict[str, Tensor]:
        """The loss of each task in a batch, by name; its mean over ranks is the mean over all labels of the batch."""
        losses, outputs = self._losses(batch)
        return dict(zip(outputs, losses.unbind(), strict=True))

    def training_step(self, batch: TaskBatch, batch_idx: int) -> Tensor:
        """The weighted loss of a batch of tasks."""
        # With an aggregator the objective only says how the losses count for the tasks' own parameters.
        own, shared, by_features = list[list[nn.Parameter]](), list[nn.Parameter](), False
        if isinstance(self.weighting, Aggregator):
            own = self._own_parameters()
            shared = [p for p in self._shared_parameters(own) if p.requires_grad]
            by_features = bool(shared) and self.weighting.rep_grad
        with self._step_features.recorded() if by_features else nullcontext():
            of_tasks, outputs = self._losses(batch)
        losses, present = in_order(of_tasks, list(outputs), self.names)
        weighed = losses.detach().requires_grad_() if shared else losses
        loss: Tensor = self.weighting(weighed, present)
        self.check_finite(loss)
        ranks = world_size()
        means = sum_over_ranks(losses) / ranks if ranks > 1 else losses.detach()
        self._stepped_on.update(outputs)
        if self.logs_this_step():
            self._log_training(loss, means, present, outputs, batch)
        if shared:
            by_name = dict(zip(outputs, of_tasks.unbind(), strict=True))
            loss = self._collect_gradients(loss, weighed, by_name, shared, own, means, present)
        self.weighting.observe(means, present)
        self._last_batch = batch if self.weighting.looks_again else None
        if ranks > 1:  # every rank has a gradient for every parameter; those of absent tasks are dropped below
            loss = loss + 0 * sum(p.sum() for p in self.parameters() if p.requires_grad)
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Leave alone what belongs to tasks that no batch since the last step held: momentum would move it."""
        for i, name in enumerate(self.names):
            if name not in self._stepped_on:
                for module in self.own_modules(i):
                    for parameter in module.parameters():
                        parameter.grad = None
        self._stepped_on.clear()

    def on_train_start(self) -> None:
        """Name the features of a table: by default they are all columns that were not named, wanted or not."""
        super().on_train_start()
        if self.spec.table is not None and self.trainer.is_global_zero:
            names = [repr(feature.name) for feature in self.spec.table.features]
            more = f" and {len(names) - 20} more" if len(names) > 20 else ""
            _log.info("table: inputs from the columns %s%s", ", ".join(names[:20]), more)
            one_hot = [f.name for f in self.spec.table.features if isinstance(f, TextFeature) and not f.coded]
            if one_hot and any(isinstance(module, TabularMLP) for module in self.modules()):
                _log.warning("TabularMLP embeds no column %r: give the Table categories: codes", one_hot[0])

    def on_train_epoch_end(self) -> None:
        """Tell the weighting."""
        super().on_train_epoch_end()
        self.weighting.end_epoch()

    def validation_step(self, batch: TaskBatch, batch_idx: int) -> None:
        """Record the predictions."""
        with untouched(self, self._all_parts(batch_idx)):
            self.record("val", batch, self.outputs(batch))

    def test_step(self, batch: TaskBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Record the predictions."""
        with untouched(self, self._all_parts(batch_idx)):
            self.record(EVALUATED[dataloader_idx], batch, self.selected_outputs(batch))

    def _all_parts(self, batch_idx: int) -> list[nn.Module]:
        """All modules within this one, looked for in the first batch: there are some for each task."""
        if batch_idx == 0 or not self._parts:
            self._parts = parts_of(self)
        return self._parts

    def predict_step(self, batch: TaskBatch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Predictions by name of the task, as people read them."""
        with untouched(self):
            outputs = self.selected_outputs(batch)
        # Copies: a view would keep the outputs of all tasks for as long as predictions are kept.
        return {name: self.spec.tasks[name].readable(y).clone() for name, y in outputs.items()}

    def on_validation_epoch_end(self) -> None:
        """Log the scores; in training, note each task's best."""
        table, values = self._report("val", self.records["val"])
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
            self.log("val/score", score, prog_bar=True, logger=False)
            self._log_at_once({"val/score": score, **values})
        else:
            self.log("val/score", score, prog_bar=True)
            self.log_dict(values)

    def _log_at_once(self, values: Mapping[str, float]) -> None:
        """Log what `log_dict` would in a validation within training; that takes a millisecond for each value."""
        trainer, default = self.trainer, torch.get_default_dtype()
        dtype = default if default in (torch.float32, torch.float64) else torch.float32  # as Lightning keeps them
        kept = torch.tensor(list(values.values()), dtype=dtype, device=self.device)
        metrics = dict(zip(values, kept.unbind(), strict=True))
        trainer.callback_metrics.update(metrics)
        trainer.logged_metrics.update(metrics)
        if not trainer.sanity_checking:
            step = trainer.fit_loop.epoch_loop._batches_that_stepped
            numbers = {**dict(zip(values, kept.tolist(), strict=True)), "epoch": trainer.current_epoch}
            for logger in trainer.loggers:
                logger.log_metrics(numbers, step)
                logger.save()

    def on_train_end(self) -> None:
        """Say whether a task's score was at its floor in the best validation."""
        super().on_train_end()
        self._warn("val", self._at_floor)

    def followed(self, table: RecordTable, logged: Mapping[str, float]) -> Tensor:
        """What selection by task follows, `(T,)`, a large value is good: what the monitored metric is the mean of."""
        monitor, sign = monitored(self.trainer)
        own = comparable(self.spec.tasks, list(table.ranked_scores(self.spec.tasks).values()))
        of_task = of_tasks(monitor, self.names, logged)
        scores = [sign * of_task[n] if n in of_task else score for n, score in zip(self.names, own, strict=True)]
        return torch.tensor(scores, dtype=torch.float64)

    def on_test_epoch_end(self) -> None:
        """Log the scores of the test split, and keep the table of tasks as `test_report`."""
        table, values = self._report("test", self.records["test"])
        self._warn("test", self._floor_line(table))
        self.log_dict({**values, "test/tasks": float(len(self.names))})
        beside = {stage: records.compute() for stage, records in self.records.items() if stage != "test"}
        for records in self.records.values():
            records.reset()
        directory = self.trainer.log_dir  # asks the other ranks
        shares = gradient_shares(directory) if directory else {}
        self.test_report = {
            "predictions": table.predictions(self.spec.tasks),
            "per_task": rows_of_tasks(self.spec, {"test": table, **beside}, self.best.steps, shares),
        }

    @torch.no_grad()
    def predict(self, task: str, x: Tensor) -> Tensor:
        """Predict for new inputs of a task.

        Args:
            task: Its name.
            x: Inputs `(M, *input_shape)`, as the data module gives them; images as uint8 or real values in [0, 1].

        Returns:
            `(M, outputs)`: real targets in their units, logits of classes or labels; for a binary task `(M,)`, the
            probability of yes.

        Raises:
            UserError: There is no such task, inputs are of another kind than those of training, or predictions are not
                finite.
        """
        if task not in self.names:
            raise UserError(f"there is no task {task!r}; there are {', '.join(map(repr, self.names))}")
        self._likeness(task).check(x)
        inputs = {task: x.to(self.device)} if len(self.stems) else x.to(self.device)
        rows = torch.arange(len(x), device=self.device)
        with in_evaluation_mode(self), untouched(self):
            outputs = self.selected_outputs(TaskBatch(inputs, {}, {task: rows}, {}))
        return self.spec.tasks[task].readable(check_outputs(outputs[task]))

    def predict_table(
        self,
        data: Any,
        batch_size: int = 512,
        delimiter: str | None = None,
        decimal: Literal[".", ","] | None = None,
        calibration: TableCalibration | None = None,
    ) -> dict[str, NDArray[Any]]:
        """Predict for new rows of the kind of table that the model was trained on, which need not be there any more.

        Unseen texts and missing values are handled as in training, and named in a warning; columns that the model does
        not know, and targets, are not looked at.

        Args:
            data: The path of a CSV or Parquet file; or a DataFrame, an Arrow table, or lists by column.
            batch_size: Rows that are predicted at once.
            delimiter: What divides the columns of a CSV file; by default what did so in training.
            decimal: What stands before the decimals of its numbers; by default what did so in training.
            calibration: What `lightning_meta.calibrate_table` returned; adds the columns `set(target)`, a tuple of
                labels, and `abstained(target)` of targets with classes, where `p(target=class)` then has the
                temperature, and `lower(target)` and `upper(target)` of numbers.

        Returns:
            By column, a value for each row, such as `pandas.DataFrame` takes: under the target's name, with its unit in
            brackets, a number in that unit, or a label beside the probability of each class, `p(target=class)`. Where a
            column names each row's task, it comes first.

        Raises:
            UserError: The model was not trained on a `Table`, or a column is missing or holds another kind of value.
        """
        from lightning_meta.multitask.table_predictions import predict_table

        return predict_table(self, data, batch_size, "data=", delimiter, decimal, calibration)

    def export(self, file: str | Path, dtype: torch.dtype | None = None, tasks: Sequence[str] | None = None) -> Path:
        """Write the model to a file that needs nothing of this package: `.pt2`, by `torch.export`, or `.onnx`.

        The function in it runs on the CPU, for any number M of inputs, with the weights that a test uses. For each task
        it returns numbers in the unit of the target, `(M, outputs)`; the probabilities of classes, `(M, N)`, or of
        labels; or the probability of yes, `(M,)`. In `.pt2` they are a dictionary by name of the task, in `.onnx` a
        list in the order of the tasks.

        A model of a `Table` takes its cells: `numbers` `(M, numbers)` float64, NaN where missing, and `codes`
        `(M, texts)` int64, the place of each text in its column's list, −1 where it is missing, −2 where no training
        row has it. Scaling, missing values and texts become inputs within the function, as in training.
        `lightning_meta.multitask.exported_rows.inputs_of` makes both of the rows of a CSV file, with numpy alone. Where
        a column names each row's task, the function predicts every task for every row. Other models take inputs `x`
        `(M, *input_shape)`.

        What a reader must know lies in the file: in `.pt2` as the extra file `lightning_meta.json`, in `.onnx` as the
        metadata `lightning_meta.json`: the columns, their texts, and for each task its name, target, unit and classes.

        Args:
            file: Where to; a file that is there is replaced once the new one is whole.
            dtype: Of the inputs that are not a table's: float32, images in [0, 1], or uint8, images in [0, 255]; int64
                for ids. By default float32, or int64 where the model learned from ids.
            tasks: The tasks that it predicts for, whose inputs are of one shape; all by default.

        Returns:
            The file.

        Raises:
            UserError: Another suffix or dtype, tasks of different inputs, a package that is missing, or an operator
                that cannot be exported.
        """
        from lightning_meta.multitask.export import export

        return export(self, file, dtype, tasks)

    def _likeness(self, task: str) -> Likeness:
        if task not in self._likenesses:
            spec = self.spec
            known = spec.input_dtypes.get(task, ""), spec.input_statistics.get(task, ())
            coded = [i for i, codes in enumerate(spec.codes) if codes]
            self._likenesses[task] = Likeness(spec.input_shapes[task], *known, coded)
        return self._likenesses[task]

    def record(self, stage: str, batch: TaskBatch, outputs: Mapping[str, Tensor]) -> None:
        """Keep the predictions for a batch."""
        for losses in self._example_losses(outputs, batch):
            self.records[stage].update(losses, batch.ids, outputs, batch.targets)

    def _losses(self, batch: TaskBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The losses of the tasks in a batch, in the order of its outputs; and these."""
        outputs = self.outputs(batch)
        groups, ranks = self._example_losses(outputs, batch), world_size()
        of_groups = [group.sums() if ranks > 1 else group.means() for group in groups]
        losses = torch.cat(of_groups) if len(groups) > 1 else of_groups[0]
        names = [name for group in groups for name in group.names]
        if names != list(outputs):
            places = {name: place for place, name in enumerate(names)}
            losses = losses[torch.tensor([places[name] for name in outputs], device=losses.device)]
        if ranks > 1:
            counts = torch.tensor([len(batch.targets[name]) for name in outputs], device=self.device)
            losses = losses * (ranks / sum_over_ranks(counts).clamp_min(1).to(losses.dtype))
        return losses, outputs

    def _example_losses(self, outputs: Mapping[str, Tensor], batch: TaskBatch) -> list[Losses]:
        """The loss of each example times its weight, those of tasks of one kind together."""
        tasks = self.spec.tasks
        if self._together is None or self._together.tasks is not tasks:
            self._together = LossesTogether(tasks)
        groups = self._together(outputs, batch.targets)
        weights = batch.weights
        if weights is None:
            return groups
        weighted = []
        for group in groups:
            of_group = torch.cat([weights[name] for name in group.names])
            weighted.append(group._replace(values=group.values * of_group.to(group.values.dtype)))
        return weighted

    def _log_training(
        self, loss: Tensor, means: Tensor, present: Tensor, outputs: dict[str, Tensor], batch: TaskBatch
    ) -> None:
        dtype = torch.promote_types(means.dtype, torch.float32)
        sums = torch.zeros(2, len(self.names), dtype=dtype, device=self.device)
        for i, name in enumerate(self.names):
            if name in outputs and len(outputs[name]) and self.spec.tasks[name].of_examples:
                scores = self.spec.tasks[name].example_scores(outputs[name].detach(), batch.targets[name])
                total = scores.sum()
                # One example has no R². Zeros in place of what is not finite, without asking the device.
                known = torch.isfinite(scores).all()
                sums[0, i], sums[1, i] = torch.where(known, total, 0), known * len(scores)
        totals = zip(*sum_over_ranks(sums).tolist(), strict=True)
        means_of = zip(self.spec.tasks.items(), totals, strict=True)
        found = {n: {task.selection: total / count} for (n, task), (total, count) in means_of if count}
        values = by_task("train", found)
        columns = (of.tolist() for of in (means, self.weighting.weights().detach(), present))
        for name, value, weight, here in zip(self.names, *columns, strict=True):
            if here:
                values[f"train/loss/{name}"] = value
            if not isinstance(self.weighting, Equal | Aggregator):
                values[f"train/weight/{name}"] = weight
        # Not by `self.log`, which repeats the last value of a task that the batch lacks.
        for logger in self.loggers:
            logger.log_metrics({name: value for name, value in values.items() if value == value}, self.global_step)
        self.log("train/loss", sum_over_ranks(loss) / world_size(), prog_bar=True, batch_size=1)

    def _behind_stem(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        dtype = self.spec.input_dtypes.get(name, "")
        return shape_after(self._stems_by_name[name], shape, f"stems.{name}", dtype)

    def _report(self, stage: str, records: TaskRecords) -> tuple[RecordTable, dict[str, float]]:
        """The predictions for a split, and what is logged of them."""
        self._parts = []
        table, tasks = records.compute(), self.spec.tasks
        records.reset()
        ranked, further = table.ranked_scores(tasks), table.metrics(tasks)
        scores = {n: {task.selection: ranked[n], **further[n]} for n, task in tasks.items()}
        losses = {f"{stage}/loss/{name}": loss for name, loss in table.ranked_losses().items()}
        values = {**by_task(stage, scores), **counted(stage, scores), **losses}
        values[f"{stage}/loss"] = mean_of_known(list(losses.values()))
        values[f"{stage}/score"] = mean_of_known(comparable(tasks, list(ranked.values())))
        return table, values

    def _floor_line(self, table: RecordTable) -> str:
        tasks = self.spec.tasks
        return at_floor(tasks, list(table.ranked_scores(tasks).values()))

    def _warn(self, stage: str, line: str) -> None:
        if line and self.trainer.is_global_zero:
            _log.warning("%s: %s", stage, line)
