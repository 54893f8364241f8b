"""Specifications: objects as plain data, `{"class_path": ..., "init_args": {...}}`.

A checkpoint stores how its module was constructed, so that it loads by its path alone. The forms are:

- `{"class_path": p, "init_args": {...}}`: an object of a class; of an optimiser or a schedule, what makes one. With
  `fitted` the object also has values that were computed from data, and that its constructor does not take.
- `{"function_path": p, "init_args": {...}}`: what a function returns, such as `torchvision.models.resnet18`.
- `{"import_path": p}`: a class or a function itself; with `init_args` a `functools.partial` of it, with `member` a
  member of an enumeration.
- `{"instance": name}`: an object whose constructor call is unknown.

Here they are read without making the objects; `describing` makes specifications, and `building` the objects again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from lightning_meta.errors import UserError
from lightning_meta.import_paths import real_path

# Bounds of a specification, far above any model's. Python's recursion limit is not enough: it depends on the caller's
# stack and, in C, on the release. The second is for values repeated by reference: a short file can hold 2^60 of them.
DEEPEST, LARGEST = 100, 1_000_000

PATHS = ("class_path", "function_path", "import_path")


def marked(spec: Any, key: str) -> bool:
    """Whether a mapping describes an object by this key, such as `class_path`; else it is another's name.

    A task may be called `instance`. Text stands under its name as well, as in `{"instance": "uint8"}`, but no path.
    """
    if not isinstance(spec, Mapping) or not isinstance(spec.get(key), str):
        return False
    return "." in spec[key] or "init_args" in spec


def class_paths(spec: Any) -> Iterator[str]:
    """Every path of a class or a function in a specification, from the outside in.

    Raises:
        UserError: It is nested too deeply, is too large, or holds itself.
    """
    for _, value in _mappings(spec):
        for key in PATHS:
            if marked(value, key):
                yield real_path(value[key])


def unknown_parts(spec: Any) -> Iterator[tuple[str, str]]:
    """Each object of which a specification does not say how it was made: the name of the argument, and its class.

    Raises:
        UserError: It is nested too deeply, is too large, or holds itself.
    """
    for names, value in _mappings(spec):
        if marked(value, "instance"):
            trail = []
            while names:
                names, name = names
                trail.append(str(name)[:100])
            yield ".".join(name for name in reversed(trail) if name != "init_args"), value["instance"][:100]


def holds_tensors(spec: Any) -> bool:
    """Whether a tensor is anywhere in a specification; `describe` puts none there.

    Raises:
        UserError: It is nested too deeply, is too large, or holds itself.
    """
    return any(isinstance(value, Tensor) for _, value in _values(spec))


def _mappings(spec: Any) -> Iterator[tuple[Any, Mapping[Any, Any]]]:
    """Every mapping in a specification, from the outside in, with the names that lead to it: `((None, "a"), "b")`."""
    return ((names, value) for names, value in _values(spec) if isinstance(value, Mapping))


def _values(spec: Any) -> Iterator[tuple[Any, Any]]:
    """Every value in a specification, from the outside in, with the names that lead to it."""
    waiting: list[tuple[Any, Any, int]] = [(None, spec, 0)]
    read = 0
    while waiting:
        (names, value, depth), read = waiting.pop(), read + 1
        if depth > DEEPEST or read > LARGEST:
            bound = f"{DEEPEST} levels deep" if depth > DEEPEST else f"{LARGEST:,} values large"
            raise UserError(f"the description of the object is more than {bound}, or holds itself")
        yield names, value
        if isinstance(value, Mapping):
            children: Iterable[tuple[Any, Any]] = value.items()
        else:
            children = enumerate(value) if isinstance(value, list | tuple) else ()
        waiting += [((names, name), child, depth + 1) for name, child in reversed([*children])]
