"""Recorded steps of several tasks give what the steps themselves give, or are not recorded, and a line says why.

A recorder of operations stands in for CUDA's graphs; `tests/gpu/test_graphs.py` has these on a card.
"""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import lightning_meta as lm
from lightning_meta import weightings
from lightning_meta.batches import SPLITS, Examples
from lightning_meta.data import MultiTaskDataModule
from lightning_meta.data.task_set import TaskSet
from lightning_meta.multitask import GradientConflict, Independent, MultiHead, MultiTaskModule
from lightning_meta.nn import MLP, step_graph
from lightning_meta.tasks import Classification, Regression, Task
from lightning_meta.testing.toys import sums
from lightning_meta.weightings import Aggregator, LossWeighting, Weighting
from tests.methods import MULTI_TASK, weighting
from tests.multitask.toys import Given
from tests.nn.recorder import SGD, fitted, recorded, same
from tests.ranks import run_driver

METHODS = [name for name in MULTI_TASK if name != "Linear"]  # which is fitted before training, and has no such option
OF_LOSSES = [
    name
    for name in dir(weightings)
    if isinstance(kind := getattr(weightings, name), type)
    and issubclass(kind, Weighting)
    and not issubclass(kind, Aggregator)
    and kind not in (Weighting, LossWeighting, weightings.Equal)
]


def slow_but(names: list[str], *fast: str) -> list[Any]:
    return [pytest.param(n, marks=[] if n in fast else pytest.mark.slow) for n in names]


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.getMessage().startswith("graph: ")]


def some_labels(kind: str) -> MultiTaskDataModule:
    """Four tasks, two of numbers and two of classes, in the order b, d, a, c; labels are missing, or tasks absent."""
    tasks: dict[str, Task] = {"b": Regression(1), "d": Classification(3), "a": Regression(1), "c": Classification(2)}
    generator, sets = torch.Generator().manual_seed(0), {}
    for split in SPLITS:
        x = torch.randn(20, 4, generator=generator)
        y = {"b": 3 * x[:, :1] + 2, "d": x[:, :3].argmax(-1), "a": x[:, 1:2], "c": (x[:, 0] > 0).long()}
        if kind == "absent":
            sets[split] = TaskSet.of_examples({name: Examples(x, targets) for name, targets in y.items()})
        else:
            present = {n: torch.arange(20) % 4 != i for i, n in enumerate(tasks)}
            sets[split] = TaskSet.of_columns(x, y, present)
    options: dict[str, Any] = {"tasks_per_batch": 3} if kind == "absent" else {}
    return MultiTaskDataModule(Given(tasks, sets), batch_size=4, batches_per_epoch=12, seed=0, **options)


# What is recorded gives the same.


@pytest.mark.parametrize("name", slow_but(METHODS, "MultiHead"))
def test_recorded_training_and_evaluation_are_those_of_the_steps(name: str) -> None:
    module = same(MULTI_TASK[name], sums, max_epochs=2)
    assert not module._graphs.obstacle
    assert module._graphs.captured == 2
    assert module._graphs.replays >= 5
    plain = copy.deepcopy(module)
    plain.graph = "off"
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    expected, tested = (
        L.Trainer(accelerator="cpu", **quiet).test(m, sums(), verbose=False) for m in (plain, recorded(module))
    )
    assert tested == expected


@pytest.mark.slow
def test_networks_of_each_task_are_recorded_by_vmap() -> None:
    """The networks have running statistics, which are written back after vmap."""
    network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU())
    module = same(lambda **options: Independent(copy.deepcopy(network), "vmap", **options), sums)
    assert module._graphs.captured == 2


@pytest.mark.parametrize("name", slow_but(OF_LOSSES, "FAMO"))
def test_weightings_of_losses_are_recorded(name: str) -> None:
    kind = getattr(weightings, name)
    module = same(lambda **options: MultiHead(MLP(4, (8,)), weighting=weighting(kind), **options), sums)
    assert not module._graphs.obstacle
    assert module._graphs.captured == 2
    assert module._graphs.replays >= 7 + 2


@pytest.mark.parametrize(("kind", "name"), [("absent", "FAMO"), ("absent", "Uncertainty"), ("missing", "Equal")])
@pytest.mark.slow
def test_tasks_that_are_absent_and_labels_that_are_missing(kind: str, name: str) -> None:
    """Weight decay and momentum would move the heads of absent tasks."""

    def make(**options: Any) -> MultiTaskModule:
        options["optimizer"] = lambda p: torch.optim.AdamW(p, 0.01)
        return MultiHead(MLP(4, (8,)), weighting=weighting(getattr(weightings, name)), **options)

    module = same(make, lambda: some_labels(kind), max_epochs=2)
    assert not module._graphs.obstacle
    assert module._graphs.captured >= 3
    assert module._graphs.replays >= 3


@pytest.mark.parametrize(
    ("name", "trainer"),
    [
        ("Independent", {"accumulate_grad_batches": 2, "gradient_clip_val": 0.01}),
        ("MultiHead", {"precision": "bf16-mixed"}),
    ],
    ids=["accumulated and clipped", "bf16"],
)
@pytest.mark.slow
def test_recorded_steps_are_accumulated_clipped_and_cast_as_others(name: str, trainer: dict[str, Any]) -> None:
    assert same(MULTI_TASK[name], sums, **trainer)._graphs.replays


