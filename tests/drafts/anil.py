"""ANIL as a draft."""

from __future__ import annotations

from typing import Any

from torch import nn

from lightning_meta import GradientBasedLearner


class ANIL(GradientBasedLearner):
    """Almost no inner loop: only the head is adapted (Raghu et al., ICLR 2020, https://arxiv.org/abs/1909.09157)."""

    def __init__(self, backbone: nn.Module, **options: Any) -> None:
        super().__init__(backbone, inner_parameters="head", **options)
