import os
import signal
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_meta.run import AtomicCheckpointIO
from lightning_meta.run.checkpoint_io import read_checkpoint


class PressesControlC:
    """An object whose pickling in the middle of a checkpoint is interrupted by Ctrl-C."""

    def __reduce__(self) -> tuple[Any, ...]:
        os.kill(os.getpid(), signal.SIGINT)
        return OrderedDict, ()


def test_an_interrupt_comes_after_the_checkpoint_is_written(tmp_path: Path) -> None:
    file = tmp_path / "last.ckpt"
    checkpoint = {"state_dict": {"w": torch.ones(3)}, "pressed": PressesControlC(), "after": torch.arange(100_000)}
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        AtomicCheckpointIO().save_checkpoint(checkpoint, file)
    assert signal.getsignal(signal.SIGINT) is handler
    assert torch.equal(read_checkpoint(file)["after"], torch.arange(100_000))
    assert list(tmp_path.iterdir()) == [file]


def test_a_checkpoint_is_written_from_any_thread(tmp_path: Path) -> None:
    file = tmp_path / "last.ckpt"
    thread = threading.Thread(target=AtomicCheckpointIO().save_checkpoint, args=({"state_dict": {}}, file))
    thread.start()
    thread.join()
    assert read_checkpoint(file) == {"state_dict": {}}
