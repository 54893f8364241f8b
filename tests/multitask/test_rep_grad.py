"""Aggregators on the gradients by the shared features: against plain autograd, torchjd and the plain sum."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
import torchjd.aggregation as jd
from lightning.pytorch import Callback
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn

from lightning_meta.batches import TaskBatch
from lightning_meta.errors import UserError
from lightning_meta.multitask import (
    CGC,
    PLE,
    CrossStitch,
    MixtureOfExperts,
    MultiHead,
    MultiTaskModule,
    combining,
)
from lightning_meta.multitask.gradient_conflict import GradientConflict
from lightning_meta.nn import MLP
from lightning_meta.weightings import DBMTL, Aggregator, CAGrad, GradNorm, PCGrad, TorchJD
from tests.multitask.ddp_driver import DATA, TASKS
from tests.multitask.toys import data, train, trainer

NAMES = list(TASKS)
SGD = partial(torch.optim.SGD, lr=0.05)


class Sum(Aggregator):
    """An aggregator with the direction of `Equal`."""

    def __init__(self) -> None:
        super().__init__(rep_grad=True)
        self.seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def direction(self, gradients: Tensor, losses: Tensor, present: Tensor) -> Tensor:
        self.seen.append((gradients.clone(), losses, present))
        return gradients.sum(0)


class Watch(Callback):
    """Batches, the weights before them, and the gradients that the optimiser gets."""

    def __init__(self) -> None:
        self.batches: list[TaskBatch] = []
        self.states: list[dict[str, Tensor]] = []
        self.gradients: list[dict[str, Tensor | None]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: TaskBatch, batch_idx: int) -> None:
        self.batches.append(batch)
        self.states.append({name: p.detach().clone() for name, p in pl_module.named_parameters()})

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        found = pl_module.named_parameters()
        self.gradients.append({name: None if p.grad is None else p.grad.clone() for name, p in found})


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 6))


METHODS: dict[str, Callable[..., MultiTaskModule]] = {
    "multi_head": MultiHead,
    "branches": partial(MultiHead, shared_depth=3, head_hidden=(5,)),
    "mixture_of_experts": partial(MixtureOfExperts, experts=2),
    "cgc": CGC,
}


def distance(one: nn.Module, other: nn.Module) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((a.detach() - b.detach()).abs().max()) for a, b in pairs)


# What a step is


def slow(cases: Iterable[Any], quick: Sequence[Any]) -> list[Any]:
    """Cases of a test, of which some are in the default suite."""
    return [pytest.param(*case, marks=() if case in quick else pytest.mark.slow) for case in cases]


@pytest.mark.parametrize(("method", "accumulated"), slow(product(METHODS, (1, 2)), [("multi_head", 2), ("cgc", 1)]))
def test_the_sum_of_the_gradients_trains_as_equal_does(method: str, accumulated: int) -> None:
    options = {"accumulate_grad_batches": accumulated, "gradient_clip_val": 0.5}
    given: dict[str, Any] = {
        "trainer": options,
        "backbone": network(),
        "optimizer": partial(SGD, momentum=0.9, weight_decay=0.1),
    }
    weighting = Sum()
    one = train(METHODS[method], DATA["missing labels"](), 5, weighting=weighting, **given)
    other = train(METHODS[method], DATA["missing labels"](), 5, **{**given, "backbone": network()})
    assert len(weighting.seen) == 5
    assert distance(one, other) < 1e-12


class Halved(MultiHead):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) / 2


class Penalised(MultiHead):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        penalty = torch.stack([p.square().sum() for p in self.parameters()]).sum()
        return super().training_step(batch, batch_idx) + 0.1 * penalty


class Differentiated(Halved):
    """Differentiates the loss, too, which does not train."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        parameters = [p for p in self.parameters() if p.requires_grad]
        torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        return loss


class BackwardTwice(MultiHead):
    def backward(self, loss: Tensor, *args: Any, **options: Any) -> None:
        (loss / 2).backward(retain_graph=True)
        (loss / 2).backward()


