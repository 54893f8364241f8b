"""Permutation importance of the columns of a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import torch
from matplotlib.figure import Figure
from torch import Tensor

from lightning_meta.checks import instance, whole
from lightning_meta.data.multi_task import MultiTaskDataModule
from lightning_meta.data.task_set import TaskSet
from lightning_meta.errors import UserError
from lightning_meta.functional.random_bits import choose, key, name_key
from lightning_meta.multitask.base import MultiTaskModule
from lightning_meta.multitask.table_predictions import outputs_of
from lightning_meta.report.drawing import save_figure
from lightning_meta.run.tables import write_table
from lightning_meta.sources.table_rows import Rows

SHOWN = 12  # maximum number of tasks in the figure, and of columns per task


class _Part(NamedTuple):
    """Tasks whose test rows are permuted together.

    Attributes:
        inputs: Inputs of the rows of the part, `(n, D)`.
        groups: Names of the tasks with the same rows, and these rows among the inputs, in ascending order.
        rows: Rows of each task among the inputs, in the order of its targets, by its name.
    """

    inputs: Tensor
    groups: list[tuple[list[str], Tensor]]
    rows: dict[str, Tensor]


class Importance(NamedTuple):
    """The importance of a column for a task.

    Attributes:
        task: Name of the task.
        column: Name of the feature column.
        increases: Increases of the task's mean test loss, one for each permutation of the column.
    """

    task: str
    column: str
    increases: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean increase."""
        return sum(self.increases) / len(self.increases)

    @property
    def deviation(self) -> float:
        """The standard deviation over permutations, with divisor R as in scikit-learn."""
        return math.sqrt(sum((value - self.mean) ** 2 for value in self.increases) / len(self.increases))


def permutation_importance(
    module: MultiTaskModule,
    data: MultiTaskDataModule,
    repeats: int = 5,
    seed: int = 0,
    out: str | Path | None = None,
    batch_size: int = 512,
) -> list[Importance]:
    r"""Measure by how much each task's test loss grows if the values of one column are permuted among test rows.

    $$I_{t,j} = \frac{1}{R} \sum_r L_t(\pi_r^j x) - L_t(x)$$

    Here $L_t$ is the mean test loss of task t, weighted if the rows have weights, x are the test inputs, and $\pi_r^j$
    permutes column j with permutation r of R, among the rows that have a label of the task. All inputs of a column are
    permuted together: its one-hot inputs and its indicator of missing values. A column that is correlated with others
    may have a small importance, since the model still has the others (Breiman, Random Forests, Machine Learning 45,
    2001, section 10). The result is that of `sklearn.inspection.permutation_importance`, on these rows, with the
    negative loss as the score and the weights as `sample_weight`. ::

        model = lm.load("runs/houses/0")
        lm.permutation_importance(model, data, out="runs/houses/0")

    Args:
        module: A model that was trained on a `Table`.
        data: The table, divided as in training.
        repeats: Number R of permutations of each column, at least 1.
        seed: Seed of the permutations, at least 0.
        out: Folder for `importance.csv` and `importance.png`, such as the run directory; nothing is written by default.
        batch_size: Number of rows per forward pass, at least 1.

    Returns:
        The importance of each column for each task.

    Raises:
        UserError: The model or the data do not use a `Table`, or the tables or their divisions differ.
    """
    instance("module", module, MultiTaskModule)
    instance("data", data, MultiTaskDataModule)
    whole(1, repeats=repeats, batch_size=batch_size)
    whole(0, seed=seed)
    data.prepare_data()
    data.setup("test")
    table, test = module.spec.table, data.sets["test"]
    if table is None or data.spec is None or data.spec.table is None:
        raise UserError("permutation_importance: expected a model and data of a lightning_meta.sources.Table")
    if table.inputs != data.spec.table.inputs or module.names != test.names or not isinstance(test.inputs, Tensor):
        raise UserError(
            "permutation_importance: the data has other columns or tasks than in training; give the table of training"
        )
    if table.features != data.spec.table.features:
        raise UserError(
            "permutation_importance: the rows are not divided or scaled as in training; give the table of training, "
            "with the same division"
        )
    parts = _parts(test, test.inputs)
    before = {
        name: loss for part in parts for name, loss in _losses(module, part.inputs, test, part, batch_size).items()
    }
    increases: dict[tuple[str, str], list[float]] = {
        (n, f.name): [] for n in test.names if n in before for f in table.features
    }
    start = 0
    for feature in table.features:
        inputs = slice(start, start := start + len(feature.inputs))
        for repeat in range(repeats):
            for part in parts:
                x, permuted = part.inputs, part.inputs.clone()
                for names, rows in part.groups:
                    draw = key(seed, name_key(feature.name), repeat, name_key(names[0]))
                    permuted[rows, inputs] = x[rows[choose(draw, len(rows), len(rows)).to(rows.device)], inputs]
                for name, loss in _losses(module, permuted, test, part, batch_size).items():
                    increases[name, feature.name].append(loss - before[name])
    importances = [Importance(task, column, tuple(values)) for (task, column), values in increases.items()]
    if out is not None:
        _write(Path(out), importances)
        _draw(Path(out), importances)
    return importances


