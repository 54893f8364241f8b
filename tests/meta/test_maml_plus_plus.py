"""MAML++ by its equations in plain autograd, its annealing, and how it starts."""

from __future__ import annotations

from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor

import lightning_meta as lm
from lightning_meta.errors import UserError
from lightning_meta.meta import MAML, MAMLPlusPlus
from lightning_meta.meta.maml_plus_plus import step_weights
from tests.meta.oracles import IMAGES, KINDS, episodes, forward, gradient, loss_of, relative_error, roughen, task


def maml_plus_plus(kind: str = "smooth", **options: Any) -> MAMLPlusPlus:
    """A module whose rates, scales and shifts differ between steps."""
    torch.manual_seed(3)
    options = {"inner_lr": 0.3, "inner_steps": 3, **options}
    module = MAMLPlusPlus(KINDS[kind].backbone(), episodes=KINDS[kind].spec, **options).double()
    roughen(module)
    return module


def by_equation(module: MAMLPlusPlus, weights: list[float]) -> Tensor:
    """The mean over tasks of the weighted query losses, by plain autograd; transductive, as in the authors' code."""
    batch, losses = episodes(module.spec), []
    norms = {name for name, _ in module.network.named_parameters() if f"{name.replace('.', '/')}" in module.norm_steps}
    for t in range(len(batch.tasks)):
        support, query = task(batch, t)
        phi: dict[str, Tensor] = {n: p for n, p in module.network.named_parameters() if n not in norms}
        for j, weight in enumerate(weights):
            own = {
                n: module.norm_steps[n.replace(".", "/")][j - 1] if j else module.network.get_parameter(n)
                for n in norms
            }
            loss = loss_of(module.spec, forward(module.network, {**phi, **own}, support.x)[0], support.y)
            gradients = torch.autograd.grad(loss, list(phi.values()), create_graph=not module.first_order)
            rates = [module.alpha[n.replace(".", "/")][j] for n in phi]
            phi = {n: p - a * g for (n, p), a, g in zip(phi.items(), rates, gradients, strict=True)}
            if weight:
                outputs = forward(module.network, {**phi, **own}, query.x)[0]
                losses.append(weight * loss_of(module.spec, outputs, query.y))
    return torch.stack(losses).sum() / len(batch.tasks)


@pytest.mark.parametrize("kind", ["smooth", "regression"])
@pytest.mark.parametrize("options", [{}, {"first_order": True}, {"recompute": True}], ids=str)
def test_the_meta_gradient_is_that_of_the_equation(kind: str, options: dict[str, Any]) -> None:
    module = maml_plus_plus(kind, **options)
    weights = [0.2, 0.3, 0.5]
    module.step_weights.copy_(torch.tensor(weights, dtype=torch.float64))
    found, expected = module.meta_batch_loss(episodes(module.spec)).loss.mean(), by_equation(module, weights)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert relative_error(gradient(found, module), gradient(expected, module)) < 1e-10


@pytest.mark.parametrize("first_order", [False, True])
def test_after_the_annealing_the_last_loss_counts_alone(first_order: bool) -> None:
    module = maml_plus_plus(multi_step_loss_steps=0, first_order=first_order)
    found, expected = module.meta_batch_loss(episodes(IMAGES)).loss.mean(), by_equation(module, [0, 0, 1])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for name, p in module.named_parameters():
        (of_found,) = torch.autograd.grad(found, p, retain_graph=True)  # none is unused: several ranks wait for all
        (of_expected,) = torch.autograd.grad(expected, p, retain_graph=True, allow_unused=True)
        expected_gradient = torch.zeros_like(p) if of_expected is None else of_expected
        torch.testing.assert_close(of_found, expected_gradient, rtol=1e-9, atol=1e-12, msg=name)


def test_inductive_queries_use_the_support_statistics_of_the_same_weights() -> None:
    module = maml_plus_plus(batch_norm="inductive").train()
    support, _ = task(episodes(IMAGES), 0)
    for state in module.trajectory(support, 3):
        alone = torch.cat([module.predict(state, x.unsqueeze(0)) for x in support.x])
        together = forward(module.network, {n: state[n] for n, _ in module.network.named_parameters()}, support.x)[0]
        torch.testing.assert_close(alone, together)


def of_the_authors(steps: int, epoch: int, epochs: int) -> np.ndarray:
    """`get_per_step_loss_importance_vector` of the authors' code."""
    weights, decay, least = np.full(steps, 1 / steps), 1 / steps / epochs, 0.03 / steps
    weights[:-1] = np.maximum(weights[:-1] - epoch * decay, least)
    weights[-1] = min(weights[-1] + epoch * (steps - 1) * decay, 1 - (steps - 1) * least)
    return weights


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_weights_of_the_losses_are_those_of_the_authors(steps: int) -> None:
    for epoch in range(15):
        found = step_weights(steps, epoch / 15)
        assert found == pytest.approx(of_the_authors(steps, epoch, 15))
        assert sum(found) == pytest.approx(1)


def test_it_starts_as_maml_that_does_not_adapt_normalisation() -> None:
    """Before training all steps have one rate and the scales and shifts of the network."""
    module = MAMLPlusPlus(KINDS["smooth"].backbone(), 0.3, 3, multi_step_loss_steps=0, episodes=IMAGES).double()
    adapted = sorted(module.adapted())
    assert len(adapted) == len(list(module.network.parameters())) - 4  # two normalisations
    expected = MAML(KINDS["smooth"].backbone(), 0.3, 3, inner_parameters=adapted, episodes=IMAGES).double()
    expected.network.load_state_dict(module.network.state_dict())
    batch = episodes(IMAGES)
    torch.testing.assert_close(module.meta_batch_loss(batch).loss, expected.meta_batch_loss(batch).loss)


def test_training_moves_the_weights_of_the_losses_and_the_order_of_derivatives() -> None:
    seen = []

    class Noted(MAMLPlusPlus):
        def task_loss(self, *args: Any) -> Any:
            seen.append((self.global_step, self._multi_step_loss, self.first_order, self.step_weights.tolist()))
            return super().task_loss(*args)

    module = Noted(lm.nn.MLP(1, (4,)), 0.1, 2, multi_step_loss_steps=3, first_order_steps=2, strategy="loop")
    data = lm.EpisodicDataModule(
        lm.sources.Sinusoid(), shots=2, queries=2, meta_batch_size=1, meta_batches_per_epoch=5, val_tasks=1
    )
    off: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_steps=5, limit_val_batches=0, enable_model_summary=False, **off)
    trainer.fit(module, data)
    by_step = {step: rest for step, *rest in seen}
    assert [by_step[s][0] for s in range(5)] == [True, True, True, False, False]
    assert [by_step[s][1] for s in range(5)] == [True, True, False, False, False]
    assert [by_step[s][2] for s in range(3)] == [pytest.approx(of_the_authors(2, epoch, 3)) for epoch in range(3)]


def test_more_inner_steps_in_testing_and_a_frozen_model() -> None:
    module = maml_plus_plus(test_inner_steps=5).eval()
    support, query = task(episodes(IMAGES), 0)
    expected = module.predict(module.adapt(support, 3), query.x)
    torch.testing.assert_close(module.freeze().predict(module.adapt(support, 3), query.x), expected)
    with pytest.raises(UserError, match="inner_steps"):
        MAMLPlusPlus(KINDS["mlp"].backbone(), inner_steps=0)
