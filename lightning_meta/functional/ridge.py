"""Ridge regression in closed form, through which gradients flow."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_meta.functional.precision import in_float32


@in_float32
def ridge(x: Tensor, y: Tensor, penalty: Tensor) -> Tensor:
    r"""The weights of ridge regression without an intercept.

    $$W = X^\top (X X^\top + \lambda I)^{-1} Y = (X^\top X + \lambda I)^{-1} X^\top Y$$

    The first form (the Woodbury identity) solves M equations, the second F; the smaller system is solved.

    Args:
        x: Features `(M, F)`.
        y: Targets `(M, N)`.
        penalty: λ > 0, a scalar.

    Returns:
        W `(F, N)`.
    """
    y = y.to(x.dtype)
    if len(x) <= x.shape[1]:
        return x.T @ _solve(x @ x.T, y, penalty)
    return _solve(x.T @ x, x.T @ y, penalty)


def _solve(gram: Tensor, y: Tensor, penalty: Tensor) -> Tensor:
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    # `linalg.solve` reads an error code back from the device, which makes a GPU wait; λ > 0 leaves nothing to report.
    solution: Tensor = torch.linalg.solve_ex(gram + penalty * identity, y).result
    return solution
