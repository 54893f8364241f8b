"""Batches of another kind of data, refused before a module trips over them."""

from __future__ import annotations

from abc import ABC
from typing import Any

from lightning import LightningModule

from lightning_meta.errors import UserError


class ChecksBatches(LightningModule, ABC):
    """Refuses a batch of another type at the start of each step.

    Attributes:
        batch_type: What its loaders give.
        data_module: What makes such loaders.
    """

    batch_type: type
    data_module: str

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Refuse it in training."""
        self._check_batch(batch)

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Refuse it in validation."""
        self._check_batch(batch)

    def on_test_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Refuse it in a test."""
        self._check_batch(batch)

    def on_predict_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Refuse it in predicting."""
        self._check_batch(batch)

    def _check_batch(self, batch: Any) -> None:
        if not isinstance(batch, self.batch_type):
            raise UserError(
                f"{type(self).__name__} takes batches of type {self.batch_type.__name__}, got {type(batch).__name__}; "
                f"give the Trainer datamodule={self.data_module}(...)"
            )
