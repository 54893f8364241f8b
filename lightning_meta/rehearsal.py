"""Building a described module without memory, to compare it with the weights that it is for.

A description of a few bytes can ask for a network of any size. On the `meta` device tensors have shapes and no values,
so the whole construction, with the inputs that a network is tried on, costs next to nothing there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_meta.errors import UserError, reason_of
from lightning_meta.silence import silence

META = torch.device("meta")
LARGEST = 2**29  # bytes of one tensor that is made on the way, such as a layer's output, where weights are small
VIEWED = 16  # weights that share storage may hold so many times what is stored, and `LARGEST` more
OPERATIONS = 20_000, 500  # of any construction, and for each entry of the state dict


class TooLargeError(UserError):
    """A description asks for more memory or layers than the weights beside it account for."""


class _WithoutMemory(TorchDispatchMode):
    """Every tensor lies on `meta`, has a bounded size, and there are not too many; a number read from one is 0."""

    def __init__(self, weights: Mapping[str, Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        tensors = [tensor for tensor in weights.values() if isinstance(tensor, Tensor)]
        strided = [tensor for tensor in tensors if tensor.layout == torch.strided]
        storages = {s.data_ptr(): s.nbytes() for s in (tensor.untyped_storage() for tensor in strided)}
        total, stored = sum(tensor.nbytes for tensor in strided), sum(storages.values())
        if total > VIEWED * stored + LARGEST:
            raise TooLargeError(f"its weights are {total / 1e9:,.1f} GB, of which {stored / 1e9:,.3f} are stored")
        self.largest = max([LARGEST, *(2 * tensor.nbytes for tensor in strided)])
        self.left = OPERATIONS[0] + OPERATIONS[1] * len(tensors)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.left -= 1
        if self.left < 0:
            raise TooLargeError("the description asks for more layers than the checkpoint has weights for")
        if func is torch.ops.aten._local_scalar_dense.default:
            return torch.zeros((), dtype=args[0].dtype, device="cpu").item()
        kwargs = dict(kwargs or {})
        if kwargs.get("device") is not None:
            kwargs["device"] = META
        made = func(*args, **kwargs)
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, Tensor) and tensor.numel() * tensor.itemsize > self.largest:
                raise TooLargeError(
                    f"the description asks for a tensor of shape {tuple(tensor.shape)}, "
                    f"{tensor.numel() * tensor.itemsize / 1e9:,.1f} GB, which the checkpoint has no weights for"
                )
        return made


@contextmanager
def rehearsal(weights: Mapping[str, Any]) -> Iterator[None]:
    """A context in which a module is constructed without memory for its tensors; the module cannot be used.

    Constructors that branch on values of tensors may fail or take another branch, as a number read from a tensor is 0.

    Args:
        weights: Weights to load, by name; they bound the module's size.

    Raises:
        UserError: The module needs more memory or layers than the weights account for, or cannot be constructed.
    """
    try:
        with silence("lightning_meta"), _WithoutMemory(weights), META:  # the real construction repeats warnings
            yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"the described module cannot be made: {reason_of(error, 200)}") from error
