"""Learned rates, mini-batches and data with a graph, against plain autograd."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from lightning_meta.batches import Examples
from lightning_meta.errors import UserError
from lightning_meta.functional.inner_loop import Tensors, inner_loop
from lightning_meta.functional.inner_optimizers import InnerOptimizer, State
from lightning_meta.functional.mini_batches import mini_batches
from tests.functional.test_inner_loop import flat, problem, squared_error

STEPS = 3


def rates_of(parameters: Tensors, step: int, log_rates: Tensors) -> Tensors:
    """A rate for each step and parameter: whole tensors of "w", numbers for the others."""
    return {name: log_rates[name][step].exp() for name in parameters}


def log_rates() -> Tensors:
    g = torch.Generator().manual_seed(5)
    shapes = {"w": (STEPS, 2, 6), "b": (STEPS,), "v": (STEPS,)}
    return {n: (torch.randn(s, generator=g).double() - 3).requires_grad_() for n, s in shapes.items()}


@pytest.mark.parametrize("way", ["plain", "recompute", "vmap"])
@pytest.mark.parametrize("first_order", [False, True])
def test_learned_rates_have_the_gradients_of_plain_autograd(first_order: bool, way: str) -> None:
    parameters, x, y = problem()
    parameters = {name: p.requires_grad_() for name, p in parameters.items()}
    logs = log_rates()

    def end(x: Tensor, y: Tensor) -> Tensor:
        return flat(
            inner_loop(
                lambda p, b, data: (squared_error(p, *data), {}),
                parameters,
                {},
                (x, y),
                STEPS,
                lambda j: rates_of(parameters, j, logs),
                first_order,
                recompute=way == "recompute",
            )[-1][0]
        )

    at = parameters
    for j in range(STEPS):
        held = {n: p.detach().requires_grad_() for n, p in at.items()} if first_order else at
        loss = squared_error(held, x, y)
        gradients = torch.autograd.grad(loss, list(held.values()), create_graph=not first_order)
        rates = rates_of(at, j, logs)
        at = {n: p - rates[n] * g for (n, p), g in zip(at.items(), gradients, strict=True)}
    found = vmap(end)(x.unsqueeze(0), y.unsqueeze(0))[0] if way == "vmap" else end(x, y)
    torch.testing.assert_close(found, flat(at), rtol=1e-12, atol=1e-12)
    leaves = [*parameters.values(), *logs.values()]
    ours, theirs = (torch.autograd.grad(flat.sin().sum(), leaves) for flat in (found, flat(at)))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("recompute", [False, True])
def test_one_learned_rate_is_that_rate_for_each_parameter(recompute: bool) -> None:
    parameters, x, y = problem()
    found = []
    for by_name in (False, True):
        rate = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
        rates: list[Tensor | Tensors] = [dict.fromkeys(parameters, rate) if by_name else rate] * STEPS
        states = inner_loop(
            lambda p, b, data: (squared_error(p, *data), {}),
            *(parameters, {}, (x, y), STEPS, rates.__getitem__),
            recompute=recompute,
        )
        found.append(torch.autograd.grad(flat(states[-1][0]).sin().sum(), rate)[0])
    assert found[0] != 0
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({name: torch.ones(()) for name in ("w", "v")}, "every adapted parameter needs one; there is none for 'b'"),
        ({name: torch.ones(7) for name in ("w", "b", "v")}, "(7,) of 'w' does not broadcast to (2, 6)"),
        (None, "a number or tensors by name of the parameter are needed, got NoneType"),
    ],
)
def test_rates_that_do_not_fit_are_one_line(rates: Any, message: str) -> None:
    parameters, x, y = problem()
    with pytest.raises(UserError) as raised:
        inner_loop(lambda p, b, _: (squared_error(p, x, y), {}), parameters, {}, (), 1, lambda j: rates)
    assert str(raised.value) == f"rates: {message}"


def test_each_step_sees_its_mini_batch() -> None:
    parameters, x, y = problem()
    batches = mini_batches(Examples(x, y), 3, 4)
    found = inner_loop(lambda p, b, data: (squared_error(p, *data), {}), parameters, {}, lambda j: batches[j], 4, 0.1)[
        -1
    ][0]
    at = parameters
    for batch in batches:
        at = {n: p.detach().requires_grad_() for n, p in at.items()}
        gradients = torch.autograd.grad(squared_error(at, *batch), list(at.values()))
        at = {n: p - 0.1 * g for (n, p), g in zip(at.items(), gradients, strict=True)}
    torch.testing.assert_close(found, {n: p.detach() for n, p in at.items()}, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("first_order", [False, True])
def test_first_order_is_exact_for_a_head_on_features(first_order: bool, recompute: bool) -> None:
    """The body's gradient passes the query features alone; that of the head is as if the steps were constants."""
    g = torch.Generator().manual_seed(0)
    body, head, x, y, query, target = (
        torch.randn(s, generator=g).double() for s in [(4, 5), (5, 2), (6, 4), (6, 2), (7, 4), (7, 2)]
    )
    body, head = body.requires_grad_(), head.requires_grad_()

    def features(x: Tensor) -> Tensor:
        return torch.tanh(x @ body)

    def loss(p: Tensors, _: Tensors, data: Any) -> tuple[Tensor, Tensors]:
        f, y = data
        return (f @ p["head"] - y).square().mean(), {}

    data = features(x), y
    end = inner_loop(loss, {"head": head}, {}, data, 3, 0.5, first_order, recompute)[-1][0]
    found = torch.autograd.grad(loss(end, {}, (features(query), target))[0], [body, head])

    at = head
    for _ in range(3):
        f = features(x)
        if first_order:
            f = f.detach()
        # The gradient written out, so that nothing but its own graph decides what passes.
        gradient = 2 / y.numel() * f.T @ (f @ (at.detach() if first_order else at) - y)
        at = at - 0.5 * gradient
    expected = torch.autograd.grad((features(query) @ at - target).square().mean(), [body, head])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@dataclass(frozen=True)
class Proximal(InnerOptimizer):
    """Steps are pulled back to the start, which is kept in the state: the penalty λ/2 ‖φ − φ_0‖²."""

    penalty: float = 1.0

    def init(self, parameters: Tensors) -> State:
        return {"start": parameters}

    def update(self, gradients: Tensors, state: State, parameters: Tensors) -> tuple[Tensors, State]:
        return {n: g + self.penalty * (parameters[n] - state["start"][n]) for n, g in gradients.items()}, state


@pytest.mark.parametrize("recompute", [False, True])
def test_first_order_has_the_identity_as_derivative_whatever_the_state_holds(recompute: bool) -> None:
    start = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    ends = {}
    for first_order in (False, True):
        ends[first_order] = inner_loop(
            lambda p, b, data: (0.5 * (p["w"] - data).square().sum(), b),
            {"w": start},
            {},
            torch.ones(1, dtype=torch.float64),
            STEPS,
            0.1,
            first_order,
            recompute,
            optimizer=Proximal(),
        )[-1][0]["w"]
    torch.testing.assert_close(*ends.values())
    (exact,), (identity,) = (torch.autograd.grad(end, start) for end in ends.values())
    # φ − θ shrinks by 1 − α (1 + λ) in each step, towards (target − θ)/(1 + λ).
    assert float(exact) == pytest.approx(1 - (1 - 0.8**STEPS) / 2)
    assert float(identity) == 1
