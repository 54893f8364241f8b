"""Ctrl-C that waits for what must not be cut in two."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Let Ctrl-C come after the block.

    Within `torch.save` it would end in the error of a file that is not complete, in place of `KeyboardInterrupt`.
    """
    if threading.current_thread() is not threading.main_thread():  # the only one that signals reach
        yield
        return
    came = False

    def remember(number: int, frame: Any) -> None:
        nonlocal came
        came = True

    before = signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)
        if came:
            signal.raise_signal(signal.SIGINT)
