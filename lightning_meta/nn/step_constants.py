"""Tensors that a captured step makes from numbers in Python, such as the indices of tasks."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar, Token
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from lightning_meta.functional.generators import plain_tensors

_active = ContextVar("_active", default=False)


class StepConstants(TorchFunctionMode):
    """A context for several runs of a step: the first run makes its constants, the later ones receive copies of them.

    Making a tensor on a GPU from numbers makes the CPU wait for the copy, which cannot be captured. This covers
    `torch.tensor`, `torch.as_tensor`, `Tensor.new_tensor` and indexing by a list. A graph reads the constants, so that
    they must not be freed before it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._made: list[tuple[str, Tensor]] = []
        self._runs = self._next = 0
        self._token: Token[bool] | None = None

    @staticmethod
    def active() -> bool:
        """Whether a step runs in such a context, so that its tensors may only be used in this run."""
        return _active.get()

    def __enter__(self) -> StepConstants:
        super().__enter__()  # type: ignore[no-untyped-call]
        self._runs, self._next = self._runs + 1, 0
        self._token = _active.set(True)
        return self

    def __exit__(self, *error: Any) -> None:
        if self._token is not None:
            _active.reset(self._token)
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replace the functions that copy numbers."""
        options = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and len(args) == 1 and _are_numbers(args[0]):
            return self._constant(args[0], options)
        if func is Tensor.new_tensor and len(args) == 2 and _are_numbers(args[1]):
            return self._constant(args[1], {"dtype": args[0].dtype, "device": args[0].device, **options})
        if func is Tensor.__getitem__:
            x, index = args
            places = [self._place(p, x.device) for p in (index if isinstance(index, tuple) else (index,))]
            return func(x, tuple(places) if isinstance(index, tuple) else places[0])
        return func(*args, **options)

    def _place(self, place: Any, device: torch.device) -> Any:
        numbers = isinstance(place, list) and place and all(type(n) is int for n in place)
        return self._constant(place, {"device": device}) if numbers else place

    def _constant(self, numbers: Any, options: dict[str, Any]) -> Tensor:
        """A copy of a constant, since a step may change it in place.

        Raises:
            RuntimeError: The numbers are not those of the first run.
        """
        described = f"{numbers} {options}"
        if self._runs == 1:
            with plain_tensors():
                self._made.append((described, torch.tensor(numbers, **options)))
        elif self._next >= len(self._made) or self._made[self._next][0] != described:
            raise RuntimeError("it makes a tensor of numbers that change from run to run")
        made = self._made[self._next][1]
        self._next += 1
        return made.clone()


def _are_numbers(data: Any) -> bool:
    return all(isinstance(leaf, bool | int | float) for leaf in tree_leaves(data))
