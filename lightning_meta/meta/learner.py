"""The interface of a meta-learner: two pure functions of one task, on a network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor, nn

from lightning_meta.batches import Episode, Examples
from lightning_meta.errors import UserError
from lightning_meta.functional.tf32 import full_float32, tf32_requested
from lightning_meta.module import TrainedModule
from lightning_meta.nn.features import as_input
from lightning_meta.nn.normalization import task_norms
from lightning_meta.overrides import CalledInPart
from lightning_meta.tasks import EpisodeSpec, StandardisedRegression, Task, task_named

Inputs = TypeVar("Inputs", Tensor, Episode)

BESIDE = ("loss", "tasks")
"""Names of logged values besides the score, which a custom task cannot use for its score."""


class Learner(TrainedModule, ABC):
    """The interface that predictors and exported files use; `MetaModule` adds training and evaluation."""

    spec_name, spec_type = "episodes", EpisodeSpec
    wrong_data = "learns from an EpisodicDataModule; the data has a fixed set of tasks"

    episodes: EpisodeSpec | None

    inner_gradients = True
    """Whether `adapt` differentiates the network; if not, the backbone uses the faster channels-last layout."""

    classifies_only = False
    """Whether the method only supports classification."""

    uses_query_set = ""
    """For transductive methods, how the query set is used, as a clause; empty if each query is predicted alone."""

    called_in_part: ClassVar[Mapping[str, CalledInPart]] = {}
    """Methods that a base class does not call everywhere; see `check_overrides`."""

    @abstractmethod
    def adapt(self, support: Examples, ways: int) -> Any:
        """Learn a task from its support set, without changing any tensor of the module.

        Args:
            support: Inputs `x` `(M, *input_shape)`, real-valued; and `y`, labels `(M,)` in [0, N) or targets
                `(M, outputs)`, which are standardised for stored data.
            ways: Number of classes N; 0 for regression.

        Returns:
            The state that `predict` needs: a pytree of tensors.
        """

    @abstractmethod
    def predict(self, state: Any, x: Tensor) -> Tensor:
        """Predict queries with the state that `adapt` returned.

        Args:
            state: State of the learned task.
            x: Inputs `(M, *input_shape)`, real-valued.

        Returns:
            Logits `(M, N)`, or predictions `(M, outputs)`, which are standardised for stored data.
        """

    def inputs(self, x: Inputs) -> Inputs:
        """Convert inputs, or an episode, to what the network takes; real targets of stored data are standardised."""
        if isinstance(x, Tensor):
            return super().inputs(x)
        assert isinstance(self.dtype, torch.dtype)
        support, query = (
            Examples(as_input(part.x, self.dtype, leading=2), self.targets(part.y)) for part in (x.support, x.query)
        )
        return x._replace(support=support, query=query)

    def targets(self, y: Tensor) -> Tensor:
        """Standardise real targets of stored data; labels are returned unchanged."""
        if self.episodes is None or not self.episodes.target_scale:
            return y
        assert isinstance(self.dtype, torch.dtype)
        task = StandardisedRegression(self.episodes.target_mean, self.episodes.target_scale)
        return task.in_standard_units(y, torch.promote_types(self.dtype, torch.float32))

    def make_parts(self) -> None:
        """Call `build`, and refuse a task that names its score badly, or whose predictions would be in other units."""
        super().make_parts()
        self._check_metric()
        self._check_units()

    def _check_metric(self) -> None:
        """Refuse a custom task whose score has no name, or one by which something else is logged."""
        name, kind = getattr(self.task, "metric", None), type(self.task).__name__
        if not isinstance(name, str) or not name:
            raise UserError(
                f"{type(self).__name__}.task: {kind} does not name its score; set the class attribute metric, such as "
                'metric = "mean_absolute_error"'
            )
        if name in BESIDE:
            raise UserError(
                f"{type(self).__name__}.task: {kind}.metric is {name!r}, by which something else is logged; choose "
                "another name"
            )

    def _check_units(self) -> None:
        """Refuse a custom task that does not convert standard units back; not if the method has its own `targets`."""
        if not self.spec.target_scale or type(self).targets is not Learner.targets:
            return
        task = self.task
        with torch.device("cpu"):  # `load` builds modules on the meta device, which has no values
            outputs = torch.tensor([0.0, 1.0])[:, None].repeat(1, self.spec.outputs * task.numbers)
            unchanged = torch.equal(task.readable(outputs).to(outputs.dtype), outputs)
        standard = all(mean == 0 for mean in self.spec.target_mean) and all(s == 1 for s in self.spec.target_scale)
        if unchanged and not standard:
            name = type(task).__name__
            raise UserError(
                f"{type(self).__name__}.task: the targets of stored tasks are standardised, and {name} would give "
                f"predictions and scores in standard units; derive {name} from lightning_meta.tasks."
                f"StandardisedRegression and return {name}.of_episodes(self.spec), see docs/extending.md"
            )

    @property
    def network(self) -> nn.Module:
        """The network that `adapt` runs."""
        return self.backbone

    @property
    def transductive(self) -> bool:
        """Whether predictions depend on the other queries: by the method, or by layers without running statistics."""
        return bool(self.uses_query_set) or any(
            norm.running_mean is None for norm in task_norms(self.backbone).values()
        )

    def check_queries(self, count: int) -> None:
        """Refuse a number of queries that the method cannot predict together.

        Raises:
            UserError: The reason.
        """

    def check_ways(self, ways: int) -> None:
        """Refuse a number of classes that the method does not support.

        Raises:
            UserError: The number received and the one supported.
        """

    @property
    def spec(self) -> EpisodeSpec:
        """The specification of the episodes.

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
        """Whether TF32 is switched off on CUDA: with an inner loop, unless torch's setting enables TF32."""
        return self.inner_gradients and not tf32_requested()

    def exact_arithmetic(self) -> AbstractContextManager[None]:
        """The context of every forward and backward pass; it restores torch's settings."""
        return full_float32(self.computes_in_full_float32)


class LearnedTask(Protocol):
    """A learner and the task it has learned.

    Attributes:
        module: The learner.
        state: State that `adapt` returned.
        classes: Labels, in the order of the outputs; empty for regression.
    """

    module: Learner
    state: Any
    classes: list[Any]

    @property
    def depends_on_company(self) -> bool:
        """Whether a prediction depends on the other inputs of the same call."""
