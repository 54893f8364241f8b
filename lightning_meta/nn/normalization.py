"""Batch normalisation whose statistics can belong to one task."""

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
"""Whose mean and variance normalise where a task's own are wanted: those of the `batch` at hand, which are recorded
with the graph that made them; the same by torch's own kernel (`fused`), which is faster, but what it records is
constant; or those `stored` before."""


class TaskBatchNorm(_BatchNorm):
    r"""Batch normalisation (Ioffe and Szegedy 2015) that can keep the statistics of tasks apart.

    $$y = \gamma (x - \mu) / \sqrt{\sigma^2 + \epsilon} + \beta$$

    Called as it is, it is torch's layer, for inputs of any dimension: in training mode μ and σ² are those of the batch,
    and running statistics follow them; in evaluation mode they are the running ones. `momentum`, `momentum=None` and
    `track_running_stats=False` mean what they mean in torch. A batch that has no variance (no example, or one number a
    channel), which torch refuses in training mode, is normalised by the running statistics: a rank may lack a task's
    examples.

    Within `statistics_from` it normalises by the statistics of one task, whatever its mode, unless it is `frozen`.
    These forms are written out in sums, which map over tasks and whose second derivatives are exact in float32
    (`torch.nn.functional.batch_norm` is up to a few hundredths off where autograd goes through `vmap(grad)`).

    Args:
        num_features: Channels C.
        eps: ε, added to the variance.
        momentum: Of the running statistics; None averages over all batches.
        affine: Whether γ and β are learned.
        track_running_stats: Whether there are running statistics.

    Attributes:
        statistics: Whose statistics normalise; None where the layer is torch's.
        frozen: Whether the layer was put into evaluation mode for training: then it always uses what is stored.
        collected: Within `collected_statistics`, the mean and variance of each batch.
        calls: Within `statistics_from`, how often it was called: what is recorded is the mean over calls.
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
        for name, new in (("running_mean", mean), ("running_var", var)):
            old = self._buffers[name]
            self._buffers[name] = new if self.calls == 1 or old is None else old + (new - old) / self.calls
        return y

    def _as_torch_does(self, x: Tensor) -> Tensor:
        if not self.training or not _has_variance(x):
            return self._by_stored(x)
        mapped = is_functorch_wrapped_tensor(x)
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
            return self._by_own(x)[0]
        scale = (self.running_var + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight
        shift = -self.running_mean * scale if self.bias is None else self.bias - self.running_mean * scale
        shape = _per_channel(x)
        return torch.addcmul(shift.view(shape), x, scale.view(shape)).to(self._dtype(x))

    def _by_own(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The normalised input, its mean and its biased variance. Gradients are spread once, over sums."""
        dims, count = [d for d in range(x.dim()) if d != 1], max(x.numel() // x.shape[1], 1)
        exact = torch.promote_types(x.dtype, torch.float32)  # sums of float16 end at 65,504
        shape, dtype = _per_channel(x), self._dtype(x)
        mean = x.sum(dims, dtype=exact) / count
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
        return y, mean, inverse.pow(-2) - self.eps

    def _dtype(self, x: Tensor) -> torch.dtype:
        """Of the output, whatever the statistics are kept in: a network in bf16 goes on in bf16."""
        return x.dtype if self.weight is None else torch.promote_types(x.dtype, self.weight.dtype)

    @torch.no_grad()
    def follow(self, mean: Tensor, var: Tensor) -> None:
        """Move the running statistics towards those of a batch, as torch does in training mode; both are `(C,)`."""
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
    """Within the context, every `TaskBatchNorm` of `module` takes its statistics from there.

    "batch" and "fused" leave theirs in the layers' buffers: `stateless_call` puts the old ones back.
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
    """Within the context, layers in training mode that are called as they are move no running statistics.

    Yields:
        A dictionary that holds, at the end of the context, the mean over the calls of each layer's statistics, by name
        of the buffer: what `follow` takes.
    """
    norms = task_norms(module)
    found: dict[str, Tensor] = {}
    for norm in norms.values():
        norm.collected = []
    try:
        yield found
        for name, norm in norms.items():
            means_and_variances = zip(*norm.collected or (), strict=True)
            for buffer, values in zip(("running_mean", "running_var"), means_and_variances, strict=False):
                # A value from within a gradient that has ended is unwrapped.
                found[f"{name}.{buffer}".lstrip(".")] = torch.stack([unwrap_if_dead(v) for v in values]).mean(0)
    finally:
        for norm in norms.values():
            norm.collected = None


def task_norms(module: nn.Module) -> dict[str, TaskBatchNorm]:
    """The batch normalisations of a module by name."""
    return {name: part for name, part in module.named_modules() if isinstance(part, TaskBatchNorm)}


def freeze_evaluated(module: nn.Module) -> None:
    """Mark the layers that the user holds in evaluation mode while the others train."""
    for norm in task_norms(module).values():
        norm.frozen = not norm.training


def hold_in_evaluation(module: nn.Module, names: Iterable[str]) -> None:
    """Mark layers that were frozen when a checkpoint was written; see `freeze_evaluated`."""
    norms = task_norms(module)
    for name in names:
        if name in norms:
            norms[name].frozen = True


def per_task(module: nn.Module, synchronised_too: bool = True) -> nn.Module:
    """Turn every `torch.nn.BatchNorm` in a module into a `TaskBatchNorm`.

    A layer stays the same object with the same tensors. A subclass with its own `forward` computes something else, and
    is left alone.

    Args:
        module: Changed in place.
        synchronised_too: Whether a `SyncBatchNorm` is turned into one as well, whose statistics are those of one rank.

    Returns:
        The module.
    """
    forwards = (_BatchNorm.forward, *([nn.SyncBatchNorm.forward] if synchronised_too else []))
    for part in module.modules():
        if isinstance(part, _BatchNorm) and not isinstance(part, TaskBatchNorm) and type(part).forward in forwards:
            part.__class__ = TaskBatchNorm
        if part._forward_pre_hooks:  # an old weight norm keeps a weight with its graph, which cannot be copied
            for name, value in part.__dict__.items():
                if isinstance(value, Tensor) and value.grad_fn is not None:
                    part.__dict__[name] = value.detach()
    return module


def refuse_other_batch_norms(module: nn.Module, option: str = "backbone") -> None:
    """Refuse batch normalisations whose statistics cannot be kept apart for each task.

    Raises:
        UserError: The layer and its class.
    """
    for name, part in module.named_modules():
        if isinstance(part, _BatchNorm) and not isinstance(part, TaskBatchNorm):
            raise UserError(
                f"{option}: {name or 'it'} is a {type(part).__name__}, a batch normalisation with its own forward, "
                "whose statistics cannot be kept apart for each task; use torch.nn.BatchNorm2d and a layer behind it"
            )


@torch.no_grad()
def follow(network: nn.Module, statistics: Mapping[str, Tensor], mean_over_ranks: Callable[[Tensor], Tensor]) -> None:
    """Move the running statistics towards the mean of those of T tasks, by each layer's momentum.

    Args:
        network: Layers in evaluation mode, and those without running statistics, are left alone.
        statistics: By name of the buffer, `(T, C)`; other names are ignored.
        mean_over_ranks: Reduces a tensor to its mean over all ranks; called once.
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
