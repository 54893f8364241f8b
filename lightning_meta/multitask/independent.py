"""Independent learning: a separate network for each task."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from math import inf
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.func import vmap
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd

from lightning_meta.batches import TaskBatch
from lightning_meta.errors import UserError, one_of, reason_of
from lightning_meta.functional.generators import generator_states, same_states
from lightning_meta.functional.random_bits import key, name_key
from lightning_meta.multitask.base import MultiTaskModule
from lightning_meta.multitask.combining import clip_groups
from lightning_meta.multitask.records import TaskRecords
from lightning_meta.multitask.selection import SCORE, Improved, monitored, of_tasks
from lightning_meta.multitask.snapshots import Snapshots
from lightning_meta.multitask.tables import comparable, mean_of_known
from lightning_meta.nn.checks import CANNOT_BE_MAPPED
from lightning_meta.nn.features import output_size, shape_after
from lightning_meta.nn.heads import seeded
from lightning_meta.nn.stateless import Tensors, exact_derivatives, put_buffers, swapped, untouched
from lightning_meta.tasks import TasksSpec
from lightning_meta.tasks.few_rows import enough_rows
from lightning_meta.weightings import Equal

_log = logging.getLogger(__name__)

Strategy = Literal["auto", "vmap", "loop"]

# On a CPU `vmap` only pays off for many small convolutions, whose call overhead dominates in a loop. Linear layers have
# little overhead, and for larger convolutions the grouped ones of `vmap` are slower.
MANY = 10  # smallest number of tasks for `vmap`
SMALL = 5e6  # largest number of floating-point operations of convolutions for one task's examples


class Independent(MultiTaskModule):
    r"""T separate trainings in one run: $\min_{\theta_i} L_i(\theta_i)$ for each task i.

    Single-task learning (Caruana, Multitask Learning, Machine Learning 28, 1997), the baseline of all methods that
    share parameters. Results equal those of separate runs (`tasks: [name]` in the data module): the batches of a task,
    its initial weights, gradient clipping, dropout and selection do not depend on the other tasks. Each task keeps the
    weights of its own best validation, which are used for testing and predicting and averaged in `val/score`; `joint`
    in `per_task.csv` and `test/joint_score` are the scores with the weights of the best mean. Validations are compared
    by the metric behind `checkpoint.monitor`: each task's loss for `val/loss`, its AUROC for `val/auroc`; ties are
    broken by the lower loss.

    The equality requires the same number of batches per epoch, `batches_per_epoch`, and, if tasks share inputs, that no
    label is missing, since inputs without any label are not drawn.

    At a glance:
        - Shared: nothing.
        - Own: a whole network.
        - New task: train from scratch.

    Run it:
        `python scripts/fit.py --config configs/independent_glyphs.yaml`; compared with methods that share, over several
        seeds: `python scripts/ladder.py --config configs/ladder_glyphs.yaml --jobs 2`.

    Logged:
        - `val/score`, or the metric in `checkpoint.monitor`: mean over tasks of each task's best validation so far, so
          it never gets worse during a run; `val/accuracy/<task>` and so on are scores of the current weights.
        - `test/score`, `test/accuracy/<task>` and so on: each task with the weights of its own best validation.
        - `test/joint_score`: mean over tasks with the weights of the best mean, as methods that share are selected; by
          task, `joint` in `per_task.csv`.
        - `train/loss`: sum of the losses over tasks.

        `MultiTaskModule` explains the other metrics.

    Deviations:
        - Compared with separate trainings, all backbones start from the same weights, those of `backbone`.

    Args:
        backbone: The network of each task, before its head.
        strategy: How the networks are computed: `vmap` vectorises over tasks with the same number of examples, `loop`
            takes one after the other. `auto` chooses the faster one (`scripts/benchmark_independent.py`): `vmap` on a
            GPU; on a CPU `loop`, except for 10 or more tasks whose convolutions take at most 5 million floating-point
            operations for a task's examples, such as 16 of 28x28 pixels with 8 channels. Networks with dropout always
            run in a loop, since `vmap` would draw random numbers in another order.
        **options: Options of `MultiTaskModule`; since nothing is shared, `weighting` must be `Equal`.
    """

    not_of_a_step: ClassVar[tuple[str, ...]] = ("_batch", "_kept", "_noted")  # the last two of `Snapshots`

    def __init__(
        self,
        backbone: nn.Module,
        strategy: Strategy = "auto",
        **options: Any,
    ) -> None:
        super().__init__(backbone, **options)
        if not isinstance(self.weighting, Equal):
            raise UserError(
                f"weighting: Independent shares nothing, so losses cannot be weighted against each other; got "
                f"{type(self.weighting).__name__}, leave it out"
            )
        one_of("strategy", strategy, Strategy)
        self.strategy = strategy
        self._batch = (0, 0)
        self._loops = False  # `auto` found that vmap cannot run the networks
        self._operations: float | None = None  # floating-point operations of the convolutions for one example
        self._random: bool | None = None  # whether the networks draw random numbers in training, if known

    def build(self, spec: TasksSpec) -> None:
        """Make a copy of the backbone and a head for each task."""
        features = output_size(self.backbone, self.input_shape, self.input_dtype)
        self.backbone = nn.ModuleList(copy.deepcopy(self.backbone) for _ in spec.tasks)
        self.heads = nn.ModuleList(self.head(n, features) for n in spec.tasks)
        if self.strategy == "vmap" and self.draws:
            raise UserError(
                "strategy: networks with dropout run in a loop, so that each task draws its own numbers; got 'vmap'"
            )
        self.snapshots = Snapshots([self.own_modules(i) for i in range(len(spec.tasks))])

    @property
    def draws(self) -> bool:
        """Whether the networks draw random numbers in training."""
        return any(isinstance(m, _DropoutNd) and m.p > 0 for m in self.modules())

    def forward(self, x: Tensor, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Predict for several tasks, each with its own network."""
        numbers = self.task_numbers
        order = {name: numbers[name] for name in rows}
        if torch.compiler.is_compiling():  # in an exported program, numbers of rows are symbols
            return {name: self._one(order[name], name, x[i]) for name, i in rows.items()}
        by_size: dict[tuple[int, int], list[str]] = {}
        for name, i in rows.items():
            by_size.setdefault((len(i), self.spec.tasks[name].outputs), []).append(name)
        outputs: dict[str, Tensor] = {}
        try:
            for (count, _), names in by_size.items():
                if self._strategy_for(len(names), count) == "loop":
                    outputs |= {name: self._one(order[name], name, x[rows[name]]) for name in names}
                    continue
                together = x[torch.cat([rows[name] for name in names])].unflatten(0, (len(names), count))
                outputs |= zip(names, self._vectorised([order[name] for name in names], together), strict=True)
        except torch.OutOfMemoryError:
            raise
        except CANNOT_BE_MAPPED as error:
            reason = reason_of(error, 200)
            in_a_loop = {
                name: self._one(i, name, x[rows[name]]) for name, i in order.items()
            }  # may raise its own error
            if self.strategy == "vmap":
                raise UserError(
                    f"strategy: vmap cannot run the networks: {reason}; use strategy loop, or auto"
                ) from error
            self._loops = True
            _log.warning("tasks are visited in a loop, as vmap cannot run the networks: %s", reason)
            return in_a_loop
        return {name: outputs[name] for name in rows}

    def _graph_obstacle(self) -> str:
        """Why training steps cannot be captured."""
        if self.draws or self._random:
            return "the networks draw random numbers, by seeds of the task and the step that a replay would repeat"
        return super()._graph_obstacle()

    def own_modules(self, task: int) -> list[nn.Module]:
        """The task's network, head and stem."""
        return [self._copies[task], *super().own_modules(task)]

    def kept(self, followed: Tensor, logged: Mapping[str, float]) -> dict[str, float]:
        """The monitored metric with each task's best weights, which a checkpoint stores besides the current ones."""
        monitor, sign = monitored(self.trainer)
        # Without a score so far, take the present one: NaN if undefined, -inf if predictions are not finite.
        pairs = zip(self.names, self.best.scores, followed.tolist(), strict=True)
        best = {name: sign * (score if score > -inf else now) for name, score, now in pairs}
        if monitor == SCORE:
            return {SCORE: mean_of_known(list(best.values()))}
        of_task = of_tasks(monitor, self.names, logged)
        own = monitor.partition("/")[2].partition("/")[2]
        names = [own] if own in of_task else list(of_task)
        return {monitor: mean_of_known([best[name] for name in names])} if names else {}

    @property
    def tie_breaker(self) -> float:
        """Decides between checkpoints with equal `val/score`; smaller is better.

        Prefers the checkpoint with the newest best weights, since with equal scores they may still improve in the loss.
        """
        return -float(max(self.best.mean_step, *self.best.steps))

    def on_validation_epoch_start(self) -> None:
        """Copy the validated weights: weight averaging callbacks swap them before the validation ends."""
        self.snapshots.note()

    def on_improved(self, improved: Improved) -> None:
        """Keep the weights of tasks at their best or never scored, and of all tasks if the mean is at its best."""
        for i in range(len(self.names)):
            if improved.tasks[i] or self.best.steps[i] < 0:
                self.snapshots.keep("selected", i)
            if improved.mean:
                self.snapshots.keep("joint", i)

    def on_validation_epoch_end(self) -> None:
        """Log the scores; during training, keep the best weights."""
        super().on_validation_epoch_end()
        self.snapshots.forget()

    def training_step(self, batch: TaskBatch, batch_idx: int) -> Tensor:
        """The sum of the tasks' losses."""
        self._batch = (self.current_epoch, batch_idx)
        return super().training_step(batch, batch_idx)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradient of each task separately."""
        groups = map(self.own_modules, range(len(self.names)))
        clip_groups(groups, gradient_clip_val, gradient_clip_algorithm)

    def on_test_start(self) -> None:
        """Make the records for the weights of the best mean."""
        self.records["joint"] = TaskRecords(self.spec.tasks).to(self.device)

    def selected_weights(self) -> AbstractContextManager[None]:
        """A context in which each task has its best weights."""
        return self.weights("selected")

    def test_step(self, batch: TaskBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Record the predictions by each task's best weights, and on the test split also by those of the best mean."""
        super().test_step(batch, batch_idx, dataloader_idx)
        if dataloader_idx == 0:
            with self.weights("joint"), untouched(self):
                outputs = self._graphed_outputs(batch)
                self.records["joint"].update(self._example_losses(outputs, batch), batch.ids, outputs, batch.targets)

    def on_test_epoch_end(self) -> None:
        """Log the scores for both selections."""
        super().on_test_epoch_end()
        rows = self.test_report["per_task"]
        enough = enough_rows([row["test_examples"] for row in rows])
        few = [row["task"] for row, counts in zip(rows, enough, strict=True) if not counts]
        joint = comparable(self.spec.tasks, [row["joint"] for row in rows], few)
        self.log("test/joint_score", mean_of_known(joint))

    @contextmanager
    def weights(self, of: Literal["selected", "joint"]) -> Iterator[None]:
        """A context in which the networks have the weights of a selection, if there was a validation."""
        if self.best.mean_step >= 0:
            with self.snapshots.in_place(of):
                yield
        else:
            yield

    def _strategy_for(self, tasks: int, count: int) -> Literal["vmap", "loop"]:
        """How to run a number of networks on a number of examples each."""
        if self.strategy != "auto":
            return self.strategy
        if self._loops or self.draws:
            return "loop"
        if self.device.type != "cpu":
            return "vmap"
        if tasks < MANY:
            return "loop"
        if self._operations is None:
            self._operations = _of_convolutions(self._copies[0], self.input_shape, self.input_dtype)
        return "vmap" if 0 < count * self._operations <= SMALL else "loop"

    @property
    def _copies(self) -> nn.ModuleList:
        assert isinstance(self.backbone, nn.ModuleList)
        return self.backbone

    def _one(self, task: int, name: str, x: Tensor) -> Tensor:
        outputs: Tensor
        if not self.training or self._random is False:
            outputs = self.heads[task](self._copies[task](x))
            return outputs
        with seeded(int(key(self.key, *self._batch, name_key(name))), x.device):
            before = generator_states(x.device)
            outputs = self.heads[task](self._copies[task](x))
            if not self._random and len(x):  # the first pass in training shows whether the networks draw random numbers
                self._random = not same_states(before, generator_states(x.device))
        return outputs

    def _vectorised(self, tasks: Sequence[int], x: Tensor) -> Tensor:
        """Predictions `(G, M, outputs)` for inputs `(G, M, ...)`, one network each."""
        networks = [nn.Sequential(self._copies[i], self.heads[i]) for i in tasks]
        parameters = _stacked([dict(network.named_parameters()) for network in networks])
        buffers = _stacked([dict(network.named_buffers()) for network in networks])

        def one(parameters: Tensors, buffers: Tensors, x: Tensor) -> tuple[Tensor, Tensors]:
            with swapped(networks[0], {**parameters, **buffers}) as after:
                outputs = networks[0](x)
            return outputs, {name: after[name] for name in buffers}

        # Else torch.utils.checkpoint fails later, when the backward pass calls layers outside of vmap.
        with exact_derivatives(self._copies[0]), disable_saved_tensors_hooks("torch.utils.checkpoint is not for vmap"):
            outputs, moved = vmap(one)(parameters, buffers, x)
        if self.training:  # write back the updated running statistics
            for i, network in enumerate(networks):
                put_buffers(network, {name: values[i] for name, values in moved.items()})
        return outputs


def _stacked(tensors: Sequence[Tensors]) -> Tensors:
    return {name: torch.stack([by_name[name] for by_name in tensors]) for name in tensors[0]}


def _of_convolutions(network: nn.Module, input_shape: tuple[int, ...], input_dtype: str) -> float:
    """The number of floating-point operations of a network's convolutions for one example."""
    operations = 0.0

    def add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal operations
        operations += 2 * layer.get_parameter("weight").numel() * output[0, 0].numel()

    copied = copy.deepcopy(network)
    for layer in copied.modules():
        if isinstance(layer, _ConvNd):
            layer.register_forward_hook(add)
    shape_after(copied, input_shape, input_dtype=input_dtype)
    return operations
