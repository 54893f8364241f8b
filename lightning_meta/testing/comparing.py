"""Comparison of tensors and of the parameters and buffers of modules."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and buffers by name."""
    return {name: t.detach().clone() for name, t in [*module.named_parameters(), *module.named_buffers()]}


def differing(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """Names of tensors that differ in shape or in any value, or exist on one side only; NaN equals NaN."""
    names = dict.fromkeys([*before, *after])
    return [n for n in names if n not in before or n not in after or not _same(before[n], after[n])]


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same shape and values, where NaN equals NaN."""
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def relative_error(found: Tensor, expected: Tensor) -> float:
    """The norm of the difference divided by the norm of `expected`."""
    found, expected = found.detach(), expected.detach()
    return float((found - expected).norm() / expected.norm().clamp_min(1e-300))
