"""ANIL against MAML whose body stands still in the inner loop, and which network does what."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_meta.errors import UserError
from lightning_meta.meta import ANIL, GradientBasedLearner
from lightning_meta.nn.stateless import Tensors
from tests.meta.oracles import IMAGES, KINDS, episodes, gradient, relative_error, roughen, task


class StillBody(GradientBasedLearner):
    """MAML whose inner rate is 0 for the body."""

    def rates(self, step: int) -> Tensors:
        rate = torch.tensor(self.inner_lr, dtype=torch.float64)
        return {name: rate * name.startswith("head") for name in self.adapted()}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_norm": "inductive"},
        {"recompute": True},
        {"inner_batch_size": 4},
        {"inner_steps": 0},
        {"first_order": True},
    ],
    ids=str,
)
def test_anil_is_maml_with_an_inner_rate_of_zero_for_the_body(options: dict[str, Any]) -> None:
    options = {"inner_lr": 0.5, "inner_steps": 3, "episodes": IMAGES, **options}
    anil, still = (method(KINDS["smooth"].backbone(), **options).double() for method in (ANIL, StillBody))
    roughen(anil)
    still.load_state_dict(anil.state_dict())
    batch = episodes(IMAGES)
    found, expected = (module.meta_batch_loss(batch).loss.mean() for module in (anil, still))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert relative_error(gradient(found, anil), gradient(expected, still)) < 1e-12


def test_inner_steps_move_the_head_and_the_outer_loop_all() -> None:
    module = ANIL(KINDS["smooth"].backbone(), inner_lr=0.5, inner_steps=2, episodes=IMAGES).double()
    roughen(module)
    batch = episodes(IMAGES)
    phi, theta = module.adapt(task(batch, 0)[0], 3), dict(module.network.named_parameters())
    moved = {name for name, p in theta.items() if not torch.equal(phi[name], p)}
    assert moved == {"head.weight", "head.bias"}
    module.meta_batch_loss(batch).loss.mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.head.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in module.backbone.parameters())


def test_what_is_adapted_is_no_option() -> None:
    with pytest.raises(UserError, match=r"^inner_parameters: ANIL sets it itself; leave it out$"):
        ANIL(KINDS["smooth"].backbone(), inner_parameters="backbone")
    module = ANIL(KINDS["smooth"].backbone(), episodes=IMAGES)
    module.head.requires_grad_(False)
    with pytest.raises(UserError, match="ANIL has nothing to adapt"):
        module.adapt(task(episodes(IMAGES), 0)[0], 3)
