"""Meta-gradients through every layer of torch: `vmap`, a loop and finite differences agree in float64."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from lightning_meta.functional import TaskMap, inner_loop, task_map
from lightning_meta.functional.exact import ExactDerivatives, calls_inexact
from lightning_meta.nn.checks import CANNOT_BE_MAPPED, SLOWLY_MAPPED
from lightning_meta.testing.comparing import relative_error
from tests.nn.layers import CASES, FLAT, SEQUENCE, Call, Case

TASKS, EXAMPLES, INPUTS, STEPS, RATE = 2, 3, 5, 2, 0.1
VMAP, LOOP = TaskMap("vmap"), TaskMap("loop")
Tensors = dict[str, Tensor]

pytestmark = pytest.mark.filterwarnings(f"ignore:{SLOWLY_MAPPED}:UserWarning")


class Network(nn.Module):
    """A layer between two linear ones."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.shape, self.layer = case.shape, case.make().double()
        self.before = nn.Linear(INPUTS, math.prod(case.shape)).double()
        with torch.random.fork_rng():
            features = self.features(torch.randn(EXAMPLES, INPUTS).double())
        self.after = nn.Linear(features.shape[1], 2).double()
        with torch.no_grad():
            for p in self.parameters():
                p.add_(0.1 * torch.randn_like(p))  # weights of one and biases of zero would hide mistakes

    def features(self, x: Tensor) -> Tensor:
        outputs = self.layer(self.before(x).view(len(x), *self.shape))
        return (outputs[0] if isinstance(outputs, tuple) else outputs).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.features(x))


class MetaLoss:
    """The mean query loss after the inner loop, as a function of the initial parameters."""

    def __init__(self, case: Case, exact: bool = True) -> None:
        torch.manual_seed(0)
        self.network = Network(case)
        self.x = torch.randn(2, TASKS, EXAMPLES, INPUTS).double()
        self.parameters: Tensors = dict(self.network.named_parameters())
        self.exact = exact

    def context(self) -> AbstractContextManager[object]:
        return ExactDerivatives() if self.exact else contextlib.nullcontext()

    def loss(self, p: Tensors, x: Tensor) -> tuple[Tensor, Tensors]:
        with self.context():
            outputs = functional_call(self.network, p, (x,))
        weights = torch.linspace(-1, 1, outputs.numel(), dtype=outputs.dtype).view_as(outputs)
        mixed = outputs * weights
        return mixed.sum().square() / mixed.numel() + outputs.square().mean() + mixed.tanh().sum(), {}

    def __call__(self, how: TaskMap, first_order: bool, start: Tensors, at: Tensors | None = None) -> Tensor:
        """With `at`, what the inner loop adds to the start is that of a start at `at`, as a constant."""

        def one_task(support: Tensor, query: Tensor) -> Tensor:
            reached = inner_loop(self.loss, at or start, support, STEPS, RATE, first_order)[-1][0]
            if at is not None:
                reached = {name: start[name] + (reached[name] - at[name]).detach() for name in start}
            return self.loss(reached, query)[0]

        torch.manual_seed(1)
        return task_map(one_task, how, *self.x).mean()

    def gradient(self, how: TaskMap, first_order: bool) -> Tensor:
        start, loss = list(self.parameters.values()), self(how, first_order, self.parameters)
        gradients = torch.autograd.grad(loss, start, allow_unused=True, materialize_grads=True)
        return torch.cat([g.flatten() for g in gradients])

    def error(self, how: TaskMap, first_order: bool, gradient: Tensor, h: float = 1e-6) -> float:
        """Of a gradient against a central difference along itself and something random, relative to its norm."""
        start = {name: p.detach() for name, p in self.parameters.items()}
        noise = torch.randn(len(gradient), dtype=gradient.dtype)
        noise = torch.where(self._padding_rows(), 0, noise)
        direction = gradient / gradient.norm() + noise / noise.norm()
        parts = direction.split([p.numel() for p in start.values()])
        ends = []
        for side in (h, -h):
            moved = {n: p + side * d.view_as(p) for (n, p), d in zip(start.items(), parts, strict=True)}
            ends.append(self(how, first_order, moved, start if first_order else None))
        return float(abs((ends[0] - ends[1]).detach() / (2 * h) - gradient @ direction) / gradient.norm())

    def _padding_rows(self) -> Tensor:
        """Where torch defines the gradient as zero although the loss depends on the number."""
        rows = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in self.parameters.items()}
        for path, module in self.network.named_modules():
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                rows[f"{path}.weight"][module.padding_idx] = True
        return torch.cat([r.flatten() for r in rows.values()])


@pytest.fixture(scope="module")
def table() -> Iterator[list[str]]:
    rows: list[str] = []
    yield rows
    print(f"\n{'layer':42s} {'order':6s} {'vmap-loop':>10s} {'vmap-fd':>10s} {'loop-fd':>10s}")
    print("\n".join(rows))


ORDERS = {"first": True, "second": False}
EVERY = [(name, order) for name in CASES for order in ORDERS if order == "first" or CASES[name].second_order]


