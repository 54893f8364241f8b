"""Steps of several tasks as CUDA graphs: what is captured, and what runs before and after."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from lightning_meta.batches import TaskBatch
from lightning_meta.functional.ranks import sum_over_ranks, world_size
from lightning_meta.multitask.combining import CombinesGradients, in_order, weighed_tasks
from lightning_meta.nn.step_constants import StepConstants
from lightning_meta.tasks.together import LossesTogether
from lightning_meta.weightings import Aggregator, Weighting
from lightning_meta.weightings.base import weighted

_log = logging.getLogger(__name__)


class ForwardPass(NamedTuple):
    """The forward pass of a training step.

    Attributes:
        loss: The objective, a scalar.
        losses: Loss of each task, `(T,)`, 0 for absent tasks.
        present: Which tasks are in the batch, `(T,)` bool.
        outputs: Predictions by name of the task; the next captured step overwrites them.
    """

    loss: Tensor
    losses: Tensor
    present: Tensor
    outputs: dict[str, Tensor]


class GraphedSteps(CombinesGradients, ABC):
    """A module of several tasks with the option `graph`.

    A graph of a training step contains the forward pass, the losses, their weighting and the gradients; what changes
    the state of the weighting, logging and the optimizer run after it. With several ranks, sums over ranks run before
    it, since each rank captures on its own.
    """

    not_of_a_step: ClassVar[tuple[str, ...]] = (
        *("_at_floor", "_combined", "_last_batch", "_likenesses", "_logged_obstacle", "_parts"),
        *("_best", "_presence"),
        *("_step_features", "_step_gradients", "_together", "_weighed", "records"),
    )
    _logged_obstacle = False
    _together: LossesTogether | None

    @abstractmethod
    def outputs(self, batch: TaskBatch) -> dict[str, Tensor]:
        """Predictions for a batch by name of the task."""

    @abstractmethod
    def _losses(self, batch: TaskBatch, totals: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The losses of the tasks in a batch, in the order of the outputs; and the outputs.

        Args:
            batch: The batch of this rank.
            totals: Number of targets of each task in `batch.targets` over all ranks; by default they are summed here.
        """

    def _graph_obstacle(self) -> str:
        """Why training steps cannot be captured; empty if they can. Evaluation is captured in any case."""
        if isinstance(self.weighting, Aggregator):
            return f"{type(self.weighting).__name__} combines the gradients of the tasks, which is not captured"
        return ""

    def _captures_training(self) -> bool:
        if self.graph == "off":
            return False
        obstacle = self._graph_obstacle()
        if obstacle and not self._logged_obstacle:
            self._logged_obstacle = True
            _log.warning("graph: training steps run without a CUDA graph: %s", obstacle)
        return not obstacle

    def _graphed_pass(self, batch: TaskBatch) -> ForwardPass:
        """The forward pass of a training step, by a CUDA graph if there is one for such batches."""

        def forward_pass(
            batch: TaskBatch, totals: Tensor | None, weighed: Tensor | None, weights: Tensor | None
        ) -> tuple[Tensor, tuple[Tensor, Tensor, dict[str, Tensor]]]:
            with self._constants_of_this_run():
                of_tasks, outputs = self._losses(batch, totals)
            losses, present = in_order(of_tasks, list(outputs), self.names, weighed)
            if weights is None:
                loss = self.weighting(losses, present)
            else:
                loss = weighted(weights, losses, present, f"{type(self.weighting).__name__}.weights")
            return loss, (losses, present, outputs)

        totals, weights = self._totals(batch), self._given_weights()
        unread = [] if weights is None else list(self.weighting.modules())
        inputs = batch._replace(ids={}), totals, weighed_tasks(batch, self.names), weights
        loss, (losses, present, outputs) = self._graphs.loss(forward_pass, self, *inputs, unread=unread)
        # Copies, since the weighting may keep them.
        return ForwardPass(loss, losses.clone(), present.clone(), outputs)

    @contextmanager
    def _constants_of_this_run(self) -> Iterator[None]:
        """A context in which a run to be captured makes its own constants of the losses.

        Tensors that other steps keep may be freed, and a graph would continue to read their memory.
        """
        kept = self._together
        if StepConstants.active():
            self._together = None
        try:
            yield
        finally:
            if StepConstants.active():
                self._together = kept

    def _totals(self, batch: TaskBatch) -> Tensor | None:
        """The number of targets of each task over all ranks; None with a single rank, which does not need it."""
        if world_size() == 1:
            return None
        counts = [len(targets) for targets in batch.targets.values()]
        return sum_over_ranks(torch.tensor(counts, device=self.device))

    def _given_weights(self) -> Tensor | None:
        """The weights of the step, if they depend neither on the losses nor on parameters.

        They are an input of the graph, since a weighting may compute them from numbers in Python.
        """
        if type(self.weighting).forward is not Weighting.forward:
            return None
        weights = self.weighting.weights()
        if not isinstance(weights, Tensor):  # `forward` refuses it
            return None
        assert isinstance(self.dtype, torch.dtype)
        dtype = torch.promote_types(self.dtype, torch.float32)
        return None if weights.requires_grad else weights.to(self.device, dtype)

    def _graphed_outputs(self, batch: TaskBatch) -> dict[str, Tensor]:
        """Predictions for a batch, by a CUDA graph if there is one for such batches."""
        if self.graph == "off" or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self.outputs(batch)
        inputs = batch._replace(targets={}, ids={}, weights=None)
        return self._graphs.values(self.outputs, self, inputs, unread=list(self.weighting.modules()))
