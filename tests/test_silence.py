"""Messages and warnings within `silence`, and of the first of the two constructions by which `load` makes a module."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import pytest
from torch import nn

from lightning_meta.rehearsal import rehearsal
from lightning_meta.silence import silence

LOG = logging.getLogger("lightning_meta.some.part")


def test_only_errors_pass_and_the_levels_come_back(caplog: pytest.LogCaptureFixture) -> None:
    levels = {name: logging.getLogger(name).level for name in ("lightning_meta", LOG.name)}
    with silence("lightning_meta"):
        warnings.warn("a warning, which the settings of the tests would make an error", stacklevel=1)
        LOG.warning("hidden")
        LOG.error("shown")
    assert caplog.messages == ["shown"]
    assert levels == {name: logging.getLogger(name).level for name in levels}


def test_a_rehearsal_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    weights: dict[str, Any] = nn.Linear(2, 2).state_dict()
    with rehearsal(weights):
        LOG.warning("of a layer below the package's logger")
        nn.Linear(2, 2)
    assert caplog.messages == []
