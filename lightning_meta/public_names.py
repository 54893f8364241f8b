"""The one list of public names, `__init__.pyi` of the package, as its subpackages read it, and their import on use."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lazy_loader

Attached = tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]
STUB = Path(__file__).with_name("__init__.pyi")


def public_names(package: str) -> dict[str, list[str]]:
    """The public names that lie in a subpackage, so that they need not be listed there again.

    Args:
        package: Name of the subpackage, such as "lightning_meta.meta".

    Returns:
        The names that `lightning_meta` exports from each module of the subpackage, such as "maml".
    """
    subpackage = package.partition(".")[2]
    names: defaultdict[str, list[str]] = defaultdict(list)
    for node in ast.parse(STUB.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(f"{subpackage}."):
            names[node.module.removeprefix(f"{subpackage}.")] += [alias.name for alias in node.names]
    return dict(names)


def attach(package: str, file: str | None = None) -> Attached:
    """Return `__getattr__`, `__dir__` and `__all__` of a package that imports a public name when it is first used.

    Args:
        package: Name of the package, such as "lightning_meta.nn".
        file: The package's `__init__.py`, beside which `__init__.pyi` lists the names; None for the names of
            `public_names`.
    """
    if file is None:
        imported, names, listed = lazy_loader.attach(package, submod_attrs=public_names(package))
    else:
        imported, names, listed = lazy_loader.attach_stub(package, file)

    def attribute(name: str) -> Any:
        try:
            return imported(name)
        except AttributeError as error:
            if name.startswith("_") or name in listed:  # listed: its module raised the error
                raise
            from lightning_meta.errors import similar  # only needed for a misspelt name

            close = similar(name, listed)
            raise AttributeError(f"{error}; did you mean {close}?" if close else str(error)) from None

    return attribute, names, listed
