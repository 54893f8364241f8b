"""Inner optimizers against torch.optim, step by step, and their meta-gradients against finite differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from lightning_meta import InnerAdam, InnerOptimizer, InnerSGD
from lightning_meta.errors import UserError
from lightning_meta.functional.inner_loop import Tensors, inner_loop
from lightning_meta.functional.task_map import TaskMap
from lightning_meta.testing.meta_gradients import MetaGradients
from tests.functional.test_inner_loop import flat, problem, squared_error

RATE = 0.05
PAIRS: dict[str, tuple[InnerOptimizer, Callable[[Any], torch.optim.Optimizer]]] = {
    "sgd": (InnerSGD(), lambda p: torch.optim.SGD(p, RATE)),
    "momentum": (InnerSGD(0.9), lambda p: torch.optim.SGD(p, RATE, momentum=0.9)),
    "adam": (InnerAdam(), lambda p: torch.optim.Adam(p, RATE)),
    "adam, beta1 = 0": (InnerAdam(beta1=0.0), lambda p: torch.optim.Adam(p, RATE, betas=(0.0, 0.999))),
}
OPTIMIZERS = [pytest.param(optimizer, id=name) for name, (optimizer, _) in PAIRS.items()]


def adapted(optimizer: InnerOptimizer, parameters: Tensors, x: Tensor, y: Tensor, **options: Any) -> Tensors:
    def loss(p: Tensors, _: Tensors, data: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensors]:
        return squared_error(p, *data), {}

    return inner_loop(loss, parameters, {}, (x, y), 4, RATE, optimizer=optimizer, **options)[-1][0]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize("name", PAIRS)
def test_every_step_is_that_of_torch(name: str, dtype: torch.dtype, tolerance: float) -> None:
    optimizer, make = PAIRS[name]
    start, x, y = problem()
    theirs = {n: p.to(dtype).requires_grad_() for n, p in start.items()}
    x, y = x.to(dtype), y.to(dtype)
    ours = inner_loop(
        lambda p, b, _: (squared_error(p, x, y), {}),
        {n: p.detach().clone() for n, p in theirs.items()},
        {},
        (),
        8,
        RATE,
        optimizer=optimizer,
    )
    peer = make(list(theirs.values()))
    for phi, _ in ours[1:]:
        peer.zero_grad()
        squared_error(theirs, x, y).backward()
        peer.step()
        torch.testing.assert_close(phi, {n: p.detach() for n, p in theirs.items()}, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_meta_gradients_are_those_of_finite_differences(optimizer: InnerOptimizer, first_order: bool) -> None:
    start = {name: p.requires_grad_() for name, p in problem()[0].items()}
    x = torch.randn(3, 7, 2, dtype=torch.float64)
    meta = MetaGradients(
        lambda p, x: torch.tanh(x @ p["w"] + p["b"]) @ p["v"], start, x[:-1], x[1:], first_order, RATE, optimizer
    )
    found = meta.gradient(TaskMap("loop"))
    assert meta.error(TaskMap("loop"), found, torch.randn_like(found)) < 1e-6
    torch.testing.assert_close(meta.gradient(TaskMap("vmap")), found, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_recomputed_and_traced_steps_have_the_same_gradients(optimizer: InnerOptimizer, first_order: bool) -> None:
    start, x, y = problem()

    def gradient(*leaves: Tensor, recompute: bool = False) -> Tensor:
        parameters = dict(zip(start, leaves, strict=True))
        end = flat(adapted(optimizer, parameters, x, y, first_order=first_order, recompute=recompute)).sin().sum()
        return torch.cat([g.flatten() for g in torch.autograd.grad(end, leaves)])

    leaves = [p.requires_grad_() for p in start.values()]
    kept = gradient(*leaves)
    torch.testing.assert_close(gradient(*leaves, recompute=True), kept, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(make_fx(gradient)(*leaves)(*leaves), kept, rtol=1e-12, atol=1e-12)  # as `compile` does


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_weight_that_the_loss_does_not_depend_on_has_a_finite_meta_gradient(optimizer: InnerOptimizer) -> None:
    start, x, y = problem()
    start = {name: p.requires_grad_() for name, p in (*start.items(), ("idle", torch.ones(2).double()))}
    end = adapted(optimizer, start, x, y)
    assert torch.equal(end["idle"], start["idle"])
    gradients = torch.autograd.grad(flat(end).sum(), list(start.values()))
    assert all(g.isfinite().all() for g in gradients)
    assert torch.equal(gradients[-1], torch.ones(2).double())


def test_a_gradient_of_exactly_zero_has_a_finite_meta_gradient() -> None:
    """With L = w z² / 2 at z = 0, the step of Adam is w z / ε, and dφ/dz = 1 - α w / ε."""
    start = {"z": torch.zeros(2, dtype=torch.float64, requires_grad=True)}
    w = torch.tensor([1e-3, 0.0], dtype=torch.float64)

    def loss(p: Tensors, _: Tensors, __: Any) -> tuple[Tensor, Tensors]:
        return (w * p["z"].square()).sum() / 2, {}

    for optimizer in (InnerAdam(eps=1e-2), InnerAdam(beta1=0.0, eps=1e-2)):
        end = inner_loop(loss, start, {}, (), 1, RATE, optimizer=optimizer)[-1][0]
        (found,) = torch.autograd.grad(end["z"].sum(), list(start.values()))
        torch.testing.assert_close(found, 1 - RATE * w / 1e-2)


@pytest.mark.parametrize("beta2", [0.999, 0.99999])
def test_adam_without_bias_steps_by_the_rate_in_float32(beta2: float) -> None:
    """For a constant gradient g, the bias-corrected moments are g and g² in every step."""
    parameters = {"p": torch.zeros(3)}
    gradients, optimizer = {"p": torch.tensor([1.0, -2.0, 0.5])}, InnerAdam(beta2=beta2)
    state = optimizer.init(parameters)
    for _ in range(5):
        updates, state = optimizer.update(gradients, state, parameters)
        torch.testing.assert_close(updates["p"], gradients["p"].sign(), rtol=1e-6, atol=0)


def test_numbers_that_cannot_be_are_refused() -> None:
    for make, says in (
        (lambda: InnerSGD(1.0), "momentum: a number from 0 to below 1 is needed, got 1.0"),
        (lambda: InnerAdam(beta1=-0.1), "beta1: a number from 0 to below 1 is needed, got -0.1"),
        (lambda: InnerAdam(eps=0.0), "eps: a positive number is needed, got 0.0"),
    ):
        with pytest.raises(UserError) as raised:
            make()
        assert str(raised.value) == says
