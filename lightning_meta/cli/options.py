"""Translate argument names in messages to options of the command line: `inner_lr` to `--model.inner_lr`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from jsonargparse import Namespace

from lightning_meta.errors import UserError

# Messages of the library begin with `inner_lr: ...`, `shots + queries: ...`, `ImageFolder root=x: ...` or
# `Glyphs: jitter is 3, ...`.
_NAME = r"[a-z]\w*(?:\.\w+)*"
_HEAD = re.compile(
    rf"(?:(?P<owner>[A-Z]\w*):? )?(?P<names>{_NAME}(?:(?:, | \+ | and ){_NAME})*)(?P<rest>(?:[:=]| is ).*)", re.DOTALL
)
# A suggestion in Python's syntax: `give delimiter=';'`, `set first_order=True`.
_SUGGESTION = re.compile(r"\b(give|set|use|with|or) ([a-z]\w*)=('[^']*'|\"[^\"]*\"|[\w.]*\w)")

OF_FIT = {"resume": "ckpt_path", "seed": "seed_everything"}  # options that have another name in `lightning_meta.fit`

SECTIONS = ("model", "data", "checkpoint", "trainer")


def as_option(name: str, *value: Any) -> str:
    """The option for an argument of `lightning_meta.fit`, with its value if one is passed.

    >>> as_option("trainer.max_steps"), as_option("resume", "last"), as_option("allow_changes", True)
    ('--trainer.max_steps', '--ckpt_path last', '--allow_changes')
    """
    of_yaml = {True: "", False: " false", None: " null"}
    shown = "".join(of_yaml[v] if v is None or isinstance(v, bool) else f" {v}" for v in value)
    return f"--{OF_FIT.get(name, name)}{shown}"


class Place(NamedTuple):
    """The options of one object of a configuration, such as those that begin with `data.source`."""

    path: str
    owner: str  # name of the class; "" for a section without a class, such as `trainer`
    arguments: Mapping[str, Any]


def as_options(text: str, places: list[Place], aliases: Mapping[str, str] | None = None) -> str:
    """Replace argument names by options, at the start of a message and in its suggestions.

    >>> as_options("x.csv: one column; give delimiter=';'", [Place("data.source", "Table", {"delimiter": None})])
    "x.csv: one column; give --data.source.delimiter ';'"

    Args:
        text: The message.
        places: The objects whose arguments are replaced; a name that fits none, or several, is left unchanged.
        aliases: Options to use instead, by argument name.
    """
    aliases = aliases or {}
    text = _SUGGESTION.sub(lambda match: _suggested(match, places, aliases), text)
    head = _HEAD.fullmatch(text)
    if head is None:
        return text
    names = [name for name in re.findall(_NAME, head["names"]) if name != "and"]
    options = [_option(name, head["owner"] or "", places, aliases) for name in names]
    if None in options:
        return text
    remaining = iter(options)
    return re.sub(_NAME, lambda m: m[0] if m[0] == "and" else str(next(remaining)), head["names"]) + head["rest"]


def objects_in(path: str, value: Any) -> Iterator[tuple[str, Namespace]]:
    """The objects in a value of the configuration, innermost first, with the prefixes of their options."""
    if isinstance(value, list):
        for each in value:
            yield from objects_in(path, each)
    if isinstance(value, Namespace | Mapping):
        for name, each in (vars(value) if isinstance(value, Namespace) else value).items():
            yield from objects_in(path if name == "init_args" else f"{path}.{name}", each)
        if isinstance(value, Namespace) and "class_path" in value:
            yield path, value


def places_of(config: Namespace) -> list[Place]:
    """The model, the data and all objects nested in them, the checkpoint section and the Trainer."""
    places = []
    for section in ("model", "data"):
        for path, spec in objects_in(section, config.get(section)):
            owner = str(spec.class_path).rpartition(".")[2]
            places.append(Place(path, owner, vars(spec.get("init_args") or Namespace())))
    for section in ("checkpoint", "trainer"):
        if isinstance(arguments := config.get(section), Namespace):
            places.append(Place(section, "", vars(arguments)))
    return places


@contextmanager
def naming_options(config: Namespace, aliases: Mapping[str, str] | None = None) -> Iterator[None]:
    """Replace argument names by options, as `as_options` does, in errors that are raised while a command runs."""
    try:
        yield
    except UserError as error:
        error.args = (as_options(str(error), places_of(config), aliases),)
        raise


def _suggested(match: re.Match[str], places: list[Place], aliases: Mapping[str, str]) -> str:
    verb, name, value = match.groups()
    if (option := _option(name, "", places, aliases)) is None:
        return match[0]
    if value.startswith(("'", '"')) and "\\" in value:
        value = f"${value}"  # the shell's notation for a tab
    return f"{verb} {option} {value.lower() if value in ('True', 'False') else 'null' if value == 'None' else value}"


def _option(name: str, owner: str, places: list[Place], aliases: Mapping[str, str]) -> str | None:
    if name in aliases:
        return aliases[name]
    head, dot, tail = name.partition(".")
    if head in SECTIONS and dot:  # already an option
        return f"--{name}"
    matches = [p for p in places if head in p.arguments and owner in ("", p.owner)]
    # Some names, such as `strategy`, are also arguments of the Trainer, whose errors Lightning reports: it comes last.
    matches = [p for p in matches if p.path != "trainer"] or matches
    if len(matches) > 1:  # arguments that are filled in from the data are null in the configuration
        matches = [p for p in matches if p.arguments[head] is not None]
    return f"--{matches[0].path}.{head}{dot}{tail}" if len(matches) == 1 else None
