"""Recomputation: the same gradients as without it, whatever the network draws; or a clear refusal."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta import Episode, Examples
from lightning_meta.errors import UserError
from lightning_meta.functional import TaskMap, inner_loop, task_map
from lightning_meta.functional.recomputation import check_replays, recomputed
from lightning_meta.meta import MAML
from lightning_meta.tasks import EpisodeSpec
from lightning_meta.testing.comparing import relative_error

TASKS, EXAMPLES, SIZE = 4, 5, 6


class Noisy(nn.Module):
    """Two layers with a random function between them."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(SIZE, 8), nn.Linear(8, SIZE)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.second(self.between(self.first(x))))


def stochastic_depth(h: Tensor) -> Tensor:
    kept = torch.rand(len(h), 1, dtype=h.dtype) < 0.6
    return h + kept * torch.sin(h)


def noise_in_place(h: Tensor) -> Tensor:
    return h + torch.empty_like(h).normal_()


def attention_dropout(h: Tensor) -> Tensor:
    h = h.view(-1, 2, 4)
    return F.scaled_dot_product_attention(h, h, h, dropout_p=0.4).flatten(1)


RANDOM: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
    "dropout": lambda: nn.Dropout(0.5),
    "alpha_dropout": lambda: nn.AlphaDropout(0.3),
    "channel_dropout": lambda: nn.Sequential(nn.Unflatten(1, (2, 4)), nn.Dropout1d(0.5), nn.Flatten()),
    "functional_dropout": lambda: lambda h: F.dropout(h, 0.5),
    "noise": lambda: lambda h: h * (1 + torch.randn_like(h)),
    "noise_in_place": lambda: noise_in_place,
    "rrelu": lambda: nn.RReLU(),
    "stochastic_depth": lambda: stochastic_depth,
    "gumbel_softmax": lambda: lambda h: F.gumbel_softmax(h),
    "attention_dropout": lambda: attention_dropout,
}
WAYS = {
    "vmap": TaskMap("vmap"),
    "chunks": TaskMap("vmap", 2),
    "uneven_chunks": TaskMap("vmap", 3),
    "loop": TaskMap("loop"),
}


def meta_gradient(
    network: nn.Module, how: TaskMap, recompute: bool, first_order: bool = False
) -> tuple[Tensor, Tensor]:
    """The gradient of the query losses after three inner steps, and a number drawn afterwards."""
    torch.manual_seed(1)
    x = torch.randn(2, TASKS, EXAMPLES, SIZE, dtype=next(network.parameters()).dtype)
    parameters: dict[str, Tensor] = dict(network.named_parameters())

    def loss(p: dict[str, Tensor], x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        outputs = torch.func.functional_call(network, p, (x,))
        return outputs.square().mean() + outputs.sum().sin(), {}

    def one_task(support: Tensor, query: Tensor) -> Tensor:
        steps = inner_loop(lambda p, _, x: loss(p, x), parameters, {}, support, 3, 0.3, first_order, recompute)
        phi = steps[-1][0]
        return loss(phi, query)[0]

    total = task_map(one_task, how, *x).mean()
    gradients = torch.autograd.grad(total, list(parameters.values()))
    return torch.cat([g.flatten() for g in gradients]), torch.rand(3)


@pytest.mark.parametrize("first_order", [False, True], ids=["second_order", "first_order"])
@pytest.mark.parametrize(
    ("kind", "how"),
    [(kind, how) for kind in RANDOM for how in WAYS if kind != "rrelu" or how == "loop"],  # it has no rule for vmap
)
def test_randomness_is_replayed(kind: str, how: str, first_order: bool) -> None:
    torch.manual_seed(0)
    network = Noisy(RANDOM[kind]()).double().train()
    expected, after = meta_gradient(network, WAYS[how], recompute=False, first_order=first_order)
    found, after_recomputing = meta_gradient(network, WAYS[how], recompute=True, first_order=first_order)
    assert relative_error(found, expected) < 1e-12
    assert torch.equal(after, after_recomputing)  # the backward pass leaves the generator where it was


def test_the_randomness_matters() -> None:
    """Otherwise the tests above would pass without a replay."""
    torch.manual_seed(0)
    network = Noisy(nn.Dropout(0.5)).double().train()
    expected, _ = meta_gradient(network, TaskMap("loop"), recompute=False)
    network.eval()
    assert relative_error(meta_gradient(network, TaskMap("loop"), recompute=False)[0], expected) > 0.01


@pytest.mark.parametrize("strategy", ["vmap", "loop"])
def test_maml_with_dropout_and_mixed_precision(strategy: str) -> None:
    spec = EpisodeSpec("classification", (SIZE,), 3, 8)
    torch.manual_seed(0)
    module = MAML(Noisy(nn.Dropout(0.5)), inner_lr=0.3, recompute=True, strategy=strategy, episodes=spec).train()
    y = torch.arange(3).repeat_interleave(2).expand(TASKS, -1)
    support, query = (Examples(torch.randn(TASKS, 6, SIZE), y) for _ in range(2))
    batch = Episode(support, query, 3, torch.arange(TASKS))
    found = []
    for module.recompute in (True, False):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16):
            loss = module.meta_batch_loss(batch).loss.mean()
        gradients = torch.autograd.grad(loss, list(module.parameters()))
        found.append(torch.cat([g.flatten() for g in gradients]))
    assert relative_error(*found) < 5e-3  # bfloat16 rounds to 4e-3; another mask is off by 0.3


