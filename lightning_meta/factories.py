"""The types of what makes an optimiser of parameters, and a schedule of an optimiser: classes, partials or functions.

Lightning's are the same; importing them imports its command line and the parser.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

OptimizerCallable = Callable[[Iterable[Any]], Optimizer]
LRSchedulerCallable = Callable[[Optimizer], LRScheduler]
