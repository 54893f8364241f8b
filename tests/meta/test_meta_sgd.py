"""Meta-SGD by its equation, its meta-gradient by finite differences, and rates that are learned."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_meta.meta import MAML, MetaSGD
from tests.meta.oracles import IMAGES, KINDS, episodes, forward, gradient, loss_of, maml, relative_error, roughen, task


def meta_sgd(kind: str = "smooth", **options: object) -> MetaSGD:
    """A module whose rates differ, some of them negative."""
    torch.manual_seed(3)
    module = MetaSGD(KINDS[kind].backbone(), episodes=KINDS[kind].spec, **options).double()  # type: ignore[arg-type]
    roughen(module)
    return module


def by_equation(module: MetaSGD, steps: int) -> Tensor:
    """The mean query loss after inner steps θ − α∘∇L, by plain autograd."""
    batch, losses = episodes(module.spec), []
    names = [name for name, _ in module.network.named_parameters()]
    alpha = dict(zip(names, module.alpha.values(), strict=True))
    for t in range(len(batch.tasks)):
        support, query = task(batch, t)
        phi: dict[str, Tensor] = dict(module.network.named_parameters())
        for _ in range(steps):
            loss = loss_of(module.spec, forward(module.network, phi, support.x)[0], support.y)
            gradients = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
            phi = {name: p - alpha[name] * g for (name, p), g in zip(phi.items(), gradients, strict=True)}
        losses.append(loss_of(module.spec, forward(module.network, phi, query.x)[0], query.y))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("kind", ["smooth", "regression"])
@pytest.mark.parametrize("steps", [1, 2])
def test_the_meta_gradient_of_weights_and_rates_is_that_of_the_equation(kind: str, steps: int) -> None:
    module = meta_sgd(kind, inner_steps=steps)
    assert min(float(rate.detach().min()) for rate in module.alpha.values()) < 0
    found, expected = module.meta_batch_loss(episodes(module.spec)).loss.mean(), by_equation(module, steps)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert relative_error(gradient(found, module), gradient(expected, module)) < 1e-10


def test_the_gradient_of_rates_is_that_of_finite_differences() -> None:
    module, batch, h = meta_sgd(), episodes(IMAGES), 1e-5
    found = dict(
        zip(
            dict(module.named_parameters()),
            torch.autograd.grad(module.meta_batch_loss(batch).loss.mean(), list(module.parameters())),
            strict=True,
        )
    )
    for name, p in module.named_parameters():
        if name.startswith("alpha"):
            towards = torch.randn_like(p)
            with torch.no_grad():
                p.add_(h * towards)
                ahead = module.meta_batch_loss(batch).loss.mean()
                p.sub_(2 * h * towards)
                behind = module.meta_batch_loss(batch).loss.mean()
                p.add_(h * towards)
            slope = (ahead - behind) / (2 * h)
            torch.testing.assert_close((found[name] * towards).sum(), slope, rtol=1e-5, atol=1e-9)


def test_it_starts_as_maml() -> None:
    """All rates start from one number."""
    expected: MAML = maml("smooth", inner_lr=0.3, inner_steps=1)
    module = MetaSGD(KINDS["smooth"].backbone(), inner_lr=0.3, episodes=IMAGES).double()
    module.network.load_state_dict(expected.network.state_dict())
    batch = episodes(IMAGES)
    torch.testing.assert_close(module.meta_batch_loss(batch).loss, expected.meta_batch_loss(batch).loss)


def test_weights_that_no_inner_step_moves_have_no_rate() -> None:
    module = meta_sgd(inner_parameters="head")
    assert list(module.alpha) == ["head/weight", "head/bias"]
    module.meta_batch_loss(episodes(IMAGES)).loss.mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.alpha.values())
