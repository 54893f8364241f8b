"""Gradients of the tasks on shared parameters, for users and for weightings that combine them."""

from __future__ import annotations

import logging
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn

from lightning_meta.batches import TaskBatch
from lightning_meta.errors import UserError
from lightning_meta.functional.ranks import mean_over_ranks, sum_over_ranks
from lightning_meta.functional.task_gradients import loss_with_gradients, task_gradients
from lightning_meta.module import TrainedModule
from lightning_meta.multitask.presence import Presence
from lightning_meta.multitask.step_features import StepFeatures
from lightning_meta.multitask.step_gradients import StepGradients, write_gradients
from lightning_meta.nn.stateless import untouched
from lightning_meta.run.memory import memory_limit
from lightning_meta.weightings import Aggregator, GradientWeighting, Weighting

_log = logging.getLogger(__name__)

LARGE = 1e9
"""Size of the tasks' gradients in bytes above which a warning is logged."""


class CombinesGradients(TrainedModule, ABC):
    """A module of several tasks whose weighting may replace the gradient of the shared parameters.

    The tasks' gradients are collected batch by batch. At the end of the closure of an optimizer step they are combined
    into one direction in `.grad`, before a gradient scaler unscales it and before it is clipped.
    """

    weighting: Weighting
    _step_gradients: StepGradients
    _step_features: StepFeatures
    _combined: Sequence[nn.Parameter] = ()  # the shared parameters of the step
    _weighed = False  # whether `training_step` of this package ran since the last step
    _presence: Presence
    _last_batch: TaskBatch | None  # the batch of a step, if the weighting computes its losses again

    @property
    @abstractmethod
    def names(self) -> list[str]:
        """The names of the tasks, in order."""

    @abstractmethod
    def own_modules(self, task: int) -> list[nn.Module]:
        """The modules that only one task uses. All others are shared."""

    @abstractmethod
    def task_losses(self, batch: TaskBatch) -> dict[str, Tensor]:
        """The loss of each task in a batch, by name."""

    def shared_parameters(self) -> list[nn.Parameter]:
        """The trained parameters θ_sh that all tasks share."""
        return [p for p in self._shared_parameters(self._own_parameters()) if p.requires_grad]

    def task_gradients(self, batch: TaskBatch) -> Tensor:
        """The gradient of each task's loss on the shared parameters; `.grad` stays as it is.

        The rows sum to the gradient of the unweighted sum of the losses. This takes a forward pass, which updates
        running statistics as usual, and a backward pass for each task in the batch. All ranks must call it together.

        Args:
            batch: Batch of this rank, as for `task_losses`.

        Returns:
            Gradients `(T, P)`, in the order of `names` and of `shared_parameters()`, averaged over ranks; 0 for absent
            tasks. Also available within `torch.no_grad`.

        Raises:
            UserError: Within inference mode, in which torch computes no gradients.
        """
        if torch.is_inference_mode_enabled():
            raise UserError("task_gradients: torch takes no gradients in inference mode; use torch.no_grad instead")
        shared = self.shared_parameters()
        with torch.enable_grad():
            losses = self.task_losses(batch)
            if not shared:
                return torch.zeros(len(self.names), 0, device=self.device)
            gradients = task_gradients([losses.get(name) for name in self.names], shared, scale=self._loss_scale())
        return mean_over_ranks(gradients.rows)

    def shared_features(self, features: Tensor, rows: Mapping[str, Tensor]) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Mark features as the boundary between shared and task-specific parameters.

        A method whose shared parameters only act through such features calls this in `forward`; then weightings can
        aggregate gradients with respect to the features (`rep_grad` of `Aggregator`).

        Args:
            features: Features `(B, ...)`.
            rows: Indices of the rows of each task, `(n_i,)` int64, by its name.

        Returns:
            The arguments; in a training step with `rep_grad`, a copy of the features for each task, by which its loss
            is differentiated, and the rows in these copies.
        """
        return self._step_features.copies(features, rows) if self._step_features.records else (features, rows)

    @property
    def combined_gradients(self) -> Tensor | None:
        """The gradients that an aggregator has combined, `(T, P)`, as returned by `task_gradients`.

        Available between the backward pass and the optimizer step, for example in `on_before_optimizer_step`; None
        otherwise, without an aggregator, and with `rep_grad`. With gradient accumulation they are sums over batches.
        """
        return self._step_gradients.combined

    def on_fit_start(self) -> None:
        """Check that the weighting can do what it needs, such as combining gradients of shared parameters."""
        super().on_fit_start()
        self._clear_step()  # remains of an interrupted training
        self._presence = Presence()
        if not self.automatic_optimization and self._takes_part:
            raise UserError(
                f"weighting: {type(self.weighting).__name__} takes part in the optimizer step, which manual "
                "optimization (automatic_optimization = False) leaves to training_step; use automatic optimization, or "
                "a weighting of the losses, such as Equal"
            )
        if isinstance(self.weighting, Aggregator) and not self._shared_parameters(self._own_parameters()):
            raise UserError(
                f"weighting: {type(self.weighting).__name__} combines gradients of shared parameters, and this "
                f"{type(self).__name__} shares none; use Equal, or a module that shares a backbone"
            )
        if isinstance(self.weighting, Aggregator) and not self.shared_parameters() and self.trainer.is_global_zero:
            _log.warning(
                "weighting: %s combines gradients of shared parameters, and all of them are frozen; until they are "
                "trained, the losses are only added up, as by Equal",
                type(self.weighting).__name__,
            )
        if isinstance(self.weighting, Aggregator) and self.weighting.rep_grad and len(getattr(self, "stems", ())):
            raise UserError(
                "weighting: rep_grad only trains shared parameters below the features, but each stem belongs to one "
                "task; leave rep_grad out"
            )
        if isinstance(self.weighting, Aggregator) and not self.weighting.rep_grad:
            check_matrix(self.weighting, len(self.names), self.shared_parameters(), self.trainer.is_global_zero)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Take an optimizer step; with an aggregator, along its direction.

        Raises:
            NonFiniteLossError: The loss of a rank was not finite.
        """
        closure = optimizer_closure
        if optimizer_closure is not None and self._takes_part:
            # Directly after the last backward pass: before gradients are unscaled, passed to callbacks and clipped.
            closure = partial(self._combining, optimizer_closure, optimizer)
        super().optimizer_step(epoch, batch_idx, optimizer, closure)
        self._clear_step()
        if self._last_batch is not None:
            self._look_again(self._last_batch)
            self._last_batch = None

    def absent_tasks(self, optimizer: torch.optim.Optimizer | LightningOptimizer) -> set[str]:
        """The names of the tasks that were in no batch since the last step of an optimizer."""
        optimizer = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        return self._presence.absent(optimizer, self.spec.tasks)

    @property
    def _takes_part(self) -> bool:
        """Whether the weighting does something in the optimizer step."""
        return isinstance(self.weighting, Aggregator) or self.weighting.looks_again

    def _clear_step(self) -> None:
        self._weighed = False
        self._step_gradients.clear()
        self._step_features.clear()

    def _look_again(self, batch: TaskBatch) -> None:
        """Pass the losses after the step to the weighting, without changing buffers and random states."""
        precision = self.trainer.precision_plugin
        with torch.no_grad(), untouched(self), precision.forward_context():
            by_name = self.task_losses(batch)
        of_tasks, weighed = torch.stack(list(by_name.values())), weighed_tasks(batch, self.names)
        losses, present = in_order(of_tasks, list(by_name), self.names, weighed)
        self.weighting.observe_step(mean_over_ranks(losses), present)

    def _own_parameters(self) -> list[list[nn.Parameter]]:
        """The parameters of each task that are not shared, including frozen ones."""
        return [[p for m in self.own_modules(i) for p in m.parameters()] for i in range(len(self.names))]

    def _shared_parameters(self, own: Sequence[Sequence[nn.Parameter]]) -> list[nn.Parameter]:
        """All shared parameters, including frozen ones, given those of each task."""
        others = {id(p) for of_task in own for p in of_task} | {id(p) for p in self.weighting.parameters()}
        return [p for p in self.parameters() if id(p) not in others]

    def _loss_scale(self) -> Tensor | None:
        """The loss scale of the gradient scaler, if there is one."""
        precision = getattr(self._trainer, "precision_plugin", None)
        scaler = getattr(precision, "scaler", None)
        return None if scaler is None else scaler.scale(torch.ones((), device=self.device))

    def _collect_gradients(
        self,
        objective: Tensor,
        losses: Tensor,
        by_name: Mapping[str, Tensor],
        shared: Sequence[nn.Parameter],
        own: Sequence[Sequence[nn.Parameter]],
        means: Tensor,
        present: Tensor,
    ) -> Tensor:
        """Return a loss whose backward pass collects the tasks' gradients; it only has gradients for the others."""
        self._combined = shared
        of_weighting = [p for p in self.weighting.parameters() if p.requires_grad]
        # The derivatives of the objective by the losses are the weights of the gradients of the tasks' own parameters.
        slopes = torch.autograd.grad(objective, [losses, *of_weighting], materialize_grads=True)
        weights = slopes[0].unbind()
        own = [[p for p in of_task if p.requires_grad] for of_task in own]
        scale = self._loss_scale()
        assert isinstance(self.weighting, Aggregator)
        if self.weighting.rep_grad:
            of_batch = torch.stack(list(by_name.values()))
            by_features = self._step_features.of_batch(of_batch, self.names, shared, own, scale)
            of_own, gradients_of_batch = by_features.own, by_features.gradients
            add = partial(self._step_features.add, by_features, means, present)
        else:
            of_tasks = task_gradients([by_name.get(n) for n in self.names], shared, own, scale)
            of_own, gradients_of_batch = of_tasks.own, [of_tasks.rows]
            add = partial(self._step_gradients.add, of_tasks.rows, means, present, of_tasks.used)
        parameters: list[Tensor] = [*shared, *of_weighting]
        gradients: list[Tensor | None] = [*[None] * len(shared), *slopes[1:]]
        for weight, of_task, of_parameters in zip(weights, own, of_own, strict=True):
            parameters += of_task
            gradients += [None if g is None else g * weight.to(g.dtype) for g in of_parameters]
        # The gradient of this leaf is what the loss is multiplied by, in accumulation or by a user's training step.
        # Nothing is added for a batch that is skipped, nor by `torch.autograd.grad`, which accumulates no gradients.
        leaf = torch.zeros_like(objective, requires_grad=True)
        passes = 0

        def in_backward(leaf: Tensor) -> None:
            nonlocal passes
            passes += 1
            if passes > 1:
                raise UserError(
                    f"weighting: {type(self.weighting).__name__} combines the gradients of one backward pass, and this "
                    "loss has a second one; leave one out, or use a weighting of the losses, such as Equal"
                )
            assert leaf.grad is not None
            factor = leaf.grad if scale is None else leaf.grad / scale
            for of_shared in gradients_of_batch:
                of_shared.mul_(factor)
            add()

        leaf.register_post_accumulate_grad_hook(in_backward)
        return loss_with_gradients(objective, [*parameters, leaf], [*gradients, torch.ones_like(leaf)])

    def _combining(self, closure: Callable[[], Any], optimizer: Any) -> Any:
        """Compute the gradients of a step, and combine them by an aggregator."""
        result = closure()
        if result is not None and not self._weighed:
            raise UserError(
                f"weighting: {type(self.weighting).__name__} takes part in the optimizer step with what training_step "
                f"of this package keeps, and that of {type(self).__name__} does not call it; let it return "
                "super().training_step(batch, batch_idx), or use a weighting of the losses, such as Equal"
            )
        if not isinstance(self.weighting, Aggregator):
            return result
        scale, shared = self._loss_scale(), self._combined
        if self.weighting.rep_grad:
            direction = self._step_features.direction(self.weighting, shared, scale)
            used = self._step_features.used
        else:
            direction = self._step_gradients.direction(self.weighting)
            direction = direction if direction is None or scale is None else direction * scale
            used = self._step_gradients.used
        if direction is not None:
            write_gradients(shared, direction, used)
            if isinstance(self.weighting, GradientWeighting) and self.logs_this_step():
                weights = zip(self.names, self.weighting.applied.tolist(), strict=True)
                absent = self.absent_tasks(optimizer)
                values = {f"train/weight/{name}": weight for name, weight in weights if name not in absent}
                for logger in self.loggers:
                    logger.log_metrics(values, self.global_step)
        return result


