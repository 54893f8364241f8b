"""Gradient transforms with weights that are adapted to each task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn
from torch.func import functional_call, vjp
from torch.utils._pytree import tree_map

from lightning_meta.nn.stateless import Tensors


class AdaptedTransforms:
    r"""The transforms u_ψ of one task; from the second call on, their weights first take a gradient step.

    $$\psi_j = \psi_{j-1} - \alpha \nabla_\psi L(\varphi_{j-1} - \alpha\, u_\psi(g_{j-1}))|_{\psi = \psi_{j-1}}
      = \psi_{j-1} + \alpha^2 (\partial u_\psi(g_{j-1}) / \partial \psi)^\top g_j$$

    with $g_j = \nabla_\varphi L(\varphi_j)$, so it needs the gradients only. It is differentiable with respect to ψ_0
    and the gradients, and no tensor of the transforms is changed.

    Args:
        transforms: Transform of each adapted parameter of the network, by name; their weights are ψ_0.
        rate: Inner learning rate α.
    """

    def __init__(self, transforms: Mapping[str, nn.Module], rate: float) -> None:
        self.transforms, self.rate = transforms, rate
        self.weights = {name: dict(transform.named_parameters()) for name, transform in transforms.items()}
        self.pull_back: Callable[[Tensors], Any] | None = None

    def __call__(self, gradients: Tensors) -> Tensors:
        """Return the transformed gradients u_{ψ_j}(g_j) of the j-th call, by name of the parameter."""
        if self.pull_back is not None:
            (ascent,) = self.pull_back(gradients)
            self.weights = tree_map(lambda w, a: w + self.rate**2 * a, self.weights, ascent)
        updates: Tensors
        updates, self.pull_back = vjp(partial(self._updates, gradients), self.weights)  # type: ignore[misc]
        return updates

    def _updates(self, gradients: Tensors, weights: dict[str, Tensors]) -> Tensors:
        return {
            name: functional_call(transform, weights[name], (gradients[name].contiguous(),))
            for name, transform in self.transforms.items()
        }
