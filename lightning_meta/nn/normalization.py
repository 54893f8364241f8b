"""Batch normalisation whose statistics belong to one task."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor

Statistics = Literal["batch", "fused", "stored"]
"""Whose mean and variance normalise: those of the batch at hand; the same by torch's own kernel, which is faster, but
then what is stored of them is constant and the second derivatives under `vmap` are inexact; or those stored before."""


class TaskBatchNorm(nn.Module):
    r"""Batch normalisation (Ioffe and Szegedy 2015) that never mixes tasks.

    $$y = \gamma (x - \mu) / \sqrt{\sigma^2 + \epsilon} + \beta$$

    with μ and σ² either those of the batch (which are then stored), or those that were stored before. Who calls says
    which, with `statistics_from`; the module's training mode plays no part. It is written with `var_mean`, which maps
    over tasks and whose second derivatives are exact in float32 (`torch.nn.functional.batch_norm` under
    `vmap(grad)` is 2e-3 off).

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
        self.statistics: Statistics = "batch"

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `(M, C, ...)` over all dimensions but C."""
        if self.statistics == "fused" and not is_functorch_wrapped_tensor(x):
            return self._fused(x)
        if self.statistics != "stored":
            dims = [d for d in range(x.dim()) if d != 1]
            self.var, self.mean = torch.var_mean(x, dims, correction=0)
        scale = (self.var + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight
        shift = -self.mean * scale
        if self.bias is not None:
            shift = shift + self.bias
        shape = [1, -1] + [1] * (x.dim() - 2)
        return torch.addcmul(shift.view(shape), x, scale.view(shape))

    def _fused(self, x: Tensor) -> Tensor:
        y, mean, inverse = torch.native_batch_norm(x, self.weight, self.bias, None, None, True, 0.0, self.eps)
        self.mean, self.var = mean, inverse.pow(-2) - self.eps
        return y

    def extra_repr(self) -> str:
        """Shown in the module's print-out."""
        return f"{len(self.mean)}, eps={self.eps}, affine={self.weight is not None}"


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
    if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
        norm = TaskBatchNorm(module.num_features, module.eps, module.affine)
        with torch.no_grad():
            if norm.weight is not None and norm.bias is not None:
                norm.weight.copy_(module.weight)
                norm.bias.copy_(module.bias)
            if module.running_mean is not None and module.running_var is not None:
                norm.mean.copy_(module.running_mean)
                norm.var.copy_(module.running_var)
        return norm
    for name, child in module.named_children():
        setattr(module, name, per_task(child))
    return module
