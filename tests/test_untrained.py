"""A frozen model under DDP, which refuses a module without trained parameters: it is kept and tested all the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from lightning_meta.errors import UserError
from lightning_meta.module import _wrap_only_what_trains
from lightning_meta.testing import toys
from tests.ranks import run_driver
from tests.untrained_driver import keep

pytestmark = pytest.mark.filterwarnings("ignore:It is recommended to use `self.log.*sync_dist=True")


def test_nothing_is_wrapped_where_nothing_is_trained(tmp_path: Path) -> None:
    run = keep(tmp_path, 1)
    assert run.metrics["test/tasks"] == toys.pictures().evaluation_tasks["test"]


def test_training_it_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^all weights of ProtoNet are frozen .* set max_steps=0"):
        keep(tmp_path, 1, steps=1)


@pytest.mark.slow
def test_two_ranks_keep_and_test_it_as_one_does(tmp_path: Path) -> None:
    one = keep(tmp_path, 1)
    run_driver("tests.untrained_driver", tmp_path, 2)
    assert one.directory is not None
    of_runs = [json.loads((tmp_path / "runs" / w / "0" / "results.json").read_text()) for w in ("1", "2")]
    metrics = [{name: v for name, v in found.items() if name.startswith("test/")} for found in of_runs]
    assert len(metrics[0]) > 2
    assert metrics[1] == pytest.approx(metrics[0])


def test_a_strategy_wraps_the_next_module_that_trains() -> None:
    strategy, module = DDPStrategy(), nn.Linear(1, 1).requires_grad_(False)
    _wrap_only_what_trains(strategy, module)
    assert "configure_ddp" in vars(strategy)
    _wrap_only_what_trains(strategy, module.requires_grad_(True))
    assert "configure_ddp" not in vars(strategy)
