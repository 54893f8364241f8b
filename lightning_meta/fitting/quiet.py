"""Silence messages and warnings of Lightning that do not apply where this package makes the Trainer."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

LOGGERS = (
    "lightning.pytorch.utilities.rank_zero",
    "pytorch_lightning.utilities.rank_zero",  # in place of the former, once something has imported pytorch_lightning
    "lightning.fabric.utilities.seed",
)
WARNINGS = (
    # Episodes are drawn by tensor indexing, so worker processes do not help.
    ".*does not have many workers.*",
    # Metrics logged at the end of a stage are already equal on all ranks.
    ".*It is recommended to use `self.log.*sync_dist=True.*",
    # The log interval may exceed an epoch: steps are counted over the whole run.
    ".*is smaller than the logging interval.*",
    # Lightning itself uses a deprecated part of torch.
    ".*isinstance.treespec, LeafSpec.* is deprecated.*",
    # A resumed run writes to its existing directory.
    ".*Checkpoint directory .* exists and is not empty.*",
)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Within the context, or a function that it decorates, Lightning shows only warnings that a user can act on.

    A logger of Lightning whose level the user has set keeps it.
    """
    loggers = [logger for logger in map(logging.getLogger, LOGGERS) if logger.level == logging.NOTSET]
    with warnings.catch_warnings():
        for message in WARNINGS:
            warnings.filterwarnings("ignore", message)
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger in loggers:
                logger.setLevel(logging.NOTSET)
