from .checkpoint_io import AtomicCheckpointIO as AtomicCheckpointIO
from .checkpoint_io import read_checkpoint as read_checkpoint
from .checkpoints import RunCheckpoint as RunCheckpoint
from .checkpoints import run_logger as run_logger
from .logger import RunLogger as RunLogger
from .record import RunRecord as RunRecord
