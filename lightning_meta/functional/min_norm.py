"""The shortest vector in the convex hull of T gradients."""

from __future__ import annotations

import torch
from scipy import optimize
from torch import Tensor

from lightning_meta.functional.precision import at_least_float32


def products(gradients: Tensor) -> tuple[Tensor, Tensor]:
    """The inner products of gradients, scaled so that small gradients do not underflow.

    Args:
        gradients: Gradients `(T, P)`, finite.

    Returns:
        The products of the gradients divided by their lengths, `(T, T)`, and the lengths, `(T,)`: float64 on the CPU. A
        gradient of length 0 has products of 0.
    """
    wide = at_least_float32(gradients)
    largest = wide.abs().amax(1).clamp(min=torch.finfo(wide.dtype).tiny)  # 100 times as fast as vector_norm
    wide = wide / largest.unsqueeze(1)  # the square of a small number would be 0
    lengths = wide.norm(dim=1)
    unit = wide / torch.where(lengths > 0, lengths, 1).unsqueeze(1)
    return (unit @ unit.T).cpu().double(), lengths.cpu().double() * largest.cpu().double()


def min_norm(products: Tensor, lengths: Tensor) -> Tensor:
    r"""The weights of the shortest convex combination, $\min_\alpha \lVert \sum_i \alpha_i g_i \rVert$.

    With $v_i = \alpha_i \lVert g_i \rVert$ up to a factor, and u the gradients divided by their lengths, it is the
    problem of non-negative least squares $\min_{v \ge 0} \lVert \sum_i v_i u_i \rVert^2 + (\sum_i v_i c_i - 1)^2$ with
    $c_i \propto 1 / \lVert g_i \rVert$, which has the same conditions of optimality. An active-set method solves it, so
    the answer is exact, up to rounding, after finitely many steps.

    >>> gradients = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    >>> unit, lengths = torch.eye(2), torch.tensor([2.0, 1.0])
    >>> [round(weight, 3) for weight in min_norm(unit, lengths).tolist()]
    [0.2, 0.8]

    Args:
        products: Inner products of the gradients divided by their lengths, `(T, T)`, on the CPU.
        lengths: Lengths of the gradients, `(T,)`.

    Returns:
        $\alpha$, `(T,)` float64, at least 0 and of sum 1. Where a gradient is 0, all weight is on such gradients.
    """
    return shortest(root(products.double()), lengths)


def root(products: Tensor) -> Tensor:
    """Vectors with given inner products, as the columns of `(T, T)`; products `(T, T)` float64, on the CPU."""
    values, vectors = torch.linalg.eigh(products)
    columns: Tensor = values.clamp(min=0).sqrt().unsqueeze(1) * vectors.T
    return columns


def shortest(unit: Tensor, lengths: Tensor) -> Tensor:
    r"""$\alpha$ of `min_norm` from the gradients themselves.

    Args:
        unit: Gradients divided by their lengths, as columns, `(D, T)` float64, on the CPU.
        lengths: Lengths of the gradients, `(T,)`.

    Returns:
        $\alpha$, `(T,)` float64, at least 0 and of sum 1.
    """
    if not (lengths > 0).all():
        zero = (lengths == 0).double()
        return zero / zero.sum()
    ratios = (lengths.min() / lengths).double()
    matrix = torch.cat([unit, ratios.unsqueeze(0)])
    wanted = torch.zeros(len(matrix), dtype=torch.float64)
    wanted[-1] = 1
    solution = torch.from_numpy(optimize.nnls(matrix.numpy(), wanted.numpy())[0]) * ratios
    return solution / solution.sum()
