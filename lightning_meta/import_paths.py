"""Import paths of classes and functions: their public form, where they lie, and which are trusted."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable
from types import MethodType
from typing import Any, TypeAlias

import lightning_meta
from lightning_meta.errors import UserError
from lightning_meta.migration import renamed

Allow: TypeAlias = Iterable[str | type | Callable[..., Any]]

# The rooms that hold what a model is made of, and none whose classes open files, start runs or import by name.
TRUSTED = (
    "lightning_meta.data.augmentation",
    "lightning_meta.functional.inner_optimizers",
    "lightning_meta.meta",
    "lightning_meta.multitask",
    "lightning_meta.nn",
    "lightning_meta.tasks",
    "lightning_meta.weightings",
    "lightning_meta.integrations.learn2learn",
    "torch.nn",
    "torch.optim",
    "torchjd.aggregation",
    "torchmetrics.classification",
    "torchmetrics.regression",
    "lightning.pytorch.cli.ReduceLROnPlateau",
)


class UntrustedClassError(UserError):
    """A specification names a class or a function that is neither trusted nor allowed.

    Args:
        path: Its path.
        where: Where it was named, as the line begins.
    """

    def __init__(self, path: str, where: str = "") -> None:
        self.path = path
        super().__init__(
            f"{where}{path} is not trusted: only classes of models of lightning_meta, torch.nn and torch.optim are; "
            f"if you trust whoever made this checkpoint, load it in Python with "
            f"load(..., allow=[{path.rpartition('.')[0]!r}])"
        )


def own_path(value: Any) -> str:
    """Where a class or a function says that it lies; "" for what says nothing."""
    names = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    return ".".join(names) if all(isinstance(name, str) for name in names) else ""  # type: ignore[arg-type]


def public_path(value: Any) -> str:
    """The path of a class or a function that stays when its file moves: of this package's, the shortest.

    >>> import torch
    >>> from lightning_meta.meta.maml import MAML
    >>> public_path(MAML), public_path(torch.nn.ReLU)
    ('lightning_meta.MAML', 'torch.nn.modules.activation.ReLU')
    """
    own_name: str = value.__qualname__
    package, *below = value.__module__.split(".")
    place: Any = sys.modules.get(package) if package == lightning_meta.__name__ else None
    for name in ["", *below]:
        place = getattr(place, name, None) if name else place
        if place is not None and getattr(place, own_name, None) is value:
            return f"{place.__name__}.{own_name}"
    return own_path(value)


def real_path(path: str) -> str:
    """Where the class of a path lies: a path of an earlier version or a public one becomes that of its file."""
    path = renamed(path)
    package, _, name = path.rpartition(".")
    if package == lightning_meta.__name__ and name in dir(lightning_meta):
        value = getattr(lightning_meta, name)
        return f"{value.__module__}.{value.__qualname__}" if isinstance(value, type) else path
    return path


def is_importable(value: Any) -> bool:
    """Whether the path of a class or a function leads back to it: not so for lambdas and what a function defines."""
    path = own_path(value)
    try:
        found = import_object(path) if path else None
    except UserError:
        return False
    return found is value or (isinstance(found, MethodType) and found == value)  # a class method is bound at each look


def import_object(path: str) -> Any:
    """What a path names, in a module that is imported, or in a class there.

    Raises:
        UserError: There is none.
    """
    module, _, name = path.rpartition(".")
    if not module:
        raise UserError(f"{path!r} is not the full path of a class")
    try:
        try:
            owner: Any = importlib.import_module(module)
        except ModuleNotFoundError as error:  # a class that holds it, unless a library is missing that the module needs
            above, _, inner = module.rpartition(".")
            if not above or error.name != module:
                raise
            owner = getattr(importlib.import_module(above), inner)
            if not isinstance(owner, type):
                raise
        return getattr(owner, name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:  # the last two for "..x" and "x..y"
        raise UserError(f"the class {path} is not to be found: {reason(error)}") from error


def import_class(path: str) -> type:
    """The class of a path, whose module is imported.

    Raises:
        UserError: There is none.
    """
    found = import_object(path)
    if not isinstance(found, type):
        raise UserError(f"{path} is not a class")
    return found


def lies_in(path: str, rooms: Iterable[str]) -> bool:
    """Whether a path is one of the names, or lies below one of them."""
    return any(path == room or path.startswith(room + ".") for room in rooms)


def check_trusted(path: str, allow: Allow, trusted: Iterable[str] = TRUSTED) -> None:
    """Refuse a path that is neither trusted nor allowed.

    Args:
        path: Of a class or a function.
        allow: Classes, functions, or names of modules that the caller allows.
        trusted: Names that need no permission.

    Raises:
        UntrustedClassError: It is neither.
    """
    names = [a if isinstance(a, str) else own_path(a) for a in allow]
    if not lies_in(path, (*trusted, *names)):
        raise UntrustedClassError(path)


def reason(error: BaseException) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__
