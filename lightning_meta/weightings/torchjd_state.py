"""The state of torchjd's aggregators, as data that a checkpoint can hold.

Their `state_dict` cannot be loaded: it has buffers that a new aggregator lacks, and that of NashMTL is empty.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_meta.errors import UserError

STATE = {
    "ExcessMTLWeighting": ("_weights", "_sq_grad_sum", "_initial_w", "_warmup_w_sum", "_n_steps"),
    "GradVacWeighting": ("_phi_t",),
    "PCDWeighting": ("_sq_norm_ema", "_n_steps"),
    "_NashMTLWeighting": ("prvs_alpha", "normalization_factor", "step"),
}
"""Attributes of classes of torchjd 0.18 on which the next step depends."""


def stateful_part(aggregator: nn.Module) -> nn.Module | None:
    """The submodule of an aggregator that has state; None if there is none."""
    return next((part for part in aggregator.modules() if type(part).__name__ in STATE), None)


def state_of(part: nn.Module) -> dict[str, Any]:
    """A copy of the state, as tensors on the CPU, numbers and None."""
    return {name: _plain(getattr(part, name)) for name in STATE[type(part).__name__]}


def restore(part: nn.Module, state: dict[str, Any], matrix: Tensor) -> None:
    """Restore the state of an aggregator.

    Args:
        part: Submodule returned by `stateful_part`.
        state: State returned by `state_of`.
        matrix: Gradients of the next step, `(T, P)`; torchjd resets its state if their shape or dtype changes.

    Raises:
        UserError: The state has other attributes than expected.
    """
    kind = type(part).__name__
    if set(state) != set(STATE[kind]):
        raise UserError(
            f"the checkpoint's state of torchjd's {kind} is damaged: expected {', '.join(STATE[kind])}, got "
            f"{', '.join(sorted(state))}"
        )
    if kind == "_NashMTLWeighting":
        part._init_optim_problem()  # type: ignore[operator]  # torchjd calls it at step 0 only
        for name, value in state.items():
            setattr(part, name, value.numpy().copy() if isinstance(value, Tensor) else value)
        return
    for name, value in state.items():
        if isinstance(value, Tensor):
            value = value.to(matrix.device if kind == "ExcessMTLWeighting" else "cpu", copy=True)
        setattr(part, name, value)
    keys = {
        "ExcessMTLWeighting": (*matrix.shape, matrix.dtype, matrix.device),
        "GradVacWeighting": (len(matrix), matrix.dtype),
        "PCDWeighting": len(matrix),
    }
    part._state_key = keys[kind]  # type: ignore[assignment]


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    return value if value is None or isinstance(value, int | float) else torch.from_numpy(value.copy())