class Tracked(nn.Module):
    """Follows statistics of its inputs, which torch does not differentiate, without a layer of torch."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.register_buffer("running_mean", torch.zeros(8))
        self.register_buffer("running_var", torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(self.layer(x), self.running_mean, self.running_var, training=True)


def instance_norm() -> nn.Module:
    norm = nn.InstanceNorm1d(2, affine=True, track_running_stats=True)
    return nn.Sequential(nn.Unflatten(1, (2, 4)), norm, nn.Flatten())


@pytest.mark.parametrize("first_order", [False, True], ids=["second_order", "first_order"])
@pytest.mark.parametrize("make", [instance_norm, Tracked])
def test_running_statistics_have_no_derivative(make: Callable[[], nn.Module], first_order: bool) -> None:
    """By the loop, since torch has no rule for `vmap` that updates them."""
    spec = EpisodeSpec("classification", (SIZE,), 3)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(SIZE, 8), nn.Tanh(), make())
    module = MAML(network, inner_lr=0.3, strategy="loop", first_order=first_order, episodes=spec)
    module.configure_model()
    module.double().train()
    y = torch.arange(3).repeat_interleave(2).expand(TASKS, -1)
    support, query = (Examples(torch.randn(TASKS, 6, SIZE).double(), y) for _ in range(2))
    gradients = []
    for module.recompute in (True, False):
        loss = module.training_loss(Episode(support, query, 3, torch.arange(TASKS))).loss.mean()
        found = torch.autograd.grad(loss, list(module.parameters()))
        gradients.append(torch.cat([g.flatten() for g in found]))
    assert relative_error(*gradients) < 1e-12


def test_a_second_backward_pass_replays_too() -> None:
    torch.manual_seed(0)
    w = torch.randn(5, dtype=torch.float64, requires_grad=True)
    (y,) = recomputed(lambda w: (F.dropout(w * w, 0.5),), w)
    first = torch.autograd.grad(y.sum(), w, retain_graph=True)[0]
    torch.rand(7)
    assert torch.equal(torch.autograd.grad(y.sum(), w)[0], first)
    assert torch.allclose(first, 2 * y.detach() / w.detach())


@pytest.mark.parametrize("how", ["vmap", "loop"])
def test_complex_and_integer_tensors(how: str) -> None:
    """Complex weights get their gradients; counters and masks pass through."""
    torch.manual_seed(0)
    x, count = torch.randn(3, 4, 5).double(), torch.zeros(3, dtype=torch.int64)

    def step(w: Tensor, x: Tensor, count: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        y = (x.to(w.dtype) @ w).abs().square()
        return w * y.mean(), count + 1, (y > 1, x)  # an input may be returned as it is

    def one_task(x: Tensor, count: Tensor, recompute: bool) -> tuple[Tensor, Tensor]:
        u, c = w, count
        for _ in range(2):
            u, c, _ = recomputed(step, u, x, c) if recompute else step(u, x, c)
        return u.abs().sum(), c

    w = torch.randn(5, 2, dtype=torch.complex128, requires_grad=True)
    found = []
    for recompute in (True, False):
        loss, counts = task_map(lambda x, c, r=recompute: one_task(x, c, r), WAYS[how], x, count)
        assert counts.tolist() == [2, 2, 2]
        found.append(torch.view_as_real(torch.autograd.grad(loss.sum(), w)[0]))
    assert found[1].norm() > 0
    assert relative_error(*found) < 1e-12


class Holds(nn.Module):
    """Draws from a generator that it holds."""

    def __init__(self, generator: object, draw: Callable[[Any], float]) -> None:
        super().__init__()
        self.linear, self.generator, self.draw = nn.Linear(SIZE, SIZE), generator, draw

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * self.draw(self.generator)


class Counts(nn.Module):
    """Depends on how often it was run."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.runs = nn.Linear(SIZE, SIZE), 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return self.linear(x) * self.runs


