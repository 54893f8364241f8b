"""TF32, mixed and half precision on a card."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch

from lightning_meta.meta import MAML, Baseline, MetaModule, ProtoNet
from lightning_meta.multitask import MultiHead
from lightning_meta.nn import MLP, Conv4
from tests.devices.toys import EPISODES, Tasks, multi_task
from tests.gpu.card import accelerator, trainer
from tests.meta.test_precision import Losses
from tests.meta.test_tf32 import MAMLS, OTHERS, runner, tf32_of_a_run
from tests.tf32_switches import switches


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("name", MAMLS)
def test_tf32_is_off_in_every_pass_of_an_inner_loop(name: str, accumulate: int, card: torch.device) -> None:
    """On a card the backward pass runs in a thread of its own."""
    found = tf32_of_a_run(MAMLS[name](), accelerator=accelerator(card), accumulate_grad_batches=accumulate)
    assert found.keys() >= {"training, forward", "training, backward, outer", "test, backward, step"}
    assert found == {key: {False} for key in found}


@pytest.mark.parametrize("name", OTHERS)
def test_tf32_stays_on_without_an_inner_loop(name: str, card: torch.device) -> None:
    found = tf32_of_a_run(OTHERS[name](), accelerator=accelerator(card))
    assert found == {key: {True} for key in found}


@pytest.mark.parametrize("where", ["forward", "backward, step", "backward, outer"])
def test_an_error_on_the_card_leaves_the_switches_as_they_were(where: str, card: torch.device) -> None:
    before = switches()
    runs = runner(where, accelerator=accelerator(card), max_epochs=1, limit_val_batches=0)
    with pytest.raises(ValueError, match="failed in"):
        runs.fit(MAMLS["loop"](), datamodule=EPISODES["images"]())
    assert switches() == before


def backbone() -> Conv4:
    return Conv4(1, 8, blocks=2)


MODULES: dict[str, Callable[[], MetaModule]] = {
    "MAML, vmap": lambda: MAML(backbone(), 0.1, 2, strategy="vmap"),
    "MAML, loop": lambda: MAML(backbone(), 0.1, 2, strategy="loop"),
    "MAML, recomputed": lambda: MAML(backbone(), 0.1, 2, recompute=True),
    "ProtoNet": lambda: ProtoNet(backbone(), temperature=100.0),
    "ProtoNet, cosine": lambda: ProtoNet(backbone(), "cosine", 0.1, "inductive"),
    "Baseline": lambda: Baseline(backbone(), head_steps=3),
}
SLOW = {name: [pytest.mark.slow] for name in ("MAML, loop", "MAML, recomputed")}  # `-m gpu` runs them all the same
CASES = [
    pytest.param(name, precision, marks=SLOW.get(name, []))
    for name in MODULES
    for precision in ("bf16-mixed", "bf16-true")
]
IN_FLOAT16 = [(name, "16-mixed") for name in MODULES if not name.startswith("MAML")]


@pytest.mark.parametrize(("name", "precision"), CASES)
def test_bf16_trains_nearly_as_float32_does(name: str, precision: str, device: torch.device) -> None:
    trains_nearly_as_float32_does(name, precision, device)


@pytest.mark.parametrize(("name", "precision"), IN_FLOAT16)
def test_float16_trains_nearly_as_float32_does(name: str, precision: str, card: torch.device) -> None:
    trains_nearly_as_float32_does(name, precision, card)


def trains_nearly_as_float32_does(name: str, precision: str, device: torch.device) -> None:
    """The first loss is that of float32 to the digits that are left, weights move, and evaluation is finite.

    In float16 the first steps may be skipped, until the scale of the loss fits.
    """
    losses, moved = {}, {}
    for used in ("32-true", precision):
        torch.manual_seed(0)
        module, seen, data = MODULES[name](), Losses(), EPISODES["images"](meta_batches_per_epoch=12)
        module.optimizer = partial(torch.optim.SGD, lr=0.01)
        runs = trainer(device, max_epochs=1, precision=used, callbacks=[seen])
        runs.fit(module, datamodule=data)
        (tested,) = runs.test(module, datamodule=data, verbose=False)
        assert 0 < tested["test/loss"] < float("inf")
        losses[used], moved[used] = float(seen.losses[0]), float(seen.moved.norm())
    assert losses[precision] == pytest.approx(losses["32-true"], rel=0.1)
    assert moved[precision] > 0


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_lower_precision_of_several_tasks(precision: str, device: torch.device) -> None:
    module, data = MultiHead(MLP(4, (8,))), multi_task(Tasks("missing labels"))
    runs = trainer(device, max_epochs=2, precision=precision)
    runs.fit(module, datamodule=data)
    runs.test(module, datamodule=data, verbose=False)
    assert all(p.isfinite().all() for p in module.parameters())
