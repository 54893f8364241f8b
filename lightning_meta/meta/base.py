"""The base of all meta-learners: two pure functions of one task, and everything around them."""

from __future__ import annotations

import logging
from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, Self

import torch
from lightning import LightningModule
from torch import Tensor, nn

from lightning_meta.batch_check import ChecksBatches
from lightning_meta.batches import Episode, Examples
from lightning_meta.errors import UserError, one_of
from lightning_meta.factories import LRSchedulerCallable, OptimizerCallable
from lightning_meta.functional.compiled import Compiled
from lightning_meta.functional.task_map import TaskMap, task_map
from lightning_meta.meta.choice import Strategy, as_options, by_measurement, by_rule, first_tasks, obstacle, timed
from lightning_meta.meta.learner import Learner
from lightning_meta.meta.predictor import Predictor
from lightning_meta.meta.scores import TaskScores, TaskTable
from lightning_meta.nn.checks import check_layers
from lightning_meta.nn.features import IMAGE_DIMS, output_size, shape_after
from lightning_meta.nn.frozen import frozen_part
from lightning_meta.nn.likeness import Likeness
from lightning_meta.nn.normalization import (
    collected_statistics,
    follow,
    freeze_evaluated,
    hold_in_evaluation,
    per_task,
    task_norms,
)
from lightning_meta.nn.stateless import (
    Tensors,
    exact_derivatives,
    own_buffers,
    put_buffers,
    swapped,
    tensors_of,
    untouched,
)
from lightning_meta.nn.step_graph import StepGraphs
from lightning_meta.tasks import EpisodeSpec

_log = logging.getLogger(__name__)

Graph = Literal["off", "auto", False]  # YAML reads `off` as False

# Attributes that change between steps and say nothing about what a step computes.
_NOT_OF_A_STEP = (frozenset(vars(LightningModule())) - {"training"}) | {
    *("calls", "collected", "statistics"),  # of `TaskBatchNorm`, within a pass
    *(
        "_centred_at",
        "_compiled",
        "_graphs",
        "_init_args",
        "_loops_told",
        "_loss_watch",
        "_progress_reads",
        "_stored_groups",
        "_vectorises",
        "_visits_chosen",
        "test_report",
    ),
    *("_needs_exact_derivatives", "_plan_of_tensors", "_sequences"),  # notes of `nn.stateless`
}

OnTask = Callable[[TaskMap, int, Examples, Examples], Any]
"""What is done with one task: how tasks are visited, N, the support set, the query set."""


class Outcome(NamedTuple):
    """What training on one task gives, or on T tasks with a leading dimension T.

    Attributes:
        loss: The loss that the outer loop lowers, a scalar.
        outputs: Predictions of the query set, `(M, outputs)`.
        targets: What they should have been, `(M, ...)`.
        buffers: What the forward passes made of the backbone's buffers, by name, where they are not the module's own:
            statistics that the running ones of batch normalisation follow, and others that changed.
    """

    loss: Tensor
    outputs: Tensor
    targets: Tensor
    buffers: Tensors


