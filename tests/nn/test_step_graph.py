"""Steps that are recorded and played give what the steps themselves give, or are not recorded, and a line says why.

A recorder of operations stands in for CUDA's graphs; `tests/gpu/test_graphs.py` has these on a card.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn

import lightning_meta as lm
from lightning_meta.batches import Examples
from lightning_meta.cli import main
from lightning_meta.meta.base import Outcome
from lightning_meta.nn import MLP, step_graph
from lightning_meta.nn.step_key import step_key
from lightning_meta.testing.toys import pictures
from tests.methods import META, OF_SINES, conv4, sines
from tests.nn import recorder
from tests.nn.recorder import SGD, fitted, recorded


def same(make: Callable[..., lm.MetaModule], data: Callable[[], Any] = pictures, **trainer: Any) -> lm.MetaModule:
    return recorder.same(make, data, **trainer)


def maml(**options: Any) -> lm.MAML:
    return lm.MAML(conv4(), inner_lr=0.1, inner_steps=2, batch_norm="inductive", **options)


def of(network: nn.Module) -> Callable[..., lm.MetaModule]:
    """ProtoNet on a copy of a network."""
    return lambda **options: lm.ProtoNet(copy.deepcopy(network), **options)


# What is recorded gives the same.


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in ("MAML", "ProtoNet") else pytest.mark.slow) for n in META]
)
def test_recorded_training_and_evaluation_are_those_of_the_steps(name: str) -> None:
    """9 training steps and 4 validations: all but the first of each kind are played."""
    module = same(META[name], sines if name in OF_SINES else pictures)
    assert not module._graphs.obstacle
    if name == "MAMLPlusPlus":  # whose loss changes after three steps
        assert module._graphs.captured == 3
    else:
        assert module._graphs.captured == 2
        assert module._graphs.replays >= 8 + 2


@pytest.mark.parametrize(
    "trainer",
    [{"accumulate_grad_batches": 2}, {"gradient_clip_val": 0.01}, {"precision": "bf16-mixed"}],
    ids=["accumulated", "clipped", "bf16"],
)
def test_recorded_steps_are_accumulated_clipped_and_cast_as_others(trainer: dict[str, Any]) -> None:
    assert same(META["ProtoNet"], **trainer)._graphs.replays


class Dropping(nn.Module):
    """Draws random numbers, and counts its passes in a buffer that changes in place."""

    passes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.drop = nn.Linear(256, 8), nn.Dropout(0.5)
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return self.drop(self.linear(x.flatten(1)))


def test_random_layers_draw_anew_and_buffers_change_in_every_step() -> None:
    module = same(of(nn.Sequential(nn.Flatten(), nn.Linear(256, 8), nn.Dropout(0.5))))
    assert module._graphs.captured == 2
    counted = same(of(Dropping()))
    assert counted._graphs.captured == 2
    assert counted.get_buffer("backbone.passes") >= 9


def test_evaluation_that_changes_a_buffer_is_not_recorded() -> None:
    """A replay changes the buffer without a new version number, so it would not be restored."""
    network = Dropping().eval()
    graphs = recorded(lm.ProtoNet(MLP(4, (3,)), graph="auto"))._graphs
    for passes in range(1, 4):
        with torch.inference_mode():
            graphs.values(network, network, torch.ones(2, 256))
        assert network.passes == passes
    assert "changes a buffer" in graphs.obstacle


def test_parameters_that_move_are_recorded_anew() -> None:
    class Moving(lm.ProtoNet):
        def on_train_epoch_start(self) -> None:
            for p in self.parameters():
                p.data = p.data.clone()

    # More often than graphs are kept: those of weights that are gone make room.
    assert same(lambda **options: Moving(MLP(256, (8,)), **options), max_epochs=12)._graphs.captured == 1


@pytest.mark.filterwarnings("ignore:You.re using the WeightAveraging")
def test_weights_can_be_averaged_and_modules_copied_and_pickled() -> None:
    module = same(META["ProtoNet"], callbacks=[WeightAveraging()])
    assert module._graphs.captured == 2
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert other._graphs.captured == 0


# What cannot be recorded runs as it is.


class Waits(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(1)) * (1.0 if float(x.sum()) > 0 else -1.0)


class ReadsTheStep(lm.ProtoNet):
    def task_loss(self, support: Examples, query: Examples, ways: int) -> Outcome:
        outcome = super().task_loss(support, query, ways)
        return outcome._replace(loss=outcome.loss / (1 + self.global_step))


def hooked(**options: Any) -> lm.ProtoNet:
    network = MLP(256, (8,))
    network.register_forward_hook(lambda module, inputs, outputs: 2 * outputs)
    return lm.ProtoNet(network, **options)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (of(Waits(256, 8)), "runs? without a CUDA graph from here on: .*_local_scalar_dense"),
        (hooked, "MLP has a hook, which a graph does not call"),
        (lambda **options: ReadsTheStep(MLP(256, (8,)), **options), "reads the number of the step or epoch"),
    ],
    ids=["waits for a value", "hook", "step"],
)
def test_what_cannot_be_recorded_runs_as_it_is_and_one_line_says_why(
    make: Callable[..., lm.MetaModule], line: str, caplog: pytest.LogCaptureFixture
) -> None:
    module = same(make)
    assert module._graphs.captured == 0
    lines = [record.getMessage() for record in caplog.records if record.name.endswith("step_graph")]
    assert len(lines) == 1
    assert lines[0].startswith("graph: ")
    assert "without a CUDA graph" in lines[0]
    assert module._graphs.obstacle in lines[0]


def test_a_number_that_the_key_does_not_see_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    """A captured graph would freeze the value without a warning."""
    calls = {"count": 0}

    class Hidden(lm.ProtoNet):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            super().on_train_batch_start(batch, batch_idx)
            calls["count"] += 1

        def task_loss(self, support: Examples, query: Examples, ways: int) -> Outcome:
            outcome = super().task_loss(support, query, ways)
            return outcome._replace(loss=outcome.loss * calls["count"])

    module = fitted(lambda **options: Hidden(MLP(256, (8,)), **options), "auto", pictures())
    assert "after 1 steps the relative difference between the captured" in module._graphs.obstacle
    assert module._graphs.obstacle in caplog.text


class Stores(nn.Linear):
    """Keeps its input."""

    def forward(self, x: Tensor) -> Tensor:
        self.last = x
        return super().forward(x)


def test_a_tensor_in_an_attribute_is_noticed() -> None:
    """A replay would leave the tensor of the capture in the attribute."""
    graphs, network, x = recorded(lm.ProtoNet(MLP(4, (3,)), graph="auto"))._graphs, Stores(4, 3), torch.ones(2, 4)
    for _ in range(3):
        graphs.loss(lambda x: (network(x).square().mean(), None), network, x)
        assert network.last is x
    assert "Stores stores a tensor in last, which a replay would not" in graphs.obstacle


def test_constants_of_a_step_are_made_once() -> None:
    """Making a tensor of numbers on a GPU waits for it, which a graph cannot."""
    x, network = torch.randn(2, 4), nn.Linear(4, 3)

    def step(x: Tensor) -> tuple[Tensor, Tensor]:
        changed = torch.tensor([1.0, 2.0, 3.0])
        changed += x.new_tensor([[1.0, 1.0, 1.0]])[0]  # of a copy
        rows = network(x)[[1, 0]] * changed
        return rows.square().sum(), rows[:, [2, 0]]

    graphs = recorded(lm.ProtoNet(MLP(4, (3,)), graph="auto"))._graphs
    for _ in range(4):
        loss, found = graphs.loss(step, network, x)
        expected = network(x)[[1, 0]] * torch.tensor([2.0, 3.0, 4.0])
        assert torch.equal(loss, expected.square().sum())
        assert torch.equal(found, expected[:, [2, 0]])
    assert (graphs.captured, graphs.replays) == (1, 3)


def test_a_step_whose_numbers_change_from_run_to_run_is_not_recorded() -> None:
    graphs, network, runs = recorded(lm.ProtoNet(MLP(4, (3,)), graph="auto"))._graphs, nn.Linear(4, 3), iter(range(99))
    for _ in range(3):
        graphs.loss(lambda x: (network(x).sum() * torch.tensor([next(runs)]).sum(), None), network, torch.ones(2, 4))
    assert "numbers that change from run to run" in graphs.obstacle


def test_the_number_of_graphs_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    graphs, network = recorded(lm.ProtoNet(MLP(4, (3,)), graph="auto"))._graphs, nn.Linear(4, 3)
    for _ in range(3):
        for count in range(1, 101):
            x = torch.randn(count, 4)
            loss, others = graphs.loss(lambda x: (network(x).square().mean(), x.sum()), network, x)
            assert loss == network(x).square().mean()
            assert others == x.sum()
    assert graphs.captured == step_graph.GRAPHS
    assert len(graphs._kinds) == step_graph.KINDS
    assert caplog.text.count("graph: ") == 1


def test_options_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(lm.UserError, match="give compile or graph: auto, not both"):
        lm.MAML(MLP(4, (3,)), compile=True, graph="auto")
    with pytest.raises(lm.UserError, match="graph"):
        lm.MAML(MLP(4, (3,)), graph="always")


def test_off_means_off_in_yaml_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "off.yaml").write_text("model:\n  class_path: lightning_meta.ProtoNet\n  init_args: {graph: off}\n")
    config = str(Path(__file__).parents[2] / "configs" / "protonet_glyphs.yaml")
    for given in (["--config", str(tmp_path / "off.yaml")], ["--model.graph=off"]):
        with pytest.raises(SystemExit, match="0"):
            main(["fit", "--config", config, *given, "--print_config"])
        printed = capsys.readouterr().out
        assert "graph: false" in printed or "graph: 'off'" in printed
    assert lm.ProtoNet(MLP(4, (3,)), graph=False).graph == "off"
    assert main(["fit", "--config", config, "--model.graph=on"]) == 2
    assert "--model.graph: expected 'off' or 'auto', got on" in capsys.readouterr().err


def test_on_a_cpu_there_is_nothing_to_record(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    module = lm.ProtoNet(MLP(256, (8,)), graph="auto", optimizer=SGD)
    L.Trainer(fast_dev_run=2, accelerator="cpu", logger=False, enable_progress_bar=False).fit(module, pictures())
    assert "graph: steps run without a CUDA graph: the inputs are on cpu" in caplog.text


@pytest.mark.parametrize("ended_by_cuda", [True, False])
def test_a_failed_capture_leaves_stream_and_generator_as_they_were(
    ended_by_cuda: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch restores neither after a CUDA error in a capture; `tests/gpu/test_graphs.py` tests this on a GPU."""
    before, capturing = (SimpleNamespace(device_index=0, stream_id=i) for i in range(2))
    current, pool, calls = [before], (0, 7), []

    class Generator:
        def clone_state(self) -> str:
            return "copy"

        def graphsafe_set_state(self, state: str) -> None:
            calls.append(("generator", state))

    @contextmanager
    def graph(*_: Any, **__: Any) -> Iterator[None]:
        current.append(capturing)
        try:
            yield
        finally:
            if ended_by_cuda:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
            current.append(before)

    def fails() -> None:
        raise RuntimeError("in the step")

    fakes: dict[str, Any] = {
        "CUDAGraph": object, "graph_pool_handle": lambda: pool, "device": lambda _: nullcontext(), "graph": graph,
        "current_stream": lambda _: current[-1], "set_stream": current.append, "default_generators": [Generator()],
    }  # fmt: skip
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
        monkeypatch.setattr(torch._C, name, lambda *given, name=name: calls.append((name, *given)), raising=False)
    monkeypatch.setattr(step_graph, "_ended_by_cuda", [], raising=False)
    with pytest.raises(RuntimeError):
        step_graph.cuda_graph(fails, torch.device("cuda", 0))
    assert current[-1] is before
    cleaned = [("generator", "copy"), ("_cuda_endAllocateToPool", 0, pool), ("_cuda_releasePool", 0, pool)]
    assert calls == (cleaned if ended_by_cuda else [])


