"""Batch normalisation whose statistics belong to one task."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.nn import functional as F

Statistics = Literal["batch", "fused", "running", "stored"]
"""Whose mean and variance normalise: those of the batch at hand; the same by torch's own kernel, which is faster, but
then what is stored of them is constant and the second derivatives under `vmap` are inexact; those of the batch in
training mode, which the stored ones follow, and the stored ones else, as in `torch.nn.BatchNorm`; or those stored
before."""


class TaskBatchNorm(nn.Module):
    r"""Batch normalisation (Ioffe and Szegedy 2015) that never mixes tasks.

    $$y = \gamma (x - \mu) / \sqrt{\sigma^2 + \epsilon} + \beta$$

    with μ and σ² either those of the batch (which are then stored, with the graph that made them), or those that were
    stored before. Who calls says which, with `statistics_from` or `use_statistics`; the module's training mode plays a
    part in "running" alone. A plain call takes those of the batch and stores nothing. It is written out in sums, which
    map over tasks and whose second derivatives are exact in float32 (`torch.nn.functional.batch_norm` is up to a few
    hundredths off where autograd goes through `vmap(grad)`).

    Args:
        num_features: Channels C.
        eps: ε, added to the variance.
        affine: Whether γ and β are learned.
    """

    momentum = 0.1  # of the running statistics, which the module that owns the network moves

    def __init__(self, num_features: int, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features)) if affine else None
        self.mean: Tensor
        self.var: Tensor
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("var", torch.ones(num_features))
        self.statistics: Statistics | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `(M, C, ...)` over all dimensions but C."""
        statistics, mapped = self.statistics, is_functorch_wrapped_tensor(x)
        if statistics == "fused" and not mapped:
            return self._fused(x)
        if statistics == "running" and not self.training:
            statistics = "stored"
        if not x.numel() or (statistics == "running" and x.numel() == x.shape[1]):
            statistics = "stored"  # none or one number a channel has no statistics: a rank may lack a task's examples
        if statistics == "running" and not mapped:
            return F.batch_norm(x, self.mean, self.var, self.weight, self.bias, True, self.momentum, self.eps)
        shape, var = [1, -1] + [1] * (x.dim() - 2), self.var
        shift: Tensor | None = self.bias
        if statistics != "stored":
            x, mean, var = self._centred(x, shape)
            if statistics == "running":
                self._follow(mean.detach(), var.detach(), x.numel() // x.shape[1])
            elif statistics is not None:
                self.mean, self.var = mean, var
        scale = (var + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight
        if statistics == "stored":
            shift = -self.mean * scale if shift is None else shift - self.mean * scale
        if shift is None:
            return x * scale.view(shape)
        return torch.addcmul(shift.view(shape), x, scale.view(shape))

    @staticmethod
    def _centred(x: Tensor, shape: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """`x` less its mean, the mean and the variance. Their gradients are spread once, over sums, and no more."""
        dims, count = [d for d in range(x.dim()) if d != 1], x.numel() // x.shape[1]
        exact = torch.promote_types(x.dtype, torch.float32)  # sums of float16 end at 65,504
        mean = x.sum(dims, dtype=exact) / count
        x = x - mean.view(shape)
        return x, mean, x.square().sum(dims) / count

    def _follow(self, mean: Tensor, var: Tensor, count: int) -> None:
        with torch.no_grad():
            unbiased = var * (count / max(count - 1, 1))  # as torch keeps it
            for stored, new in ((self.mean, mean), (self.var, unbiased)):
                stored.mul_(1 - self.momentum).add_(new, alpha=self.momentum)

    def _fused(self, x: Tensor) -> Tensor:
        y, mean, inverse = torch.native_batch_norm(x, self.weight, self.bias, None, None, True, 0.0, self.eps)
        self.mean, self.var = mean, inverse.pow(-2) - self.eps
        return y

    def extra_repr(self) -> str:
        """Shown in the module's print-out."""
        return f"{len(self.mean)}, eps={self.eps}, affine={self.weight is not None}"


def use_statistics(module: nn.Module, statistics: Statistics) -> None:
    """From now on, every `TaskBatchNorm` of `module` takes its statistics from there."""
    for norm in module.modules():
        if isinstance(norm, TaskBatchNorm):
            norm.statistics = statistics


@contextmanager
def statistics_from(module: nn.Module, statistics: Statistics) -> Iterator[None]:
    """Within the context, every `TaskBatchNorm` of `module` takes its statistics from there."""
    norms = [m for m in module.modules() if isinstance(m, TaskBatchNorm)]
    before = [norm.statistics for norm in norms]
    for norm in norms:
        norm.statistics = statistics
    try:
        yield
    finally:
        for norm, old in zip(norms, before, strict=True):
            norm.statistics = old


def per_task(module: nn.Module) -> nn.Module:
    """Replace every `torch.nn.BatchNorm` in a module by a `TaskBatchNorm` with its weights and statistics.

    Args:
        module: Changed in place, unless it is itself a batch normalisation.

    Returns:
        The module.
    """
    if isinstance(module, _BATCH_NORMS):
        return _converted(module)
    made: dict[nn.Module, nn.Module] = {}
    for parent in list(module.modules()):
        for name, child in list(parent._modules.items()):  # `named_children` leaves out a layer's second place
            if isinstance(child, _BATCH_NORMS):
                made[child] = made[child] if child in made else _converted(child)
                setattr(parent, name, made[child])
    return module


_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def _converted(theirs: nn.Module) -> TaskBatchNorm:
    assert isinstance(theirs, _BATCH_NORMS)
    norm = TaskBatchNorm(theirs.num_features, theirs.eps, theirs.affine)
    if theirs.momentum is not None:
        norm.momentum = theirs.momentum
    if theirs.affine:
        norm.to(theirs.weight)
        norm.weight, norm.bias = theirs.weight, theirs.bias
    if theirs.running_mean is not None and theirs.running_var is not None:
        norm.mean, norm.var = theirs.running_mean, theirs.running_var
    return norm


@torch.no_grad()
def follow(network: nn.Module, statistics: Mapping[str, Tensor], mean_over_ranks: Callable[[Tensor], Any]) -> None:
    """Move the stored statistics towards those of T tasks: by a tenth of the way to their mean.

    Args:
        network: Its buffers are moved.
        statistics: By name of the buffer, `(T, C)`.
        mean_over_ranks: Reduces a tensor to its mean over all ranks; called once.
    """
    means = {name: tensor.mean(0) for name, tensor in statistics.items()}
    flat: Tensor = mean_over_ranks(torch.cat([mean.flatten() for mean in means.values()]))
    buffers = dict(network.named_buffers())
    parts = flat.split([mean.numel() for mean in means.values()])
    for (name, mean), part in zip(means.items(), parts, strict=True):
        buffers[name].lerp_(part.view_as(mean).to(buffers[name].dtype), TaskBatchNorm.momentum)
