"""Mixed precision, clipping and accumulation mean in meta-learning what they mean elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from make_tables import MULTI_TASK
from torch import Tensor, nn

from lightning_meta.batches import Episode
from lightning_meta.data import EpisodicDataModule
from lightning_meta.describing import fixed_options
from lightning_meta.errors import UserError
from lightning_meta.meta import MAML, Baseline, MetaModule, ProtoNet
from lightning_meta.multitask import Grouped, MultiTaskModule
from lightning_meta.nn import MLP, Conv4
from lightning_meta.testing import toys
from tests import methods
from tests.meta.oracles import relative_error

METHODS: dict[str, Callable[[], MetaModule]] = {
    "ProtoNet": lambda: ProtoNet(backbone(), temperature=500.0),
    "ProtoNet, cosine, inductive": lambda: ProtoNet(
        backbone(), distance="cosine", temperature=0.1, batch_norm="inductive"
    ),
    "MAML, vmap": lambda: MAML(backbone(), 0.1, 2, strategy="vmap"),
    "MAML, loop": lambda: MAML(backbone(), 0.1, 2, strategy="loop"),
    "MAML, recomputed": lambda: MAML(backbone(), 0.1, 2, recompute=True),
    "MAML, first order, inductive": lambda: MAML(backbone(), 0.1, 2, first_order=True, batch_norm="inductive"),
    "Baseline": lambda: Baseline(backbone()),
}


def backbone() -> nn.Module:
    return Conv4(width=8, downsample="stride", blocks=2)


def descent(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.1)


def data(meta_batch_size: int = 4) -> EpisodicDataModule:
    made = toys.pictures()
    made.meta_batch_size = meta_batch_size
    made.meta_batches_per_epoch = 50  # Lightning takes a step at an epoch's end, however much was accumulated
    return made


def weights(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


class Losses(L.Callback):
    """The loss and the outer gradient of each step."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.gradients: list[Tensor] = []
        self.moved = torch.zeros(())

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.start = weights(pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.moved = weights(pl_module) - self.start

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.gradients.append(torch.cat([p.grad.flatten() for p in pl_module.parameters() if p.grad is not None]))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Episode, batch_idx: int) -> None:
        self.losses.append(outputs["loss"].detach())


def trained(make: Callable[[], Any], given: Any, steps: int = 1, **options: Any) -> tuple[Any, Losses]:
    torch.manual_seed(0)
    module, seen = make(), Losses()
    module.optimizer = descent
    trainer = L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=[seen],
        **options,
    )
    torch.manual_seed(0)
    trainer.fit(module, datamodule=given)
    return module, seen


@pytest.mark.parametrize("name", METHODS)
def test_mixed_precision_is_close_to_float32(name: str) -> None:
    module, mixed = trained(METHODS[name], data(), precision="bf16-mixed")
    _, exact = trained(METHODS[name], data())
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert {t.dtype for t in module.buffers() if t.is_floating_point()} <= {torch.float32}
    error = relative_error(mixed.gradients[0].double(), exact.gradients[0].double())
    assert 1e-6 < error < 0.1  # it did something, and not much
    assert abs(float(mixed.losses[0] - exact.losses[0])) < 0.03 * float(exact.losses[0])
    trainer = L.Trainer(accelerator="cpu", precision="bf16-mixed", logger=False, enable_progress_bar=False)
    (tested,) = trainer.test(module, datamodule=data(), verbose=False)
    assert 0 <= tested["test/accuracy"] <= 1


TRUE_PRECISIONS = {"bf16-true": torch.bfloat16, "64-true": torch.float64}


@pytest.mark.parametrize("precision", TRUE_PRECISIONS)
@pytest.mark.parametrize("name", [*methods.META, *methods.MULTI_TASK])
def test_every_method_is_trained_and_tested_in_other_precisions(name: str, precision: str) -> None:
    make = {**methods.META, **methods.MULTI_TASK}[name]
    given = toys.sums if name in methods.MULTI_TASK else methods.sines if name in methods.OF_SINES else toys.pictures
    module, seen = trained(make, given(), precision=precision)
    assert {p.dtype for p in module.parameters()} == {TRUE_PRECISIONS[precision]}
    assert 0 < seen.moved.double().norm() < math.inf
    trainer = L.Trainer(accelerator="cpu", precision=precision, logger=False, enable_progress_bar=False)  # type: ignore[arg-type]
    for tested in trainer.test(module, datamodule=given(), verbose=False):
        assert all(map(math.isfinite, tested.values()))


WITH_BACKBONE = [method for method in MULTI_TASK if "backbone" not in fixed_options(method)]


def of_sums(method: type[MultiTaskModule]) -> MultiTaskModule:
    groups: dict[str, Any] = {"groups": [["sum", "sign"], ["largest"]]} if method is Grouped else {}
    return method(MLP(4, (16, 16)), **groups)


