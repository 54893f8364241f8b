"""An accelerator that is not there: tensors with real values that say they lie elsewhere, and are as strict.

`torch.device("lazy")` has no code behind it on any machine. Tensors on it are wrapped here around tensors of the CPU,
so that modules train and evaluate on it as on a GPU, and what would end a run there ends the test here:

- an operation on tensors of both devices, but for scalars and for indices, as torch has it
- reading a tensor as NumPy without moving it to the CPU
- a float64 tensor on the device, which Apple's MPS does not have
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("lazy")
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put")


class NotHere(RuntimeError):
    """An operation that an accelerator would refuse."""


class Elsewhere(Tensor):
    """A tensor that says it lies on the accelerator."""

    value: Tensor

    @staticmethod
    def __new__(cls, value: Tensor) -> Elsewhere:
        if value.dtype == torch.float64:
            raise NotHere(f"a float64 tensor of shape {tuple(value.shape)} was made on the accelerator, which has none")
        made: Elsewhere = Tensor._make_wrapper_subclass(
            cls,
            value.size(),
            strides=value.stride(),
            storage_offset=value.storage_offset(),
            dtype=value.dtype,
            layout=value.layout,
            device=DEVICE,
        )
        made.value = value
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Elsewhere({self.value})"

    def tolist(self) -> Any:
        """Reading values is allowed, as on any device."""
        return self.value.tolist()

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # with `func` first, as torch calls it
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = func.overloadpacket.__name__
        if name == "_local_scalar_dense":
            return func(args[0].value)
        target = kwargs.get("device")
        if name == "_to_copy" and target is not None and torch.device(target).type == "cpu":
            return func(args[0].value, **kwargs)
        if name == "copy_":
            to, source, *rest = args
            func(_value(to), _value(source), *rest)
            return to
        _check_together(name, args, kwargs)
        if target is not None:
            kwargs["device"] = "cpu"
        out = func(*tree_map(_value, args), **tree_map(_value, kwargs))
        out = tree_map(lambda x: Elsewhere(x) if isinstance(x, Tensor) else x, out)
        return return_and_correct_aliasing(func, args, kwargs, out)


def _value(x: Any) -> Any:
    return x.value if isinstance(x, Elsewhere) else x


def _check_together(name: str, args: Any, kwargs: Any) -> None:
    """Refuse tensors of two devices; a scalar of the CPU may be anywhere, and so may indices."""
    if name in INDEXING:
        args = (args[0], *args[2:])
    for tensor in tree_leaves((args, kwargs)):
        if isinstance(tensor, Tensor) and not isinstance(tensor, Elsewhere) and tensor.dim():
            raise NotHere(
                f"{name} met a tensor of shape {tuple(tensor.shape)} on the CPU beside one on the accelerator"
            )


class _Moves(TorchDispatchMode):
    """Tensors that are made on the device, or moved there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        target = kwargs.get("device")
        if target is None or torch.device(target).type != DEVICE.type or Elsewhere in types:
            return func(*args, **kwargs)
        kwargs["device"] = "cpu"
        out = func(*args, **kwargs)
        return Elsewhere(out.clone() if any(out is leaf for leaf in tree_leaves(args)) else out)


class _Constants(TorchFunctionMode):
    """`torch.tensor` and its like reach a device behind the dispatcher's back."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor):
            own = args[0].device if func is Tensor.new_tensor else None
            device = torch.device(kwargs.pop("device", None) or own or "cpu")
            if func is Tensor.new_tensor:
                kwargs.setdefault("dtype", args[0].dtype)
                func, args = torch.tensor, args[1:]
            if isinstance(args[0], Tensor) and func is torch.as_tensor:
                return args[0].to(device=device, **kwargs)
            return func(*args, **kwargs).to(device)
        return func(*args, **kwargs)


@contextmanager
def accelerator() -> Iterator[torch.device]:
    """A context in which there is an accelerator."""
    with _Constants(), _Moves():
        yield DEVICE


class Card(CPUAccelerator):
    """The accelerator as Lightning sees it."""

    def setup_device(self, device: torch.device) -> None:
        assert device == DEVICE


class OnTheCard(SingleDeviceStrategy):
    """Runs the Trainer on it."""

    def __init__(self) -> None:
        super().__init__(device=DEVICE, accelerator=Card())


def trainer(**options: Any) -> L.Trainer:
    """A silent Trainer on the accelerator."""
    quiet: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return L.Trainer(strategy=OnTheCard(), inference_mode=False, **{**quiet, **options})
