"""Networks that are refused by name before training."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import jacobian
from torch.func import functional_call, grad
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lightning_meta.errors import UserError
from lightning_meta.nn import MLP, Conv4, ResNet12
from lightning_meta.nn.checks import check_derivatives, check_layers
from tests.nn.layers import DISTANCES_TWICE


class Calls(nn.Module):
    """A network whose forward pass is a function of its layer and the input."""

    def __init__(self, function: Callable[..., Tensor], layer: nn.Module | None = None) -> None:
        super().__init__()
        self.layer, self.function = layer or nn.Linear(6, 6), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layer, x)


class Old(torch.autograd.Function):
    """An autograd function of the old kind."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: object, g: Tensor) -> Tensor:
        return 2 * g


def hooked() -> nn.Module:
    network = nn.Sequential(nn.Linear(6, 6))
    network[0].register_full_backward_hook(lambda *_: None)
    return network


def listed(item: object) -> nn.Module:
    network = nn.Linear(6, 6)
    vars(network)["parts"] = [item]
    return network


REFUSED: dict[str, tuple[Callable[[], nn.Module], str, bool]] = {
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(6)), r"0 \(LazyLinear\) .*sizes are not known yet", True),
    "lazy buffers": (lambda: nn.Sequential(nn.LazyBatchNorm1d(affine=False)), "LazyBatchNorm1d", True),
    "max_norm": (lambda: nn.Sequential(nn.Embedding(4, 2, max_norm=1.0)), r"0 \(Embedding\) .*max_norm", True),
    "hidden module": (lambda: listed(nn.Linear(2, 2)), "'parts' of the network .*Linear.* nn.ModuleList", True),
    "hidden parameter": (lambda: listed(nn.Parameter(torch.ones(2))), "'parts' .*nn.ParameterList", True),
    "by frequency": (lambda: nn.Sequential(nn.Embedding(4, 2, scale_grad_by_freq=True)), "scale_grad_by_freq", False),
    "sparse": (lambda: nn.Sequential(nn.EmbeddingBag(4, 2, sparse=True)), "sparse=True", False),
    "backward hook": (hooked, r"0 \(Linear\) .*backward hooks", False),
    "response norm": (lambda: nn.Sequential(nn.CrossMapLRN2d(3)), "nn.LocalResponseNorm", False),
    "compiled": (
        lambda: nn.Sequential(cast(nn.Module, torch.compile(nn.Linear(6, 6), backend="eager"))),
        "compile=True",
        False,
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_layer_is_refused_by_name(kind: str) -> None:
    make, message, always = REFUSED[kind]
    with pytest.raises(UserError, match=f"backbone: .*{message}"):
        check_layers(make())
    if not always:  # metric methods take it
        check_layers(make(), inner_gradients=False)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_torchscript_is_refused() -> None:
    with pytest.raises(UserError, match="TorchScript"):
        check_layers(nn.Sequential(torch.jit.script(nn.LayerNorm(6))))


def again_by_a_list() -> nn.Module:
    network = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
    vars(network)["stages"] = list(network)  # they are registered as well
    return network


@pytest.mark.parametrize(
    "make",
    [
        Conv4,
        MLP,
        ResNet12,
        again_by_a_list,
        lambda: nn.LSTM(3, 3),
        lambda: nn.Transformer(8, 2, 1, 1, 8, batch_first=True),
    ],
)
def test_usual_networks_pass(make: Callable[[], nn.Module]) -> None:
    check_layers(make())


def descended(m: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A step of gradient descent on an energy of the input."""
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(m(x).square().sum(), x, create_graph=True)
    return m(x - 0.1 * gradient)


def copied(m: nn.Module) -> nn.Module:
    return deepcopy(m)


def assigned(m: nn.Linear, x: Tensor) -> Tensor:
    m.weight[0] = 0.0
    return m(x)


class Mistaken(torch.autograd.Function):
    """An autograd function whose second derivative is wrong."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x * x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return Slope.apply(*ctx.saved_tensors, g)


class Slope(torch.autograd.Function):
    """The derivative of `Mistaken`."""

    @staticmethod
    def forward(x: Tensor, g: Tensor) -> Tensor:
        return 2 * x * g

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        raise RuntimeError("a mistake of the network's author")


UNDIFFERENTIABLE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "checkpoint": (lambda: Calls(lambda m, x: checkpoint(m, x, use_reentrant=False)), "recompute=True"),
    "reentrant": (lambda: Calls(lambda m, x: checkpoint(m, x, use_reentrant=True)), "setup_context"),
    "old function": (lambda: Calls(lambda m, x: Old.apply(m(x))), "setup_context"),
    "numpy": (lambda: Calls(lambda m, x: m(x) * float(np.asarray(m(x).detach()).mean())), "NumPy"),
    "copy": (lambda: Calls(lambda m, x: copied(m)(x)), "NumPy"),
    "weight": (lambda: Calls(lambda m, x: m(x) * m.weight.mul_(0.5).mean()), "a parameter or another tensor in place"),
    "item of a weight": (lambda: Calls(assigned), "a parameter or another tensor in place"),
    "requires_grad_": (
        lambda: Calls(lambda m, x: m(x.clone().requires_grad_())),
        r"Tensor\.requires_grad_, .*func\.grad",
    ),
    "descent": (lambda: Calls(descended), r"Tensor\.requires_grad_, .*torch\.func\.grad"),
    "jacobian": (lambda: Calls(lambda m, x: jacobian(m, x[0]) @ x.T), r"Tensor\.requires_grad_, or torch\.autograd"),
    "pdist": (lambda: Calls(lambda m, x: F.pdist(m(x))), "first_order=True"),
}


def derivatives_of(network: nn.Module, first_order: bool = False) -> None:
    check_derivatives(
        lambda p: functional_call(network, p, (torch.randn(3, 6),)), dict(network.named_parameters()), first_order
    )


if DISTANCES_TWICE:
    del UNDIFFERENTIABLE["pdist"]


@pytest.mark.parametrize("kind", UNDIFFERENTIABLE)
def test_what_torch_cannot_differentiate_is_refused(kind: str) -> None:
    make, message = UNDIFFERENTIABLE[kind]
    with pytest.raises(UserError, match=f"backbone: it cannot be differentiated.*{message}"):
        derivatives_of(make())


@pytest.mark.parametrize("write", ["with no gradients", "by data"])
def test_a_forward_pass_that_writes_to_its_weights_is_refused(write: str) -> None:
    layer = nn.Linear(6, 6)

    def clamp(layer: nn.Linear, x: Tensor) -> Tensor:
        weight = layer.weight.data if write == "by data" else layer.weight
        with torch.no_grad():
            weight.clamp_(-0.1, 0.1)
        return layer(x)

    network, before = Calls(clamp, layer), layer.weight.clone()
    with pytest.raises(UserError, match="in place"):
        derivatives_of(network)
    assert torch.equal(layer.weight, before)


def test_derivatives_by_torch_func_pass() -> None:
    derivatives_of(Calls(lambda m, x: m(x - 0.1 * grad(lambda z: m(z).square().sum())(x))))


def test_first_order_needs_no_second_derivative() -> None:
    derivatives_of(Calls(lambda m, x: F.pdist(m(x))), first_order=True)


def test_what_has_an_exact_form_passes() -> None:
    derivatives_of(Calls(lambda m, x: F.hardsigmoid(m(x))))
    derivatives_of(Calls(lambda m, x: m(x[:, None])[:, 0], nn.TransformerEncoderLayer(6, 2, 8, 0.0, batch_first=True)))


def test_other_errors_are_the_users_own() -> None:
    def broken(layer: nn.Module, x: Tensor) -> Tensor:
        raise RuntimeError("a mistake of the network's author")

    for network in (Calls(broken), Calls(lambda m, x: Mistaken.apply(m(x)))):
        with pytest.raises(RuntimeError, match=r"^a mistake of the network's author"):
            derivatives_of(network)
