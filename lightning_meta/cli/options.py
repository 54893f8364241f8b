"""Arguments by the names that a user of the command line knows: `inner_lr` is `--model.inner_lr` there."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from jsonargparse import Namespace

from lightning_meta.errors import UserError

# How the library begins a message: `inner_lr: ...`, `shots + queries: ...`, `ImageFolder root=x: ...` or
# `Glyphs: jitter is 3, ...`.
_NAME = r"[a-z]\w*(?:\.\w+)*"
_HEAD = re.compile(
    rf"(?:(?P<owner>[A-Z]\w*):? )?(?P<names>{_NAME}(?:(?:, | \+ | and ){_NAME})*)(?P<rest>(?:[:=]| is ).*)", re.DOTALL
)

OF_FIT = {"resume": "ckpt_path", "seed": "seed_everything"}  # options of the command that Python calls otherwise

SECTIONS = ("model", "data", "checkpoint", "trainer")


def as_option(name: str, *value: Any) -> str:
    """An argument of `lightning_meta.fit` as it is typed, with its value where one is shown.

    >>> as_option("trainer.max_steps"), as_option("resume", "last"), as_option("allow_changes", True)
    ('--trainer.max_steps', '--ckpt_path last', '--allow_changes')
    """
    shown = "".join("" if v is True else " null" if v is None else f" {v}" for v in value)
    return f"--{OF_FIT.get(name, name)}{shown}"


@dataclass(frozen=True)
class Place:
    """Where the arguments of one object are given.

    Attributes:
        path: Of its options, as `data.source`.
        owner: The name of its class; "" for a section without one, as `trainer`.
        arguments: Its arguments and what was given for them.
    """

    path: str
    owner: str
    arguments: Mapping[str, Any]


def as_options(text: str, places: list[Place], aliases: Mapping[str, str] | None = None) -> str:
    """Say options where a message begins with arguments.

    Args:
        text: The message.
        places: Where these may be; a name that fits several, or none, stays as it is.
        aliases: Options that stand for an argument, by its name.
    """
    found = _HEAD.fullmatch(text)
    if found is None:
        return text
    options = [_option(name, found["owner"] or "", places, aliases or {}) for name in _names(found["names"])]
    if None in options:
        return text
    said = iter(options)
    return re.sub(_NAME, lambda m: m[0] if m[0] == "and" else str(next(said)), found["names"]) + found["rest"]


def places_of(config: Namespace) -> list[Place]:
    """Where the objects of a configuration are given, the model and the data with all that is in them."""
    places: list[Place] = []
    for section in ("model", "data"):
        _collect(section, config.get(section), places)
    for section in ("checkpoint", "trainer"):
        arguments = config.get(section)
        if isinstance(arguments, Namespace):
            places.append(Place(section, "", vars(arguments)))
    return places


@contextmanager
def naming_options(config: Namespace, aliases: Mapping[str, str] | None = None) -> Iterator[None]:
    """Say options in place of arguments in what is refused while a command runs.

    Args:
        config: The command's configuration.
        aliases: Options that stand for an argument, by its name.

    Raises:
        UserError: The same error, in other words.
    """
    try:
        yield
    except UserError as error:
        error.args = (as_options(str(error), places_of(config), aliases),)
        raise


def _names(text: str) -> list[str]:
    return [name for name in re.findall(_NAME, text) if name != "and"]


def _option(name: str, owner: str, places: list[Place], aliases: Mapping[str, str]) -> str | None:
    if name in aliases:
        return aliases[name]
    head, dot, tail = name.partition(".")
    if head in SECTIONS and dot:  # it is an option already
        return f"--{name}"
    # The Trainer has arguments of the same names, as `strategy`; those are Lightning's to speak of.
    for own in (True, False):
        fitting = [p for p in places if (p.path != "trainer") == own and head in p.arguments]
        fitting = [p for p in fitting if not owner or p.owner == owner]
        if len(fitting) > 1:  # an argument that the data fill in is null in the configuration
            fitting = [p for p in fitting if p.arguments[head] is not None]
        if len(fitting) == 1:
            return f"--{fitting[0].path}.{head}{dot}{tail}"
        if fitting:
            return None
    return None


def _collect(path: str, value: Any, places: list[Place]) -> None:
    if not isinstance(value, Namespace) or "class_path" not in value:
        return
    arguments = vars(value.get("init_args") or Namespace())
    places.append(Place(path, str(value.class_path).rpartition(".")[2], arguments))
    for name, inner in arguments.items():
        _collect(f"{path}.{name}", inner, places)
