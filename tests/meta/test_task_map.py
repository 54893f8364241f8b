"""Every way of visiting tasks gives the same losses and meta-gradients."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_meta.errors import UserError
from lightning_meta.functional import TaskMap
from lightning_meta.meta import MAML, Baseline, MetaModule, ProtoNet
from lightning_meta.nn import MLP, Conv4
from tests.meta.oracles import IMAGES, KINDS, episodes, gradient, maml, relative_error, roughen

Make = Callable[[torch.dtype], MetaModule]


def fixed(kind: str, **options: object) -> Make:
    return lambda dtype: maml(kind, dtype, inner_steps=3, **options)


def metric(cls: type[MetaModule], **options: object) -> Make:
    def make(dtype: torch.dtype) -> MetaModule:
        torch.manual_seed(3)
        module = cls(Conv4(2, 4, blocks=2), episodes=IMAGES, **options)  # type: ignore[arg-type]
        roughen(module)
        return module.to(dtype)

    return make


METHODS: dict[str, Make] = {
    "MAML, MLP, 2nd order": fixed("mlp"),
    "MAML, MLP, 1st order": fixed("mlp", first_order=True),
    "MAML, regression, 2nd order": fixed("regression"),
    "MAML, Conv4 max-pool, 2nd order": fixed("conv4"),
    "MAML, Conv4 max-pool, 1st order": fixed("conv4", first_order=True),
    "MAML, Conv4 strides, inductive": fixed("conv4-stride", batch_norm="inductive"),
    "MAML, smooth conv + BN": fixed("smooth"),
    "ProtoNet, running": metric(ProtoNet),
    "ProtoNet, inductive": metric(ProtoNet, batch_norm="inductive"),
    "ProtoNet, transductive": metric(ProtoNet, batch_norm="transductive"),
    "ProtoNet, cosine": metric(ProtoNet, distance="cosine", temperature=0.1),
}
WAYS = {
    "vmap": (TaskMap("vmap"), False),
    "chunks": (TaskMap("vmap", 2), False),
    "loop, recomputed": (TaskMap("loop"), True),
    "vmap, recomputed": (TaskMap("vmap"), True),
    "chunks, recomputed": (TaskMap("vmap", 2), True),
    "compiled": (TaskMap("vmap", compile=True), False),
}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 0.02}
# In bfloat16 neighbours of a maximum tie with it, and inner steps go through which of them is taken.
TIES = {"MAML, Conv4 max-pool, 2nd order": 0.25, "MAML, Conv4 max-pool, 1st order": 0.25}
TIES["MAML, Conv4 strides, inductive"] = 0.25  # over 12 seeds, a median of 0.03 to 0.06 and at most 0.2, in every way
OLD = torch.__version__.startswith("2.6.")
COMPILED = ("MAML, MLP, 2nd order", "ProtoNet, running")


def loss_and_gradient(
    make: Make, how: TaskMap, recompute: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Loss and gradient; bfloat16 is tested as `precision=bf16-mixed`, with weights in float32."""
    mixed = dtype == torch.bfloat16
    exact = torch.float32 if mixed else dtype
    module = make(exact)
    module.task_map = how
    if isinstance(module, MAML):
        module.recompute = recompute
    batch = episodes(module.spec, tasks=5, dtype=exact)
    with torch.autocast("cpu", torch.bfloat16) if mixed else nullcontext():
        outcome = module.training_loss(batch)
    assert outcome.loss.shape == (5,)
    return outcome.loss.detach().double(), gradient(outcome.loss.mean(), module).double(), outcome.buffers


@pytest.fixture(scope="module")
def measured() -> Iterator[list[str]]:
    rows: list[str] = []
    yield rows
    header = f"\n{'method':34}{'precision':11}{'way':20}{'loss':10}meta-gradient (relative error)"
    print(header, *rows, sep="\n")


def cases() -> Iterator[object]:
    """Compiling takes minutes on a slow machine: two methods, in float64."""
    for method, way, dtype in product(METHODS, WAYS, TOLERANCE):
        compiled = way == "compiled"
        if "recomputed" in way and not method.startswith("MAML"):
            continue
        if compiled and (method not in COMPILED or dtype != torch.float64):
            continue
        marks = [pytest.mark.slow] if compiled else []
        if compiled:
            marks.append(pytest.mark.skipif(not shutil.which("g++"), reason="compiling needs a C++ compiler"))
            marks.append(pytest.mark.skipif(OLD, reason="the compiler of torch 2.6 fails on the gradient of a scatter"))
        yield pytest.param(method, way, dtype, id=f"{method}-{way}-{dtype}", marks=marks)


