"""The base class of all meta-learners: training and evaluation around `adapt` and `predict` on one task."""

from __future__ import annotations

import logging
from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor

from lightning_meta.batch_check import ChecksBatches
from lightning_meta.batches import Episode, Examples
from lightning_meta.errors import UserError, one_of
from lightning_meta.factories import LRSchedulerCallable, OptimizerCallable
from lightning_meta.functional.compiled import Compiled
from lightning_meta.functional.task_map import TaskMap, task_map
from lightning_meta.meta.choice import Strategy, as_options, by_measurement, by_rule, first_tasks, obstacle, timed
from lightning_meta.meta.learner import Learner
from lightning_meta.meta.predictor import Predictor, likeness_of
from lightning_meta.meta.scores import TaskScores, TaskTable
from lightning_meta.module import Graph
from lightning_meta.nn.checks import check_layers
from lightning_meta.nn.features import IMAGE_DIMS, output_size, shape_after
from lightning_meta.nn.frozen import frozen_part
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
from lightning_meta.tasks import EpisodeSpec

_log = logging.getLogger(__name__)

OnTask = Callable[[TaskMap, int, Examples, Examples], Any]
"""A function of one task; its arguments are how tasks are visited, N, the support set and the query set."""


class Outcome(NamedTuple):
    """The result of training on one task, or on T tasks with a leading dimension T.

    Attributes:
        loss: The scalar that the outer loop minimises.
        outputs: Predictions of the query set, `(M, outputs)`.
        targets: Labels or targets of the query set, `(M, ...)`.
        buffers: Buffers that the forward passes updated, by name: the batch statistics that running statistics follow,
            and other buffers that changed.
    """

    loss: Tensor
    outputs: Tensor
    targets: Tensor
    buffers: Tensors


