"""When the last validation of a training is, and the warning if training goes on for long after it."""

from __future__ import annotations

import logging
from itertools import product
from pathlib import Path

import lightning
import pytest
from torch import nn

import lightning_meta as lm
from lightning_meta.data.validation import last_validation
from tests.run.toys import ToyData, ToyModule

BATCHES = 6
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


class Counted(lightning.Callback):
    """Counts the training batches before each validation."""

    def __init__(self) -> None:
        self.batches = self.last = 0

    def on_train_batch_end(self, *args: object) -> None:
        self.batches += 1

    def on_validation_start(self, *args: object) -> None:
        self.last = self.batches


CASES = [
    case
    for case in product((4, 6, 13, 17, 18, 24), (1.0, 0.5, 2, 4, 6), (None, 1, 2))
    if not (case[2] is None and isinstance(case[1], float))
]


@pytest.mark.parametrize(("steps", "every", "epochs"), CASES)
def test_the_last_validation_is_where_lightning_has_it(steps: int, every: float, epochs: int | None) -> None:
    counted = Counted()
    trainer = lightning.Trainer(
        max_steps=steps,
        val_check_interval=every,
        check_val_every_n_epoch=epochs,
        num_sanity_val_steps=0,
        accelerator="cpu",
        callbacks=[counted],
        **QUIET,  # type: ignore[arg-type]
    )
    trainer.fit(ToyModule(nn.Linear(5, 5)), datamodule=ToyData(BATCHES))
    assert counted.batches == steps
    assert last_validation(steps, BATCHES, every, epochs) == counted.last


def waves() -> lm.EpisodicDataModule:
    return lm.EpisodicDataModule(
        lm.sources.Sinusoid(), shots=2, queries=2, meta_batch_size=2, meta_batches_per_epoch=10, val_tasks=2
    )


def test_validations_by_time_are_left_to_lightning() -> None:
    trainer = lightning.Trainer(max_steps=14, accelerator="cpu", val_check_interval="00:00:00:01", **QUIET)  # type: ignore[arg-type]
    trainer.fit(lm.MAML(lm.nn.MLP(1, (4,)), inner_lr=0.01), datamodule=waves())
    assert trainer.global_step == 14


@pytest.mark.filterwarnings("ignore:.*could not find the monitored key")
@pytest.mark.parametrize(
    ("steps", "options", "after"),
    [
        (14, {}, 10),
        (20, {}, None),
        (3, {}, None),  # without any validation the last step is tested
        (14, {"val_check_interval": 2}, None),
        (13, {"val_check_interval": 4}, 8),
        (14, {"monitor": None}, None),
    ],
)
def test_a_training_that_goes_on_after_its_last_validation_is_warned_of(
    steps: int, options: dict[str, object], after: int | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = dict(options)
    callback = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path, monitor=options.pop("monitor", "val/mse"))  # type: ignore[arg-type]
    quiet = {**QUIET, "enable_checkpointing": True}
    trainer = lightning.Trainer(max_steps=steps, accelerator="cpu", callbacks=[callback], **quiet, **options)  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING, "lightning_meta"):
        trainer.fit(lm.MAML(lm.nn.MLP(1, (4,)), inner_lr=0.01), datamodule=waves())
    said = [record.getMessage() for record in caplog.records if "its last validation" in record.getMessage()]
    assert len(said) == (after is not None)
    if after is not None:
        assert said[0].startswith(f"training ends after {steps} batches, and its last validation is after {after}:")
