"""Training and evaluation by CUDA graphs give what the steps themselves give, to rounding."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

import lightning_meta as lm
from lightning_meta.nn import MLP
from lightning_meta.testing.toys import pictures
from tests.gpu.card import SLOW_ON_CPU, trainer
from tests.meta.oracles import relative_error
from tests.methods import META, OF_SINES, sines
from tests.nn.recorder import recorded

# Solvers that wait for the device, or choose by values: they run as they are, and a line says so.
NOT_CAPTURED = ("Baseline", "MetaOptNet", "PTMAP", "R2D2", "RFS", "TIM")


class Losses(L.Callback):
    """The loss of each step."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append(outputs["loss"].detach().clone())


def weights(module: nn.Module) -> Tensor:
    return torch.cat([tensor.double().cpu().flatten() for tensor in module.state_dict().values()])


def trained(
    name: str, graph: str, device: torch.device, data: Any = None, **options: Any
) -> tuple[lm.MetaModule, Tensor, Any]:
    """A module after four epochs, its losses, and what a test gives."""
    L.seed_everything(0, verbose=False)
    module = META[name](graph=graph, optimizer=partial(torch.optim.SGD, lr=0.05))
    module = module if device.type == "cuda" else recorded(module)
    losses = Losses()
    runs = trainer(device, max_epochs=4, callbacks=[losses], **options)
    given = data or (sines() if name in OF_SINES else pictures())
    runs.fit(module, datamodule=given)
    (tested,) = runs.test(module, datamodule=given, verbose=False)
    return module, torch.stack(losses.seen).double().cpu(), tested


@pytest.mark.parametrize("name", META)
@pytest.mark.parametrize("where", SLOW_ON_CPU[1:])
def test_every_method_trains_as_without_graphs(name: str, where: str, caplog: pytest.LogCaptureFixture) -> None:
    device = torch.device(where)
    torch.backends.cudnn.allow_tf32 = False
    plain, expected, tested = trained(name, "off", device)
    module, losses, found = trained(name, "auto", device)
    print(f"{name}: {module._graphs.captured} graphs, {module._graphs.replays} replays, {module._graphs.obstacle!r}")
    assert relative_error(losses, expected) < 1e-3
    assert relative_error(weights(module), weights(plain)) < 1e-3
    assert found["test/loss"] == pytest.approx(tested["test/loss"], rel=1e-2)
    if name not in NOT_CAPTURED:
        assert not module._graphs.obstacle
        assert module._graphs.replays > 8


CASES: dict[str, dict[str, Any]] = {
    "bf16": {"precision": "bf16-mixed"},
    "accumulated": {"accumulate_grad_batches": 2},
    "clipped": {"gradient_clip_val": 0.1},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["MAML", "ProtoNet"])
@pytest.mark.parametrize("where", SLOW_ON_CPU[1:])
def test_graphs_live_with_the_trainers_options(name: str, case: str, where: str) -> None:
    device = torch.device(where)
    torch.backends.cudnn.allow_tf32 = False
    plain, expected, _ = trained(name, "off", device, **CASES[case])
    module, losses, _ = trained(name, "auto", device, **CASES[case])
    bound = 0.05 if case == "bf16" else 1e-3
    assert relative_error(losses, expected) < bound
    assert relative_error(weights(module), weights(plain)) < bound
    assert not module._graphs.obstacle
    assert module._graphs.replays > 8


@pytest.mark.parametrize("where", SLOW_ON_CPU[1:])
def test_float16_with_a_scaler_trains(where: str) -> None:
    module, losses, _ = trained("ProtoNet", "auto", torch.device(where), precision="16-mixed")
    assert torch.isfinite(losses).all()
    assert "float16" in module._graphs.obstacle


@pytest.mark.parametrize("where", SLOW_ON_CPU[1:])
def test_random_layers_draw_anew_in_every_replay(where: str) -> None:
    device = torch.device(where)
    graphs = recorded(lm.ProtoNet(MLP(4, (3,)), graph="auto"))._graphs
    graphs.recorder = None
    network = nn.Sequential(nn.Linear(8, 64), nn.Dropout(0.5)).to(device)
    x = torch.ones(16, 8, device=device)
    # No loss is kept: the nodes of its gradient, from the stream of an ordinary step, would be part of the capture.
    step = partial(graphs.loss, lambda x: (network(x).square().mean(), None), network, x)
    losses = [float(step()[0].detach()) for _ in range(6)]
    assert graphs.replays == 5
    assert len(set(losses)) == 6


@pytest.mark.parametrize("where", SLOW_ON_CPU[1:])
def test_a_network_that_waits_for_a_value_runs_as_it_is(where: str, caplog: pytest.LogCaptureFixture) -> None:
    class Waits(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.flatten(1)) * (1.0 if float(x.sum()) > 0 else -1.0)

    caplog.set_level(logging.WARNING)
    module = lm.ProtoNet(Waits(256, 8), graph="auto")
    trainer(torch.device(where), max_epochs=2).fit(module, pictures())
    assert module._graphs.captured == 0
    assert "graph: steps run without a CUDA graph from here on" in caplog.text


@pytest.mark.parametrize("where", SLOW_ON_CPU[1:])
def test_after_a_capture_that_cuda_ends_training_goes_on_as_it_is(where: str, caplog: pytest.LogCaptureFixture) -> None:
    class Waits(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            torch.cuda.current_stream().synchronize()  # which only the capture itself refuses
            return super().forward(x.flatten(1))

    caplog.set_level(logging.WARNING)
    device = torch.device(where, 0)
    stream = torch.cuda.current_stream(device)
    module = lm.ProtoNet(nn.Sequential(Waits(256, 8), nn.Dropout(0.5)), graph="auto")
    losses = Losses()
    trainer(device, max_epochs=2, callbacks=[losses]).fit(module, pictures())
    assert module._graphs.captured == 0
    assert "graph: steps run without a CUDA graph from here on" in caplog.text
    assert torch.isfinite(torch.stack(losses.seen)).all()
    assert torch.cuda.current_stream(device) == stream
    assert torch.rand(2, device=device).unique().numel() == 2
    again, _, _ = trained("ProtoNet", "auto", device)
    assert again._graphs.replays > 8


@pytest.mark.parametrize("where", SLOW_ON_CPU[1:])
def test_an_ordinary_captured_step_does_not_wait(where: str) -> None:
    """torch raises where the CPU would wait for the GPU."""
    device = torch.device(where)
    data = pictures()
    data.prepare_data()
    data.setup("fit")
    module = META["MAML"](graph="auto", episodes=data.spec).train().to(device)
    batch = data.transfer_batch_to_device(next(iter(data.train_dataloader())), device, 0)
    inputs = module.inputs(batch)
    module.task_map = module._chosen(inputs)
    optimizer = torch.optim.SGD(module.parameters(), 0.01)

    def step() -> None:
        optimizer.zero_grad()
        module.graphed_loss(inputs)[0].backward()
        optimizer.step()

    for _ in range(6):  # the last replay of these is the fifth; the first, second, third and fifth are compared
        step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert module._graphs.replays == 8
