"""Heads: layers from features to the predictions of one task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import nn

from lightning_meta.checks import below_one, widths


def make_head(features: int, outputs: int, hidden: Sequence[int] = (), dropout: float = 0.0) -> nn.Module:
    """A linear layer, optionally after hidden layers with ReLU.

    Args:
        features: Width of the input.
        outputs: Width of the prediction.
        hidden: Widths of the hidden layers; none by default.
        dropout: Probability that a hidden unit is dropped in training, in [0, 1).
    """
    layers: list[nn.Module] = []
    for i, o in pairwise([features, *hidden]):
        layers += [nn.Linear(i, o), nn.ReLU(), *([nn.Dropout(dropout)] if dropout else [])]
    return nn.Sequential(*layers, nn.Linear([features, *hidden][-1], outputs))


def check_head(hidden: Sequence[int], dropout: float) -> None:
    """Check the options of heads.

    Args:
        hidden: Widths of the hidden layers, `head_hidden`.
        dropout: Dropout probability of the hidden layers, `head_dropout`.

    Raises:
        UserError: An option is invalid.
    """
    widths(head_hidden=hidden)
    below_one(head_dropout=dropout)


@contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """A context with its own random stream of torch; afterwards the previous stream continues."""
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
