"""Where the tests of this folder run: on the card by `pytest -m gpu`, and in the default suite on the CPU as well.

A test that takes `device` has both; a test that takes `card` says nothing without one.
"""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch

on_card = (
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU (torch.cuda.is_available() is false)"),
    pytest.mark.filterwarnings("default"),  # what torch remarks on a card differs by release and card
)
BOTH = (pytest.param("cpu", id="cpu"), pytest.param("cuda", id="cuda", marks=on_card))
SLOW_ON_CPU = (pytest.param("cpu", id="cpu", marks=pytest.mark.slow), BOTH[1])


def accelerator(device: torch.device) -> str:
    """Lightning's name of it."""
    return "gpu" if device.type == "cuda" else "cpu"


def trainer(device: torch.device, **options: Any) -> L.Trainer:
    """A silent Trainer on one device."""
    quiet: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return L.Trainer(accelerator=accelerator(device), devices=1, **{**quiet, **options})
