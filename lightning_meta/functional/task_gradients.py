"""The gradients of the tasks' losses, and a loss with given gradients.

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
    """The result of `task_gradients`.

    Attributes:
        rows: Gradients with respect to the shared parameters, concatenated, `(T, P)`; 0 where a loss does not depend on
            them.
        own: For each task, the gradients with respect to its own parameters; None if the loss does not depend on them.
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
    """Differentiate T losses with respect to the shared parameters and the parameters of each task.

    `.grad` is not changed, gradient hooks such as those of DDP do not run, and the graph of the losses is kept.

    Args:
        losses: The T losses, scalars; None for a task without a loss.
        shared: The shared parameters, with P entries in total; at least one tensor.
        own: Parameters of each task that are not shared; none by default.
        scale: Loss scale against underflow in half precision; the gradients are divided by it afterwards.
    """
    sizes = [p.numel() for p in shared]
    rows = shared[0].new_zeros(len(losses), sum(sizes))
    used = [False] * len(shared)
    by_task: list[list[Tensor | None]] = []
    for i, loss in enumerate(losses):
        inputs = [*shared, *(own[i] if own else ())]
        gradients = _gradients(loss, inputs, scale)
        for piece, gradient in zip(rows[i].split(sizes), gradients, strict=False):
            if gradient is not None:
                piece.copy_(gradient.to_dense().flatten() if gradient.is_sparse else gradient.flatten())
        used = [before or g is not None for before, g in zip(used, gradients, strict=False)]
        by_task.append(gradients[len(sizes) :])
    return TaskGradients(rows, by_task, used)


def _gradients(loss: Tensor | None, inputs: Sequence[Tensor], scale: Tensor | None) -> list[Tensor | None]:
    if loss is None or not loss.requires_grad:
        return [None] * len(inputs)
    # Autocast would run the backward pass of float32 operations in half precision.
    with without_autocast(loss.device.type):
        scaled = loss if scale is None else loss * scale
        gradients = torch.autograd.grad(scaled, inputs, retain_graph=True, allow_unused=True)
    return [g if g is None or scale is None else g / scale for g in gradients]


def loss_with_gradients(value: Tensor, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> Tensor:
    """A loss whose backward pass yields given gradients.

    A Trainer can scale and accumulate it and run its backward pass under any strategy, as for any other loss.

    Args:
        value: Value of the loss, a scalar.
        parameters: Parameters that it depends on, at least one of them trained.
        gradients: Gradient with respect to each parameter, of its shape; None does not change `.grad`.

    Returns:
        The loss, a scalar equal to `value`.
    """
    loss: Tensor = _WithGradients.apply(value.detach(), gradients, *parameters)  # type: ignore[no-untyped-call]
    return loss


class _WithGradients(torch.autograd.Function):
    # The sum of ⟨p, gradient⟩ has the same gradients, but another value, which is NaN if a gradient is not finite.

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: Sequence[Tensor | None], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_loss: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *_multiplied(ctx.gradients, of_loss)


def _multiplied(gradients: Sequence[Tensor | None], factor: Tensor) -> list[Tensor | None]:
    """Multiply gradients by a scalar, all of a dtype by one kernel: modules of many tasks have many parameters."""
    products: list[Tensor | None] = [None] * len(gradients)
    dense: dict[torch.dtype, list[int]] = {}
    for i, gradient in enumerate(gradients):
        if gradient is not None and gradient.is_sparse:
            products[i] = gradient * factor.to(gradient.dtype)
        elif gradient is not None:
            dense.setdefault(gradient.dtype, []).append(i)
    for dtype, places in dense.items():
        of_dtype = [gradient for i in places if (gradient := gradients[i]) is not None]
        for i, product in zip(places, torch._foreach_mul(of_dtype, factor.to(dtype)), strict=True):
            products[i] = product
    return products
