"""The implicit gradient against closed form, and against finite differences of solved inner problems."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lightning_meta as lm
from lightning_meta.batches import Examples
from lightning_meta.errors import UserError
from lightning_meta.meta.imaml import conjugate_gradients
from lightning_meta.tasks import EpisodeSpec
from lightning_meta.testing.toys import pictures
from tests.meta.oracles import episodes, gradient, relative_error, roughen, task

REGRESSION = EpisodeSpec("regression", (2,), 2)


def made(backbone: nn.Module, spec: EpisodeSpec, **options: Any) -> lm.IMAML:
    torch.manual_seed(3)
    module = lm.IMAML(backbone, episodes=spec, **options).double()
    roughen(module)
    return module


def solved(weight: Tensor, bias: Tensor, support: Examples, regularisation: float) -> Tensor:
    """The minimiser of the mean squared error plus λ/2 |φ − θ|², `(outputs, inputs + 1)`, by its normal equations."""
    theta = torch.cat([weight, bias.unsqueeze(1)], 1)
    x = torch.cat([support.x, torch.ones(len(support.x), 1, dtype=torch.float64)], 1)
    share = 2 / support.y.numel()
    matrix = share * x.T @ x + regularisation * torch.eye(3, dtype=torch.float64)
    return torch.linalg.solve(matrix, (share * support.y.T @ x + regularisation * theta).T).T


def test_where_the_inner_problem_is_quadratic_loss_and_gradient_are_those_of_its_solution() -> None:
    options = {"regularisation": 0.7, "inner_lr": 0.3, "inner_steps": 100, "solver_steps": 9}
    module, batch = made(nn.Flatten(), REGRESSION, **options), episodes(REGRESSION, shots=5)
    losses = module.meta_batch_loss(batch).loss
    expected = []
    for t in range(2):
        support, query = task(batch, t)
        phi = solved(module.head.weight, module.head.bias, support, 0.7)
        expected.append(F.mse_loss(F.linear(query.x, phi[:, :2], phi[:, 2]), query.y))
    torch.testing.assert_close(losses, torch.stack(expected), rtol=1e-8, atol=1e-10)
    found, wanted = gradient(losses.mean(), module), gradient(torch.stack(expected).mean(), module)
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("batch_norm", ["inductive", "transductive"])
def test_with_a_network_it_is_the_slope_of_the_loss_of_solved_tasks(batch_norm: str) -> None:
    spec = EpisodeSpec("classification", (6,), 3)
    backbone = nn.Sequential(nn.Linear(6, 5), lm.nn.TaskBatchNorm(5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh())
    options = {"regularisation": 3.0, "inner_lr": 0.15, "inner_steps": 45, "solver_steps": 25}
    module, batch = made(backbone, spec, batch_norm=batch_norm, **options), episodes(spec, tasks=2, shots=3)
    found = gradient(module.meta_batch_loss(batch).loss.mean(), module)
    module.solver_steps = 0  # which the value of the loss does not depend on
    torch.manual_seed(5)
    directions = [torch.randn_like(p) for p in module.parameters()]
    values = []
    for step in (1, -2):
        with torch.no_grad():
            for p, d in zip(module.parameters(), directions, strict=True):
                p.add_(d, alpha=step * 1e-5)
        values.append(module.meta_batch_loss(batch).loss.mean().detach())
    along = found @ torch.cat([d.flatten() for d in directions])
    torch.testing.assert_close(along, (values[0] - values[1]) / 2e-5, rtol=1e-5, atol=1e-8)


def test_one_solver_step_has_the_direction_of_the_first_order_gradient() -> None:
    batch = episodes(REGRESSION, tasks=1, shots=5)
    module = made(nn.Flatten(), REGRESSION, inner_steps=0, solver_steps=1)
    first = made(nn.Flatten(), REGRESSION, inner_steps=0, solver_steps=1)
    slope = gradient(first.outcome(dict(first.network.named_parameters()), task(batch, 0)[1]).loss, first)
    found = gradient(module.meta_batch_loss(batch).loss.mean(), module)
    assert float(F.cosine_similarity(found, slope, dim=0)) == pytest.approx(1, abs=1e-12)
    assert relative_error(found, slope) > 0.01


def test_conjugate_gradients_solve_a_system_and_stop_where_it_is_not_positive() -> None:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    matrix, b = root @ root.T + torch.eye(6, dtype=torch.float64), torch.arange(6.0, dtype=torch.float64)
    x = conjugate_gradients(lambda v: {"a": matrix @ v["a"]}, {"a": b}, 20)["a"]
    torch.testing.assert_close(x, torch.linalg.solve(matrix, b), rtol=1e-8, atol=1e-9)
    first_order = conjugate_gradients(lambda v: {"a": -v["a"]}, {"a": b}, 5)["a"]
    assert torch.equal(first_order, b)
    assert not conjugate_gradients(lambda v: v, {"a": b}, 0)["a"].any()
    assert not conjugate_gradients(lambda v: v, {"a": 0 * b}, 3)["a"].any()


def test_a_backbone_that_draws_is_refused() -> None:
    """Each product with the Hessian would be of another loss."""
    module = lm.IMAML(nn.Sequential(nn.Flatten(), nn.Linear(256, 8), nn.Dropout(0.5)), inner_lr=0.1)
    with pytest.raises(UserError, match="it draws random numbers in training"):
        L.Trainer(fast_dev_run=1, accelerator="cpu", logger=False).fit(module, pictures())


@pytest.mark.parametrize("option", ["first_order", "inner_optimizer", "inner_parameters", "recompute"])
def test_what_the_method_sets_is_refused(option: str) -> None:
    with pytest.raises((UserError, TypeError), match=option):
        lm.IMAML(nn.Flatten(), **{option: True})
