"""What a run leaves behind: its directory, metrics, checkpoints and results."""

from lightning_meta.run.checkpoint_io import AtomicCheckpointIO, read_checkpoint
from lightning_meta.run.checkpoints import RunCheckpoint, run_logger
from lightning_meta.run.config_file import SaveConfig
from lightning_meta.run.logger import RunLogger
from lightning_meta.run.record import RunRecord

__all__ = [
    "AtomicCheckpointIO",
    "RunCheckpoint",
    "RunLogger",
    "RunRecord",
    "SaveConfig",
    "read_checkpoint",
    "run_logger",
]
