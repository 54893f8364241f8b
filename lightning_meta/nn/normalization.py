"""Batch normalisation with statistics per task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor, unwrap_if_dead
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_meta.errors import UserError

Statistics = Literal["batch", "fused", "stored"]
"""Which mean and variance normalise a task: `batch`, those of the batch, recorded with their autograd graph; `fused`,
the same by torch's faster kernel, but recorded as constants; or `stored`, the values in the buffers."""


class TaskBatchNorm(_BatchNorm):
    r"""Batch normalisation (Ioffe and Szegedy 2015) with separate statistics for each task.

    $$y = \gamma (x - \mu) / \sqrt{\sigma^2 + \epsilon} + \beta$$

    By default it behaves like torch's layer, for inputs of any dimension: in training mode μ and σ² are those of the
    batch, and running statistics follow them; in evaluation mode the running statistics normalise. `momentum`,
    `momentum=None` and `track_running_stats=False` are as in torch. A batch without variance (no example, or one value
    per channel), which torch refuses in training mode, is normalised by the running statistics, since a rank may have
    no example of a task.

    Within `statistics_from` it normalises by the statistics of one task, in any mode, unless it is `frozen`. This is
    written out in sums, which can be vectorised over tasks and have exact second derivatives in float32 (those of
    `torch.nn.functional.batch_norm` are wrong by up to a few percent when autograd differentiates `vmap(grad)`).

    Args:
        num_features: Number of channels C.
        eps: ε > 0, added to the variance.
        momentum: Momentum of the running statistics; None averages over all batches.
        affine: Whether γ and β are learned.
        track_running_stats: Whether to keep running statistics.

    Attributes:
        statistics: Statistics used for normalisation; None for the behaviour of torch's layer.
        frozen: Whether the user keeps the layer in evaluation mode during training: it then always uses the stored
            statistics.
        collected: Mean and variance of each batch, in the context of `collected_statistics`.
        calls: Number of calls so far, in the context of `statistics_from`; the buffers hold the mean over calls.
    """

    statistics: Statistics | None = None
    frozen: bool = False
    collected: list[tuple[Tensor, Tensor]] | None = None
    calls: int = 0

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `(M, C, ...)` over all dimensions but C."""
        if self.statistics is None:
            return self._as_torch_does(x)
        if self.statistics == "stored" or self.frozen or not _has_variance(x):
            return self._by_stored(x)
        fused = self.statistics == "fused" and not is_functorch_wrapped_tensor(x)
        y, mean, var = self._by_own_fused(x) if fused else self._by_own(x)
        self.calls += 1
        # The buffers now belong to the task: `swapped` has replaced those of the module and restores them.
        for name, new in (("running_mean", mean), ("running_var", var)):
            old = self._buffers[name]
            # The mean over calls: a layer may be called several times in a pass.
            self._buffers[name] = new if self.calls == 1 or old is None else old + (new - old) / self.calls
        return y

    def _as_torch_does(self, x: Tensor) -> Tensor:
        if not self.training or not _has_variance(x):
            return self._by_stored(x)
        mapped = is_functorch_wrapped_tensor(x)  # `vmap` refuses a layer that updates its buffers in place
        if not mapped and self.collected is None:
            return super().forward(x)
        y, mean, var = self._by_own(x) if mapped else self._by_own_fused(x)
        if self.track_running_stats:
            count = x.numel() // x.shape[1]
            mean, var = mean.detach(), var.detach() * (count / (count - 1))  # torch keeps the unbiased variance
            if self.collected is None:
                self.follow(mean, var)
            else:
                self.collected.append((mean, var))
        return y

    def _by_stored(self, x: Tensor) -> Tensor:
        if self.running_mean is None or self.running_var is None:
            return self._by_own(x)[0]  # as in torch: without running statistics, those of the batch in any mode
        scale = (self.running_var + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight
        shift = -self.running_mean * scale if self.bias is None else self.bias - self.running_mean * scale
        shape = _per_channel(x)
        return torch.addcmul(shift.view(shape), x, scale.view(shape)).to(self._dtype(x))

    def _by_own(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The normalised input, its mean and its biased variance, in differentiable sums."""
        dims, count = [d for d in range(x.dim()) if d != 1], max(x.numel() // x.shape[1], 1)
        exact = torch.promote_types(x.dtype, torch.float32)  # float16 overflows at 65,504
        shape, dtype = _per_channel(x), self._dtype(x)
        mean = x.sum(dims, dtype=exact) / count
        # Deviations from the mean: the mean of squares minus the squared mean cancels where the variance is small.
        x = x - mean.view(shape)
        var = x.square().sum(dims) / count
        scale = (var + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight
        if self.bias is None:
            return (x * scale.view(shape)).to(dtype), mean, var
        return torch.addcmul(self.bias.view(shape), x, scale.view(shape)).to(dtype), mean, var

    def _by_own_fused(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, mean, inverse = torch.native_batch_norm(x, self.weight, self.bias, None, None, True, 0.0, self.eps)
        return y, mean, inverse.pow(-2) - self.eps  # the kernel returns 1 / sqrt(σ² + ε)

    def _dtype(self, x: Tensor) -> torch.dtype:
        """The dtype of the output; it does not depend on that of the statistics, so a bf16 network stays in bf16."""
        return x.dtype if self.weight is None else torch.promote_types(x.dtype, self.weight.dtype)

    @torch.no_grad()
    def follow(self, mean: Tensor, var: Tensor) -> None:
        """Update the running statistics from those of a batch, both `(C,)`, as torch does in training mode."""
        if self.running_mean is None or self.running_var is None:
            return
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        share = self.momentum
        for stored, new in ((self.running_mean, mean), (self.running_var, var)):
            change = new.to(stored.dtype) - stored
            if share is None:
                assert self.num_batches_tracked is not None
                stored.add_(change / self.num_batches_tracked)
            else:
                stored.add_(change, alpha=share)

    def _check_input_dim(self, x: Tensor) -> None:
        if x.dim() < 2:
            raise ValueError(f"batch normalisation takes (M, C, ...), got {tuple(x.shape)}")


def _has_variance(x: Tensor) -> bool:
    return x.numel() > x.shape[1]


def _per_channel(x: Tensor) -> list[int]:
    return [1, -1] + [1] * (x.dim() - 2)


@contextmanager
def statistics_from(module: nn.Module, statistics: Statistics) -> Iterator[None]:
    """A context in which every `TaskBatchNorm` of `module` normalises by the given statistics.

    "batch" and "fused" write the statistics to the layers' buffers; `stateless_call` restores the buffers.

    >>> norm = TaskBatchNorm(1).eval()
    >>> with statistics_from(norm, "batch"), torch.no_grad():
    ...     norm(torch.tensor([[4.0], [6.0]])).round(decimals=3).tolist()
    [[-1.0], [1.0]]
    """
    norms = task_norms(module)
    before = [norm.statistics for norm in norms.values()]
    for norm in norms.values():
        norm.statistics, norm.calls = statistics, 0
    try:
        yield
    finally:
        for norm, old in zip(norms.values(), before, strict=True):
            norm.statistics = old


@contextmanager
def collected_statistics(module: nn.Module) -> Iterator[dict[str, Tensor]]:
    """A context in which layers in training mode collect batch statistics instead of updating running statistics.

    Needed for tasks in a loop or under `vmap`, where running statistics must follow the mean over tasks; see `follow`.

    Yields:
        A dictionary that is filled at the end of the context: the statistics of each layer, averaged over its calls,
        by name of the buffer.
    """
    norms = task_norms(module)
    means: dict[str, Tensor] = {}
    for norm in norms.values():
        norm.collected = []
    try:
        yield means
        for name, norm in norms.items():
            means_and_variances = zip(*norm.collected or (), strict=True)
            for buffer, values in zip(("running_mean", "running_var"), means_and_variances, strict=False):
                # Values computed within a `torch.func.grad` that has ended are still wrapped.
                means[f"{name}.{buffer}".lstrip(".")] = torch.stack([unwrap_if_dead(v) for v in values]).mean(0)
    finally:
        for norm in norms.values():
            norm.collected = None


def task_norms(module: nn.Module) -> dict[str, TaskBatchNorm]:
    """The batch normalisation layers of a module by name."""
    return {name: part for name, part in module.named_modules() if isinstance(part, TaskBatchNorm)}


def refuse_batch_statistics(network: nn.Module, argument: str) -> None:
    """Refuse to calibrate a network whose evaluation depends on the other examples of a batch.

    Raises:
        UserError: The name of a layer without running statistics.
    """
    for name, part in network.named_modules():
        if isinstance(part, _BatchNorm) and part.running_mean is None:
            raise UserError(
                f"{argument}: {name or 'the network'} ({type(part).__name__}) has no running statistics, so "
                "predictions depend on the other examples of a batch and cannot be calibrated; leave "
                "track_running_stats=False out"
            )


def freeze_evaluated(module: nn.Module) -> None:
    """Mark the layers that the user keeps in evaluation mode during training as frozen."""
    for norm in task_norms(module).values():
        norm.frozen = not norm.training


def hold_in_evaluation(module: nn.Module, names: Iterable[str]) -> None:
    """Mark the layers that were frozen when a checkpoint was written; see `freeze_evaluated`."""
    norms = task_norms(module)
    for name in names:
        if name in norms:
            norms[name].frozen = True


def per_task(module: nn.Module, synchronised_too: bool = True) -> nn.Module:
    """Turn every `torch.nn.BatchNorm` in a module into a `TaskBatchNorm`.

    Layers stay the same objects with the same tensors. Subclasses with their own `forward` are not changed.

    >>> network = per_task(nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8)))
    >>> type(network[1]).__name__
    'TaskBatchNorm'

    Args:
        module: The module; it is changed in place.
        synchronised_too: Whether to also convert `SyncBatchNorm`, whose statistics are then those of one rank.

    Returns:
        The module.
    """
    forwards = (_BatchNorm.forward, *([nn.SyncBatchNorm.forward] if synchronised_too else []))
    for part in module.modules():
        if isinstance(part, _BatchNorm) and not isinstance(part, TaskBatchNorm) and type(part).forward in forwards:
            part.__class__ = TaskBatchNorm
        if part._forward_pre_hooks:  # the old `weight_norm` keeps a weight with its graph, which deepcopy refuses
            for name, value in part.__dict__.items():
                if isinstance(value, Tensor) and value.grad_fn is not None:
                    part.__dict__[name] = value.detach()
    return module


def refuse_other_batch_norms(module: nn.Module, option: str = "backbone") -> None:
    """Refuse batch normalisation layers without separate statistics for each task.

    Raises:
        UserError: There is one; the message names the layer and its class.
    """
    for name, part in module.named_modules():
        if isinstance(part, _BatchNorm) and not isinstance(part, TaskBatchNorm):
            raise UserError(
                f"{option}: {name or 'it'} is a {type(part).__name__}, a batch normalisation with its own forward, "
                "whose statistics cannot be kept apart for each task; use torch.nn.BatchNorm2d and a layer behind it"
            )


@torch.no_grad()
def follow(network: nn.Module, statistics: Mapping[str, Tensor], mean_over_ranks: Callable[[Tensor], Tensor]) -> None:
    """Update the running statistics from the mean of those of T tasks, with each layer's momentum.

    Args:
        network: The network; layers in evaluation mode or without running statistics are skipped.
        statistics: Statistics `(T, C)` by name of the buffer; other names are ignored.
        mean_over_ranks: Function that averages a tensor over all ranks; called once, for all layers together.
    """
    moved: list[TaskBatchNorm] = []
    means: list[Tensor] = []
    for name, norm in task_norms(network).items():
        prefix = f"{name}." if name else ""
        if norm.training and norm.track_running_stats and f"{prefix}running_mean" in statistics:
            moved.append(norm)
            means += [statistics[prefix + of].mean(0) for of in ("running_mean", "running_var")]
    if not moved:
        return
    parts = mean_over_ranks(torch.cat(means)).split([len(mean) for mean in means])
    for norm, mean, var in zip(moved, parts[::2], parts[1::2], strict=True):
        norm.follow(mean, var)