@pytest.mark.parametrize(("name", "order"), EVERY)
def test_vmap_loop_and_finite_differences_agree(name: str, order: str, table: list[str]) -> None:
    case, first_order = CASES[name], ORDERS[order]
    meta = MetaLoss(case)
    by_loop = meta.gradient(LOOP, first_order)
    loop_error = meta.error(LOOP, first_order, by_loop)
    shown = {"vmap-loop": "raises", "vmap-fd": ""}
    apart = vmap_error = 0.0
    if case.maps:
        by_vmap = meta.gradient(VMAP, first_order)
        if case.random:
            vmap_error = meta.error(VMAP, first_order, by_vmap)
            shown = {"vmap-loop": "random", "vmap-fd": f"{vmap_error:.0e}"}
        else:
            apart = relative_error(by_vmap, by_loop)
            shown["vmap-loop"] = f"{apart:.0e}"
    else:
        with pytest.raises(CANNOT_BE_MAPPED):  # when torch has a rule for it, it belongs to the others
            meta.gradient(VMAP, first_order)
    table.append(f"{name:42s} {order:6s} {shown['vmap-loop']:>10s} {shown['vmap-fd']:>10s} {loop_error:10.0e}")
    assert loop_error < 1e-5
    assert vmap_error < 1e-5
    assert apart < case.tolerance


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.second_order])
def test_a_missing_second_derivative_raises(name: str) -> None:
    with pytest.raises(NotImplementedError, match="derivative for"):
        MetaLoss(CASES[name]).gradient(LOOP, first_order=False)


WRONG = {
    "LayerNorm": (VMAP, "second"),
    "LayerNorm, no bias": (VMAP, "second"),
    "InstanceNorm2d, affine": (VMAP, "second"),
    "F.batch_norm": (VMAP, "second"),
    "weight_norm": (LOOP, "second"),
    "Embedding, padding_idx": (VMAP, "first"),
}


@pytest.mark.parametrize("name", WRONG)
def test_torch_alone_is_wrong(name: str) -> None:
    """The reason for `ExactDerivatives`. Where this fails, torch was corrected and the entry can go."""
    how, order = WRONG[name]
    meta = MetaLoss(CASES[name], exact=False)
    gradient = meta.gradient(how, ORDERS[order])
    assert meta.error(how, ORDERS[order], gradient) > 1e-5
    right = MetaLoss(CASES[name]).gradient(LOOP, ORDERS[order])
    assert relative_error(gradient, right) > 1e-3


@pytest.mark.parametrize(
    "name",
    [
        "attention",
        "MultiheadAttention, no weights",
        "TransformerEncoderLayer",
        "Hardsigmoid",
        "EmbeddingBag, mean",
        "cdist",
    ],
)
def test_torch_alone_raises(name: str) -> None:
    with pytest.raises(RuntimeError, match="derivative for"):
        MetaLoss(CASES[name], exact=False).gradient(LOOP, first_order=False)


HALF = {
    "layer": lambda: nn.LayerNorm(8),
    "instance": lambda: nn.InstanceNorm1d(5, affine=True),
    "batch": lambda: nn.BatchNorm1d(5, track_running_stats=False),
}


@pytest.mark.parametrize("kind", HALF)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_statistics_of_half_precision_are_computed_in_float32(kind: str, dtype: torch.dtype) -> None:
    """A mean of 300 has squares beyond float16's largest number; and the type is the one that torch returns."""
    layer = HALF[kind]().to(dtype)
    x = (300 + torch.randn(TASKS, EXAMPLES, *SEQUENCE)).to(dtype)

    def outputs(x: Tensor) -> tuple[Tensor, Tensor]:
        with ExactDerivatives():
            y = layer(x)
        return y.float().sum(), y

    found = torch.func.vmap(torch.func.grad(outputs, has_aux=True))(x)[1]
    assert found.dtype == layer(x[0]).dtype
    expected = torch.stack([layer.double()(task.double()) for task in x])
    assert relative_error(found.double(), expected) < max(torch.finfo(dtype).eps, 1e-4)


def test_batched_running_statistics_are_updated_as_by_torch() -> None:
    x, mean, var = (
        torch.randn(TASKS, EXAMPLES, 4, 6).double(),
        torch.zeros(TASKS, 4).double(),
        torch.ones(TASKS, 4).double(),
    )

    def one(norm: object, x: Tensor, mean: Tensor, var: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        mean, var = mean.clone(), var.clone()
        with ExactDerivatives():
            y = norm(x, mean, var)  # type: ignore[operator]
        return y.square().sum(), (mean, var)

    for norm in (
        partial(F.instance_norm, use_input_stats=True, momentum=0.3),
        partial(F.batch_norm, training=True, momentum=0.3),
    ):
        _, found = torch.func.vmap(torch.func.grad(partial(one, norm), has_aux=True))(x, mean, var)
        for t in range(TASKS):
            m, v = mean[t].clone(), var[t].clone()
            norm(x[t], m, v)
            assert torch.allclose(found[0][t], m)
            assert torch.allclose(found[1][t], v)


@pytest.mark.parametrize(
    ("network", "inexact"),
    [
        (nn.Sequential(nn.Linear(8, 8), nn.ReLU()), False),
        (nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)), True),
        (Call(lambda x: F.layer_norm(x, (8,))), True),
        (nn.MultiheadAttention(8, 2), True),
        (nn.GRU(8, 8), True),
    ],
)
def test_which_networks_need_exact_derivatives(network: nn.Module, inexact: bool) -> None:
    inputs = (torch.randn(3, *FLAT),) * (3 if isinstance(network, nn.MultiheadAttention) else 1)
    assert calls_inexact(network, *inputs) is inexact


def test_outside_of_torch_func_nothing_is_replaced() -> None:
    """Plain training keeps torch's kernels."""
    x, layer = torch.randn(3, 8), nn.LayerNorm(8)
    with ExactDerivatives():
        assert type(layer(x).grad_fn).__name__ == "NativeLayerNormBackward0"