def _parts(test: TaskSet, x: Tensor) -> list[_Part]:
    """Divide the tasks into parts in which no two groups of tasks share rows, so that all are permuted together.

    The values of a column are only permuted among the rows that have a label of the task.
    """
    groups: dict[bytes, tuple[list[str], Tensor]] = {}
    for name, rows in test.rows.items():
        if len(rows):
            ascending = rows.cpu().sort().values
            groups.setdefault(ascending.numpy().tobytes(), ([], ascending))[0].append(name)
    alike = list(groups.values())
    rows_of_all = torch.cat([rows for _, rows in alike])
    apart = len(rows_of_all.unique()) == len(rows_of_all)
    parts = []
    for of_part in [alike] if apart else [[group] for group in alike]:
        used = torch.cat([rows for _, rows in of_part]).sort().values
        places = [(names, torch.searchsorted(used, rows)) for names, rows in of_part]
        rows_of = {name: torch.searchsorted(used, test.rows[name].cpu()) for names, _ in of_part for name in names}
        parts.append(_Part(x[used.to(x.device)], places, rows_of))
    return parts


def _losses(module: MultiTaskModule, x: Tensor, test: TaskSet, part: _Part, batch_size: int) -> dict[str, float]:
    """The weighted mean loss of each task of a part; NaN if all weights are 0."""
    means = {}
    for name, y in outputs_of(module, Rows(x, part.rows, []), batch_size).items():
        losses = module.spec.tasks[name].losses(y, test.targets[name].to(y.device)).double()
        weights = torch.ones_like(losses) if test.weights is None else test.weights[name].to(losses)
        means[name] = float((weights * losses).sum() / weights.sum())
    return means


def _write(folder: Path, importances: Sequence[Importance]) -> None:
    header = ["task", "column", "loss_increase", "standard_deviation", "permutations"]
    rows = [[i.task, i.column, i.mean, i.deviation, len(i.increases)] for i in importances]
    write_table(folder / "importance.csv", [header, *rows])


@matplotlib.rc_context({"text.parse_math": False})  # names of tasks and columns are text
def _draw(folder: Path, importances: Sequence[Importance]) -> None:
    """Draw a panel for each of the first tasks, with its most important columns; error bars are ± one deviation."""
    names = list(dict.fromkeys(importance.task for importance in importances))
    tasks = names[:SHOWN]
    figure = Figure((7, 2.5 * len(tasks)), layout="constrained")
    for axes, task in zip(figure.subplots(len(tasks), squeeze=False)[:, 0], tasks, strict=True):
        top = sorted((i for i in importances if i.task == task), key=lambda i: i.mean)[-SHOWN:]
        axes.barh(range(len(top)), [i.mean for i in top], xerr=[i.deviation for i in top], color="0.6", capsize=2)
        axes.set_yticks(range(len(top)), [i.column for i in top], fontsize=7)
        axes.set_title(task, fontsize=9)
        axes.axvline(0, color="0.3", lw=0.5)
    label = "increase of the test loss when the column is permuted (error bars: ± one standard deviation)"
    axes.set_xlabel(label, fontsize=9)
    if len(names) > SHOWN:
        figure.suptitle(f"the first {SHOWN} of {len(names)} tasks; all are in importance.csv", fontsize=9)
    save_figure(figure, folder / "importance.png")
