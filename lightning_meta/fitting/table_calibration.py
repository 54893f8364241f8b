"""`lightning_meta.calibrate_table`: learn from validation rows how sure a model of a table is of each target."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

from lightning.pytorch import Callback, Trainer

from lightning_meta.checks import instance
from lightning_meta.data import MultiTaskDataModule
from lightning_meta.errors import UserError
from lightning_meta.fitting.checks import quiet_trainer
from lightning_meta.multitask.base import MultiTaskModule
from lightning_meta.multitask.calibration import Measured, TableCalibration
from lightning_meta.multitask.records import TaskRecord
from lightning_meta.run.naming import naming_arguments

_log = logging.getLogger(__name__)


class CalibratedTable(NamedTuple):
    """A calibration of a table's targets, and what it came to.

    Attributes:
        calibration: Learned from the validation split.
        measured: By name of the task, what sets, intervals and abstention come to on the test split.
    """

    calibration: TableCalibration
    measured: dict[str, Measured]


def calibrate_table(
    module: MultiTaskModule, data: MultiTaskDataModule, *, coverage: float = 0.9, **trainer: Any
) -> CalibratedTable:
    """Learn from the validation rows of a table how sure a model is of each target.

    Each task is calibrated by itself, from the rows that have its label. Targets with classes get a temperature,
    prediction sets and a threshold for abstention; targets of numbers get intervals::

        model = lm.load("runs/ladder_table/multi_head/0")
        source = lm.sources.Table("houses.csv", {"price": "regression", "sold": "binary"}, leave_out=["name"])
        calibration, measured = lm.calibrate_table(model, lm.MultiTaskDataModule(source))
        measured["price"]["coverage"]  # on the test split, near 0.9
        model.predict_table("new_rows.csv", calibration=calibration)

    The guarantee is for rows that are exchangeable with those of the validation split. If that split also chose the
    checkpoint, coverage can be slightly lower than said. For rows of new groups of a `group_column`, of which the
    validation split has few, and for later rows of a `time_column`, it can be clearly lower; a warning says so. Weights
    of rows are ignored: every row with a label counts once.

    Args:
        module: A model that was trained on a `Table`.
        data: The table of training, with the same division.
        coverage: 1 − α, in (0, 1): the share of rows whose set or interval holds their label.
        **trainer: Arguments of `lightning.pytorch.Trainer`, such as `devices`.

    Returns:
        The calibration, and what was measured.

    Raises:
        UserError: The model or the data are of no table or of different ones, a task has too few validation labels, or
            predictions are not finite.
    """
    with naming_arguments():
        instance("module", module, MultiTaskModule)
        instance("data", data, MultiTaskDataModule)
        return calibrate_table_by(quiet_trainer(trainer), module, data, coverage)


def calibrate_table_by(
    trainer: Trainer, module: MultiTaskModule, data: MultiTaskDataModule, coverage: float
) -> CalibratedTable:
    """The same as `calibrate_table`, with a given Trainer."""
    if not 0 < coverage < 1:
        raise UserError(f"coverage: a share above 0 and below 1 is needed, such as 0.9; got {coverage}")
    if module.spec.table is None:
        raise UserError(
            f"module: {type(module).__name__} was not trained on a lightning_meta.sources.Table, and only models of "
            "tables are calibrated"
        )
    for column in ("group_column", "time_column"):
        if trainer.is_global_zero and getattr(data.source, column, None) is not None:
            _log.warning(
                "the table is divided by its %s: if new rows differ from validation rows, coverage is lower than %g",
                column,
                coverage,
            )
    recorder = _Recorder()
    trainer.callbacks.append(recorder)  # type: ignore[attr-defined]  # Lightning makes it a list
    try:
        trainer.test(module, datamodule=data, verbose=False)
    finally:
        trainer.callbacks.remove(recorder)  # type: ignore[attr-defined]
    tasks = module.spec.tasks
    calibration = TableCalibration.of(coverage, tasks, recorder.records["val"])
    return CalibratedTable(calibration, calibration.measure(tasks, recorder.records["test"]))


class _Recorder(Callback):
    """Keeps what a test predicts for the validation and the test split, over all ranks."""

    def __init__(self) -> None:
        self.records: dict[str, dict[str, TaskRecord]] = {}

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Refuse rows of another table: rows that were trained on would be taken for new ones."""
        of_model, of_data = pl_module.spec.table, trainer.datamodule.spec.table  # type: ignore[attr-defined]
        if of_data is None:
            raise UserError("data: expected those of a lightning_meta.sources.Table, the one of training")
        for name in ("features", "targets", "task_column"):
            if getattr(of_model, name) != getattr(of_data, name):
                raise UserError(
                    f"data: its table has other {name.replace('_', ' ')} than that of training, or is divided in "
                    "another way; give the table of training, with the same division"
                )

    def on_test_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Gather them; this is called before the module forgets them."""
        self.records = {split: pl_module.records[split].compute().of for split in ("val", "test")}
