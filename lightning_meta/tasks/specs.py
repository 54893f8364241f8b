"""What a module must know of its tasks before it makes parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from lightning_meta.tasks.base import Task
from lightning_meta.tasks.table import TableSpec

TaskName = Literal["classification", "regression"]


@dataclass(frozen=True)
class EpisodeSpec:
    """What a module must know of its episodes before it makes parameters. The data module fills it in.

    Attributes:
        task: Classification or regression.
        input_shape: The shape of one input, channels first.
        outputs: N, the training way; or the dimension of a regression target. 0 where the way is a range.
        classes: Classes of the training split, rotations included; 0 for regression.
        input_dtype: The dtype of the stored inputs, such as "uint8" or "int64"; "" where nobody said so.
        input_statistics: Range and brightness of training inputs, see `lightning_meta.nn.likeness`; empty where nobody
            said so.
        target_mean: Of the targets of stored regression tasks, over the training tasks, one number a dimension; empty
            where targets are not standardised.
        target_scale: Their standard deviation.
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
    """What a module must know of a fixed set of T tasks before it makes parameters. The data module fills it in.

    Attributes:
        tasks: The tasks by name, standardisation learned; their order is that of every vector over tasks.
        input_shapes: The shape of one input of each task, by name.
        train_examples: How many training examples each task has, by name.
        descriptors: z_i by name, where the data gives them; else empty.
        input_dtypes: The dtype of each task's stored inputs, such as "uint8"; empty where nobody said so.
        input_statistics: Range and brightness of each task's training inputs, see `lightning_meta.nn.likeness`; empty
            where nobody said so.
        table: How rows of a table become inputs, where the data is one, so that `predict_table` can read new ones.
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
