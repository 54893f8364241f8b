"""Meta-gradients through every layer of torch: `vmap`, a loop and finite differences agree in float64."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from lightning_meta.functional import TaskMap
from lightning_meta.functional.exact import ExactDerivatives
from lightning_meta.nn.checks import CANNOT_BE_MAPPED, SLOWLY_MAPPED
from lightning_meta.testing.comparing import relative_error
from lightning_meta.testing.meta_gradients import MetaGradients
from tests.nn.layers import CASES, DISTANCES_TWICE, FLAT, SEQUENCE, Call, Case

TASKS, EXAMPLES, INPUTS = 2, 3, 5
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


def meta_gradients(case: Case, first_order: bool, exact: bool = True) -> tuple[MetaGradients, Tensor]:
    """The meta-gradients of a network with the layer, and a direction for finite differences."""
    torch.manual_seed(0)
    network = Network(case)
    support, query = torch.randn(2, TASKS, EXAMPLES, INPUTS).double()
    parameters: Tensors = dict(network.named_parameters())

    def forward(p: Tensors, x: Tensor) -> Tensor:
        with ExactDerivatives() if exact else contextlib.nullcontext():
            return functional_call(network, p, (x,))

    noise = {name: torch.randn_like(p) for name, p in parameters.items()}
    for path, module in network.named_modules():
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            noise[f"{path}.weight"][module.padding_idx] = 0  # torch defines that gradient as zero, whatever it is
    return MetaGradients(forward, parameters, support, query, first_order), torch.cat(
        [n.flatten() for n in noise.values()]
    )


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
    meta, noise = meta_gradients(case, first_order)
    by_loop = meta.gradient(LOOP)
    loop_error = meta.error(LOOP, by_loop, noise)
    shown = {"vmap-loop": "raises", "vmap-fd": ""}
    apart = vmap_error = 0.0
    if case.maps:
        by_vmap = meta.gradient(VMAP)
        if case.random:
            vmap_error = meta.error(VMAP, by_vmap, noise)
            shown = {"vmap-loop": "random", "vmap-fd": f"{vmap_error:.0e}"}
        else:
            apart = relative_error(by_vmap, by_loop)
            shown["vmap-loop"] = f"{apart:.0e}"
    else:
        with pytest.raises(CANNOT_BE_MAPPED):  # when torch has a rule for it, it belongs to the others
            meta.gradient(VMAP)
    table.append(f"{name:42s} {order:6s} {shown['vmap-loop']:>10s} {shown['vmap-fd']:>10s} {loop_error:10.0e}")
    assert loop_error < 1e-5
    assert vmap_error < 1e-5
    assert apart < case.tolerance


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.second_order])
def test_a_missing_second_derivative_raises(name: str) -> None:
    with pytest.raises(NotImplementedError, match="derivative for"):
        meta_gradients(CASES[name], first_order=False)[0].gradient(LOOP)


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
    meta, noise = meta_gradients(CASES[name], ORDERS[order], exact=False)
    gradient = meta.gradient(how)
    assert meta.error(how, gradient, noise) > 1e-5
    right = meta_gradients(CASES[name], ORDERS[order])[0].gradient(LOOP)
    assert relative_error(gradient, right) > 1e-3


@pytest.mark.parametrize(
    "name",
    [
        "attention",
        "MultiheadAttention, no weights",
        "TransformerEncoderLayer",
        "Hardsigmoid",
        "EmbeddingBag, mean",
        pytest.param("cdist", marks=pytest.mark.skipif(DISTANCES_TWICE, reason="torch 2.14 has its second derivative")),
    ],
)
def test_torch_alone_raises(name: str) -> None:
    with pytest.raises(RuntimeError, match="derivative for"):
        meta_gradients(CASES[name], first_order=False, exact=False)[0].gradient(LOOP)


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
    with ExactDerivatives() as mode:
        network(*inputs)
    assert mode.found is inexact


def test_outside_of_torch_func_nothing_is_replaced() -> None:
    """Plain training keeps torch's kernels."""
    x, layer = torch.randn(3, 8), nn.LayerNorm(8)
    with ExactDerivatives():
        assert type(layer(x).grad_fn).__name__ == "NativeLayerNormBackward0"
