"""Descriptions of the data that a module needs before it creates its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from lightning_meta.tasks.base import Task
from lightning_meta.tasks.table import TableSpec

TaskName = Literal["classification", "regression"]


@dataclass(frozen=True)
class EpisodeSpec:
    """Description of episodes that a module needs to create its parameters; the data module provides it.

    Attributes:
        task: Kind of task.
        input_shape: Shape of one input, channels first.
        outputs: Number of ways N in training, 0 if it varies; in regression, dimension of a target.
        classes: Number of classes in the training split, including rotated ones; 0 for regression.
        input_dtype: Dtype of the stored inputs, such as "uint8" or "int64"; "" if unknown.
        input_statistics: Range and brightness of the training inputs, see `lightning_meta.nn.likeness`; empty if
            unknown.
        target_mean: Mean of each dimension of the targets over the stored training tasks; empty if targets are not
            standardised.
        target_scale: Standard deviation of each dimension of the targets; empty if targets are not standardised.
    """

    task: TaskName = "classification"
    input_shape: tuple[int, ...] = ()
    outputs: int = 0
    classes: int = 0
    input_dtype: str = ""
    input_statistics: tuple[float, ...] = ()
    target_mean: tuple[float, ...] = ()
    target_scale: tuple[float, ...] = ()


@dataclass(frozen=True)
class TasksSpec:
    """Description of a fixed set of T tasks that a module needs to create its parameters; the data module provides it.

    Attributes:
        tasks: Tasks by name, fitted to the training targets; vectors over tasks have their order.
        input_shapes: Shape of one input of each task, by name.
        train_examples: Number of training examples of each task, by name.
        descriptors: Task descriptors z_i by name; empty if the data has none.
        input_dtypes: Dtype of the stored inputs of each task, such as "uint8", by name; empty if unknown.
        input_statistics: Range and brightness of the training inputs of each task, see `lightning_meta.nn.likeness`;
            empty if unknown.
        table: Conversion of table rows to inputs, for `predict_table`; None if the data is not a table.
    """

    tasks: Mapping[str, Task] = field(default_factory=dict)
    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    train_examples: Mapping[str, int] = field(default_factory=dict)
    descriptors: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    input_dtypes: Mapping[str, str] = field(default_factory=dict)
    input_statistics: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    table: TableSpec | None = None

    @property
    def codes(self) -> list[int]:
        """For each input of a table how many codes it has, 0 for a number; empty where there is no table."""
        return [] if self.table is None else self.table.codes