@pytest.mark.slow
def test_random_layers_draw_anew_in_every_step() -> None:
    module = same(lambda **options: MultiHead(MLP(4, (8,)), head_hidden=(8,), head_dropout=0.5, **options), sums)
    assert module._graphs.captured == 2


@pytest.mark.slow
def test_stems_of_tasks_are_recorded() -> None:
    def make(**options: Any) -> MultiTaskModule:
        stems: dict[str, nn.Module] = {name: nn.Linear(4, 6) for name in ("sum", "largest", "sign")}
        return MultiHead(MLP(6, (8,)), stems=stems, **options)

    assert same(make, sums)._graphs.captured == 2


@pytest.mark.slow
def test_steps_are_recorded_beside_a_watch_of_conflicts(tmp_path: Path) -> None:
    watch = GradientConflict(every_n_steps=2)
    plain = fitted(MULTI_TASK["MultiHead"], "off", sums())
    module = fitted(MULTI_TASK["MultiHead"], "auto", sums(), callbacks=[watch], default_root_dir=tmp_path)
    assert module._graphs.captured == 2
    assert all(torch.equal(t, module.state_dict()[n]) for n, t in plain.state_dict().items())
    rows = (tmp_path / "gradient_conflict.csv").read_text()
    (tmp_path / "gradient_conflict.csv").unlink()
    fitted(MULTI_TASK["MultiHead"], "off", sums(), callbacks=[watch], default_root_dir=tmp_path)
    assert (tmp_path / "gradient_conflict.csv").read_text() == rows


@pytest.mark.filterwarnings("ignore:You.re using the WeightAveraging")
@pytest.mark.slow
def test_weights_can_be_averaged_and_modules_copied_and_pickled() -> None:
    module = same(MULTI_TASK["MultiHead"], sums, callbacks=[WeightAveraging()])
    assert module._graphs.captured == 2
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert other._graphs.captured == 0


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
@pytest.mark.slow
def test_a_resumed_run_continues_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    def make(**options: Any) -> MultiTaskModule:
        return MultiHead(MLP(4, (8,)), weighting=weightings.FAMO(), **options)

    whole = fitted(make, "off", sums(), max_epochs=4)
    stored = ModelCheckpoint(tmp_path, save_last=True, every_n_epochs=1)
    fitted(make, "auto", sums(), max_epochs=2, enable_checkpointing=True, callbacks=[stored])
    torch.manual_seed(1)
    resumed = recorded(make(graph="auto", optimizer=SGD))
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    again = ModelCheckpoint(tmp_path, save_last=True, every_n_epochs=1)
    runs = L.Trainer(max_epochs=4, accelerator="cpu", callbacks=[again], **quiet)
    runs.fit(resumed, sums(), ckpt_path=str(tmp_path / "last.ckpt"), weights_only=True)
    assert resumed._graphs.replays
    assert all(torch.equal(t, resumed.state_dict()[n]) for n, t in whole.state_dict().items())


def test_no_gradient_is_lost_where_predictions_are_differentiated() -> None:
    """Gradients by the inputs show which inputs matter; only evaluation without gradients is recorded."""
    module = fitted(MULTI_TASK["MultiHead"], "auto", sums())
    given = sums()
    given.setup("fit")
    batch = next(iter(given.train_dataloader()))
    x = batch.inputs.requires_grad_()
    for _ in range(3):
        module.selected_outputs(batch)["sum"].sum().backward()
    assert x.grad.abs().max() > 0


@pytest.mark.slow
def test_two_ranks_train_as_without_graphs(tmp_path: Path) -> None:
    """Each rank records on its own: with missing labels, the shapes of each recur in other steps."""
    run_driver("tests.multitask.graphs_driver", tmp_path, 2)
    for rank in range(2):
        found = torch.load(tmp_path / f"rank_{rank}.pt", weights_only=True)
        for name, (expected, state, replays, obstacle) in found.items():
            assert all(torch.equal(t, state[n]) for n, t in expected.items()), name
            assert (replays > 0) == (not name.startswith("FAMO"))
            assert ("exchanges values between ranks" in obstacle) == name.startswith("FAMO")


# What cannot be recorded runs as it is.


@pytest.mark.parametrize("rep_grad", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_gradients_that_are_combined_are_not_recorded(rep_grad: bool, caplog: pytest.LogCaptureFixture) -> None:
    def make(**options: Any) -> MultiTaskModule:
        return MultiHead(MLP(4, (8,)), weighting=weightings.GradNorm(rep_grad=rep_grad), **options)

    if rep_grad:
        module = same(make, lambda: some_labels("missing"))
    else:
        module = same(make, sums)
        assert module._graphs.captured == 1  # evaluation
    (line,) = lines(caplog)
    assert line == (
        "graph: training steps run without a CUDA graph: GradNorm combines the gradients of the tasks, which is not "
        "captured"
    )


@pytest.mark.slow
def test_dropout_by_seeds_of_each_task_is_not_recorded(caplog: pytest.LogCaptureFixture) -> None:
    """The seeds are numbers of Python that change from step to step."""

    class Noisy(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + torch.rand_like(x) if self.training else x)

    for network in (nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5)), Noisy(4, 8)):
        caplog.clear()
        module = same(lambda net=network, **options: Independent(copy.deepcopy(net), "loop", **options), sums)
        assert module._graphs.captured == 1
        (line,) = lines(caplog)
        assert "the networks draw random numbers, by seeds" in line


