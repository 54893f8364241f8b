"""The gradient of each task's loss, and a loss whose gradients are given.

>>> import torch
>>> shared, head = torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor(3.0, requires_grad=True)
>>> losses = [shared.sum() * head, None, shared[0] ** 2]
>>> gradients = task_gradients(losses, [shared], own=[[head], [], []])
>>> gradients.rows.tolist()
[[3.0, 3.0], [0.0, 0.0], [2.0, 0.0]]
>>> gradients.own[0][0].item()
3.0
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightning_meta.functional.precision import without_autocast


class TaskGradients(NamedTuple):
    """What `task_gradients` returns.

    Attributes:
        rows: The gradients by the shared parameters, one after the other, `(T, P)`; 0 where a loss does not depend on
            them.
        own: For each task, the gradients by its own parameters, None where the loss does not depend on them.
        used: For each shared parameter, whether a loss depends on it.
    """

    rows: Tensor
    own: list[list[Tensor | None]]
    used: list[bool]


def task_gradients(
    losses: Sequence[Tensor | None],
    shared: Sequence[Tensor],
    own: Sequence[Sequence[Tensor]] = (),
    scale: Tensor | None = None,
) -> TaskGradients:
    """Differentiate T losses, each by the shared parameters and by the task's own.

    It does not touch `.grad`, and hooks that wait for gradients, such as those of a distributed run, do not run. The
    graph of the losses is kept.

    Args:
        losses: The loss of each task, a scalar; None for a task without a loss. T of them.
        shared: The shared parameters, P numbers in all; at least one tensor.
        own: For each task, its own parameters; none by default.
        scale: Multiplies the losses before they are differentiated, and divides the gradients afterwards, so that
            those in half precision do not vanish.
    """
    sizes = [p.numel() for p in shared]
    rows = shared[0].new_zeros(len(losses), sum(sizes))
    used = [False] * len(shared)
    by_task: list[list[Tensor | None]] = []
    for i, loss in enumerate(losses):
        inputs = [*shared, *(own[i] if own else ())]
        found = _gradients(loss, inputs, scale)
        for piece, gradient in zip(rows[i].split(sizes), found, strict=False):
            if gradient is not None:
                piece.copy_(gradient.to_dense().flatten() if gradient.is_sparse else gradient.flatten())
        used = [before or g is not None for before, g in zip(used, found, strict=False)]
        by_task.append(found[len(sizes) :])
    return TaskGradients(rows, by_task, used)


def _gradients(loss: Tensor | None, inputs: Sequence[Tensor], scale: Tensor | None) -> list[Tensor | None]:
    if loss is None or not loss.requires_grad:
        return [None] * len(inputs)
    # Under autocast, what the forward pass computed in float32 would be differentiated in half precision.
    with without_autocast(loss.device.type):
        scaled = loss if scale is None else loss * scale
        found = torch.autograd.grad(scaled, inputs, retain_graph=True, allow_unused=True)
    return [g if g is None or scale is None else g / scale for g in found]


def loss_with_gradients(value: Tensor, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> Tensor:
    """A loss whose backward pass gives the gradients that it is told: linear in the parameters, up to a constant.

    A Trainer may scale it, accumulate it and run its backward pass under any strategy, as with any other loss.

    Args:
        value: The value of the loss, a scalar.
        parameters: What it depends on; at least one that is trained.
        gradients: The gradient by each parameter, of its shape; None leaves its `.grad` as it is.

    Returns:
        A scalar, equal to `value`.
    """
    loss: Tensor = _WithGradients.apply(value.detach(), gradients, *parameters)  # type: ignore[no-untyped-call]
    return loss


class _WithGradients(torch.autograd.Function):
    # Σ⟨p, gradient⟩ has the same gradients; but its value is another one, and NaN where a gradient is not finite.

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: Sequence[Tensor | None], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_loss: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(None if g is None else g * of_loss.to(g.dtype) for g in ctx.gradients)