class Skips(MultiHead):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:  # type: ignore[override]
        loss = super().training_step(batch, batch_idx)
        return None if batch_idx % 2 else loss


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("rep_grad", [False, True])
@pytest.mark.parametrize("method", [Halved, Penalised, Differentiated, Skips])
def test_what_a_users_step_makes_of_the_loss_counts_for_the_shared_parameters(
    method: type[MultiHead], rep_grad: bool, accumulated: int
) -> None:
    def trained(method: type[MultiHead], weighting: Aggregator | None = None) -> MultiHead:
        options = {"accumulate_grad_batches": accumulated}
        return train(
            method, DATA["missing labels"](), 4, weighting=weighting, backbone=network(), optimizer=SGD, trainer=options
        )

    weighting = Sum()
    weighting.rep_grad = rep_grad
    one = trained(method, weighting)
    assert distance(one, trained(method)) < 1e-12
    assert distance(one, trained(MultiHead)) > 1e-3


@pytest.mark.parametrize("rep_grad", [False, True])
def test_a_second_backward_pass_of_a_loss_is_refused(rep_grad: bool) -> None:
    weighting = Sum()
    weighting.rep_grad = rep_grad
    with pytest.raises(UserError, match="weighting: Sum combines the gradients of one backward pass"):
        train(BackwardTwice, DATA["missing labels"](), 1, weighting=weighting, backbone=network(), optimizer=SGD)


AGGREGATORS: dict[str, tuple[Callable[[], Aggregator], Callable[[Tensor], Tensor]]] = {
    "UPGrad": (lambda: TorchJD(jd.UPGrad(), rep_grad=True), lambda rows: jd.UPGrad()(rows)),
    "TrimmedMean": (lambda: TorchJD(jd.TrimmedMean(0), rep_grad=True), lambda rows: rows.mean(0)),
    "CAGrad": (
        lambda: CAGrad(rep_grad=True),
        lambda rows: CAGrad().direction(rows, rows[:, 0], rows[:, 0] == rows[:, 0]),
    ),
}


@pytest.mark.parametrize(("name", "accumulated"), slow(product(AGGREGATORS, (1, 2)), [("CAGrad", 2), ("UPGrad", 1)]))
def test_a_step_sends_what_is_made_of_the_features_gradients_back_through_the_backbone(
    name: str, accumulated: int
) -> None:
    (make, reference), given, watch = AGGREGATORS[name], DATA["missing labels"](), Watch()
    options = {"accumulate_grad_batches": accumulated, "callbacks": [watch]}
    module = train(MultiHead, given, 3, weighting=make(), backbone=network(), optimizer=SGD, trainer=options)
    ends = [1, 2, 3] if accumulated == 1 else [2, 3, 5]  # an epoch of three batches ends in a step of one
    for start, end, found in zip([0, *ends], ends, watch.gradients, strict=False):
        module.load_state_dict(watch.states[start], strict=False)
        batches = watch.batches[start:end]
        features, columns = [], []
        objective: Any = 0
        for batch in batches:
            z = module.backbone(batch.inputs)
            of_batch = []
            for number, task in enumerate(NAMES):
                of_batch.append(torch.zeros_like(z))
                if task not in batch.rows:
                    continue
                outputs = module.heads[number](z[batch.rows[task]])
                loss = module.spec.tasks[task].loss(outputs, batch.targets[task]) / accumulated
                objective = objective + loss
                (of_batch[-1],) = torch.autograd.grad(loss, z, retain_graph=True)
            features.append(z)
            columns.append(torch.stack(of_batch).flatten(1))
        rows = torch.cat(columns, 1)
        here = torch.tensor([any(task in batch.rows for batch in batches) for task in NAMES])
        direction = reference(rows[here])
        back = [d.view_as(z) for d, z in zip(direction.split([z.numel() for z in features]), features, strict=True)]
        shared, heads = list(module.backbone.parameters()), list(module.heads.named_parameters())
        expected = torch.autograd.grad(features, shared, back, retain_graph=True)
        of_heads = torch.autograd.grad(objective, [p for _, p in heads], allow_unused=True)
        for (key, _), gradient in zip(module.backbone.named_parameters(), expected, strict=True):
            got = found[f"backbone.{key}"]
            assert got is not None
            torch.testing.assert_close(got, gradient, rtol=1e-10, atol=1e-12)
        for (key, _), own in zip(heads, of_heads, strict=True):
            got = found[f"heads.{key}"]
            if own is None:
                assert got is None, "a task that no batch had moves"
            else:
                torch.testing.assert_close(got, own, rtol=1e-10, atol=1e-12)


