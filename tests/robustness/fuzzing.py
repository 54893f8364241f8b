"""How long a fuzz test looks, and how it counts what it saw."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, settings

EXAMPLES = 50
SECONDS = float(os.environ.get("LIGHTNING_META_FUZZ_SECONDS", "0"))

# The long form draws anew each time; the short one is the same on every machine.
options: dict[str, Any] = {
    "deadline": None,
    "database": None,
    "suppress_health_check": list(HealthCheck),
    "max_examples": EXAMPLES,
    "derandomize": not SECONDS,
    "phases": (Phase.explicit, Phase.generate, Phase.shrink),
}
short = settings(**options)


def repeated(test: Callable[[], None], counts: Counter[str]) -> None:
    """Run a hypothesis test once, or again and again for `LIGHTNING_META_FUZZ_SECONDS` seconds, and print the counts.

    Args:
        test: Test wrapped by `hypothesis.given`.
        counts: Number of cases of each kind that the test met.
    """
    until = time.monotonic() + SECONDS
    try:
        while True:
            test()
            if time.monotonic() >= until:
                break
    finally:
        print(f"\n{sum(counts.values())} examples: {dict(counts.most_common())}")
