"""Comparison of the data of a test with those that a checkpoint was trained on."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningDataModule

from lightning_meta.data.module import SourceDataModule
from lightning_meta.import_paths import public_path
from lightning_meta.resuming import same_class

_log = logging.getLogger(__name__)


def warn_of_other_training_data(record: Any, data: LightningDataModule) -> None:
    """Warn if the training split of the same source is not the one that a module was trained on.

    Inputs are then scaled differently, and test tasks or rows may have been trained on. Data of another source were
    chosen on purpose, so there is no warning. The hash of a training split does not depend on ways and shots.

    Args:
        record: The record of the run in a checkpoint; see `run.record`. None gives no warning.
        data: The data module of the test, after its setup.
    """
    before = _at(record, "examples", "train")
    trained_on = _at(record, "options", "data", "init_args", "source")
    source = _at(trained_on, "class_path") or _at(trained_on, "instance")
    if not before or not isinstance(data, SourceDataModule) or not hasattr(data, "source"):
        return
    if source is not None and not same_class(source, public_path(type(data.source))):
        return
    now = data.training_hash()
    if now and now != before:
        _log.warning(
            "data: the training split is not the one that the model was trained on: inputs may be scaled differently, "
            "and if it is the same data, changed or divided in another way, some examples that are tested may have "
            "been trained on"
        )


def _at(value: Any, *names: str) -> Any:
    """A part of nested mappings; None if there is none."""
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
