"""Calling a module with tensors from outside, leaving the module as it was."""

from __future__ import annotations

from torch import Tensor, nn
from torch.func import functional_call

from lightning_meta.nn.normalization import Statistics, statistics_from

Tensors = dict[str, Tensor]


def tensors_of(module: nn.Module) -> tuple[Tensors, Tensors]:
    """The parameters and the buffers of a module, by name."""
    return dict(module.named_parameters()), dict(module.named_buffers())


def stateless_call(module: nn.Module, tensors: Tensors, x: Tensor, statistics: Statistics) -> tuple[Tensor, Tensors]:
    """Run a module on given parameters and buffers, those that are not given being its own.

    Args:
        module: What is run; no tensor that is given changes.
        tensors: Parameters and buffers by name. A buffer that is left out is the module's own, and may change.
        x: `(M, *input_shape)`.
        statistics: Whose statistics normalise: those of `x`, or those stored in `tensors`.

    Returns:
        The outputs, and `tensors` with the normalisation statistics of `x` in place of the old where they were used.
    """
    updated = dict(tensors)
    with statistics_from(module, statistics):
        outputs = functional_call(module, updated, (x,))
    return outputs, updated
