"""Import paths of classes and functions: public and real paths, importing, and the list of trusted modules."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable
from types import MethodType
from typing import Any, TypeAlias

import lightning_meta
from lightning_meta.errors import UserError, reason_of
from lightning_meta.migration import EARLIER_PATH, current_path

Allow: TypeAlias = Iterable[str | type | Callable[..., Any]]

# Modules and classes that models are made of. None of their classes may open files, start runs or import by name.
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
        path: Path of the class or function.
        where: Start of the error message, which says where the path was named.
    """

    def __init__(self, path: str, where: str = "") -> None:
        self.path = path
        super().__init__(
            f"{where}{path} is not trusted: only classes of models of lightning_meta, torch.nn and torch.optim are; "
            f"if you trust whoever made this checkpoint, load it in Python with "
            f"load(..., allow=[{path.rpartition('.')[0]!r}])"
        )


def own_path(value: Any) -> str:
    """Return the path by `__module__` and `__qualname__` of a class or a function; "" if it has none."""
    names = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    return ".".join(names) if all(isinstance(name, str) for name in names) else ""  # type: ignore[arg-type]


def public_path(value: Any) -> str:
    """Return the path of a class or function, for this package the shortest, which stays valid if its file moves.

    >>> import torch
    >>> from lightning_meta.meta.maml import MAML
    >>> public_path(MAML), public_path(torch.nn.ReLU)
    ('lightning_meta.MAML', 'torch.nn.modules.activation.ReLU')
    """
    own_name: str = value.__qualname__
    package, *submodules = value.__module__.split(".")
    module: Any = sys.modules.get(package) if package == lightning_meta.__name__ else None
    for name in ["", *submodules]:
        module = getattr(module, name, None) if name else module
        if module is not None and getattr(module, own_name, None) is value:
            return f"{module.__name__}.{own_name}"
    return own_path(value)


def real_path(path: str) -> str:
    """Return the path of the file that defines a class, given a public path or one of an earlier version."""
    path = EARLIER_PATH.sub(current_path, path)
    package, _, name = path.rpartition(".")
    if package == lightning_meta.__name__ and name in dir(lightning_meta):
        value = getattr(lightning_meta, name)
        return f"{value.__module__}.{value.__qualname__}" if isinstance(value, type) else path
    return path


def is_importable(value: Any) -> bool:
    """Whether importing the path of a class or function returns it; False for lambdas and local definitions."""
    path = own_path(value)
    try:
        imported = import_object(path) if path else None
    except UserError:
        return False
    # Each access to a class method makes a new bound method.
    return imported is value or (isinstance(imported, MethodType) and imported == value)


def import_object(path: str) -> Any:
    """Import the object at a path: an attribute of a module, or of a class in a module.

    Raises:
        UserError: The module or the attribute does not exist.
    """
    module, _, name = path.rpartition(".")
    if not module:
        raise UserError(f"{path!r} is not the full path of a class")
    try:
        try:
            owner: Any = importlib.import_module(module)
        except ModuleNotFoundError as error:  # a class, unless the module lacks a dependency
            above, _, inner = module.rpartition(".")
            if not above or error.name != module:
                raise
            owner = getattr(importlib.import_module(above), inner)
            if not isinstance(owner, type):
                raise
        return getattr(owner, name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:  # the last two for "..x" and "x..y"
        raise UserError(f"the class {path} cannot be found: {reason_of(error)}") from error


def import_class(path: str) -> type:
    """Import the class at a path.

    Raises:
        UserError: It does not exist, or is not a class.
    """
    cls = import_object(path)
    if not isinstance(cls, type):
        raise UserError(f"{path} is not a class")
    return cls


def lies_in(path: str, names: Iterable[str]) -> bool:
    """Whether a path is one of the names, or below one of them."""
    return any(path == name or path.startswith(name + ".") for name in names)


def check_trusted(path: str, allow: Allow, trusted: Iterable[str] = TRUSTED) -> None:
    """Refuse a path that is neither trusted nor allowed.

    Args:
        path: Path of a class or a function.
        allow: Classes, functions, or names of modules that the caller allows.
        trusted: Names of modules and classes that need no permission.

    Raises:
        UntrustedClassError: The path is neither trusted nor allowed.
    """
    names = [a if isinstance(a, str) else own_path(a) for a in allow]
    if not lies_in(path, (*trusted, *names)):
        raise UntrustedClassError(path)
