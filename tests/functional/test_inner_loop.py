"""The inner loop against plain autograd and closed forms."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from lightning_meta.functional.inference import outside_inference_mode
from lightning_meta.functional.inner_loop import Tensors, inner_loop

STEPS = [0, 1, 5]


def problem(seed: int = 0) -> tuple[Tensors, Tensor, Tensor]:
    """A little network with smooth activations, and points of one task."""
    g = torch.Generator().manual_seed(seed)
    shapes = {"w": (2, 6), "b": (6,), "v": (6, 1)}
    parameters = {name: torch.randn(shape, generator=g, dtype=torch.float64) for name, shape in shapes.items()}
    return parameters, torch.randn(7, 2, generator=g).double(), torch.randn(7, 1, generator=g).double()


def squared_error(p: Tensors, x: Tensor, y: Tensor) -> Tensor:
    return (torch.tanh(x @ p["w"] + p["b"]) @ p["v"] - y).square().mean()


def by_autograd(parameters: Tensors, x: Tensor, y: Tensor, steps: int, rate: float, first_order: bool) -> list[Tensors]:
    """Finn et al. 2017, algorithm 2, lines 5 to 7, by `torch.autograd.grad`."""
    trajectory = [parameters]
    for _ in range(steps):
        at = trajectory[-1]
        gradients = torch.autograd.grad(squared_error(at, x, y), list(at.values()), create_graph=not first_order)
        trajectory.append({name: p - rate * g for (name, p), g in zip(at.items(), gradients, strict=True)})
    return trajectory


def flat(tensors: Tensors) -> Tensor:
    return torch.cat([t.flatten() for t in tensors.values()])


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("steps", STEPS)
def test_trajectory_and_meta_gradient_are_those_of_plain_autograd(steps: int, first_order: bool) -> None:
    parameters, x, y = problem()
    _, query, target = problem(1)
    parameters = {name: p.requires_grad_() for name, p in parameters.items()}

    found = [
        p
        for p, _ in inner_loop(
            lambda p, b, _: (squared_error(p, x, y), {}), parameters, {}, (), steps, 0.1, first_order
        )
    ]
    expected = by_autograd(parameters, x, y, steps, 0.1, first_order)
    assert len(found) == steps + 1
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
        gradients = [
            torch.autograd.grad(squared_error(p, query, target), list(parameters.values()), retain_graph=True)
            for p in (ours, theirs)
        ]
        torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-11)


def test_first_and_second_order_differ_in_the_meta_gradient_only() -> None:
    parameters, x, y = problem()
    parameters = {name: p.requires_grad_() for name, p in parameters.items()}
    ends, gradients = [], []
    for first_order in (False, True):
        end = inner_loop(lambda p, b, _: (squared_error(p, x, y), {}), parameters, {}, (), 3, 0.1, first_order)[-1][0]
        ends.append(flat(end).detach())
        gradients.append(flat(dict(enumerate(torch.autograd.grad(flat(end).sum(), list(parameters.values()))))))  # type: ignore[arg-type]
    assert torch.equal(*ends)
    # d(sum of φ)/dθ is all ones where dφ/dθ is the identity.
    assert torch.equal(gradients[1], torch.ones_like(gradients[1]))
    assert (gradients[0] - gradients[1]).norm() > 0.1


@pytest.mark.parametrize("steps", STEPS)
def test_linear_regression_has_a_closed_form(steps: int) -> None:
    r"""L(w) = |Xw - y|²/2 gives φ_S - w* = (I - α XᵀX)^S (θ - w*), and the meta-gradient follows by the chain rule."""
    g = torch.Generator().manual_seed(0)
    x, y, query, target = (torch.randn(s, generator=g).double() for s in [(8, 3), (8,), (5, 3), (5,)])
    theta = torch.randn(3, generator=g).double().requires_grad_()
    rate = 0.03

    phi = inner_loop(lambda p, b, _: ((x @ p["w"] - y).square().sum() / 2, {}), {"w": theta}, {}, (), steps, rate)[-1][
        0
    ]["w"]
    ((query @ phi - target).square().sum() / 2).backward()

    contraction = torch.linalg.matrix_power(torch.eye(3, dtype=torch.float64) - rate * x.T @ x, steps)
    optimum = torch.linalg.solve(x.T @ x, x.T @ y)
    expected = optimum + contraction @ (theta.detach() - optimum)
    torch.testing.assert_close(phi.detach(), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        theta.grad, contraction.T @ query.T @ (query @ expected - target), rtol=1e-12, atol=1e-12
    )


def test_what_the_forward_pass_computed_comes_with_its_parameters() -> None:
    parameters, x, y = problem()

    def loss(p: Tensors, buffers: Tensors, _: object) -> tuple[Tensor, Tensors]:
        value = squared_error(p, x, y)
        return value, {"loss": value, "passes": buffers["passes"].add_(1)}  # in place, as layers count

    start = {"passes": torch.zeros(())}
    *visited, (_, last) = inner_loop(loss, parameters, start, (), 4, 0.1)
    assert float(last["passes"]) == 4
    for p, other in visited:
        torch.testing.assert_close(other["loss"], squared_error(p, x, y))
    losses = [float(other["loss"]) for _, other in visited]
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("first_order", [False, True])
def test_maps_over_tasks(first_order: bool) -> None:
    tasks = [problem(seed)[1:] for seed in range(4)]
    parameters = {name: p.requires_grad_() for name, p in problem()[0].items()}

    def end(x: Tensor, y: Tensor) -> Tensor:
        return flat(
            inner_loop(lambda p, b, _: (squared_error(p, x, y), {}), parameters, {}, (), 3, 0.1, first_order)[-1][0]
        )

    mapped = vmap(end)(*(torch.stack(column) for column in zip(*tasks, strict=True)))
    looped = torch.stack([end(x, y) for x, y in tasks])
    torch.testing.assert_close(mapped, looped, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(ends.sin().sum(), list(parameters.values())) for ends in (mapped, looped)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


@torch.inference_mode()
def test_works_under_inference_mode() -> None:
    parameters, x, y = problem()

    def adapt(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return inner_loop(lambda p, b, _: (squared_error(p, x, y), {}), parameters, {}, (), 2, 0.1)[-1][0]

    found = outside_inference_mode(adapt, parameters, x, y)
    with contextlib.suppress(RuntimeError):  # an older torch, which would return zeros, is refused
        torch.testing.assert_close(adapt(parameters, x, y), found)
    with torch.inference_mode(False):
        parameters, x, y = problem()
        expected = by_autograd({name: p.requires_grad_() for name, p in parameters.items()}, x, y, 2, 0.1, True)[-1]
    torch.testing.assert_close(found, {name: p.detach() for name, p in expected.items()})
