"""The one list of public names, `__init__.pyi` of the package, as its subpackages read it."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

STUB = Path(__file__).with_name("__init__.pyi")


def public_names(package: str) -> dict[str, list[str]]:
    """The public names that lie in a subpackage, so that they need not be listed there again.

    Args:
        package: Its name, such as "lightning_meta.meta".

    Returns:
        By module of the subpackage, such as "maml", the names that `lightning_meta` exports of it.
    """
    room = package.partition(".")[2]
    names: defaultdict[str, list[str]] = defaultdict(list)
    for node in ast.parse(STUB.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(f"{room}."):
            names[node.module.removeprefix(f"{room}.")] += [alias.name for alias in node.names]
    return dict(names)