def check_matrix(aggregator: Aggregator, tasks: int, shared: Sequence[nn.Parameter], log: bool = True) -> None:
    """Log the memory that the gradients of the tasks take, and refuse more than there is.

    Args:
        aggregator: The aggregator.
        tasks: Number of tasks T.
        shared: The shared parameters, on the device of training.
        log: Whether this process logs.

    Raises:
        UserError: There is not enough memory for two copies of the matrix.
    """
    size = tasks * sum(p.numel() * p.element_size() for p in shared)
    if not shared:
        return
    name = type(aggregator).__name__
    message = f"weighting: {name} holds the gradients of {tasks} tasks on the shared parameters, {size / 1e6:,.0f} MB"
    fix = "set rep_grad, which holds those on the features, or take a weighting of the losses"
    memory = memory_of(shared[0].device)
    if 2 * size > memory:
        raise UserError(f"{message}, and a copy of them; {shared[0].device} has {memory / 1e6:,.0f} MB: {fix}")
    if log:
        large = size > LARGE
        _log.log(logging.WARNING if large else logging.INFO, "%s%s", message, f"; if that is too much, {fix}" * large)


def memory_of(device: torch.device) -> float:
    """The memory of a device in bytes; infinite if unknown."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return float(memory_limit()) if device.type == "cpu" and sys.platform != "win32" else math.inf


def clip_groups(groups: Iterable[Iterable[nn.Module]], most: float | None, algorithm: str | None) -> None:
    """Clip the gradients of each group of modules separately.

    Args:
        groups: The modules of each group.
        most: Largest norm of a group, or value of a gradient; None or 0 clips nothing.
        algorithm: "value" clips values, otherwise norms.
    """
    clip = nn.utils.clip_grad_value_ if algorithm == "value" else nn.utils.clip_grad_norm_
    if most:
        for group in groups:
            clip([p for module in group for p in module.parameters()], most)


def drop_gradients(modules: Iterable[nn.Module], optimizer: torch.optim.Optimizer) -> None:
    """Drop the gradients of modules, of those parameters that an optimizer has."""
    parameters = [p for module in modules for p in module.parameters()]
    held = {id(p) for group in optimizer.param_groups for p in group["params"]} if parameters else set()
    for p in parameters:
        if id(p) in held:
            p.grad = None


def in_order(
    losses: Tensor, present: list[str], names: list[str], weighed: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The losses of all tasks, `(T,)`, 0 for absent ones; and which tasks are present, `(T,)` bool.

    Args:
        losses: Losses of the present tasks.
        present: Names of the present tasks.
        names: Names of all T tasks.
        weighed: Result of `weighed_tasks`; the other tasks are not present.
    """
    if present == names:
        there = torch.ones(len(names), dtype=torch.bool, device=losses.device) if weighed is None else weighed
        return losses, there
    numbers = {name: i for i, name in enumerate(names)}
    places = torch.tensor([numbers[name] for name in present], device=losses.device)
    of_all = losses.new_zeros(len(names)).index_copy(0, places, losses)
    there = torch.zeros(len(names), dtype=torch.bool, device=losses.device).index_fill(0, places, True)
    return of_all, there if weighed is None else there & weighed


def weighed_tasks(batch: TaskBatch, names: Sequence[str]) -> Tensor | None:
    """Which tasks have labels with a weight above 0 in a batch of all ranks, `(T,)` bool; None without weights.

    If all labels of a task weigh 0, its loss is 0, but not because the task has been learned.
    """
    if batch.weights is None:
        return None
    sums = {name: weights.sum() for name, weights in batch.weights.items()}
    none = next(iter(sums.values())).new_zeros(())
    return sum_over_ranks(torch.stack([sums.get(name, none) for name in names])) > 0