UNREPLAYABLE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "python": (lambda: Noisy(lambda h: h if random.random() < 0.5 else h.sin()), "Python's random"),
    "numpy": (lambda: Noisy(lambda h: h * float(np.random.rand())), "numpy.random"),  # noqa: NPY002
    "torch_generator": (
        lambda: Holds(torch.Generator(), lambda g: float(torch.rand((), generator=g))),
        "the generator generator",
    ),
    "numpy_generator": (lambda: Holds(np.random.default_rng(0), lambda g: g.random()), "the generator generator"),
    "python_generator": (lambda: Holds(random.Random(0), lambda g: g.random()), "the generator generator"),
    "a_count": (Counts, "two runs"),
}


def step_of(network: nn.Module) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
    return lambda p, x: torch.func.functional_call(network, p, (x,)).square().mean()


@pytest.mark.parametrize("kind", UNREPLAYABLE)
def test_what_cannot_be_replayed_is_refused(kind: str) -> None:
    make, named = UNREPLAYABLE[kind]
    network = make()
    parameters = {name: p.detach() for name, p in network.named_parameters()}
    with pytest.raises(UserError, match=f"recompute: .*{named}"):
        check_replays(step_of(network), parameters, torch.randn(3, SIZE), module=network)


@pytest.mark.parametrize("kind", [*RANDOM, "nothing"])
def test_what_can_be_replayed_passes_and_nothing_is_drawn(kind: str) -> None:
    network = Noisy(RANDOM[kind]() if kind in RANDOM else torch.tanh).train()
    parameters = {name: p.detach() for name, p in network.named_parameters()}
    x, before = torch.randn(3, SIZE), torch.get_rng_state()
    check_replays(step_of(network), parameters, x, module=network)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", UNREPLAYABLE)
def test_in_a_loop_the_backward_pass_notices_as_well(kind: str) -> None:
    """A draw that `check_replays` did not meet, as of a layer that is rarely used, does not pass in silence."""
    random.seed(2)
    network = UNREPLAYABLE[kind][0]().double()

    def train() -> None:
        for _ in range(20):  # a coin may fall the same way twice
            meta_gradient(network, TaskMap("loop"), recompute=True)

    with pytest.raises(UserError, match="recompute"):
        train()


def test_a_network_without_randomness_draws_nothing() -> None:
    network, before = Noisy(torch.tanh).double(), torch.get_rng_state()
    parameters = {name: p.detach().requires_grad_() for name, p in network.named_parameters()}
    recomputed(step_of(network), parameters, torch.ones(3, SIZE).double()).backward()
    assert torch.equal(torch.get_rng_state(), before)
