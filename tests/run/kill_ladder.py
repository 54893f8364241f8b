"""Runs `lightning-meta ladder` in forked processes that are killed, until one gets to the end.

python -m tests.run.kill_ladder FOLDER KILLS SEED [options of ladder]
"""

from __future__ import annotations

import os
import random
import sys

from tests.run.kill_driver import attempt

EVENTS = 400  # about as many as a run and a half of the ladder has


def climb(kills: int, seed: int, options: list[str]) -> int:
    """Kill and start again; how many were killed."""
    draw, killed = random.Random(seed), 0
    for _ in range(kills):
        status = attempt(["ladder", *options], draw.randint(1, EVENTS), None)
        killed += status is None
        if status not in (None, 0):
            raise SystemExit(f"exited with {status}")
    if status := attempt(["ladder", *options], None, None):
        raise SystemExit(f"exited with {status}")
    return killed


if __name__ == "__main__":
    os.chdir(sys.argv[1])
    print(climb(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]))
