"""MAML and ProtoNet once more, from the papers' equations: plain autograd, one task at a time, no `torch.func`."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_meta.batches import Episode, Examples
from lightning_meta.meta import MAML, MetaModule
from lightning_meta.nn import MLP, Conv4, TaskBatchNorm
from lightning_meta.tasks import EpisodeSpec

Tensors = dict[str, Tensor]
Statistics = dict[str, tuple[Tensor, Tensor]]


# Networks and episodes that are small enough for float64 and finite differences.


class Kind(NamedTuple):
    """A backbone, and the episodes it is tried on."""

    backbone: Callable[[], nn.Module]
    spec: EpisodeSpec
    inner_lr: float


def smooth_convolutions(norm: Callable[[int], nn.Module] = TaskBatchNorm) -> nn.Sequential:
    """Convolutions and batch normalisation, every function infinitely differentiable."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        norm(4),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Conv2d(4, 4, 3, padding=1),
        norm(4),
        nn.Softplus(),
        nn.AvgPool2d(2),
        nn.Flatten(),
    )


IMAGES = EpisodeSpec("classification", (2, 8, 8), 3)
KINDS = {
    "smooth": Kind(smooth_convolutions, IMAGES, 0.1),
    "conv4": Kind(lambda: Conv4(2, 4, blocks=2), IMAGES, 0.1),
    "conv4-stride": Kind(lambda: Conv4(2, 4, "stride", "mean", blocks=2), IMAGES, 0.1),
    "mlp": Kind(lambda: MLP(6, (8, 5)), EpisodeSpec("classification", (6,), 3), 0.1),
    "regression": Kind(lambda: MLP(2, (8, 8)), EpisodeSpec("regression", (2,), 2), 0.05),
}


def maml(kind: str, dtype: torch.dtype = torch.float64, **options: object) -> MAML:
    """A MAML with weights away from their start, where normalisation weights are one and biases zero."""
    torch.manual_seed(3)
    options = {"inner_lr": KINDS[kind].inner_lr, **options}
    module = MAML(KINDS[kind].backbone(), episodes=KINDS[kind].spec, **options)  # type: ignore[arg-type]
    roughen(module)
    return module.to(dtype)


def roughen(module: nn.Module) -> None:
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.2 * torch.randn_like(p))


def episodes(
    spec: EpisodeSpec, tasks: int = 2, shots: int = 2, queries: int = 3, dtype: torch.dtype = torch.float64
) -> Episode:
    """Random tasks; inputs of a class share a mean, so that there is something to learn."""
    g = torch.Generator().manual_seed(7)

    def examples(each: int, centres: Tensor) -> Examples:
        if spec.task == "regression":
            x = torch.randn(tasks, each, *spec.input_shape, generator=g, dtype=torch.float64)
            return Examples(x.to(dtype), (x @ centres).sin().to(dtype))
        y = torch.arange(spec.outputs).repeat_interleave(each)
        x = torch.randn(tasks, len(y), *spec.input_shape, generator=g, dtype=torch.float64) + centres[:, y]
        return Examples(x.to(dtype), y.expand(tasks, -1))

    shape = (*spec.input_shape, spec.outputs) if spec.task == "regression" else (spec.outputs, *spec.input_shape)
    centres = torch.randn(tasks, *shape, generator=g, dtype=torch.float64)
    ways = spec.outputs if spec.task == "classification" else 0
    return Episode(examples(shots, centres), examples(queries, centres), ways, torch.arange(tasks))


def task(batch: Episode, t: int) -> tuple[Examples, Examples]:
    """Support and query of one task."""
    return Examples(batch.support.x[t], batch.support.y[t]), Examples(batch.query.x[t], batch.query.y[t])


# The oracles.


