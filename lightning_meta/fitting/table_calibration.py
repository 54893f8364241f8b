"""`lightning_meta.calibrate_table`: calibrate a table model on validation rows."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

from lightning.pytorch import Callback, Trainer

from lightning_meta.checks import instance, share
from lightning_meta.data import MultiTaskDataModule
from lightning_meta.errors import UserError, some_of
from lightning_meta.fitting.checks import quiet_trainer
from lightning_meta.fitting.conversion import keeping_weights
from lightning_meta.fitting.quiet import quiet_lightning
from lightning_meta.fitting.trained_data import warn_of_other_training_data
from lightning_meta.multitask.base import MultiTaskModule
from lightning_meta.multitask.calibration import Measured, TableCalibration, fewest_labels
from lightning_meta.multitask.records import TaskRecord
from lightning_meta.nn.normalization import refuse_batch_statistics
from lightning_meta.run.naming import naming_arguments

_log = logging.getLogger(__name__)


class CalibratedTable(NamedTuple):
    """A calibration of all targets of a table and its measured coverage.

    Attributes:
        calibration: The calibration, from the validation split.
        measured: Results of `TableCalibration.measure` on the test split, by name of each calibrated task.
    """

    calibration: TableCalibration
    measured: dict[str, Measured]


@quiet_lightning()
def calibrate_table(
    module: MultiTaskModule, data: MultiTaskDataModule, *, coverage: float = 0.9, **trainer: Any
) -> CalibratedTable:
    """Calibrate a table model on validation rows: temperature, prediction sets, abstention and intervals.

    Each task is calibrated separately, on the rows with its label. Tasks with too few labels are left out, with a
    warning: their predictions have no set or interval. Targets with classes get a temperature, prediction
    sets and an abstention threshold; numeric targets get prediction intervals::

        model = lm.load("runs/ladder_table/multi_head/0")
        source = lm.sources.Table("houses.csv", {"price": "regression", "sold": "binary"}, leave_out=["name"])
        calibration, measured = lm.calibrate_table(model, lm.MultiTaskDataModule(source))
        measured["price"]["coverage"]  # on the test split, near 0.9
        model.predict_table("new_rows.csv", calibration=calibration)

    The guarantee is for rows that are exchangeable with the validation rows. Coverage can be slightly lower if the
    validation split also selected the checkpoint. It can be clearly lower for rows of new groups of a `group_column`,
    since the validation split has few groups, and for later rows of a `time_column`; a warning says so. Row weights are
    ignored: every row with a label counts once.

    Args:
        module: A model that was trained on a `Table`.
        data: The training table, divided as in training.
        coverage: Coverage 1 − α in (0, 1), the fraction of rows whose set or interval contains their label.
        **trainer: Arguments of `lightning.pytorch.Trainer`, such as `devices`.

    Returns:
        The calibration and the measured coverage.

    Raises:
        UserError: The model was not trained on a table, `data` is another table or none, all tasks have too few
            validation labels, or predictions are not finite or depend on the other rows of a batch.
    """
    with naming_arguments():
        share(0.9, coverage=coverage)
        instance("module", module, MultiTaskModule)
        instance("data", data, MultiTaskDataModule)
        runner = quiet_trainer(trainer)
        calibrated = calibrate_table_by(runner, module, data, coverage)
    if runner.is_global_zero:
        warn_of_other_training_data(module.run_record, data)
    return calibrated


def calibrate_table_by(
    trainer: Trainer, module: MultiTaskModule, data: MultiTaskDataModule, coverage: float
) -> CalibratedTable:
    """The same as `calibrate_table`, with a given Trainer."""
    if module.spec.table is None:
        raise UserError(
            f"module: {type(module).__name__} was not trained on a lightning_meta.sources.Table, and only models of "
            "tables are calibrated"
        )
    refuse_batch_statistics(module, "module")
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
        with keeping_weights(module):
            trainer.test(module, datamodule=data, verbose=False)
    finally:
        trainer.callbacks.remove(recorder)  # type: ignore[attr-defined]
    tasks = module.spec.tasks
    calibration = TableCalibration.of(coverage, tasks, recorder.records["val"])
    if trainer.is_global_zero and (names := calibration.left_out):
        shown = [f"{name!r} {len(recorder.records['val'][name].ids)}" for name in names]
        _log.warning(
            "calibration: %d of %d tasks have fewer than the %d validation labels that a coverage of %g needs, and are "
            "left out, so their predictions have no set or interval: %s",
            *(len(names), len(tasks), fewest_labels(coverage), coverage),
            some_of(shown, 5),
        )
    return CalibratedTable(calibration, calibration.measure(tasks, recorder.records["test"]))


class _Recorder(Callback):
    """Collects the predictions of a test for the validation and test rows, over all ranks."""

    def __init__(self) -> None:
        self.records: dict[str, dict[str, TaskRecord]] = {}

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Refuse another table or division, since its validation rows may have been training rows of the model."""
        of_model, of_data = pl_module.spec.table, trainer.datamodule.spec.table  # type: ignore[attr-defined]
        if of_data is None:
            raise UserError("data: a lightning_meta.sources.Table is needed, the one of training")
        for name in ("features", "targets", "task_column"):
            if getattr(of_model, name) != getattr(of_data, name):
                raise UserError(
                    f"data: its table has other {name.replace('_', ' ')} than that of training, or is divided in "
                    "another way; give the table of training, with the same division"
                )

    def on_test_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Gather the predictions, before the module resets its records."""
        self.records = {split: pl_module.records[split].compute().of for split in ("val", "test")}
