"""Differentiable ridge regression in closed form."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_meta.functional.precision import in_float32


@in_float32
def ridge(x: Tensor, y: Tensor, penalty: Tensor) -> Tensor:
    r"""The weights of ridge regression without an intercept.

    $$W = X^\top (X X^\top + \lambda I)^{-1} Y = (X^\top X + \lambda I)^{-1} X^\top Y$$

    The first form (Woodbury identity) is a system of M equations, the second of F; the smaller one is solved.

    Args:
        x: Features `(M, F)`.
        y: Targets `(M, N)`.
        penalty: λ > 0, a scalar.

    Returns:
        Weights W `(F, N)`.

    >>> ridge(torch.tensor([[1.0]]), torch.tensor([[2.0]]), torch.tensor(1.0)).tolist()
    [[1.0]]
    """
    y = y.to(x.dtype)
    if len(x) <= x.shape[1]:
        return x.T @ _solve(x @ x.T, y, penalty)
    return _solve(x.T @ x, x.T @ y, penalty)


def _solve(gram: Tensor, y: Tensor, penalty: Tensor) -> Tensor:
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    # `linalg.solve` reads an error code, which synchronises with a GPU; for λ > 0 the system is always solvable.
    solution: Tensor = torch.linalg.solve_ex(gram + penalty * identity, y).result
    return solution
