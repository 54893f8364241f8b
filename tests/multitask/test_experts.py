"""Experts that are mixed by gates: CGC against its equations and LibMTL, and experts that start alike."""

from __future__ import annotations

import sys
import types
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_meta.errors import UserError
from lightning_meta.multitask import CGC, MixtureOfExperts, MultiHead
from lightning_meta.nn import MLP
from lightning_meta.weightings import CAGrad
from tests.multitask.test_modules import made, spec_of
from tests.multitask.toys import data, train

ROWS = {"sum": torch.tensor([0, 3]), "sign": torch.tensor([1, 3, 4])}


def inputs() -> Tensor:
    return torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_cgc_is_its_equations() -> None:
    module, x = made(CGC, spec_of(), shared_experts=2, own_experts=2), inputs()
    found = module(x, ROWS)
    shared, *own = module.backbone
    for name, i in ROWS.items():
        k = module.names.index(name)
        for row, example in zip(found[name], x[i], strict=True):
            weights = (module.gates[k].weight @ example).exp()
            experts = torch.stack([expert(example[None])[0] for expert in (*shared, *own[k])])
            expected = module.heads[k]((weights / weights.sum()) @ experts)
            torch.testing.assert_close(row, expected, rtol=1e-12, atol=1e-12)
    weights = [torch.cat([p.flatten() for p in e.parameters()]) for of in module.backbone for e in of]
    assert len({tuple(w.tolist()) for w in weights}) == 2 + 3 * 2, "experts that start equal"


def test_cgc_equals_libmtl() -> None:
    if "torchvision" not in sys.modules:
        pytest.importorskip("torchvision", exc_type=ImportError)
    utils: Any = types.ModuleType("torchvision.models.utils")  # of an older torchvision, which LibMTL imports
    utils.load_state_dict_from_url = torch.hub.load_state_dict_from_url
    sys.modules.setdefault("torchvision.models.utils", utils)
    peer = pytest.importorskip("LibMTL.architecture.CGC", exc_type=ImportError)
    module, x = made(CGC, spec_of(), shared_experts=2, own_experts=1), inputs()
    names = module.names
    heads = nn.ModuleDict(dict(zip(names, module.heads, strict=True)))
    device = torch.device("cpu")
    encoder = partial(MLP, 4, (12, 12))
    options = {"img_size": [4], "num_experts": [2, 1, 1, 1]}
    theirs = peer.CGC(names, encoder, heads, rep_grad=False, multi_input=False, device=device, **options).double()
    shared, *own = module.backbone
    theirs.experts_shared.load_state_dict(shared.state_dict())
    for name, experts, gate in zip(names, own, module.gates, strict=True):
        theirs.experts_specific[name].load_state_dict(experts.state_dict())
        theirs.gate_specific[name][0].weight.data.copy_(gate.weight.data)
        theirs.gate_specific[name][0].bias.data.zero_()
    expected = theirs(x)
    found = module(x, {name: torch.arange(5) for name in names})
    for name in names:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-12, atol=1e-12)
    ours = torch.autograd.grad(sum(y.square().sum() for y in found.values()), list(shared.parameters()))
    peers = torch.autograd.grad(
        sum(y.square().sum() for y in expected.values()), list(theirs.experts_shared.parameters())
    )
    for one, other in zip(ours, peers, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_without_own_experts_it_is_a_mixture_of_experts() -> None:
    spec, x = spec_of(), inputs()
    ours, mixture = made(CGC, spec, shared_experts=3, own_experts=0), made(MixtureOfExperts, spec, experts=3)
    for name, outputs in mixture(x, ROWS).items():
        torch.testing.assert_close(ours(x, ROWS)[name], outputs, rtol=0, atol=0)


@pytest.mark.parametrize("method", [MixtureOfExperts, CGC])
def test_experts_that_start_alike_begin_as_one_network_and_part(method: Any) -> None:
    spec, x = spec_of(), inputs()
    alike, one = made(method, spec, same_start=True), made(MultiHead, spec)
    for name, outputs in one(x, ROWS).items():
        torch.testing.assert_close(alike(x, ROWS)[name], outputs, rtol=1e-12, atol=1e-12)
    trained = train(method, data(), 3, same_start=True)
    experts = list(trained.backbone) if method is MixtureOfExperts else [e for of in trained.backbone for e in of]
    weights = [torch.cat([p.flatten() for p in expert.parameters()]) for expert in experts]
    for i, w in enumerate(weights):
        assert all(float((w - other).detach().abs().max()) > 1e-4 for other in weights[:i])


def test_own_experts_and_gates_are_no_part_of_what_cagrad_combines() -> None:
    module: Any = train(CGC, data(), 3, weighting=CAGrad())
    shared = {id(p) for p in module.shared_parameters()}
    assert shared == {id(p) for p in module.backbone[0].parameters()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shared_experts": 0}, "shared_experts: at least 1 is needed, got 0"),
        ({"own_experts": -1}, "own_experts: at least 0 is needed, got -1"),
        ({"same_start": "no"}, "same_start: True or False is needed, got 'no'"),
    ],
)
def test_mistakes_are_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        CGC(MLP(4, (8,)), **options)