def test_one_forward_and_one_backward_pass_go_through_the_backbone() -> None:
    passes: list[str] = []

    class Counted(MLP):
        def forward(self, x: Tensor) -> Tensor:
            features: Tensor = super().forward(x)
            if self.training:
                passes.append("forward")
                features.register_hook(lambda gradient: passes.append("backward"))
            return features

    module = train(MultiHead, DATA["missing labels"](), 3, weighting=PCGrad(rep_grad=True), backbone=Counted(4, (6,)))
    assert passes == ["forward", "backward"] * 3
    assert module.combined_gradients is None


def test_the_matrix_has_a_row_for_each_task_and_the_losses_are_those_of_the_step() -> None:
    watch, weighting = Watch(), Sum()
    given: dict[str, Any] = {"weighting": weighting, "backbone": network(), "trainer": {"callbacks": [watch]}}
    module = train(MultiHead, DATA["missing labels"](), 2, **given)
    for batch, state, (gradients, losses, present) in zip(watch.batches, watch.states, weighting.seen, strict=True):
        module.load_state_dict(state, strict=False)
        module.train()
        expected = module.task_losses(batch)
        assert gradients.shape == (len(NAMES), len(batch.inputs) * 6)
        assert present.tolist() == [name in batch.rows for name in NAMES]
        for name, row, loss in zip(NAMES, gradients.unflatten(1, (-1, 6)), losses, strict=True):
            looked_at = set(batch.rows[name].tolist()) if name in batch.rows else set()
            assert {i for i, of_input in enumerate(row) if of_input.any()} == looked_at
            torch.testing.assert_close(loss, expected[name].detach() if name in batch.rows else 0 * loss)


# Precision


@pytest.mark.parametrize("precision", slow(product(["bf16-mixed", "bf16-true", "32-true"]), [("bf16-mixed",)]))
def test_it_trains_in_any_precision_and_the_aggregator_sees_float32(precision: str) -> None:
    torch.manual_seed(0)
    weighting = Sum()
    module = MultiHead(network(), weighting=weighting)
    given = DATA["missing labels"]()
    trainer(3, precision=precision, accumulate_grad_batches=2).fit(module, datamodule=given)
    assert {gradients.dtype for gradients, _, _ in weighting.seen} == {torch.float32}
    assert all(p.isfinite().all() for p in module.parameters())


