"""Export a model of named tasks to a file that runs without this package."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lightning_meta.batches import Common, TaskBatch
from lightning_meta.checks import names_in_list
from lightning_meta.errors import UserError
from lightning_meta.multitask.table_encoder import TableEncoder
from lightning_meta.run.files import check_target
from lightning_meta.run.programs import FORMATS, exported_dtype, input_facts, write_program
from lightning_meta.sources.columns import MISSING
from lightning_meta.tasks import Binary, Classification, Multilabel, Task
from lightning_meta.tasks.table import TableSpec

if TYPE_CHECKING:
    from lightning_meta.multitask.base import MultiTaskModule

EXAMPLES = 3


class ServedTasks(nn.Module):
    """A copy of a multi-task module as a plain function of inputs, with the weights that are used in testing.

    Args:
        module: Module to copy.
        tasks: Names of the tasks to predict, in the order of the outputs.
        one_by_one: Whether to run each input separately under `vmap`. An exported program accepts any number of rows,
            which cannot be traced through a method that depends on the number of rows of a task.
    """

    def __init__(self, module: MultiTaskModule, tasks: Sequence[str], one_by_one: bool) -> None:
        super().__init__()
        with module.selected_weights():
            self.module = copy.deepcopy(module)
        self.module.selected_weights = nullcontext  # type: ignore[method-assign]  # they are in place for good
        self._tasks, self._one_by_one = list(tasks), one_by_one
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Inputs `(M, *input_shape)` to predictions by task: in units of the targets, or probabilities."""
        if self._one_by_one:
            outputs = {name: y.squeeze(1) for name, y in torch.vmap(self._outputs)(x.unsqueeze(1)).items()}
        else:
            outputs = self._outputs(x)
        return {name: self.module.spec.tasks[name].for_classes(outputs[name]) for name in self._tasks}

    def _outputs(self, x: Tensor) -> dict[str, Tensor]:
        rows = Common({name: torch.arange(x.shape[0], device=x.device) for name in self._tasks})
        inputs = dict.fromkeys(self._tasks, x) if len(self.module.stems) else x
        return self.module.selected_outputs(TaskBatch(inputs, {}, rows, {}))


class ServedTable(nn.Module):
    """A copy of a multi-task module as a plain function of the raw cells of a table.

    Args:
        module: Module to copy, trained on a table.
        tasks: Names of the tasks to predict, in the order of the outputs.
        one_by_one: Whether to run each row separately under `vmap`, see `ServedTasks`.
        table: Conversion of rows to inputs.
    """

    def __init__(self, module: MultiTaskModule, tasks: Sequence[str], one_by_one: bool, table: TableSpec) -> None:
        super().__init__()
        self.encoder, self.served = TableEncoder(table), ServedTasks(module, tasks, one_by_one)

    def forward(self, numbers: Tensor, codes: Tensor) -> dict[str, Tensor]:
        """Numbers and codes, the inputs of `TableEncoder`, to predictions by task."""
        predictions: dict[str, Tensor] = self.served(self.encoder(numbers, codes))
        return predictions


def export(
    module: MultiTaskModule,
    file: str | Path,
    dtype: torch.dtype | None = None,
    tasks: Sequence[str] | None = None,
) -> Path:
    """Write a trained model to a file; implements `MultiTaskModule.export`.

    Args:
        module: Model to export.
        file: Output file, `.pt2` or `.onnx`.
        dtype: Data type of the inputs; not for models of a table, whose inputs are cells.
        tasks: Names of the tasks to predict; by default all.

    Returns:
        Path of the file.

    Raises:
        UserError: The file name, the data type or the tasks are not valid, or the model cannot be exported.
    """
    path = Path(file)
    check_target(path, FORMATS)
    chosen = _chosen(module, tasks)
    spec, name = module.spec, type(module).__name__
    about: dict[str, Any] = {"method": name}
    made: list[Any] = []
    if spec.table is not None:
        if dtype is not None:
            raise UserError(f"dtype: a model of a table takes its cells, numbers as float64; got {dtype}, leave it out")
        encoder = TableEncoder(spec.table)
        example = {
            "numbers": torch.zeros(EXAMPLES, len(encoder.numbers), dtype=torch.float64),
            "codes": torch.zeros(EXAMPLES, len(encoder.texts), dtype=torch.int64),
        }
        about |= _of_table(encoder, spec.table)
        made = [partial(ServedTable, module, chosen, one_by_one, spec.table) for one_by_one in (False, True)]
    else:
        shape = spec.input_shapes[chosen[0]]
        dtype = exported_dtype(dtype, shape, spec.input_dtypes.get(chosen[0], ""))
        example = {"x": torch.zeros(EXAMPLES, *shape, dtype=dtype)}
        about |= input_facts(shape, dtype)
        made = [partial(ServedTasks, module, chosen, one_by_one) for one_by_one in (False, True)]
    about["tasks"] = [_of_task(task, spec.tasks[task], spec.table) for task in chosen]
    names = [f"prediction_{i}" for i in range(len(chosen))]
    write_program(path, [partial(_on_cpu, make) for make in made], example, about, name, outputs=names)
    return path


def _on_cpu(make: Any) -> nn.Module:
    model: nn.Module = make()
    return model.cpu()


def _chosen(module: MultiTaskModule, tasks: Sequence[str] | None) -> list[str]:
    """Check the chosen tasks, whose inputs must have the same shape and type; by default all tasks."""
    names_in_list(tasks=tasks)
    chosen = module.names if tasks is None else list(tasks)
    if unknown := [name for name in chosen if name not in module.names]:
        raise UserError(f"tasks: there is no task {unknown[0]!r}; expected {', '.join(map(repr, module.names))}")
    if not chosen or len(set(chosen)) < len(chosen):
        raise UserError(f"tasks: expected one or more, each once, got {chosen}")
    kinds = {name: (module.spec.input_shapes[name], module.spec.input_dtypes.get(name, "")) for name in chosen}
    for name, kind in kinds.items():
        if kind != kinds[chosen[0]]:
            one, other = (f"{n!r} takes inputs of shape {kinds[n][0]}" for n in (chosen[0], name))
            raise UserError(f"tasks: {one}, {other}; export tasks of one kind to a file each, such as tasks=[{name!r}]")
    return chosen


def _of_table(encoder: TableEncoder, table: TableSpec) -> dict[str, Any]:
    """The description of the table that `exported_rows.inputs_of` needs."""
    return {
        "numbers": [{"column": f.name, "offset": f.offset, "boolean": f.boolean} for f in encoder.numbers],
        "texts": [{"column": f.name, "texts": list(f.texts), "of_numbers": f.of_numbers} for f in encoder.texts],
        "missing": list(MISSING),
        "delimiter": table.delimiter or ",",
        "decimal": table.decimal,
        "task_column": table.task_column,
    }


def _of_task(name: str, task: Task, table: TableSpec | None) -> dict[str, Any]:
    """Describe the predictions for a task."""
    output = "predictions"
    if isinstance(task, Binary):
        output = "probability of yes"
    elif isinstance(task, Classification | Multilabel):
        output = "probabilities"
    about = {"name": name, "output": output, "outputs": task.outputs}
    if table is not None:
        of_task = [target for target in table.targets if table.task_column or target.name == name]
        target = of_task[0]
        about |= {"target": target.name, "unit": target.unit, "classes": list(target.classes)}
    return about
