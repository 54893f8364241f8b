"""Experts that are mixed by gates: CGC and PLE against their equations and LibMTL, and experts that start alike."""

from __future__ import annotations

import sys
import types
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_meta.errors import UserError
from lightning_meta.multitask import CGC, PLE, MixtureOfExperts, MultiHead
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


def of_libmtl(method: str) -> Any:
    if "torchvision" not in sys.modules:
        pytest.importorskip("torchvision", exc_type=ImportError)
    utils: Any = types.ModuleType("torchvision.models.utils")  # of an older torchvision, which LibMTL imports
    utils.load_state_dict_from_url = torch.hub.load_state_dict_from_url
    sys.modules.setdefault("torchvision.models.utils", utils)
    return pytest.importorskip(f"LibMTL.architecture.{method}", exc_type=ImportError)


def test_cgc_equals_libmtl() -> None:
    peer = of_libmtl("CGC")
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


def ple_of_one(module: Any, name: str, x: Tensor) -> Tensor:
    """Equations 5 and 6 for one input `(F,)` of one task."""
    *lower, (shared, *own) = module.backbone
    seen = dict.fromkeys(module.names, x)
    of_shared = x

    def weighted(gate: Any, looks_at: Tensor, experts: list[Tensor]) -> Tensor:
        weights = (gate.weight @ looks_at).exp()
        return (weights / weights.sum()) @ torch.stack(experts)

    for j, (for_all, *for_one) in enumerate(lower):
        common = [expert(of_shared[None])[0] for expert in for_all]
        special = {
            n: [expert(seen[n][None])[0] for expert in experts]
            for n, experts in zip(module.names, for_one, strict=True)
        }
        every = [*common, *(f for features in special.values() for f in features)]
        of_shared = weighted(module.shared_gates[j], of_shared, every)
        seen = {n: weighted(module.gates[k][j], seen[n], [*common, *special[n]]) for k, n in enumerate(module.names)}
    k = module.names.index(name)
    last = [e(of_shared[None])[0] for e in shared] + [e(seen[name][None])[0] for e in own[k]]
    outputs: Tensor = module.heads[k](weighted(module.gates[k][-1], seen[name], last))
    return outputs


@pytest.mark.parametrize("stages", [1, 2])
def test_ple_is_its_equations(stages: int) -> None:
    options: dict[str, Any] = {
        "backbone": MLP(4, (6, 5, 7)),
        "shared_experts": 2,
        "own_experts": 2,
        "stages_per_level": stages,
    }
    module, x = made(PLE, spec_of(), **options), inputs()
    assert len(module.backbone) == (3 if stages == 1 else 2)
    found = module(x, ROWS)
    for name, i in ROWS.items():
        expected = torch.stack([ple_of_one(module, name, example) for example in x[i]])
        torch.testing.assert_close(found[name], expected, rtol=1e-12, atol=1e-12)
    weights = [
        torch.cat([p.flatten() for p in e.parameters()]) for level in module.backbone for of in level for e in of
    ]
    assert len({tuple(w.tolist()) for w in weights}) == len(module.backbone) * (2 + 3 * 2), "experts that start equal"


def test_what_is_a_tasks_own_in_ple_has_no_gradient_of_another_task() -> None:
    module, x = made(PLE, spec_of(), backbone=MLP(4, (6, 5, 7))), inputs()
    parameters = dict(module.named_parameters())
    reached = []
    for name in module.names:
        (output,) = module(x, {name: torch.arange(5)}).values()
        found = torch.autograd.grad(output.square().sum(), list(parameters.values()), allow_unused=True)
        reached.append({key for key, g in zip(parameters, found, strict=True) if g is not None})
    for task in range(3):
        ids = {id(p) for part in module.own_modules(task) for p in part.parameters()}
        own = {key for key, p in parameters.items() if id(p) in ids}
        others = set.union(*(of for k, of in enumerate(reached) if k != task))
        assert own == reached[task] - others


def test_ple_of_one_level_is_cgc() -> None:
    spec, x = spec_of(), inputs()
    ours, cgc = (made(method, spec, backbone=MLP(4, (6,)), shared_experts=2) for method in (PLE, CGC))
    for mine, theirs in zip(ours.backbone[0], cgc.backbone, strict=True):
        for expert, other in zip(mine, theirs, strict=True):
            other.load_state_dict(dict(zip(other.state_dict(), expert.state_dict().values(), strict=True)))
    for task in range(3):
        cgc.gates[task].load_state_dict(ours.gates[task][0].state_dict())
        cgc.heads[task].load_state_dict(ours.heads[task].state_dict())
    for name, outputs in cgc(x, ROWS).items():
        torch.testing.assert_close(ours(x, ROWS)[name], outputs, rtol=1e-12, atol=1e-12)


class OfLibMTL(nn.Module):
    """An expert in the five parts that LibMTL cuts a ResNet into."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu, self.maxpool = nn.Linear(4, 6), nn.Identity(), nn.ReLU(), nn.Identity()
        self.layer1, self.layer2, self.layer3, self.layer4 = (nn.Sequential(nn.Linear(6, 6), nn.ReLU()) for _ in "1234")


def test_ple_equals_libmtl_for_one_task() -> None:
    """LibMTL has no shared gates; with one task they choose among the same experts as the task's gates."""
    peer = of_libmtl("PLE")
    module, x = made(PLE, spec_of(("sum",)), backbone=MLP(4, (6,) * 5), shared_experts=2), inputs()
    heads = nn.ModuleDict({"sum": module.heads[0]})
    options = {"img_size": [4], "num_experts": [2, 1]}
    theirs = peer.PLE(["sum"], OfLibMTL, heads, rep_grad=False, multi_input=False, device="cpu", **options).double()
    for j, (shared, own) in enumerate(module.backbone):
        parts = [*theirs.encoder.shared_layer[str(j)], *theirs.encoder.specific_layer[str(j)]["sum"]]
        for expert, part in zip([*shared, *own], parts, strict=True):
            part.load_state_dict(dict(zip(part.state_dict(), expert.state_dict().values(), strict=True)))
        gate = theirs.encoder.gate_specific["sum"][j][0]
        gate.weight.data.copy_(module.gates[0][j].weight.data)
        gate.bias.data.zero_()
        if j < 4:
            module.shared_gates[j].load_state_dict(module.gates[0][j].state_dict())
    torch.testing.assert_close(module(x, {"sum": torch.arange(5)})["sum"], theirs(x)["sum"], rtol=1e-12, atol=1e-12)


def test_without_own_experts_it_is_a_mixture_of_experts() -> None:
    spec, x = spec_of(), inputs()
    ours, mixture = made(CGC, spec, shared_experts=3, own_experts=0), made(MixtureOfExperts, spec, experts=3)
    for name, outputs in mixture(x, ROWS).items():
        torch.testing.assert_close(ours(x, ROWS)[name], outputs, rtol=0, atol=0)


@pytest.mark.parametrize("method", [MixtureOfExperts, CGC, PLE])
def test_experts_that_start_alike_begin_as_one_network_and_part(method: Any) -> None:
    spec, x = spec_of(), inputs()
    alike, one = made(method, spec, same_start=True), made(MultiHead, spec)
    for name, outputs in one(x, ROWS).items():
        torch.testing.assert_close(alike(x, ROWS)[name], outputs, rtol=1e-12, atol=1e-12)
    trained = train(method, data(), 3, same_start=True)
    experts = list(trained.backbone) if method is MixtureOfExperts else [e for of in trained.backbone for e in of]
    if method is PLE:
        experts = [e for of in trained.backbone[-1] for e in of]
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