# Keys.


@dataclass
class Settings:
    rate: float = 1.0


class Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.register_buffer("mean", torch.zeros(2))
        self.steps, self.rates, self.names, self.mask = 5, [0.1, 0.2], {"a": 1.0}, torch.ones(2)
        self.kinds, self.share, self.settings = {1, 2}, np.float32(0.5), Settings()


CHANGES: dict[str, Callable[[Part], object]] = {
    "mode": lambda part: part.eval(),
    "number": lambda part: setattr(part, "steps", 6),
    "list": lambda part: part.rates.append(0.3),
    "dictionary": lambda part: part.names.update(a=2.0),
    "frozen": lambda part: part.requires_grad_(False),
    "parameter": lambda part: setattr(part.weight, "data", torch.ones(2)),
    "buffer": lambda part: setattr(part, "mean", torch.zeros(2)),
    "set": lambda part: part.kinds.add(3),
    "number of NumPy": lambda part: setattr(part, "share", np.float32(0.25)),
    "attribute of an object": lambda part: setattr(part.settings, "rate", 2.0),
    "another object": lambda part: setattr(part, "settings", Settings()),
    "kept tensor": lambda part: setattr(part, "mask", torch.ones(2)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_key_tells_what_a_step_reads(change: str) -> None:
    part, x = Part(), torch.ones(2)
    before = step_key([part], (x, 5), frozenset())
    assert step_key([part], (torch.zeros(2), 5), frozenset()) == before
    kept = part.mean, part.mask, part.weight.data  # so that new ones lie elsewhere
    CHANGES[change](part)
    assert step_key([part], (x, 5), frozenset()) != before
    del kept


def test_a_list_that_holds_itself_has_a_key() -> None:
    part = Part()
    part.rates.append(part.rates)  # type: ignore[arg-type]
    key = step_key([part], (torch.ones(2),), frozenset())
    assert hash(key) == hash(step_key([part], (torch.ones(2),), frozenset()))


def test_a_key_tells_inputs_and_switches_apart() -> None:
    part, x = Part(), torch.ones(4, 2)
    before = step_key([part], (x, 5), frozenset())
    assert step_key([part], (x, 6), frozenset()) != before
    assert step_key([part], (x[:3], 5), frozenset()) != before
    assert step_key([part], (x.double(), 5), frozenset()) != before
    assert step_key([part], (torch.ones(2, 4).T, 5), frozenset()) != before
    with torch.no_grad():
        assert step_key([part], (x, 5), frozenset()) != before
    with torch.autocast("cpu", torch.bfloat16):
        assert step_key([part], (x, 5), frozenset()) != before
    assert step_key([part], (x, 5), frozenset({"steps"})) != before
