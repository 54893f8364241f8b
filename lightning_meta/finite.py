"""Weights that are no numbers a network can compute with."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike

import torch
from torch import Tensor, nn

from lightning_meta.errors import UserError


def check_numbers(module: nn.Module, weights: Mapping[str, Tensor], file: str | PathLike[str]) -> None:
    """Refuse weights and statistics that are NaN or infinite.

    Args:
        module: The module as it was made; what is infinite in it, such as a mask, may be so in the file.
        weights: Tensors by name, of the shapes and kinds of the module's.
        file: Where they are from.

    Raises:
        UserError: The first that is wrong.
    """
    for name, own in (*module.named_parameters(), *module.named_buffers()):
        given = weights.get(name)
        if given is None or not own.is_floating_point():
            continue
        if bool(torch.isfinite(own).all()) and not bool(torch.isfinite(given).all()):
            count = int((~torch.isfinite(given)).sum())
            raise UserError(
                f"{file}: {count} of {given.numel()} numbers of {name} are NaN or infinite, so its predictions would "
                "be; take another checkpoint of the run, or train anew"
            )