@pytest.mark.parametrize(("method", "way", "dtype"), list(cases()))
def test_every_way_is_the_loop(method: str, way: str, dtype: torch.dtype, measured: list[str]) -> None:
    """The reference is the loop in the same precision; for bfloat16, whose kernels round differently, the loop in
    float32."""
    make, (how, recompute) = METHODS[method], WAYS[way]
    reference = torch.float32 if dtype == torch.bfloat16 else dtype
    loss, meta_gradient, statistics = loss_and_gradient(make, how, recompute, dtype)
    expected, expected_gradient, expected_statistics = loss_and_gradient(make, TaskMap("loop"), False, reference)
    errors = relative_error(loss, expected), relative_error(meta_gradient, expected_gradient)
    precision = str(dtype).removeprefix("torch.")
    measured.append(f"{method:34}{precision:11}{way:20}{errors[0]:<10.1e}{errors[1]:.1e}")
    tolerance = max(TOLERANCE[dtype], TIES.get(method, 0) if dtype == torch.bfloat16 else 0)
    assert max(errors) < tolerance
    assert statistics.keys() == expected_statistics.keys()
    for name, tensor in expected_statistics.items():
        assert relative_error(statistics[name].double(), tensor.double()) < tolerance


class Convolutions(TorchDispatchMode):
    """Notes the examples and the groups of each convolution that is run."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: list[tuple[int, int]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten.convolution.default:
            self.ran.append((len(args[0]), args[8]))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("batch_norm", ["running", "inductive", "transductive"])
def test_a_metric_learner_embeds_the_meta_batch_as_one(batch_norm: Any) -> None:
    module = ProtoNet(Conv4(2, 4, blocks=2), batch_norm=batch_norm, strategy="vmap", episodes=IMAGES)
    module.meta_batch_loss(episodes(IMAGES, tasks=2, dtype=torch.float32))  # the first call tries vmap
    with Convolutions() as seen:
        module.meta_batch_loss(episodes(IMAGES, tasks=5, dtype=torch.float32))
    if batch_norm == "running":  # support and query examples of a task are normalised together
        assert seen.ran == 2 * [(5 * 15, 1)]
    else:
        assert seen.ran == 2 * [(5 * 6, 1)] + 2 * [(5 * 9, 1)]


@pytest.mark.parametrize("recompute", [False, True])
def test_the_first_inner_step_runs_the_meta_batch_as_one(recompute: bool) -> None:
    """In the first step all tasks have the same weights; later, a convolution has a group for each task."""
    module = maml("conv4", torch.float32, inner_steps=2, strategy="vmap", recompute=recompute)
    module.meta_batch_loss(episodes(IMAGES, tasks=2, dtype=torch.float32))  # the first call tries vmap
    with Convolutions() as seen:
        module.meta_batch_loss(episodes(IMAGES, tasks=5, dtype=torch.float32))
    assert seen.ran == 2 * [(5 * 6, 1)] + 2 * [(6, 5)] + 2 * [(9, 5)]


@pytest.mark.parametrize("options", [{"chunk_size": 0}, {"chunk_size": 4, "strategy": "loop"}, {"chunk_size": 4}])
def test_chunks_are_of_vmap(options: dict[str, object]) -> None:
    with pytest.raises(UserError, match="chunk_size: a positive number for strategy vmap"):
        ProtoNet(nn.Flatten(), **{"strategy": "vmap", **options} if options == {"chunk_size": 0} else options)  # type: ignore[arg-type]


def test_what_excludes_each_other() -> None:
    with pytest.raises(UserError, match="compile: needs strategy vmap or auto, got loop"):
        Baseline(nn.Flatten(), strategy="loop", compile=True)
    with pytest.raises(UserError, match="recompute: compile decides itself"):
        MAML(MLP(), recompute=True, compile=True)


def bytes_saved(root: Any) -> int:
    """The bytes of the tensors that the nodes of a graph keep for the backward pass."""
    storages: dict[int, int] = {}
    waiting, seen = [root], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]
        saved = [getattr(node, name) for name in dir(node) if name.startswith("_saved_") or name == "saved_tensors"]
        for tensor in tree_leaves(saved):
            if isinstance(tensor, Tensor):
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(storages.values())


def test_recomputation_frees_the_inner_steps() -> None:
    """The bytes that the graph of 10 inner steps keeps: with recomputation little more than the weights of each."""

    def kept(recompute: bool) -> int:
        module = maml("conv4", torch.float32, inner_steps=10, recompute=recompute, strategy="vmap")
        batch = episodes(IMAGES, tasks=4, shots=5, dtype=torch.float32)
        return bytes_saved(module.meta_batch_loss(batch).loss.mean().grad_fn)

    assert kept(recompute=True) < kept(recompute=False) / 4


def test_kinds_are_covered() -> None:
    assert set(KINDS) == {"smooth", "conv4", "conv4-stride", "mlp", "regression"}
