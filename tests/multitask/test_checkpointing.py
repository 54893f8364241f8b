"""A backbone that recomputes activations (`torch.utils.checkpoint`) has the same gradients as one that keeps them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import lightning_meta as lm
from lightning_meta.errors import UserError
from lightning_meta.tasks import Regression, TasksSpec
from tests import methods
from tests.multitask.test_modules import made

SPEC = TasksSpec({"a": Regression(1), "b": Regression(1)}, dict.fromkeys("ab", (4,)))
BATCHES = [
    {"b": torch.tensor([3, 0]), "a": torch.tensor([1, 3])},
    {"a": torch.tensor([2, 0]), "b": torch.tensor([1, 4])},  # as many rows, of the other tasks
    {"a": torch.tensor([0, 1, 2])},
]
OPTIONS: dict[str, dict[str, Any]] = {
    "Conditioned": {"enters": "film", "at": (1,)},
    "Grouped": {"groups": [["a"], ["b"]]},
}


class Network(nn.Module):
    """Two layers, recomputed in the backward pass or not."""

    def __init__(self, recomputes: bool, reentrant: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4 if i == 0 else 6, 6), nn.Tanh()) for i in range(2))
        self.recomputes, self.reentrant = recomputes, reentrant

    def stages(self) -> list[nn.Module]:
        return list(self.layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=self.reentrant) if self.recomputes else layer(x)
        return x


def gradients(method: str, recomputes: bool, reentrant: bool, **options: Any) -> tuple[Any, dict[str, Tensor]]:
    module = made(
        getattr(lm, method), SPEC, backbone=Network(recomputes, reentrant), **OPTIONS.get(method, {}), **options
    )
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    x = torch.randn(5, 4, generator=generator, dtype=torch.float64).requires_grad_()
    outputs = [y for rows in BATCHES for y in module(x, rows).values()]  # several forward passes before the backward
    sum(y.square().sum() for y in outputs).backward()
    return module, {"x": x.grad, **{n: p.grad for n, p in module.named_parameters() if p.grad is not None}}


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # as the shapes are looked for
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("method", [m for m in methods.MULTI_TASK if m != "Linear"])
def test_gradients_are_the_same(method: str, reentrant: bool) -> None:
    _, expected = gradients(method, False, reentrant)
    module, found = gradients(method, True, reentrant)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-10)
    assert not any(m._forward_hooks for m in module.modules())  # what a backward pass needs is gone after it


def test_updates_of_a_backward_pass_that_failed_are_gone_in_the_next_forward_pass() -> None:
    module, _ = gradients("LoRA", True, False)
    x = torch.randn(5, 4, dtype=torch.float64)
    wanted = module(x, BATCHES[0])
    y = module(x, BATCHES[1])["a"]
    module.backbone.layers[1][0].weight.register_hook(_fail)
    with pytest.raises(RuntimeError, match="fails"):
        y.sum().backward()
    for name, y in module(x, BATCHES[0]).items():
        torch.testing.assert_close(y, wanted[name], rtol=1e-12, atol=1e-12)


def _fail(gradient: Tensor) -> None:
    raise RuntimeError("fails")


def test_networks_under_vmap_are_refused_or_run_in_a_loop(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UserError, match=r"strategy: vmap cannot run the networks: torch\.utils\.checkpoint is not"):
        gradients("Independent", True, False, strategy="vmap")
    module = made(lm.Independent, SPEC, backbone=Network(True, False))
    module._strategy_for = lambda tasks, count: "loop" if module._loops else "vmap"  # as on a GPU
    x = torch.randn(5, 4, dtype=torch.float64)
    sum(y.sum() for y in module(x, BATCHES[0]).values()).backward()
    assert "tasks are visited in a loop" in caplog.text
    assert all(p.grad is not None for p in module.parameters())
