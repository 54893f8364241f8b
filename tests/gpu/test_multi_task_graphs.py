"""Training and evaluation of several tasks by CUDA graphs give what the steps themselves give, to rounding."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from lightning_meta import weightings
from lightning_meta.multitask import MultiHead, MultiTaskModule
from lightning_meta.nn import MLP
from lightning_meta.testing.toys import sums
from tests.gpu.card import SLOW_ON_CPU, trainer
from tests.gpu.test_graphs import CASES, Losses, weights
from tests.meta.oracles import relative_error
from tests.methods import MULTI_TASK, weighting
from tests.multitask.test_graphed_steps import METHODS, OF_LOSSES
from tests.nn.recorder import recorded


def trained(
    make: Callable[..., MultiTaskModule], graph: str, device: torch.device, **options: Any
) -> tuple[MultiTaskModule, Tensor, Any]:
    """A module after four epochs, its losses, and what a test gives."""
    L.seed_everything(0, verbose=False)
    module = make(graph=graph, optimizer=partial(torch.optim.SGD, lr=0.05))
    module = module if device.type == "cuda" else recorded(module)
    losses = Losses()
    runs = trainer(device, max_epochs=4, callbacks=[losses], **options)
    runs.fit(module, datamodule=sums())
    tested = {name: value for split in runs.test(module, sums(), verbose=False) for name, value in split.items()}
    return module, torch.stack(losses.seen).double().cpu(), tested


def check(make: Callable[..., MultiTaskModule], where: str, bound: float = 1e-3, **options: Any) -> MultiTaskModule:
    """Check that steps are captured and give what the steps themselves give."""
    device = torch.device(where)
    torch.backends.cudnn.allow_tf32 = False
    plain, expected, tested = trained(make, "off", device, **options)
    module, losses, found = trained(make, "auto", device, **options)
    print(f"{module._graphs.captured} graphs, {module._graphs.replays} replays, {module._graphs.obstacle!r}")
    assert relative_error(losses, expected) < bound
    assert relative_error(weights(module), weights(plain)) < bound
    assert found["test/loss"] == pytest.approx(tested["test/loss"], rel=max(bound, 1e-2))
    assert not module._graphs.obstacle
    assert module._graphs.replays > 8
    return module


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("where", SLOW_ON_CPU[1:])
def test_every_method_trains_as_without_graphs(name: str, where: str) -> None:
    check(MULTI_TASK[name], where)


@pytest.mark.parametrize("name", OF_LOSSES)
@pytest.mark.parametrize("where", SLOW_ON_CPU[1:])
def test_weightings_of_losses_train_as_without_graphs(name: str, where: str) -> None:
    kind = getattr(weightings, name)
    check(lambda **options: MultiHead(MLP(4, (8,)), weighting=weighting(kind), **options), where)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["MultiHead", "Independent"])
@pytest.mark.parametrize("where", SLOW_ON_CPU[1:])
def test_graphs_live_with_the_trainers_options(name: str, case: str, where: str) -> None:
    check(MULTI_TASK[name], where, 0.05 if case == "bf16" else 1e-3, **CASES[case])


@pytest.mark.parametrize("where", SLOW_ON_CPU)
def test_dropout_in_heads_is_drawn_anew(where: str) -> None:
    device = torch.device(where)
    make = partial(MultiHead, MLP(4, (64,)), head_hidden=(64,), head_dropout=0.5)
    module, losses, _ = trained(make, "auto", device)
    assert module._graphs.replays > 8
    assert torch.isfinite(losses).all()
    assert len(set(losses.tolist())) == len(losses)
