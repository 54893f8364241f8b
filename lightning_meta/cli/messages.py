"""One clear line out of what the parser says.

jsonargparse explains why a value fits none of the alternatives of a type, over many lines. The reason that matters is
the innermost: the option, what was given, what was expected.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from lightning_meta.errors import UserError

LONGEST = 400


def one_line(error: BaseException, options: Iterable[str] = ()) -> str:
    """Condense the message of an error.

    Args:
        error: What was raised.
        options: The names of all options, to suggest one for a name that is unknown.

    Returns:
        The option, what was received, what was expected, and a guess at what was meant.
    """
    text = str(error)
    key = ".".join(re.findall(r'Parser key "([^"]+)"', text))
    classes = re.findall(r"class_path[= ]'([^']+)'", text)
    if found := re.search(r"nrecognized arguments: ([^-\s]\S*\.ya?ml)", text):
        return f"{found[1]}: an option was expected; did you mean --config {found[1]}?"
    if found := re.search(r"nrecognized arguments: -*([^\s=]+)", text):
        return f"--{found[1]}: there is no such option{_meant(found[1], options)}"
    if found := re.search(r"Option '([^']+)' is not accepted", text):
        owner = classes[-1] if classes else None
        names = _arguments(owner) if owner else options
        where = f"{key}.{found[1]}" if key else found[1]
        whose = f" of {owner.rpartition('.')[2]}" if owner else ""
        return f"{where}: there is no such option{whose}{_meant(found[1], names)}"
    if found := re.search(r"module '([^']+)' has no attribute '([^']+)'", text):
        names = _module_names(found[1])
        return f"{key}: there is no class {found[1]}.{found[2]}{_meant(found[2], names)}"
    if found := re.search(r"No module named '([^']+)'", text):
        return f"{key}: there is no module {found[1]}; run from the folder that it lies in, or name that in PYTHONPATH"
    if found := re.search(r"Expected a dot import path string: (.*)", text):
        return f"{key}: there is no class {found[1]}{_meant(found[1], _subclass_names(text))}"
    if found := re.search(r"Expected an? (.*)\. Got value: (.*)", text):
        return f"{key}: expected {_type(found[1])}, got {found[2]}"
    if found := re.search(r"Import path (\S+) does not correspond to a subclass of (\S+)", text):
        return f"{key}: {found[1]} is not a {found[2]}"
    subtypes = re.findall(r"Subtypes: \[(.*)\]", text)
    values = re.findall(r"Given value: (.*)", text)
    if subtypes and values:
        return f"{key}: expected {_type(subtypes[-1])}, got {values[0]}"
    if found := re.search(r"arguments are required: (.*)", text):
        missing = ", ".join(f"--{name}" for name in found[1].split(", "))
        return f"{missing} must be given" + ("; name a configuration with --config FILE" if "config" in options else "")
    if found := re.search(r"File does not exist: '?([^']*)", text):
        return f"{key}: there is no file {found[1]}"
    return " ".join(text.split())[:LONGEST]


def with_remedy(text: str) -> str:
    """What Lightning refuses, with a way out where it names none."""
    if "No supported gpu backend found" in text:
        return "--trainer.accelerator: torch finds no GPU here; leave it out to use what this machine has"
    if found := re.search(r"You requested gpu: (.*?) But your machine only has: (.*)", text):
        return f"--trainer.devices: GPUs {found[1]} were asked for, this machine has {found[2]}"
    return text


@contextmanager
def parsing() -> Iterator[None]:
    """Say it in one line where a configuration trips the parser itself, as `config: false` within one does.

    Raises:
        UserError: What the parser met with; an `ArgumentError` of its own passes.
    """
    try:
        yield
    except UserError:
        raise
    except (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError) as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"[:LONGEST]
        raise UserError(f"the configuration cannot be read ({said}); --print_config shows how one looks") from error


def _meant(name: str, names: Iterable[str]) -> str:
    names = list(names)
    head, last = name.partition(".")[0], name.rpartition(".")[2]
    heads = {n.partition(".")[0] for n in names}
    if "." in name and head not in heads:
        name = last = head
        names = sorted(heads)
    by_last = {n.rpartition(".")[2]: n for n in names}
    close = difflib.get_close_matches(name, list(by_last.values()), n=1, cutoff=0.75)
    close = close or [by_last[n] for n in difflib.get_close_matches(last, list(by_last), n=1, cutoff=0.6)]
    return f"; did you mean {close[0]}?" if close else ""


def _type(text: str) -> str:
    text = re.sub(r"<class '(?:[\w.]*\.)?(\w+)'>", r"\1", text)
    text = re.sub(r"typing\.Literal\[(.*)\]", lambda m: " or ".join(m[1].split(", ")), text)
    return re.sub(r", (?![^\[(]*[\])])", " or ", text)


def _arguments(path: str) -> list[str]:
    """The constructor arguments of a class of the user's configuration, inherited ones included."""
    module, _, name = path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return []
    if not inspect.isclass(cls):  # as typing.Callable
        return []
    parents = [c for c in inspect.getmro(cls) if "__init__" in vars(c) and c is not object]
    return [name for c in parents for name in list(inspect.signature(vars(c)["__init__"]).parameters)[1:]]


def _module_names(module: str) -> list[str]:
    return [name for name in dir(importlib.import_module(module)) if not name.startswith("_")]


def _subclass_names(text: str) -> list[str]:
    """Names of the classes that a class type stands for, as far as they are imported."""
    names: list[str] = []
    subtypes = re.findall(r"Subtypes: \[(.*)\]", text)
    for path in re.findall(r"<class '([\w.]+)'>", subtypes[-1] if subtypes else ""):
        module, _, name = path.rpartition(".")
        waiting = [getattr(importlib.import_module(module or "builtins"), name, object)]
        while waiting and waiting[0] is not object and name != "NoneType":
            cls = waiting.pop()
            names.append(cls.__name__)
            waiting += cls.__subclasses__()
    return names