def in_float16(weighting: Aggregator | None) -> tuple[MultiHead, list[float]]:
    """The weights after training with an initial loss scale that is too large, and the scale after each step."""
    scaler, scales = torch.amp.GradScaler("cpu", init_scale=2.0**22), list[float]()

    class Scales(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            scales.append(scaler.get_scale())

    torch.manual_seed(0)
    module = MultiHead(MLP(4, (12, 12)), weighting=weighting, optimizer=lambda p: torch.optim.SGD(p, 0.01))
    options: dict[str, Any] = {"plugins": [MixedPrecision("16-mixed", "cpu", scaler)], "callbacks": [Scales()]}
    trainer(20, gradient_clip_val=1.0, **options).fit(module, datamodule=DATA["missing labels"]())
    return module, scales


@pytest.mark.slow
def test_a_scaler_skips_steps_and_the_aggregator_sees_finite_gradients() -> None:
    weighting = Sum()
    (one, scales), (other, expected) = in_float16(weighting), in_float16(None)
    assert scales == expected
    assert scales[0] == 2.0**21  # the first step overflowed
    assert scales[-1] == scales[-5]  # and the last ones did not
    assert 5 <= len(weighting.seen) < 20
    assert all(gradients.isfinite().all() for gradients, _, _ in weighting.seen)
    assert weighting.seen[-1][0].norm() < 10  # not scaled
    assert distance(one, other) < 1e-3


# Tools around training


@pytest.mark.slow
def test_conflicts_are_still_measured_by_the_shared_parameters(tmp_path: Any) -> None:
    options = {"callbacks": [GradientConflict(1, affinity=False)], "default_root_dir": tmp_path}
    train(MultiHead, DATA["missing labels"](), 3, weighting=PCGrad(rep_grad=True), trainer=options)
    lines = (tmp_path / "gradient_conflict.csv").read_text().splitlines()
    assert {line.split(",")[0] for line in lines[1:]} == {"0", "1", "2"}


@pytest.mark.slow
def test_a_learned_weight_counts_for_the_heads_as_well() -> None:
    weighting = GradNorm(lr=0.5, rep_grad=True)
    module = train(MultiHead, DATA["missing labels"](), 3, weighting=weighting, backbone=network())
    assert float((weighting.weights() - 1).abs().max()) > 0.01
    assert all(p.isfinite().all() for p in module.parameters())


# Mistakes


class Behind(MultiHead):
    """Uses a shared parameter behind the features."""

    def build(self, spec: Any) -> None:
        super().build(spec)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: self.scale * y for name, y in super().forward(x, rows).items()}


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        (PLE, DATA["missing labels"], "rep_grad needs features that all tasks share, and PLE has none"),
        (CrossStitch, DATA["missing labels"], "rep_grad needs features that all tasks share, and CrossStitch has none"),
        (MultiHead, data, "here each task has different inputs"),
        (Behind, DATA["missing labels"], "some of Behind are used after them"),
    ],
)
def test_where_there_is_nothing_to_differentiate_by_it_is_refused(method: Any, given: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        train(method, given(), 1, weighting=PCGrad(rep_grad=True))


def test_stems_are_refused() -> None:
    """Stems lie below the features, so they would get no gradient; the same holds with one task."""
    stems = {name: MLP(4, (4,)) for name in NAMES}
    with pytest.raises(UserError, match="each stem belongs to one task; leave rep_grad out"):
        train(MultiHead, DATA["missing labels"](), 1, weighting=PCGrad(rep_grad=True), stems=stems)


def test_state_of_each_parameter_is_refused() -> None:
    with pytest.raises(UserError, match="rep_grad: torchjd's ExcessMTL keeps a sum for each column"):
        TorchJD(jd.ExcessMTL(), rep_grad=True)
    with pytest.raises(UserError, match="rep_grad: there is no such option of DBMTL"):
        DBMTL(rep_grad=True)  # type: ignore[call-arg]


# The memory of the gradients by the parameters


def test_the_memory_of_the_matrix_is_said_and_bounded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "lightning_meta")

    def messages() -> str:
        caplog.clear()
        train(MultiHead, DATA["missing labels"](), 1, weighting=PCGrad(), backbone=MLP(4, (512, 512)))
        return caplog.text

    shared = 4 * 512 + 512 + 512 * 512 + 512
    holds = f"PCGrad holds the gradients of 4 tasks on the shared parameters, {4 * 8 * shared / 1e6:,.0f} MB"
    assert holds in messages()
    assert "set rep_grad" not in caplog.text
    monkeypatch.setattr(combining, "LARGE", 1e6)
    assert f"{holds}; if that is too much, set rep_grad" in messages()
    monkeypatch.setattr(combining, "memory_of", lambda device: 16e6)
    with pytest.raises(UserError, match=f"{holds}, and a copy of them; cpu has 16 MB: set rep_grad, which holds those"):
        messages()
    train(MultiHead, DATA["missing labels"](), 1, weighting=PCGrad(rep_grad=True), backbone=MLP(4, (512, 512)))