@pytest.mark.slow
def test_shapes_that_do_not_recur_are_not_recorded(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    module = same(MULTI_TASK["MultiHead"], lambda: some_labels("missing"), max_epochs=6)
    assert module._graphs.captured <= step_graph.GRAPHS
    assert len(module._graphs._kinds) <= step_graph.KINDS
    assert len(lines(caplog)) <= 1


class Remembers(LossWeighting):
    """Keeps a tensor of the step in an attribute, which a replay would not set."""

    def weigh(self, losses: Tensor, present: Tensor) -> Tensor:
        before = getattr(self, "seen", losses)
        self.seen = losses
        return losses / before


@pytest.mark.slow
def test_a_weighting_that_keeps_a_tensor_in_an_attribute_works_as_before() -> None:
    module = same(lambda **options: MultiHead(MLP(4, (8,)), weighting=Remembers(), **options), sums, max_epochs=30)
    assert module._graphs.captured <= 1  # evaluation


class Counts(Weighting):
    """Weights from a number that changes in every step; they are an input of the graph."""

    seen = 0

    def configure(self, tasks: Mapping[str, Task]) -> None:
        self.count = len(tasks)

    def observe(self, losses: Tensor, present: Tensor) -> None:
        self.seen += 1

    def weights(self) -> Tensor:
        return torch.full((self.count,), 1 / (1 + self.seen))


@pytest.mark.slow
def test_a_weighting_that_counts_is_recorded() -> None:
    module = same(lambda **options: MultiHead(MLP(4, (8,)), weighting=Counts(), **options), sums)
    assert module._graphs.captured == 2
    assert module._graphs.replays >= 7 + 2


class Waits(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1.0 if float(x.sum()) > 0 else -1.0)


@pytest.mark.slow
def test_what_cannot_be_recorded_runs_as_it_is_and_one_line_says_why(caplog: pytest.LogCaptureFixture) -> None:
    module = same(lambda **options: MultiHead(Waits(4, 8), **options), sums)
    assert module._graphs.captured == 0
    (line,) = lines(caplog)
    assert line.startswith("graph: steps run without a CUDA graph from here on: ")
    assert "_local_scalar_dense" in line


def test_options_and_devices(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(lm.UserError, match="graph"):
        MultiHead(MLP(4, (8,)), graph="always")
    assert MultiHead(MLP(4, (8,)), graph=False).graph == "off"
    caplog.set_level(logging.INFO)
    module = MultiHead(MLP(4, (8,)), graph="auto", optimizer=SGD)
    L.Trainer(fast_dev_run=2, accelerator="cpu", logger=False, enable_progress_bar=False).fit(module, sums())
    assert lines(caplog) == ["graph: steps run without a CUDA graph: the inputs are on cpu, and only CUDA has graphs"]


def test_a_weighting_of_losses_may_be_used_several_times_before_a_backward_pass() -> None:
    """The tensor that the weighting keeps stays at the same address."""
    famo, losses = weightings.FAMO(), torch.tensor([1.0, 2.0], requires_grad=True)
    famo.configure({"a": Regression(1), "b": Regression(1)})
    present = torch.ones(2, dtype=torch.bool)
    total = famo(losses, present) + famo(3 * losses, present)
    (gradient,) = torch.autograd.grad(total, losses)
    one = torch.autograd.grad(famo(losses, present), losses)[0]
    place = famo.weights().data_ptr()
    three = torch.autograd.grad(famo(3 * losses, present), losses)[0]
    assert famo.weights().data_ptr() == place
    torch.testing.assert_close(gradient, one + three)
    with torch.inference_mode():
        famo(losses, present)
    famo(losses, present).backward()


def test_a_graph_reads_no_constant_that_other_steps_may_free() -> None:
    """Batches of other shapes, and an uncaptured step, replace what is kept of the losses between steps."""
    given = some_labels("missing")
    given.setup("fit")
    module = recorded(MultiHead(MLP(4, (8,)), graph="auto", tasks=given.spec))
    batch = next(iter(given.train_dataloader()))
    for _ in range(2):
        module._graphed_pass(batch)
    kept = module._together
    assert kept is not None
    assert module._graphs.captured == 1
    for part in (kept._standards, *vars(kept).values()):
        for tensor in tree_leaves(part):
            if isinstance(tensor, Tensor):
                # As memory that was given to another tensor.
                tensor.fill_(torch.nan if tensor.is_floating_point() else 10**6)
    module._together = None
    assert torch.isfinite(module._graphed_pass(batch).loss)
    assert not module._graphs.obstacle
    assert module._graphs.replays == 2