@pytest.mark.parametrize("method", WITH_BACKBONE)
def test_multi_task_modules_train_in_mixed_precision(method: type[MultiTaskModule]) -> None:
    def make() -> MultiTaskModule:
        return of_sums(method)

    module, mixed = trained(make, toys.sums(), precision="bf16-mixed")
    _, exact = trained(make, toys.sums())
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert 1e-6 < relative_error(mixed.gradients[0].double(), exact.gradients[0].double()) < 0.05


FLOAT16: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    **{name: (METHODS[name], data) for name in METHODS if "MAML" not in name},
    **{
        method.__name__: (lambda method=method: of_sums(method), toys.sums)  # type: ignore[misc]
        for method in WITH_BACKBONE
    },
}


@pytest.mark.parametrize("name", FLOAT16)
def test_float16_is_close_to_float32_where_there_is_no_inner_loop(name: str) -> None:
    make, given = FLOAT16[name]
    scaled = MixedPrecision("16-mixed", "cpu")  # by its name alone, Lightning takes bf16 on a CPU
    module, mixed = trained(make, given(), plugins=[scaled])
    _, exact = trained(make, given())
    assert scaled.scaler is not None
    assert float(scaled.scaler.get_scale()) == 2.0**16  # no step was left out for an overflow
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    error = relative_error(mixed.gradients[0].double(), exact.gradients[0].double())
    assert 1e-7 < error < 0.02
    assert float(mixed.moved.norm()) > 0


@pytest.mark.parametrize("method", [MAML, ProtoNet])
def test_a_network_in_another_precision_than_the_trainer_is_refused(method: type[MetaModule]) -> None:
    for stage in ("fit", "validate", "test"):
        runs = L.Trainer(max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False)
        with pytest.raises(UserError, match=r"backbone: its parameters are float64, .* computes in float32.*'64-true'"):
            getattr(runs, stage)(method(backbone().double()), data())
    trained(lambda: method(backbone().double()), data(), precision="64-true")


class Half(nn.Module):
    """A network in half precision that converts its inputs and outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.network = backbone().bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.bfloat16()).float()


def test_a_network_that_converts_its_inputs_is_trained() -> None:
    _, seen = trained(lambda: ProtoNet(Half()), data())
    assert seen.moved.abs().max() > 0
    with pytest.raises(UserError, match=r"parameters are bfloat16, .* convert it to float32"):
        trained(lambda: ProtoNet(backbone().bfloat16()), data())


class OnlyDouble(nn.Module):
    """A network that checks the precision of its inputs itself."""

    def __init__(self) -> None:
        super().__init__()
        self.network = backbone().double()

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float64:
            raise TypeError("expected float64")
        output: Tensor = self.network(x)
        return output


def test_a_network_that_refuses_other_precisions_is_named() -> None:
    with pytest.raises(UserError, match=r"parameters are float64, .* precision='64-true'"):
        trained(lambda: ProtoNet(OnlyDouble()), data())


def test_a_converted_module_has_a_head_of_its_precision() -> None:
    module, _ = trained(lambda: MAML(backbone(), 0.1, 1).double(), data())
    assert {p.dtype for p in module.parameters()} == {torch.float64}


def test_float16_is_refused_where_inner_gradients_would_underflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(L.Trainer, "precision", "16-mixed")  # on a CPU Lightning takes bf16 in its place
    with pytest.raises(UserError, match=r"precision: 16-mixed .* MAML would underflow in float16.*; use bf16-mixed"):
        trained(METHODS["MAML, vmap"], data())
    trained(METHODS["ProtoNet"], data())


@pytest.mark.parametrize("name", [name for name in METHODS if "loop" not in name])
def test_four_meta_batches_accumulated_are_one_four_times_the_size(name: str) -> None:
    """The weights are the same; running statistics, which no training step reads, are updated four times."""
    if name == "Baseline":  # it normalises a meta-batch as one batch

        def make() -> MetaModule:
            return Baseline(MLP(256, (8,)))

    else:
        make = METHODS[name]
    parts, _ = trained(make, data(2), 3, accumulate_grad_batches=4, precision="64-true")
    whole, _ = trained(make, data(8), 3, precision="64-true")
    apart = {
        n: float((p - dict(whole.named_parameters())[n]).detach().abs().max()) for n, p in parts.named_parameters()
    }
    assert max(apart.values()) < 1e-12


@pytest.mark.parametrize("algorithm", ["norm", "value"])
@pytest.mark.parametrize("name", ["ProtoNet", "MAML, vmap"])
def test_clipping_is_of_the_outer_gradient(name: str, algorithm: str) -> None:
    limit = 0.01
    options: dict[str, Any] = {"gradient_clip_val": limit, "gradient_clip_algorithm": algorithm, "precision": "64-true"}
    _, clipped = trained(METHODS[name], data(), **options)
    _, plain = trained(METHODS[name], data(), precision="64-true")
    (expected,) = plain.gradients
    expected = expected.clamp(-limit, limit) if algorithm == "value" else expected * (limit / expected.norm())
    assert plain.gradients[0].norm() > 5 * limit
    assert relative_error(clipped.moved / 0.1, -expected) < 1e-5  # torch adds 1e-6 to the norm
