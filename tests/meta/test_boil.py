"""BOIL against MAML whose head stands still in the inner loop, and which network does what."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_meta.errors import UserError
from lightning_meta.meta import BOIL, GradientBasedLearner
from lightning_meta.nn.stateless import Tensors
from tests.meta.oracles import IMAGES, KINDS, episodes, gradient, relative_error, roughen, task


class StillHead(GradientBasedLearner):
    """MAML whose inner rate is 0 for the head."""

    def rates(self, step: int) -> Tensors:
        rate = torch.tensor(self.inner_lr, dtype=torch.float64)
        return {name: rate * name.startswith("backbone") for name in self.adapted()}


@pytest.mark.parametrize(
    "options", [{}, {"batch_norm": "inductive"}, {"recompute": True}, {"first_order": True}], ids=str
)
def test_boil_is_maml_with_an_inner_rate_of_zero_for_the_head(options: dict[str, Any]) -> None:
    options = {"inner_lr": 0.5, "inner_steps": 3, "episodes": IMAGES, **options}
    boil, still = (method(KINDS["smooth"].backbone(), **options).double() for method in (BOIL, StillHead))
    roughen(boil)
    still.load_state_dict(boil.state_dict())
    batch = episodes(IMAGES)
    found, expected = (module.meta_batch_loss(batch).loss.mean() for module in (boil, still))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert relative_error(gradient(found, boil), gradient(expected, still)) < 1e-12


def test_inner_steps_move_the_backbone_and_the_outer_loop_all() -> None:
    module = BOIL(KINDS["mlp"].backbone(), inner_lr=0.5, inner_steps=2, episodes=KINDS["mlp"].spec).double()
    roughen(module)
    batch = episodes(KINDS["mlp"].spec)
    phi, theta = module.adapt(task(batch, 0)[0], 3), dict(module.network.named_parameters())
    moved = {name for name, p in theta.items() if not torch.equal(phi[name], p)}
    assert moved == {name for name in theta if name.startswith("backbone.")}
    module.meta_batch_loss(batch).loss.mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


def test_a_frozen_backbone_leaves_nothing_to_adapt() -> None:
    with pytest.raises(UserError, match=r"^inner_parameters: BOIL sets it itself; leave it out$"):
        BOIL(KINDS["smooth"].backbone(), inner_parameters="head")
    module = BOIL(KINDS["smooth"].backbone(), episodes=IMAGES)
    module.backbone.requires_grad_(False)
    with pytest.raises(
        UserError, match=r"BOIL has nothing to adapt: its inner steps adapt only backbone, whose .* frozen"
    ):
        module.adapt(task(episodes(IMAGES), 0)[0], 3)
    module.head.requires_grad_(False)
    with pytest.raises(UserError, match=r"BOIL has nothing to adapt: all its weights are frozen .* call unfreeze\(\)$"):
        module.adapt(task(episodes(IMAGES), 0)[0], 3)


def test_an_adapted_that_names_no_weight_is_refused() -> None:
    class Nothing(GradientBasedLearner):
        def adapted(self) -> frozenset[str]:
            return frozenset()

    with pytest.raises(UserError, match=r"Nothing has nothing to adapt: adapted\(\) names no weight of its network"):
        Nothing(KINDS["smooth"].backbone(), episodes=IMAGES).adapt(task(episodes(IMAGES), 0)[0], 3)
