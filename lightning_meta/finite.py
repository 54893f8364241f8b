"""Check that stored weights are finite."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike

import torch
from torch import Tensor, nn

from lightning_meta.errors import UserError


def check_numbers(module: nn.Module, weights: Mapping[str, Tensor], file: str | PathLike[str]) -> None:
    """Refuse weights and statistics that are NaN or infinite.

    Args:
        module: The new module; a tensor that is not finite in it, such as a mask, is not checked.
        weights: Tensors by name, with the shapes and dtypes of the module.
        file: Origin of the weights, for the error.

    Raises:
        UserError: A tensor has NaN or infinite values.
    """
    for name, own in (*module.named_parameters(), *module.named_buffers()):
        stored = weights.get(name)
        if stored is None or not own.is_floating_point():
            continue
        if bool(torch.isfinite(own).all()) and not bool(torch.isfinite(stored).all()):
            count = int((~torch.isfinite(stored)).sum())
            raise UserError(
                f"{file}: {count} of {stored.numel()} numbers of {name} are NaN or infinite, so its predictions would "
                "be; use another checkpoint of the run, or retrain"
            )
