"""Check that a module receives batches of its own kind of data."""

from __future__ import annotations

from abc import ABC
from typing import Any

from lightning import LightningModule

from lightning_meta.errors import UserError


class ChecksBatches(LightningModule, ABC):
    """Refuses batches of the wrong type before each step.

    Attributes:
        batch_type: Expected type of the batches.
        data_module: Name of the data module with such batches.
    """

    batch_type: type
    data_module: str

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Check a training batch."""
        self._check_batch(batch)

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Check a validation batch."""
        self._check_batch(batch)

    def on_test_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Check a test batch."""
        self._check_batch(batch)

    def on_predict_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Check a prediction batch."""
        self._check_batch(batch)

    def _check_batch(self, batch: Any) -> None:
        if not isinstance(batch, self.batch_type):
            raise UserError(
                f"{type(self).__name__} takes batches of type {self.batch_type.__name__}, got {type(batch).__name__}; "
                f"give the Trainer datamodule={self.data_module}(...)"
            )