class MetaModule(ChecksBatches, Learner, ABC):
    r"""A learner of learners: give it `adapt` and `predict` on one task, and it trains, evaluates and serves.

    Logged:
        - `val/accuracy`, `test/accuracy`: the share of a task's query examples that are classified right, in [0, 1],
          the mean over tasks. In regression it is `mse`, the mean squared error in squared units of the target, and
          beside it `val/mse_median`, `test/mse_median`, the median over tasks, which a few tasks that blow up do not
          move.
        - `val/accuracy_ci95`, `test/accuracy_ci95`: the half-width of the 95 % interval of that mean,
          $t_{n-1}\, s / \sqrt{n}$, with s the standard deviation over the n tasks and t the quantile of Student's
          distribution, 1.96 for many tasks. It is about other tasks of the same split, and says nothing about other
          seeds.
        - `val/accuracy_step_<j>`, `val/accuracy_step_<j>_ci95`, and `test` alike: the same after j inner steps, from 0
          to the last; of learners with an inner loop alone.
        - `val/loss`, `test/loss`: the loss of the query set, the mean over tasks; of stored regression tasks in units
          of the standard deviation of the training targets.
        - `train/loss`, `train/accuracy`: of the meta-batch of one step, every `log_every_n_steps` steps: the mean outer
          loss, which is what is minimised, and the accuracy (or `mse`) of its query sets.
        - `test/tasks`: n.

    Args:
        backbone: The network that is shared by all tasks; its batch normalisations become `TaskBatchNorm`.
        optimizer: Optimizer of the outer loop.
        lr_scheduler: Steps once per training step.
        strategy: How tasks are visited: all at once by `vmap`, one after the other by `loop`; `auto` chooses by a rule,
            `measured` by a short measurement before the first step. The choice is kept in the checkpoint.
        chunk_size: Tasks that `vmap` takes at a time, which bounds the memory; by default all.
        compile: Compile a whole training step, once for each shape of a meta-batch: half a minute and more at the
            start, then small networks are several times faster. It needs `vmap`, and a C++ compiler on a CPU.
        graph: `auto` records training and evaluation steps as CUDA graphs, where a GPU waits for a CPU to launch small
            kernels; `off` does not. A step that cannot be recorded runs as it is, and a line says why. Not yet run on
            a GPU. See `docs/gpus.md`.
        backbone_lr_factor: Learning rate of the backbone's parameters, as a multiple of the optimizer's, > 0; smaller
            than 1 for a pretrained backbone that is not frozen.
        backbone_weights: A run directory or checkpoint, such as `runs/baseline/0`: the backbone starts from the weights
            of its backbone. A resumed run and a checkpoint that is loaded do not need it.
        episodes: What the episodes look like; filled in by the data module.
    """

    batch_type, data_module = Episode, "EpisodicDataModule"

    needs_images: bool = False
    """Whether it must be given images even where the backbone is frozen, as a method that augments them must.

    Otherwise `adapt` and `predict` may get the features of a frozen backbone, which it passes on, in place of images.
    """

    def __init__(
        self,
        backbone: nn.Module,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        strategy: Strategy = "auto",
        chunk_size: int | None = None,
        compile: bool = False,
        graph: Graph = "off",
        episodes: EpisodeSpec | None = None,
        backbone_lr_factor: float = 1.0,
        backbone_weights: str | None = None,
    ) -> None:
        super().__init__(backbone, episodes, optimizer, lr_scheduler, backbone_lr_factor, backbone_weights)
        one_of("strategy", strategy, Strategy)
        if chunk_size is not None and (chunk_size < 1 or strategy != "vmap"):
            raise UserError(f"chunk_size: a positive number for strategy vmap, got {chunk_size} for {strategy}")
        if compile and strategy in ("loop", "measured"):
            raise UserError(f"compile: needs strategy vmap or auto, got {strategy}")
        graph = "off" if graph is False else graph
        one_of("graph", graph, Literal["off", "auto"])
        if compile and graph == "auto":
            raise UserError("graph: a compiled step is not recorded as a graph; give compile or graph: auto, not both")
        self.strategy, self._compiles, self._compiled = strategy, compile, Compiled()
        self.graph, self._graphs = graph, StepGraphs(_NOT_OF_A_STEP)
        self.task_map = TaskMap(strategy, chunk_size, compile) if strategy in ("vmap", "loop") else None
        check_layers(backbone, self.inner_gradients)
        self.backbone = per_task(backbone)
        if not self.inner_gradients:
            self.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.scores = TaskScores()
        self.test_scores = TaskScores(keep_outputs=True)
        self.test_report: dict[str, Any] = {}
        self._visits_chosen = False  # before the first training step
        self._vectorises: dict[bool, bool] = {}  # whether vmap can run training (True) and evaluation (False)
        self._loops_told = False

    # What a method may change.

    def trajectory(self, support: Examples, ways: int) -> Sequence[Any]:
        """The states after 0, ..., S inner steps; only the last one where there is no inner loop."""
        return [self.adapt(support, ways)]

    def task_loss(self, support: Examples, query: Examples, ways: int) -> Outcome:
        """The outer loss of one task: the query loss after adapting to the support set."""
        outputs = self.predict(self.adapt(support, ways), query.x)
        return Outcome(self.task.loss(outputs, query.y), outputs, query.y, {})

    def meta_batch_loss(self, batch: Episode) -> Outcome:
        """The outer losses of a meta-batch: `task_loss` mapped over its tasks."""
        if self.training:
            freeze_evaluated(self.backbone)
        how = self._way(batch, self._train_on_task)
        with exact_derivatives(self.network):
            return task_map(partial(self._train_on_task, how, batch.ways), how, batch.support, batch.query)

    def build(self, episodes: EpisodeSpec) -> None:
        """Make the parameters that depend on the episodes; the backbone has `self.feature_size` features."""

    def backbone_input_shape(self, episodes: EpisodeSpec) -> tuple[int, ...]:
        """The shape of what the backbone is given: one input, unless a method makes something else of examples."""
        return episodes.input_shape

    def check_episodes(self, episodes: EpisodeSpec) -> None:
        """Refuse episodes of another kind than those that the module was made for.

        Raises:
            UserError: What differs.
        """
        names = ["task", "input_shape"] + (["outputs"] if episodes.task == "regression" else [])
        for name in names:
            wanted, given = getattr(self.spec, name), getattr(episodes, name)
            if wanted != given:
                raise UserError(f"{type(self).__name__} was made for {name} {wanted}, but the data has {given}")
        if episodes.task == "classification":
            self.check_ways(episodes.outputs)

    def setup(self, stage: str) -> None:
        """Take from the data module what the episodes look like, or check that it fits."""
        if self.inner_gradients and str(self.trainer.precision).startswith("16"):
            raise UserError(
                f"precision: {self.trainer.precision} was asked for, but the inner gradients of {type(self).__name__} "
                "would underflow in float16, which only the outer ones are scaled for; use bf16-mixed"
            )
        if getattr(self, "_compiler_ctx", None) is not None:
            raise UserError(
                f"torch.compile cannot trace the steps of {type(self).__name__}; give the Trainer the module itself; "
                "compile=True compiles its training step"
            )
        if self.synchronises_batch_norm:
            raise UserError(
                f"sync_batchnorm: {type(self).__name__} normalises each task by its own statistics, and a task lies on "
                "one rank; leave it out"
            )
        super().setup(stage)

    def check_data(self, spec: EpisodeSpec) -> None:
        """Refuse episodes of another kind, and warn of inputs that differ."""
        self.check_episodes(spec)
        own = self.spec
        likeness = Likeness(own.input_shape, own.input_dtype, own.input_statistics)
        if (warning := likeness.compare(spec.input_statistics)) and self.trainer.is_global_zero:
            _log.warning("%s", warning)

    def make_parts(self) -> None:
        """Refuse what the backbone cannot take, then `build`."""
        if self.classifies_only and self.spec.task != "classification":
            raise UserError(f"{type(self).__name__} classifies; for regression use MAML")
        shape, dtype = self.spec.input_shape, self.spec.input_dtype
        self.feature_size = output_size(self.backbone, self.backbone_input_shape(self.spec), dtype)
        frozen = frozen_part(self.backbone)
        if frozen is not None and len(shape) == IMAGE_DIMS:  # features are told from images by their dimensions
            made = shape_after(frozen, shape, input_dtype=dtype)
            frozen.passes = made[0] if len(made) == 1 else None
        super().make_parts()

    def train(self, mode: bool = True) -> Self:
        """Also note which batch normalisations the user holds in evaluation mode while the others train."""
        if self.training and not mode:
            freeze_evaluated(self.backbone)
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        """Nothing: there is no prediction before a task is learned.

        Raises:
            UserError: How one is learned.
        """
        raise UserError(
            f"{type(self).__name__} predicts after it has learned a task: use predictor(x, labels), which gives a "
            "function of new inputs, or adapt and predict"
        )

    def on_train_batch_start(self, batch: Episode, batch_idx: int) -> None:
        """Choose how tasks are visited, rank 0 for all, before the first step."""
        super().on_train_batch_start(batch, batch_idx)
        if self.task_map is None or not self._visits_chosen:
            batch = self.inputs(batch)
            with self.trainer.precision_plugin.forward_context(), self.exact_arithmetic():
                chosen = self._chosen(batch)
            self.task_map = self.trainer.strategy.broadcast(chosen)
            self._visits_chosen = True
            if self.trainer.is_global_zero:
                count = f"{len(batch.tasks)} task{'' if len(batch.tasks) == 1 else 's'}"
                _log.info("%s per meta-batch, computed by %s (strategy %s)", count, self.task_map, self.strategy)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also note the batch normalisations that were held in evaluation mode, which no tensor says."""
        super().on_save_checkpoint(checkpoint)
        if self.training:
            freeze_evaluated(self.backbone)
        frozen = [name for name, norm in task_norms(self).items() if norm.frozen]
        chosen = None if self.task_map is None else as_options(self.task_map)
        checkpoint["lightning_meta"] |= {"frozen_norms": frozen, "task_map": chosen}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the choice of the run that is resumed."""
        super().on_load_checkpoint(checkpoint)
        self.take_state(checkpoint.get("lightning_meta") or {})

    def take_state(self, stored: Mapping[str, Any]) -> None:
        """Take what a checkpoint says beside tensors: how tasks were visited, and which layers were held.

        Args:
            stored: What `on_save_checkpoint` wrote.
        """
        chosen = stored.get("task_map") or {}
        if self.task_map is None and chosen.get("strategy") in ("vmap", "loop"):
            self.task_map = TaskMap(chosen["strategy"], chosen.get("chunk_size"), self._compiles)
        hold_in_evaluation(self, stored.get("frozen_norms") or ())

    def training_step(self, batch: Episode, batch_idx: int) -> Tensor:
        """The mean outer loss of a meta-batch."""
        freeze_evaluated(self.backbone)
        with self.exact_arithmetic():
            if self.graph == "off":
                outcome = self.training_loss(self.inputs(batch))
                loss = outcome.loss.mean()
            else:
                loss, outcome = self.graphed_loss(self.inputs(batch))
        self.check_finite(loss)
        if outcome.buffers:
            follow(self.network, outcome.buffers, partial(self.trainer.strategy.reduce, reduce_op="mean"))
        if self.logs_this_step():
            score = self.task.score(outcome.outputs.detach(), outcome.targets).mean()
            for name, value in (("loss", loss.detach()), (self.task.metric, score)):
                shown = name == "loss"  # beside the metric in validation, which is the one that counts
                self.log(f"train/{name}", value, prog_bar=shown, sync_dist=True, batch_size=len(batch.tasks))
        return loss

    def graphed_loss(self, batch: Episode) -> tuple[Tensor, Outcome]:
        """The mean outer loss of a meta-batch and what it is made of, by a graph where `graph` allows it."""

        def mean_loss(batch: Episode) -> tuple[Tensor, Outcome]:
            outcome = self.training_loss(batch)
            return outcome.loss.mean(), outcome

        return mean_loss(batch) if self.graph == "off" else self._graphs.loss(mean_loss, self, batch)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """The outer backward pass, which runs after `training_step` has returned."""
        with self.exact_arithmetic():
            super().backward(loss, *args, **kwargs)

    def validation_step(self, batch: Episode, batch_idx: int) -> None:
        """Adapt to each task and score its query set."""
        self._evaluate(batch, self.scores)

    def test_step(self, batch: Episode, batch_idx: int) -> None:
        """Adapt to each task, score its query set and keep the predictions."""
        self._evaluate(batch, self.test_scores)

    def on_validation_epoch_end(self) -> None:
        """Log the means over validation tasks."""
        self._report("val", self.scores)

    def on_test_epoch_end(self) -> None:
        """Log the means over test tasks, and keep the table of tasks as `test_report`."""
        table = self._report("test", self.test_scores)
        self.log("test/tasks", float(len(table.tasks)), rank_zero_only=False)
        names = [f"step_{s}" for s in range(table.scores.shape[1])] if table.scores.shape[1] > 1 else ["score"]
        rows = zip(table.tasks.tolist(), table.scores.tolist(), strict=True)
        self.test_report = {
            "predictions": {
                "task": table.tasks.numpy(),
                "output": self.task.readable(table.outputs).numpy(),
                "target": table.targets.numpy(),
            },
            "per_task": [{"task": task, **dict(zip(names, scores, strict=True))} for task, scores in rows],
        }

    def predict_step(self, batch: Episode, batch_idx: int) -> Tensor:
        """Predictions `(T, M, outputs)` of the query sets, in regression in the units of the targets."""
        return self.task.readable(self._evaluate_tasks(self.inputs(batch))[2])

    def predictor(self, x: Tensor, labels: Sequence[Any] | Tensor) -> Predictor:
        """Learn a new task from examples, to predict new inputs.

        Args:
            x: Support inputs `(M, *input_shape)`, images as uint8 or real values in [0, 1].
            labels: M labels of any kind (names, numbers), or `(M, outputs)` real targets for regression.

        Returns:
            A function of inputs.
        """
        return Predictor(self, x, labels)

    def keep_buffers(self, buffers: Tensors) -> Tensors:
        """Keep what a forward pass in training made of buffers that are no batch statistics.

        Args:
            buffers: After the pass, by name.

        Returns:
            The batch statistics among them, which running ones follow once for all tasks.
        """
        own = own_buffers(self.network)
        if own and self.training:
            put_buffers(self.network, {name: buffers[name] for name in own if name in buffers})
        return {name: tensor for name, tensor in buffers.items() if name not in own}

    def _train_on_task(self, how: TaskMap, ways: int, support: Examples, query: Examples) -> Outcome:
        """`task_loss`, and the statistics of batch normalisation in the same passes."""
        with collected_statistics(self.network) as statistics:
            outcome = self.task_loss(support, query, ways)
        buffers = self.keep_buffers(outcome.buffers) if how.strategy == "loop" else outcome.buffers
        return outcome._replace(buffers={**statistics, **buffers})

    def _way(self, batch: Episode, run: OnTask) -> TaskMap:
        """How tasks are visited: what was asked for or suits the network, and a loop where `vmap` cannot run it.

        Args:
            batch: A meta-batch.
            run: What is done with a task; it is tried on two of them before its first run by `vmap`.

        Raises:
            UserError: `vmap` cannot run it, and was asked for by name.
        """
        how = self.task_map or by_rule(self.network, self.inner_gradients, batch)
        if how.strategy == "loop" or how.compile:
            return how
        if self.training not in self._vectorises:
            reason = self._obstacle(run, batch)
            self._vectorises[self.training] = reason is None
            if reason is not None and self.strategy == "vmap":
                with untouched(self):
                    self._try(run, TaskMap("loop"), batch)  # an error that is not about vmap shows here
                raise UserError(f"strategy: vmap cannot visit the tasks: {reason}; use strategy loop, or auto")
            if reason is not None and not self._loops_told:
                self._loops_told = True
                _log.warning("tasks are visited in a loop, as vmap cannot run the network: %s", reason)
        return how if self._vectorises[self.training] else TaskMap("loop")

    def _obstacle(self, run: OnTask, batch: Episode) -> str | None:
        def trial(how: TaskMap) -> None:
            self._try(run, how, batch)

        return obstacle(trial, self, slow_too=self.strategy != "vmap" and not self._compiles)

    def _try(self, run: OnTask, how: TaskMap, batch: Episode) -> None:
        """Run two tasks, and treat their outcome as training does: take its gradient, keep the buffers that it left."""
        two = first_tasks(batch)
        with exact_derivatives(self.network):
            result = task_map(partial(run, how, two.ways), how, two.support, two.query)
        if isinstance(result, Outcome):
            self.keep_buffers({name: of_tasks[-1] for name, of_tasks in result.buffers.items()})  # `obstacle` looks
            if result.loss.requires_grad:  # outside of the context, as in training: a function mode is off within it
                trained = [p for p in self.parameters() if p.requires_grad]
                torch.autograd.grad(result.loss.mean(), trained, allow_unused=True)

    def _chosen(self, batch: Episode) -> TaskMap:
        """How training visits tasks; measured, if that was asked for."""
        maps = type(self).meta_batch_loss is MetaModule.meta_batch_loss
        if self._compiles:
            reason = self._obstacle(self._train_on_task, batch) if maps else None
            if reason is not None:
                raise UserError(f"compile: it needs vmap, which cannot run the network: {reason}; leave compile out")
            return TaskMap("vmap", self.task_map.chunk_size if self.task_map else None, compile=True)
        if not maps or self.strategy != "measured" or self.task_map is not None:
            rule = self.task_map or by_rule(self.network, self.inner_gradients, batch)
            return self._way(batch, self._train_on_task) if maps else rule
        trained = [p for p in self.parameters() if p.requires_grad]

        def seconds(how: TaskMap) -> float:
            self.task_map = how
            return timed(lambda: self.meta_batch_loss(batch).loss.mean(), trained)

        with untouched(self):
            self.task_map = TaskMap("vmap")
            if self._way(batch, self._train_on_task).strategy == "loop" or not self.trainer.is_global_zero:
                return TaskMap("loop")
            return by_measurement(seconds, len(batch.tasks))

    @property
    def training_loss(self) -> Callable[[Episode], Outcome]:
        """What gives the outer losses of a meta-batch: `meta_batch_loss`, compiled where that was asked for."""
        compiles = self.task_map is not None and self.task_map.compile
        return self._compiled_loss if compiles else self.meta_batch_loss

    def _compiled_loss(self, batch: Episode) -> Outcome:
        def whole(tensors: Tensors, support: Examples, query: Examples, tasks: Tensor, classes: Tensor) -> Outcome:
            with swapped(self, tensors):
                return self.meta_batch_loss(Episode(support, query, batch.ways, tasks, classes))

        parameters, buffers = tensors_of(self)
        classes = batch.tasks if batch.classes is None else batch.classes
        return self._compiled(
            whole, batch.ways, {**parameters, **buffers}, batch.support, batch.query, batch.tasks, classes
        )

    def _evaluate_tasks(self, batch: Episode) -> tuple[Tensor, Tensor, Tensor]:
        """Of each task: the query loss `(T,)`, the score after each inner step `(T, S + 1)`, predictions at the end."""
        with self.exact_arithmetic(), untouched(self):
            how = self._way(batch, self._evaluate_task)

            def evaluate(batch: Episode) -> tuple[Tensor, Tensor, Tensor]:
                with exact_derivatives(self.network):
                    return task_map(partial(self._evaluate_task, how, batch.ways), how, batch.support, batch.query)

            return evaluate(batch) if self.graph == "off" else self._graphs.values(evaluate, self, batch)

    def _evaluate_task(
        self, how: TaskMap, ways: int, support: Examples, query: Examples
    ) -> tuple[Tensor, Tensor, Tensor]:
        scores = []
        for state in self.trajectory(support, ways):
            outputs = self.predict(state, query.x)  # those of the last state are kept
            self._check_outputs(outputs, query, ways)
            scores.append(self.task.score(outputs, query.y))
        return self.task.loss(outputs, query.y), torch.stack(scores), outputs

    def _check_outputs(self, outputs: Tensor, query: Examples, ways: int) -> None:
        """Refuse scores of a wrong shape, which a loss may take: those of more classes than the task has."""
        expected = (len(query.y), ways)
        if ways and outputs.shape != expected:
            raise UserError(
                f"{type(self).__name__}.predict returned {tuple(outputs.shape)}; expected {expected}: a score for each "
                "query and class"
            )

    def _evaluate(self, batch: Episode, scores: TaskScores) -> None:
        scores.update(batch.tasks, *self._evaluate_tasks(self.inputs(batch)), batch.query.y)

    def _report(self, stage: str, scores: TaskScores) -> TaskTable:
        table = scores.compute()
        scores.reset()
        for name, value in table.summary(self.task.metric).items():
            self.log(f"{stage}/{name}", value, prog_bar=name == self.task.metric)
        return table
