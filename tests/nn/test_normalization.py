"""`TaskBatchNorm` against `torch.nn.BatchNorm`, in value, gradient and gradient of the gradient."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.func import functional_call, grad, vmap
from torch.optim.swa_utils import update_bn

from lightning_meta.batches import Split
from lightning_meta.data import EpisodicDataModule, Pool
from lightning_meta.errors import UserError
from lightning_meta.meta import MAML, Baseline, ProtoNet
from lightning_meta.nn import TaskBatchNorm, per_task, statistics_from
from lightning_meta.nn.normalization import Statistics, freeze_evaluated, refuse_other_batch_norms, task_norms
from lightning_meta.nn.stateless import stateless_call, tensors_of
from lightning_meta.tasks import EpisodeSpec
from lightning_meta.testing import toys
from tests.meta.oracles import trainer

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
SHAPES = {"1d": (6, 3), "1d sequence": (6, 3, 5), "2d": (4, 3, 5, 5)}


def relative_error(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm())


def pair(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[TaskBatchNorm, nn.Module]:
    """Ours, and torch's with the same weights and running statistics."""
    theirs = (nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d)(shape[1], dtype=dtype)
    ours = TaskBatchNorm(shape[1]).to(dtype)
    for tensor in theirs.weight, theirs.bias, theirs.running_mean, theirs.running_var:
        assert tensor is not None
        tensor.data.uniform_(0.5, 2)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def derivatives(norm: nn.Module, x: Tensor) -> list[Tensor]:
    """The output, the gradient of a loss of it, and the gradient of that gradient's norm."""
    x = x.clone().requires_grad_()
    inputs = [x, *norm.parameters()]
    y = norm(x)
    first = torch.autograd.grad((y.sin() * y).sum(), inputs, create_graph=True)
    second = torch.autograd.grad(sum((g.square().sum() for g in first), torch.zeros(())), inputs)
    return [t.detach() for t in (y, *first, *second)]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("statistics", ["batch", "stored"])
def test_equals_torch_to_the_second_derivative(
    statistics: Statistics, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    ours, theirs = pair(shape, dtype)
    x = torch.randn(shape, dtype=dtype) * 3 + 1
    with statistics_from(ours, statistics):
        found = derivatives(ours, x)
    # The reference is in float64 at any precision of ours, so that only our own rounding is measured.
    expected = derivatives(theirs.double().train(statistics == "batch"), x.double())
    for ours_, theirs_ in zip(found, expected, strict=True):
        assert ours_.dtype == dtype
        assert relative_error(ours_, theirs_) < TOLERANCE[dtype]


def conv_net(norm: Callable[[int], nn.Module]) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), norm(4), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(4, 4, 3), norm(4), nn.Flatten(1)
    )