class MetaModule(ChecksBatches, Learner, ABC):
    r"""Base class of meta-learners: implement `adapt` and `predict` on one task; training and evaluation are provided.

    Logged:
        - `val/accuracy`, `test/accuracy`: accuracy on a task's query examples, in [0, 1], averaged over tasks. In
          regression `mse`, the mean squared error in squared units of the target, and `val/mse_median`,
          `test/mse_median`, the median over tasks, which a few diverging tasks do not affect.
        - `val/accuracy_ci95`, `test/accuracy_ci95`: half-width of the 95 % confidence interval of that mean,
          $t_{n-1}\, s / \sqrt{n}$, with s the standard deviation over the n tasks and t the quantile of Student's
          distribution (1.96 for many tasks). It covers the choice of tasks from the same split, not the choice of the
          seed.
        - `val/accuracy_step_<j>`, `val/accuracy_step_<j>_ci95`, and likewise for `test`: the same after each of j = 0,
          1, ... inner steps; only for learners with an inner loop.
        - `val/loss`, `test/loss`: loss on the query set, averaged over tasks. For stored regression tasks targets are
          standardised by the training split.
        - `train/loss`, `train/accuracy`: mean outer loss, which is minimised, and accuracy (or `mse`) on the query sets
          of one meta-batch, every `log_every_n_steps` steps.
        - `test/tasks`: the number of tasks n.

    Args:
        backbone: The network shared by all tasks; its batch normalisation layers become `TaskBatchNorm`.
        optimizer: Optimizer of the outer loop.
        lr_scheduler: Learning rate schedule, stepped once per training step.
        strategy: How the tasks of a meta-batch are computed: `vmap` vectorises over them, `loop` takes one after the
            other, `auto` chooses by a rule, `measured` by a short measurement before the first step. The choice is
            stored in the checkpoint.
        chunk_size: Number of tasks that `vmap` takes at a time, which bounds the memory; all by default.
        compile: Compile the whole training step, once per shape of a meta-batch. This takes half a minute or more at
            the start and makes small networks several times faster. Needs `vmap`, and on a CPU a C++ compiler.
        graph: `auto` captures training and evaluation steps as CUDA graphs, which helps where the GPU waits for the CPU
            to launch small kernels; `off` does not. A step that cannot be captured runs without a graph, and the log
            says why. Not yet run on a GPU. See `docs/gpus.md`.
        backbone_lr_factor: Learning rate of the backbone's parameters, as a multiple of the optimizer's, > 0; smaller
            than 1 for a pretrained backbone that is not frozen.
        backbone_weights: Run directory or checkpoint, such as `runs/baseline/0`, whose backbone weights the backbone
            starts from. Not needed to resume a run or load a checkpoint.
        episodes: Shapes, ways and task type of the episodes; filled in by the data module.
    """

    batch_type, data_module = Episode, "EpisodicDataModule"
    not_of_a_step: ClassVar[tuple[str, ...]] = (
        "_compiled",
        "_last_centre",
        "_vectorises",
        "_visits_chosen",
        "_warned_of_loop",
    )

    needs_super: ClassVar[Mapping[str, str]] = {
        "training_step": ", such as running batch statistics; to change the loss, override task_loss or meta_batch_loss"
    }
    """Methods besides hooks whose overrides must call `super()`, with the end of the error message."""

    needs_images: bool = False
    """Whether `adapt` and `predict` need images even if the backbone is frozen, for example to augment them.

    Otherwise they may receive the features of a frozen backbone instead of images.
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
        super().__init__(backbone, episodes, optimizer, lr_scheduler, backbone_lr_factor, backbone_weights, graph)
        one_of("strategy", strategy, Strategy)
        if chunk_size is not None and (chunk_size < 1 or strategy != "vmap"):
            raise UserError(f"chunk_size: a positive number for strategy vmap, got {chunk_size} for {strategy}")
        if compile and strategy in ("loop", "measured"):
            raise UserError(f"compile: needs strategy vmap or auto, got {strategy}")
        if compile and self.graph == "auto":
            raise UserError("graph: a compiled step is not recorded as a graph; give compile or graph: auto, not both")
        self.strategy, self._compiles, self._compiled = strategy, compile, Compiled()
        chunk = None if chunk_size is None else int(chunk_size)  # stored in checkpoints, so not a number of NumPy
        self.task_map = TaskMap(strategy, chunk, compile) if strategy in ("vmap", "loop") else None
        check_layers(backbone, self.inner_gradients)
        self.backbone = per_task(backbone)
        if not self.inner_gradients:
            self.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.scores = TaskScores()
        self.test_scores = TaskScores(keep_outputs=True)
        self.test_report: dict[str, Any] = {}
        self._visits_chosen = False  # before the first training step
        self._vectorises: dict[bool, bool] = {}  # whether vmap can run training (True) and evaluation (False)
        self._warned_of_loop = False

    # Methods that subclasses may override.

    def trajectory(self, support: Examples, ways: int) -> Sequence[Any]:
        """The states after 0, ..., S inner steps; a single state for methods without an inner loop."""
        return [self.adapt(support, ways)]

    def task_loss(self, support: Examples, query: Examples, ways: int) -> Outcome:
        """The outer loss of one task: the query loss after adapting to the support set."""
        outputs = self.predict(self.adapt(support, ways), query.x)
        self.check_outputs(outputs, query, ways)
        return Outcome(self.task.loss(outputs, query.y), outputs, query.y, {})

    def meta_batch_loss(self, batch: Episode) -> Outcome:
        """The outer losses of a meta-batch: `task_loss` mapped over its tasks."""
        if self.training:
            freeze_evaluated(self)
        how = self._way(batch, self._train_on_task)
        with exact_derivatives(self.network):
            return task_map(partial(self._train_on_task, how, batch.ways), how, batch.support, batch.query)

    def build(self, episodes: EpisodeSpec) -> None:
        """Make the parameters that depend on the episodes, such as a head on `self.feature_size` features."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input of the backbone."""
        return self.backbone_input_shape(self.spec)

    @property
    def input_dtype(self) -> str:
        """The dtype of the stored inputs, such as "uint8"; "" if it is not known."""
        return self.spec.input_dtype

    def backbone_input_shape(self, episodes: EpisodeSpec) -> tuple[int, ...]:
        """The shape of one input of the backbone; override it if the method transforms examples first."""
        return episodes.input_shape

    def check_episodes(self, episodes: EpisodeSpec) -> None:
        """Refuse episodes that do not match those the module was built for.

        Raises:
            UserError: Task type, input shape or number of outputs differ.
        """
        names = ["task", "input_shape"] + (["outputs"] if episodes.task == "regression" else [])
        for name in names:
            expected, received = getattr(self.spec, name), getattr(episodes, name)
            if expected != received:
                raise UserError(f"{type(self).__name__} was made for {name} {expected}, but the data has {received}")
        if episodes.task == "classification":
            self.check_ways(episodes.outputs)

    def setup(self, stage: str) -> None:
        """Take the specification of the episodes from the data module, or check that it matches."""
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
        """Refuse episodes that do not match, and warn if the inputs are distributed differently."""
        self.check_episodes(spec)
        if (warning := likeness_of(self).compare(spec.input_statistics)) and self.trainer.is_global_zero:
            _log.warning("%s", warning)

    def make_parts(self) -> None:
        """Check that the backbone accepts the inputs, then call `build`."""
        if self.classifies_only and self.spec.task != "classification":
            raise UserError(f"{type(self).__name__} classifies; for regression use MAML")
        shape, dtype = self.spec.input_shape, self.input_dtype
        self.feature_size = output_size(self.backbone, self.input_shape, dtype)
        frozen = frozen_part(self.backbone)
        if frozen is not None and len(shape) == IMAGE_DIMS:  # features and images differ in their number of dimensions
            features = shape_after(frozen, shape, input_dtype=dtype)
            frozen.passes = features[0] if len(features) == 1 else None
        super().make_parts()

    def train(self, mode: bool = True) -> Self:
        """Also record which batch normalisation layers the user keeps in evaluation mode during training."""
        if self.training and not mode:
            freeze_evaluated(self)
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        """Not available: predictions need a learned task.

        Raises:
            UserError: Always; the message names `predictor`.
        """
        raise UserError(
            f"{type(self).__name__} predicts after it has learned a task: use predictor(x, labels), which gives a "
            "function of new inputs, or adapt and predict"
        )

    def on_train_batch_start(self, batch: Episode, batch_idx: int) -> None:
        """Before the first step, choose how tasks are computed; rank 0 decides for all ranks."""
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
        """Also store which batch normalisation layers were kept in evaluation mode: the state dict does not hold it."""
        super().on_save_checkpoint(checkpoint)
        if self.training:
            freeze_evaluated(self)
        frozen = [name for name, norm in task_norms(self).items() if norm.frozen]
        chosen = None if self.task_map is None else as_options(self.task_map)
        checkpoint["lightning_meta"] |= {"frozen_norms": frozen, "task_map": chosen}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what `on_save_checkpoint` stored."""
        super().on_load_checkpoint(checkpoint)
        self.take_state(checkpoint.get("lightning_meta") or {})

    def take_state(self, stored: Mapping[str, Any]) -> None:
        """Restore how tasks were computed and which layers were kept in evaluation mode.

        Args:
            stored: Entry `lightning_meta` of a checkpoint, written by `on_save_checkpoint`.
        """
        chosen = stored.get("task_map") or {}
        if self.task_map is None and chosen.get("strategy") in ("vmap", "loop"):
            self.task_map = TaskMap(chosen["strategy"], chosen.get("chunk_size"), self._compiles)
        hold_in_evaluation(self, stored.get("frozen_norms") or ())

    def training_step(self, batch: Episode, batch_idx: int) -> Tensor:
        """The mean outer loss of a meta-batch."""
        freeze_evaluated(self)
        with self.exact_arithmetic():
            if self.graph == "off":
                outcome = self._check_outcome("meta_batch_loss", self.training_loss(self.inputs(batch)))
                loss = outcome.loss.mean()
                if not loss.requires_grad:
                    raise UserError(
                        f"{type(self).__name__}: its loss does not depend on a weight that is trained; look for "
                        "detach(), torch.no_grad() or argmax in adapt and predict"
                    )
            else:
                loss, outcome = self.graphed_loss(self.inputs(batch))
        self.check_finite(loss)
        if outcome.buffers:
            follow(self.network, outcome.buffers, partial(self.trainer.strategy.reduce, reduce_op="mean"))
        if self.logs_this_step():
            score = self.task.score(outcome.outputs.detach(), outcome.targets).mean()
            for name, value in (("loss", loss.detach()), (self.task.metric, score)):
                shown = name == "loss"  # the progress bar shows the metric of validation
                self.log(f"train/{name}", value, prog_bar=shown, sync_dist=True, batch_size=len(batch.tasks))
        return loss

    def log(self, name: str, value: Any, *args: Any, **options: Any) -> None:
        """Log a value as Lightning does; not one of a single task.

        Raises:
            UserError: The value was computed for one task, within `vmap` or an inner gradient, and is not a number yet.
        """
        if isinstance(value, Tensor) and is_functorch_wrapped_tensor(value):
            raise UserError(
                f"log: {name!r} was computed for a single task, and tasks are computed together; compute and log it in "
                "training_step or validation_step"
            )
        super().log(name, value, *args, **options)

    def graphed_loss(self, batch: Episode) -> tuple[Tensor, Outcome]:
        """The mean outer loss of a meta-batch and the outcome per task, by a CUDA graph if `graph` allows it."""

        def mean_loss(batch: Episode) -> tuple[Tensor, Outcome]:
            outcome = self._check_outcome("meta_batch_loss", self.training_loss(batch))
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
        """Log the means over test tasks, and store predictions and scores per task in `test_report`."""
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
        """Predictions `(T, M, outputs)` for the query sets; in regression in the units of the targets."""
        return self.task.readable(self._evaluate_tasks(self.inputs(batch))[2])

    def predictor(self, x: Tensor, labels: Sequence[Any] | Tensor) -> Predictor:
        """Learn a new task from labelled examples.

        Args:
            x: Support inputs `(M, *input_shape)`, images as uint8 or real values in [0, 1].
            labels: M labels of any kind (names, numbers), or `(M, outputs)` real targets for regression.

        Returns:
            A function that predicts new inputs of the task.
        """
        return Predictor(self, x, labels)

    def keep_buffers(self, buffers: Tensors) -> Tensors:
        """Store buffers that a training pass changed, other than batch statistics, in the network.

        Args:
            buffers: Buffers after the pass, by name.

        Returns:
            The batch statistics among them; running statistics follow their mean over tasks.
        """
        own = own_buffers(self.network)
        if own and self.training:
            put_buffers(self.network, {name: buffers[name] for name in own if name in buffers})
        return {name: tensor for name, tensor in buffers.items() if name not in own}

    def check_outputs(self, outputs: Tensor, query: Examples, ways: int) -> None:
        """Refuse predictions of a wrong shape.

        Cross-entropy accepts more columns than the task has classes, and the squared error of `(M,)` and `(M, 1)` is
        that of all pairs.

        Raises:
            UserError: `predict` did not return a number for each query and class or dimension of the target.
        """
        expected = (len(query.y), ways or query.y.shape[-1] * self.task.numbers)
        received = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        if received != expected:
            each = "class" if ways else "dimension of the target"
            raise UserError(
                f"{type(self).__name__}.predict returned {received}; expected {expected}: a score for each query and "
                f"{each}"
            )

    def check_loss(self, method: str, loss: Any) -> Tensor:
        """Refuse a loss that is not a scalar tensor.

        Args:
            method: Name of the method that returned the loss.
            loss: Its value.

        Raises:
            UserError: The loss is a number, or one number per example, for example.
        """
        if isinstance(loss, Tensor) and not loss.dim():
            return loss
        received = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise UserError(
            f"{type(self).__name__}.{method} returned {received}; expected a scalar tensor, the mean over examples"
        )

    def _check_score(self, score: Any) -> Tensor:
        """Refuse a score that is not a single number for each task, from which intervals over tasks would be wrong."""
        if isinstance(score, Tensor) and not score.dim():
            return score
        received = f"shape {tuple(score.shape)}" if isinstance(score, Tensor) else type(score).__name__
        raise UserError(
            f"{type(self.task).__name__}.score returned {received} for outputs (M, outputs) of one task; expected a "
            "scalar tensor"
        )

    def _check_outcome(self, method: str, outcome: Any) -> Outcome:
        """Refuse the result of a training pass that is not an `Outcome`."""
        if isinstance(outcome, Outcome):
            return outcome
        raise UserError(
            f"{type(self).__name__}.{method} returned {type(outcome).__name__}; expected an Outcome of loss, outputs, "
            "targets and buffers"
        )

    def _train_on_task(self, how: TaskMap, ways: int, support: Examples, query: Examples) -> Outcome:
        """`task_loss`, together with the batch statistics of its forward passes."""
        with collected_statistics(self.network) as statistics:
            outcome = self.task_loss(support, query, ways)
        self._check_outcome("task_loss", outcome)
        self.check_loss("task_loss", outcome.loss)
        self.check_outputs(outcome.outputs, query, ways)
        buffers = self.keep_buffers(outcome.buffers) if how.strategy == "loop" else outcome.buffers
        return outcome._replace(buffers={**statistics, **buffers})

    def _way(self, batch: Episode, run: OnTask) -> TaskMap:
        """How tasks are computed: as chosen, but in a loop if `vmap` cannot run the network.

        Args:
            batch: A meta-batch.
            run: Function of one task; it is tried on two tasks before its first run by `vmap`.

        Raises:
            UserError: `strategy` is `vmap`, which cannot run the network.
        """
        how = self.task_map or by_rule(self.network, self.inner_gradients, batch)
        if how.strategy == "loop" or how.compile:
            return how
        if self.training not in self._vectorises:
            reason = self._obstacle(run, batch)
            self._vectorises[self.training] = reason is None
            if reason is not None:
                with untouched(self):
                    self._try(run, TaskMap("loop"), batch)  # raises the method's own error, if vmap is not the cause
            if reason is not None and self.strategy == "vmap":
                raise UserError(f"strategy: vmap cannot visit the tasks: {reason}; use strategy loop, or auto")
            if reason is not None and not self._warned_of_loop:
                self._warned_of_loop = True
                _log.warning("tasks are visited in a loop, as vmap cannot run the network: %s", reason)
        return how if self._vectorises[self.training] else TaskMap("loop")

    def _obstacle(self, run: OnTask, batch: Episode) -> str | None:
        """Why `vmap` cannot run this; None if it can."""

        def trial(how: TaskMap) -> None:
            self._try(run, how, batch)

        return obstacle(trial, self, slow_too=self.strategy != "vmap" and not self._compiles)

    def _try(self, run: OnTask, how: TaskMap, batch: Episode) -> None:
        """Run two tasks as training does: with the gradient of the loss, and storing changed buffers."""
        two = first_tasks(batch)
        with exact_derivatives(self.network):
            result = task_map(partial(run, how, two.ways), how, two.support, two.query)
        if isinstance(result, Outcome):
            self.keep_buffers({name: values[-1] for name, values in result.buffers.items()})  # `obstacle` checks them
            if result.loss.requires_grad:  # as in training, outside the context of `exact_derivatives`
                trained = [p for p in self.parameters() if p.requires_grad]
                torch.autograd.grad(result.loss.mean(), trained, allow_unused=True)

    def _chosen(self, batch: Episode) -> TaskMap:
        """How training computes tasks: by measurement, rule or option."""
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
        """`meta_batch_loss`, compiled with `compile: true`."""
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
        """Query loss `(T,)`, score after each inner step `(T, S + 1)`, predictions after the last `(T, M, outputs)`."""
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
            outputs = self.predict(state, query.x)  # the last state's are returned
            self.check_outputs(outputs, query, ways)
            scores.append(self._check_score(self.task.score(outputs, query.y)))
        return self.task.loss(outputs, query.y), torch.stack(scores), outputs

    def _evaluate(self, batch: Episode, scores: TaskScores) -> None:
        scores.update(batch.tasks, *self._evaluate_tasks(self.inputs(batch)), batch.query.y)

    def _report(self, stage: str, scores: TaskScores) -> TaskTable:
        table = scores.compute()
        scores.reset()
        for name, value in table.summary(self.task.metric).items():
            self.log(f"{stage}/{name}", value, prog_bar=name == self.task.metric)
        return table
