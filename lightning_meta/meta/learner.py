"""What a meta-learner is: two pure functions of one task, on a network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from lightning_meta.batches import Episode, Examples
from lightning_meta.errors import UserError
from lightning_meta.functional.tf32 import full_float32, tf32_requested
from lightning_meta.module import TrainedModule
from lightning_meta.nn.features import as_input
from lightning_meta.nn.normalization import task_norms
from lightning_meta.tasks import EpisodeSpec, StandardisedRegression, Task, task_named

Inputs = TypeVar("Inputs", Tensor, Episode)


class Learner(TrainedModule, ABC):
    """The contract that predictors and exported files rely on; `MetaModule` adds training and evaluation to it."""

    spec_name, spec_type = "episodes", EpisodeSpec
    wrong_data = "learns from an EpisodicDataModule; the data has a fixed set of tasks"

    episodes: EpisodeSpec | None

    inner_gradients = True
    """Whether `adapt` differentiates the network. One that does not gets the faster memory layout."""

    classifies_only = False
    """Whether regression is refused."""

    uses_query_set = ""
    """What a method that predicts a query set as a whole does with it, in words; empty where queries stand alone."""

    @abstractmethod
    def adapt(self, support: Examples, ways: int) -> Any:
        """Learn a task from its support set; no tensor of the module changes.

        Args:
            support: `x` `(M, *input_shape)` real-valued, `y` `(M,)` labels in [0, N) or `(M, outputs)` targets, those
                of stored data in standard units.
            ways: N; 0 for regression.

        Returns:
            What the task needs for predicting: a pytree of tensors.
        """

    @abstractmethod
    def predict(self, state: Any, x: Tensor) -> Tensor:
        """Predict with what `adapt` returned.

        Args:
            state: The learned task.
            x: `(M, *input_shape)` real-valued.

        Returns:
            Logits `(M, N)`, or predictions `(M, outputs)`, of stored data in standard units.
        """

    def inputs(self, x: Inputs) -> Inputs:
        """Stored inputs, or an episode, as the network takes them; real targets of stored data in standard units."""
        if isinstance(x, Tensor):
            return super().inputs(x)
        assert isinstance(self.dtype, torch.dtype)
        support, query = (
            Examples(as_input(part.x, self.dtype, leading=2), self.targets(part.y)) for part in (x.support, x.query)
        )
        return x._replace(support=support, query=query)

    def targets(self, y: Tensor) -> Tensor:
        """Labels as they are; real targets of stored data in standard units."""
        if self.episodes is None or not self.episodes.target_scale:
            return y
        assert isinstance(self.dtype, torch.dtype)
        task = StandardisedRegression(self.episodes.target_mean, self.episodes.target_scale)
        return task.in_standard_units(y, torch.promote_types(self.dtype, torch.float32))

    @property
    def network(self) -> nn.Module:
        """The network that `adapt` runs."""
        return self.backbone

    @property
    def transductive(self) -> bool:
        """Whether a prediction depends on the other query examples: by the method, or a layer without statistics."""
        return bool(self.uses_query_set) or any(
            norm.running_mean is None for norm in task_norms(self.backbone).values()
        )

    def check_queries(self, count: int) -> None:
        """Refuse a number of examples that the method cannot predict together.

        Raises:
            UserError: What it would do with them.
        """

    def check_ways(self, ways: int) -> None:
        """Refuse a way that the method cannot serve.

        Raises:
            UserError: The way asked for, and the one served.
        """

    @property
    def spec(self) -> EpisodeSpec:
        """What the episodes look like.

        Raises:
            UserError: It is not known yet.
        """
        if self.episodes is None:
            raise UserError("episodes: give the module an EpisodeSpec, or fit it with an EpisodicDataModule first")
        return self.episodes

    @property
    def task(self) -> Task:
        """The loss and the metric."""
        if self.spec.target_scale:
            return StandardisedRegression(self.spec.target_mean, self.spec.target_scale)
        return task_named(self.spec.task, self.spec.outputs)

    @property
    def computes_in_full_float32(self) -> bool:
        """Whether TF32 is switched off on CUDA: where there is an inner loop, unless less was asked for."""
        return self.inner_gradients and not tf32_requested()

    def exact_arithmetic(self) -> AbstractContextManager[None]:
        """The context of every forward and backward pass; afterwards torch's switches are as before."""
        return full_float32(self.computes_in_full_float32)


class LearnedTask(Protocol):
    """A learner and what it has learned of one task.

    Attributes:
        module: The learner.
        state: What `adapt` returned.
        classes: The labels, in the order of the outputs; empty for regression.
    """

    module: Learner
    state: Any
    classes: list[Any]

    @property
    def depends_on_company(self) -> bool:
        """Whether a prediction depends on the inputs that it is made with."""
