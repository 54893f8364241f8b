"""A command in a process that stops with its parent: `python -m lightning_meta.cli.child fit ...`.

Its standard input is a pipe that the parent holds open and writes nothing to. It ends when the parent does, even by
SIGKILL; the command then ends as by SIGTERM, with a checkpoint.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from lightning_meta.cli import main


def _stop_with_parent() -> None:
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    sys.exit(main())