def loss_after_a_step(network: nn.Module) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
    """The loss after a gradient step, which MAML differentiates."""
    buffers = dict(network.named_buffers())

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(network, {**parameters, **buffers}, (x,)).sin().square().mean()

    def adapted(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        gradients = grad(loss)(parameters, x)
        return loss({name: p - 0.5 * gradients[name] for name, p in parameters.items()}, x)

    return adapted


@pytest.mark.parametrize("outer", ["autograd", "torch.func"])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_second_order_gradients_under_vmap(dtype: torch.dtype, outer: str) -> None:
    """In float32, derivatives of torch's `F.batch_norm` through `vmap(grad)` have an error of a hundredth here."""
    ours = conv_net(TaskBatchNorm).to(dtype)
    theirs = conv_net(lambda width: nn.BatchNorm2d(width, track_running_stats=False)).double()
    x = torch.randn(3, 5, 1, 8, 8, dtype=dtype)

    parameters, adapted = tensors_of(ours)[0], loss_after_a_step(ours)
    with statistics_from(ours, "batch"):
        if outer == "autograd":
            total = vmap(adapted, in_dims=(None, 0))(parameters, x).sum()
            found = torch.cat([g.flatten() for g in torch.autograd.grad(total, list(parameters.values()))])
        else:
            by_task = vmap(grad(adapted), in_dims=(None, 0))(parameters, x)
            found = torch.cat([g.sum(0).flatten() for g in by_task.values()])
    parameters, adapted = tensors_of(theirs)[0], loss_after_a_step(theirs)
    total = torch.stack([adapted(parameters, task.double()) for task in x]).sum()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(total, list(parameters.values()))])
    assert relative_error(found, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("mapped", [False, True], ids=["plain", "vmap"])
def test_fused_equals_batch_in_value_and_first_gradient(shape: tuple[int, ...], mapped: bool) -> None:
    norm, _ = pair(shape, torch.float64)
    x = torch.randn(2, *shape, dtype=torch.float64)

    def call(statistics: Statistics) -> list[Tensor]:
        def one_task(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            y, tensors = stateless_call(norm, {k: v for d in tensors_of(norm) for k, v in d.items()}, x, statistics)
            return y, tensors["running_mean"], tensors["running_var"]

        norm.zero_grad()
        y, mean, var = vmap(one_task)(x) if mapped else [torch.stack(r) for r in zip(*map(one_task, x), strict=True)]
        (y.sin() * y).sum().backward()
        gradients = [p.grad.clone() for p in norm.parameters() if p.grad is not None]
        assert len(gradients) == 2
        return [y, mean, var, *gradients]

    for fused, batch in zip(call("fused"), call("batch"), strict=True):
        torch.testing.assert_close(fused, batch, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("statistics", ["batch", "fused"])
def test_stores_the_mean_and_the_biased_variance_of_the_batch(statistics: Statistics) -> None:
    norm, _ = pair((4, 3, 5, 5), torch.float64)
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64) * 2 - 1
    _, tensors = stateless_call(norm, {**dict(norm.named_parameters()), **dict(norm.named_buffers())}, x, statistics)
    torch.testing.assert_close(tensors["running_mean"], x.mean((0, 2, 3)))
    torch.testing.assert_close(tensors["running_var"], x.var((0, 2, 3), correction=0))


def test_query_gradients_flow_through_the_stored_statistics_of_the_support_set() -> None:
    norm, _ = pair((5, 3), torch.float64)
    parameters, buffers = tensors_of(norm)
    support = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    query = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)

    def normalised(support: Tensor, query: Tensor) -> Tensor:
        _, tensors = stateless_call(norm, {**parameters, **buffers}, support, "batch")
        return stateless_call(norm, tensors, query, "stored")[0]

    assert norm.weight is not None
    assert norm.bias is not None
    scale = (support.var(0, correction=0) + norm.eps).sqrt()
    expected = (query - support.mean(0)) / scale * norm.weight + norm.bias
    torch.testing.assert_close(normalised(support, query), expected)
    assert gradcheck(normalised, (support, query))
    found, wanted = (torch.autograd.grad(y.sin().sum(), support)[0] for y in (normalised(support, query), expected))
    torch.testing.assert_close(found, wanted)
    assert found.norm() > 0.1


class Residual(nn.Module):
    """Nested modules and attributes, as in torchvision's networks."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width, eps=1e-3)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = nn.Sequential(nn.Conv2d(width, width, 1), nn.BatchNorm2d(width, affine=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn1(self.conv1(x)) + self.downsample(x))


def torchvision_like() -> nn.Sequential:
    torch.manual_seed(2)
    layers = OrderedDict[str, nn.Module](
        stem=nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
        layer1=nn.Sequential(Residual(4), Residual(4)),
        head=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5), nn.BatchNorm1d(5)),
    )
    network = nn.Sequential(layers).double()
    for _ in range(3):
        network(torch.randn(8, 3, 8, 8, dtype=torch.float64) + 1)  # moves the running statistics
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 2)
    return network


def test_a_converted_network_computes_what_it_did() -> None:
    theirs = torchvision_like()
    ours = per_task(copy.deepcopy(theirs))
    x = torch.randn(6, 3, 8, 8, dtype=torch.float64)
    assert not [m for m in ours.modules() if type(m) in (nn.BatchNorm1d, nn.BatchNorm2d)]
    assert sum(isinstance(m, TaskBatchNorm) for m in ours.modules()) == 6
    torch.testing.assert_close(ours.train()(x), theirs.train()(x))
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))
    stored = theirs(x)
    with statistics_from(ours.train(), "stored"):
        torch.testing.assert_close(ours(x), stored)
    with statistics_from(ours.eval(), "batch"):
        torch.testing.assert_close(ours(x), theirs.train()(x))


def test_conversion_keeps_precision_and_what_is_frozen() -> None:
    network = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3, affine=False)).double()
    network[0].weight.requires_grad_(False)
    converted = per_task(network)
    assert {t.dtype for t in converted.state_dict().values() if t.is_floating_point()} == {torch.float64}
    assert [name for name, p in converted.named_parameters() if p.requires_grad] == ["0.bias"]


def test_conversion_keeps_a_layer_that_stands_in_two_places_one_layer() -> None:
    norm = nn.BatchNorm1d(3)
    network = per_task(nn.Sequential(norm, nn.Linear(3, 3), norm))
    assert isinstance(network, nn.Sequential)
    assert isinstance(network[0], TaskBatchNorm)
    assert network[0] is network[2]


def test_the_statistics_are_chosen_within_the_context_only() -> None:
    norm = TaskBatchNorm(2)
    with statistics_from(nn.Sequential(norm), "stored"):
        with statistics_from(norm, "fused"):
            assert norm.statistics == "fused"
        assert norm.statistics == "stored"  # type: ignore[comparison-overlap]
    assert norm.statistics is None
    with pytest.raises(RuntimeError, match="size of tensor"), statistics_from(norm, "stored"):
        norm(torch.zeros(2, 3))
    assert norm.statistics is None


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": 0.3}, {"momentum": None}, {"track_running_stats": False}, {"affine": False}, {"eps": 0.1}],
    ids=lambda options: str(options),
)
def test_a_plain_call_is_torchs(options: dict[str, Any], training: bool) -> None:
    theirs = nn.BatchNorm2d(3, **options).double()
    ours = TaskBatchNorm(3, **options).double()
    for x in torch.randn(4, 5, 3, 4, 4, dtype=torch.float64).mul(3).unbind():
        torch.testing.assert_close(ours.train()(x), theirs.train()(x))
    x = torch.randn(5, 3, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(ours.train(training)(x), theirs.train(training)(x))
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


def test_torchs_own_tools_know_the_layer() -> None:
    network = per_task(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)))
    batches = [torch.randn(8, 4) + i for i in range(3)]
    update_bn(batches, network)
    expected = torch.stack([network[0](x).mean(0) for x in batches]).mean(0)  # type: ignore[index]
    torch.testing.assert_close(network.get_buffer("1.running_mean"), expected)
    assert isinstance(nn.SyncBatchNorm.convert_sync_batchnorm(network)[1], nn.SyncBatchNorm)


def test_a_layer_held_in_evaluation_mode_uses_what_is_stored_in_every_way() -> None:
    norm, theirs = pair((4, 3, 5, 5), torch.float64)
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    freeze_evaluated(norm.eval())
    for statistics in ("batch", "fused", "stored"):
        y, _ = stateless_call(norm, dict(norm.named_buffers()), x, statistics)
        torch.testing.assert_close(y, theirs.eval()(x))


def test_a_subclass_that_computes_something_else_is_left_alone_or_refused() -> None:
    class WithActivation(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).relu()

    network = per_task(nn.Sequential(nn.Conv2d(1, 2, 3), WithActivation(2)))
    assert type(network[1]) is WithActivation  # type: ignore[index]
    with pytest.raises(UserError, match=r"backbone: 1 is a WithActivation, a batch normalisation with its own forward"):
        refuse_other_batch_norms(network)


@pytest.mark.parametrize("statistics", ["batch", "fused", "stored"])
@pytest.mark.parametrize("fails", [False, True], ids=["works", "raises"])
def test_a_stateless_call_leaves_the_module_bit_identical(statistics: Statistics, fails: bool) -> None:
    network = conv_net(TaskBatchNorm)
    before = {name: t.clone() for name, t in network.state_dict().items()}
    tensors = {name: t.detach() + 1 for name, t in network.state_dict().items()}
    given = dict(tensors)
    if fails:
        with pytest.raises(RuntimeError):
            stateless_call(network, tensors, torch.randn(3, 2, 8, 8), statistics)
    else:
        _, updated = stateless_call(network, tensors, torch.randn(3, 1, 8, 8), statistics)
        changed = [name for name in updated if not torch.equal(updated[name], given[name])]
        assert changed == (
            [] if statistics == "stored" else ["1.running_mean", "1.running_var", "5.running_mean", "5.running_var"]
        )
    assert all(tensors[name] is given[name] for name in given)
    assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())
    assert [m.statistics for m in network.modules() if isinstance(m, TaskBatchNorm)] == [None, None]


# Running statistics, as in torch's own training


def both(shape: tuple[int, ...], dtype: torch.dtype, momentum: float = 0.1) -> tuple[TaskBatchNorm, nn.Module]:
    ours, theirs = pair(shape, dtype)
    assert isinstance(theirs, nn.BatchNorm1d | nn.BatchNorm2d)
    theirs.momentum = momentum
    ours.momentum = momentum
    return ours, theirs


def assert_same_statistics(ours: TaskBatchNorm, theirs: nn.Module, dtype: torch.dtype) -> None:
    tolerance = TOLERANCE[dtype]
    for name, buffer in theirs.named_buffers():
        torch.testing.assert_close(ours.get_buffer(name), buffer, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_running_statistics_are_torchs_over_several_batches(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    ours, theirs = both(shape, dtype)
    tolerance = TOLERANCE[dtype]
    for number in range(4):
        x = torch.randn(shape, dtype=dtype) * (number + 1) + number
        found = derivatives(ours, x) if number == 3 else [ours(x)]
        expected = derivatives(theirs, x) if number == 3 else [theirs(x)]
        for a, b in zip(found, expected, strict=True):
            assert relative_error(a, b) < 100 * TOLERANCE[dtype]
        assert_same_statistics(ours, theirs, dtype)
    x = torch.randn(shape, dtype=dtype)
    with statistics_from(ours, "stored"):
        torch.testing.assert_close(ours(x), theirs.eval()(x), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_stacked_networks_follow_each_its_own_statistics(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    pairs = [both(shape, dtype) for _ in range(3)]
    norms = [ours for ours, _ in pairs]
    parameters = {name: torch.stack([norm.get_parameter(name) for norm in norms]) for name in ("weight", "bias")}
    buffers = {
        name: torch.stack([norm.get_buffer(name) for norm in norms])
        for name in ("running_mean", "running_var", "num_batches_tracked")
    }
    for number in range(3):
        x = torch.randn(3, *shape, dtype=dtype) * (number + 1) + 2

        def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
            return functional_call(norms[0], (parameters, buffers), (x,))

        found = vmap(one)(parameters, buffers, x)
        for i, (_, theirs) in enumerate(pairs):
            assert relative_error(found[i], theirs(x[i])) < TOLERANCE[dtype]
            for name, buffer in theirs.named_buffers():
                torch.testing.assert_close(buffers[name][i], buffer, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stacked", [False, True])
def test_an_empty_batch_moves_no_statistics_and_has_a_gradient_of_zero(stacked: bool) -> None:
    # A rank may have no example of a task.
    norm, _ = pair((4, 3, 5, 5), torch.float64)
    before = {name: t.clone() for name, t in norm.state_dict().items()}
    x = torch.zeros(0, 3, 5, 5, dtype=torch.float64)
    if stacked:
        tensors = {name: t[None] for name, t in (*norm.named_parameters(), *norm.named_buffers())}
        y = vmap(lambda tensors, x: functional_call(norm, tensors, (x,)))(tensors, x[None])[0]
    else:
        y = norm(x)
    assert y.shape == x.shape
    y.sum().backward()
    for parameter in norm.parameters():
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))
    assert all(torch.equal(t, before[name]) for name, t in norm.state_dict().items())


def test_a_converted_layer_follows_at_its_own_pace() -> None:
    theirs = nn.BatchNorm1d(3, momentum=0.3)
    ours = per_task(copy.deepcopy(theirs))
    assert isinstance(ours, TaskBatchNorm)
    x = torch.randn(8, 3) * 2 + 1
    torch.testing.assert_close(ours(x), theirs(x))
    assert_same_statistics(ours, theirs, torch.float32)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 1e-3), (torch.bfloat16, 1e-2)])
def test_half_precision_neither_overflows_nor_loses_the_mean(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    x = (3 + torch.rand(100, 2, 30, 30)).to(dtype)  # 90,000 numbers a channel, whose sum float16 does not hold
    norm = TaskBatchNorm(2)
    with statistics_from(norm, "batch"):
        assert relative_error(norm(x), norm(x.double())) < tolerance


def test_a_layer_that_is_called_twice_is_recorded_by_the_mean_over_its_calls() -> None:
    norm, _ = pair((6, 3), torch.float64)
    network = nn.Sequential(norm, nn.Tanh(), norm)
    x = torch.randn(6, 3, dtype=torch.float64) + 1
    for statistics in ("batch", "fused"):
        _, after = stateless_call(network, {}, x, statistics)
        first = torch.nn.functional.batch_norm(x, None, None, norm.weight, norm.bias, True, eps=norm.eps).tanh()
        torch.testing.assert_close(after["0.running_mean"], (x.mean(0) + first.mean(0)) / 2)


@pytest.mark.filterwarnings("ignore:Found 2 module")  # Lightning says it of layers that the user holds
@pytest.mark.parametrize("method", [MAML, ProtoNet, Baseline])
def test_a_layer_held_in_evaluation_mode_is_held_from_the_first_step(method: Any) -> None:
    module = method(conv_net(nn.BatchNorm2d), episodes=EpisodeSpec("classification", (1, 8, 8), 3, 8)).train()
    for norm in task_norms(module).values():
        norm.eval()
    run = trainer(max_steps=2, limit_val_batches=0, num_sanity_val_steps=0)
    run.fit(module, datamodule=EpisodicDataModule(Pictures(), ways=3, shots=2, queries=3, seed=0))
    for norm in task_norms(module).values():
        assert norm.frozen
        assert norm.running_mean is not None
        assert torch.equal(norm.running_mean, torch.zeros_like(norm.running_mean))


class Pictures(toys.NoisyPictures):
    """The pictures at 8x8 pixels."""

    def pools(self) -> dict[Split, Pool]:
        whole = super().pools().items()
        return {s: Pool(p.x[..., ::2, ::2].contiguous(), p.sizes, p.names, p.groups) for s, p in whole}
