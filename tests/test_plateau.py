"""A schedule that follows a metric follows it the right way round."""

from __future__ import annotations

import pytest
from lightning.pytorch.cli import ReduceLROnPlateau

from lightning_meta.errors import UserError
from lightning_meta.meta import ProtoNet
from lightning_meta.nn import Conv4


@pytest.mark.parametrize(("monitor", "mode"), [("val/accuracy", "max"), ("val/loss", "min")])
def test_a_plateau_the_wrong_way_round_is_refused(monitor: str, mode: str) -> None:
    def module(given: str) -> ProtoNet:
        return ProtoNet(Conv4(1, 2, blocks=2), lr_scheduler=lambda o: ReduceLROnPlateau(o, monitor=monitor, mode=given))

    module(mode).configure_optimizers()
    with pytest.raises(UserError, match=f"lr_scheduler: ReduceLROnPlateau: {monitor} .*; give mode: {mode}"):
        module("min" if mode == "max" else "max").configure_optimizers()