def forward(network: nn.Module, p: Tensors, x: Tensor, given: Statistics | None = None) -> tuple[Tensor, Statistics]:
    """Run a network with parameters from outside; batch normalisation by its definition, with given statistics or
    those of `x`, which are returned."""
    seen: Statistics = {}

    def run(module: nn.Module, name: str, x: Tensor) -> Tensor:
        weight, bias = p.get(f"{name}.weight"), p.get(f"{name}.bias")
        if isinstance(module, nn.Sequential):
            for child_name, child in module.named_children():
                x = run(child, f"{name}.{child_name}".lstrip("."), x)
            return x
        if isinstance(module, Conv4):
            x = run(module.blocks, f"{name}.blocks", x)
            return x.flatten(1) if module.spatial == "flatten" else x.mean((2, 3))
        if isinstance(module, MLP):
            return run(module.layers, f"{name}.layers", x.flatten(1))
        if isinstance(module, nn.Linear):
            assert weight is not None
            return F.linear(x, weight, bias)
        if isinstance(module, nn.Conv2d):
            assert weight is not None
            return F.conv2d(x, weight, bias, module.stride, module.padding)
        if isinstance(module, TaskBatchNorm):
            assert weight is not None
            assert bias is not None
            rest = [d for d in range(x.dim()) if d != 1]
            mean, var = given[name] if given else (x.mean(rest), (x - x.mean(rest, keepdim=True)).square().mean(rest))
            seen[name] = mean, var
            shape = [1, -1] + [1] * (x.dim() - 2)
            standard = (x - mean.view(shape)) / (var.view(shape) + module.eps).sqrt()
            return standard * weight.view(shape) + bias.view(shape)
        assert not list(module.parameters())
        return module(x)

    return run(network, "", x), seen


def loss_of(spec: EpisodeSpec, outputs: Tensor, targets: Tensor) -> Tensor:
    if spec.task == "regression":
        return (outputs - targets).square().mean()
    return (outputs.logsumexp(-1) - outputs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)).mean()


def maml_trajectory(module: MAML, support: Examples, steps: int) -> list[Tensors]:
    """φ_0, ..., φ_S (Finn et al. 2017, algorithm 2)."""
    trajectory: list[Tensors] = [dict(module.network.named_parameters())]
    for _ in range(steps):
        at = trajectory[-1]
        loss = loss_of(module.spec, forward(module.network, at, support.x)[0], support.y)
        gradients = torch.autograd.grad(loss, list(at.values()), create_graph=not module.first_order)
        trajectory.append({n: v - module.inner_lr * g for (n, v), g in zip(at.items(), gradients, strict=True)})
    return trajectory


def maml_outputs(module: MAML, phi: Tensors, support: Examples, x: Tensor) -> Tensor:
    """Predictions with adapted parameters."""
    given = forward(module.network, phi, support.x)[1] if module.batch_norm == "inductive" else None
    return forward(module.network, phi, x, given)[0]


def maml_loss(module: MAML, batch: Episode, steps: int) -> Tensor:
    """The mean query loss after adaptation."""
    losses = []
    for t in range(len(batch.tasks)):
        support, query = task(batch, t)
        phi = maml_trajectory(module, support, steps)[-1]
        losses.append(loss_of(module.spec, maml_outputs(module, phi, support, query.x), query.y))
    return torch.stack(losses).mean()


# Measuring.


def gradient(loss: Tensor, module: nn.Module) -> Tensor:
    """The gradient of all parameters, flat."""
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(module.parameters()))])


def relative_error(found: Tensor, expected: Tensor) -> float:
    """The error of all elements together; single ones are noisy, since max-pooling and ReLU decide by rounding."""
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm())


# A Trainer without its files and lines.

# Lightning's advice on loader workers and log intervals, which tiny data need not follow.
quiet = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:The number of training batches", "ignore:.*`val_dataloader`"
)


def trainer(**options: object) -> L.Trainer:
    plain = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(**{**plain, "enable_checkpointing": False, **options})  # type: ignore[arg-type]


def loader(*batches: Episode) -> DataLoader[Episode]:
    # Its own generator: a loader draws a seed for its workers, from the global one by default.
    return DataLoader(list(batches), batch_size=None, generator=torch.Generator())  # type: ignore[arg-type]


class Snapshot:
    """Everything of a module and of the process that evaluation must leave alone."""

    def __init__(self, module: MetaModule) -> None:
        self.module = module
        self.state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        self.parameters = dict(module.named_parameters())
        self.random = torch.get_rng_state()

    def assert_unchanged(self) -> None:
        assert torch.equal(torch.get_rng_state(), self.random)
        assert self.module.state_dict().keys() == self.state.keys()
        for name, tensor in self.module.state_dict().items():
            assert torch.equal(tensor, self.state[name]), name
        for name, p in self.module.named_parameters():
            assert p is self.parameters[name]
            assert p.requires_grad
            assert p.grad is None
        for norm in self.module.modules():
            assert not isinstance(norm, TaskBatchNorm) or norm.statistics is None
