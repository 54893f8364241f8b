"""Condense errors of the parser and of Lightning to one clear line.

The most frequent mistakes (a wrong name, class or type, a missing option) get messages of this package. Of all other
errors the innermost or last line is shown, with a reference to `--help`.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
import typing
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from traceback import walk_tb

from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_meta.cli.refusal import Refusal, read_refusal
from lightning_meta.describing import fixed_options
from lightning_meta.errors import UserError

LONGEST = 400
EXTRAS = {"wandb": "wandb", "optuna": "sweep", "onnx": "export", "onnxscript": "export"}  # by the package


def one_line(error: BaseException, options: Iterable[str] = (), command: str = "fit") -> str:
    """Condense the message of an error of the parser.

    Args:
        error: The error.
        options: The names of all options, to suggest one for an unknown name.
        command: The command whose `--help` is recommended.

    Returns:
        The option, what was received, what was expected, and a suggestion.
    """
    text = str(error)
    options = list(options)
    if found := re.search(r"nrecognized arguments: ([^-\s]\S*\.ya?ml)", text):
        return f"{found[1]}: an option was expected; did you mean --config {found[1]}?"
    if found := re.search(r"nrecognized arguments: [-\u2013\u2014]*([^\s=]+)", text):
        meant = _meant(found[1], options, "--") or f"; {_pointer(command)}"
        return f"--{found[1]}: there is no such option{meant}"
    if found := re.search(r"argument (?:\S+/)?(--\S+): expected (?:one|at least one) argument", text):
        return f"{found[1]}: a value is missing; {_pointer(command)}"
    refusal = read_refusal(text)
    key = refusal.key
    if found := re.fullmatch(r"Option '([^']+)' is not accepted", refusal.reason):
        key = f"{key}.{found[1]}" if key else found[1]
    option = f"--{key}: " if key else ""
    if not key and refusal.owner:  # of an object that is made, where no option is named
        option = f"{refusal.owner.rpartition('.')[2]}: "
    said = _said(refusal, options, command)
    return f"{option}{said}"[:LONGEST] if said else f"{_passed(option + refusal.reason)}; {_pointer(command)}"


def unknown_command(name: str, commands: Iterable[str]) -> str:
    """The message for an unknown command."""
    commands = list(commands)
    meant = _meant(name, commands) or f"; expected {', '.join(commands)}, see lightning-meta --help"
    return f"there is no command {name}{meant}"


def _said(refusal: Refusal, options: list[str], command: str) -> str | None:
    """A message of this package for the error; None to use the original text."""
    owner, reason = refusal.owner.rpartition(".")[2], refusal.reason
    if found := re.fullmatch(r".*arguments are required: (.*)", reason):
        return _missing(refusal, found[1].split(", "), options)
    if found := re.fullmatch(r"Option '([^']+)' is not accepted", reason):
        if (cls := _class_of(refusal.owner)) is not None and found[1] in fixed_options(cls):
            return f"{owner} sets it itself; leave it out"
        names, whose = (_arguments(refusal.owner), f" of {owner}") if owner else (options, "")
        meant = _meant(found[1], names, "" if owner else "--") or f"; {_pointer(command, refusal)}"
        return f"there is no such option{whose}{meant}"
    # The second is what lazy_loader says.
    absent = r"module '(?P<room>[^']+)' has no attribute '(?P<name>[^']+)'|No (?P<lazy>[\w.]+) attribute (?P<of_it>\w+)"
    if found := re.fullmatch(absent, reason):
        room, name = found["room"] or found["lazy"], found["name"] or found["of_it"]
        return f"there is no class {room}.{name}{_meant(name, _classes_of(room))}"
    if found := re.fullmatch(r"No module named '([^']+)'", reason):
        return f"there is no module {found[1]}; install it, run from its folder, or add that folder to PYTHONPATH"
    expected = refusal.expected or _declared(refusal)
    kinds = _type(expected).removesuffix(" or null")
    if found := re.fullmatch(r"Expected a dot import path string: (.*)", reason):
        close = _meant(found[1], _subclass_names(expected))
        return f"there is no class {found[1]}{close or f' here; expected a {kinds}, {_pointer(command)}'}"
    if reason.startswith("Expected an instantiatable class"):
        return f"{refusal.value} is an abstract class; name one of its subclasses; {_pointer(command)}"
    if found := re.fullmatch(r"Expected an? (.*)\. Got value: (.*)", reason):
        return f"expected {_type(found[1])}, got {'null' if found[2] == 'None' else found[2]}"
    if refusal.expected and reason.startswith(("Expected", "Import path")):
        return f"expected {_type(refusal.expected)}, got {refusal.value}; {_pointer(command)}"
    if found := re.fullmatch(r"File does not exist: '?([^']*)'?", reason):
        return f"there is no file {found[1]}"
    return None


def _missing(refusal: Refusal, names: list[str], options: list[str]) -> str:
    if not refusal.owner:
        missing = " and ".join("RUN" if name == "runs" else f"--{name}" for name in names)  # `compare RUN...`
        return f"{missing} must be given" + ("; name a configuration with --config FILE" if "config" in options else "")
    # Of a function or a schedule the owner is the class that takes it; the value says which it is.
    inner = re.match(r"Namespace\(class_path='([\w.]+)'", refusal.value)
    owner = inner[1] if inner and refusal.reason.startswith("Type ") else refusal.owner
    whose = owner.rpartition(".")[2]
    verb = "is" if len(names) == 1 else "are"
    first = f"--{refusal.key}.{names[0]}"
    return f"{whose}: {' and '.join(names)} {verb} required; give {first}, or {names[0]} in its init_args"


def _passed(text: str) -> str:
    """The message of another library, on one line."""
    return " ".join(text.split())[:LONGEST].rstrip(" .;")


def _pointer(command: str, refusal: Refusal | None = None) -> str:
    if refusal is not None and refusal.key in ("model", "data"):
        return f"--{refusal.key}.help {refusal.owner.rpartition('.')[2]} lists them"
    return f"see lightning-meta {command} --help"


def of_lightning(error: BaseException, command: str) -> str | None:
    """The message for an error of Lightning or a missing package; None for another error.

    Args:
        error: The error.
        command: The command whose `--help` is recommended.
    """
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.partition(".")[0]
        named = f"'lightning_meta[{EXTRAS[package]}]'" if package in EXTRAS else package
        return f"the package {package} is not installed; pip install {named}"
    if not isinstance(error, MisconfigurationException | ImportError | RuntimeError | TypeError | ValueError):
        return None
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    raised_in = str(frames[-1].f_globals.get("__name__")) if frames else ""
    # An error raised by Lightning's own code is wrong input; one raised by torch or a user's class is a bug.
    if not isinstance(error, MisconfigurationException) and not raised_in.startswith(("lightning.", "lightning_util")):
        return None
    return f"{_passed(str(error))}; {_pointer(command)}"


@contextmanager
def parsing() -> Iterator[None]:
    """Report in one line a configuration that makes the parser itself fail, such as one with `config: false`.

    Raises:
        UserError: The parser failed; its own `ArgumentError` is not changed.
    """
    try:
        yield
    except UserError:
        raise
    except (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError) as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"[:LONGEST]
        raise UserError(f"the configuration cannot be read ({said}); --print_config shows a valid one") from error


def _meant(name: str, names: Iterable[str], prefix: str = "") -> str:
    names = list(names)
    head, last = name.partition(".")[0], name.rpartition(".")[2]
    heads = {n.partition(".")[0] for n in names}
    if "." in name and head not in heads:
        name = last = head
        names = sorted(heads)
    by_last = {n.rpartition(".")[2]: n for n in names}
    close = [n for n in names if n.lower() == name.lower()]
    close = close or difflib.get_close_matches(name, list(by_last.values()), n=1, cutoff=0.75)
    close = close or [by_last[n] for n in difflib.get_close_matches(last, list(by_last), n=1, cutoff=0.6)]
    return f"; did you mean {prefix}{close[0]}?" if close else ""


def _type(text: str) -> str:
    text = re.sub(r"<class '(?:[\w.]*\.)?(\w+)'>", r"\1", text)
    # False stands beside texts for `off`, which YAML reads so.
    text = re.sub(r"typing\.Literal\[([^\]]*)\]", lambda m: m[1].removesuffix(", False").replace(", ", " or "), text)
    text = re.sub(r"\b(?:[a-z_]+\.)+([A-Z]\w*)", r"\1", text)
    text = text.replace("NoneType", "null")
    return re.sub(r", (?![^\[(]*[\])])", " or ", text)


def _declared(refusal: Refusal) -> str:
    """The type that a class declares for an option, if the parser does not report it; "" if unknown."""
    module, _, name = refusal.owner.rpartition(".")
    try:
        bases = inspect.getmro(getattr(importlib.import_module(module), name))
        hints = [typing.get_type_hints(vars(base)["__init__"]) for base in bases if "__init__" in vars(base)]
    except (ImportError, AttributeError, ValueError, NameError, TypeError):
        return ""
    option = refusal.key.rpartition(".")[2]
    return next((str(of_base[option]) for of_base in hints if option in of_base), "")


def _arguments(path: str) -> list[str]:
    """The constructor arguments of a class in the configuration, including inherited ones."""
    if (cls := _class_of(path)) is None:
        return []
    parents = [c for c in inspect.getmro(cls) if "__init__" in vars(c) and c is not object]
    names = [name for c in parents for name in list(inspect.signature(vars(c)["__init__"]).parameters)[1:]]
    return [name for name in names if name not in fixed_options(cls)]


def _class_of(path: str) -> type | None:
    """A class in the configuration; None if it is not a class, such as typing.Callable."""
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return None
    return found if inspect.isclass(found) else None


def _classes_of(module: str) -> list[str]:
    room = importlib.import_module(module)
    return [name for name in dir(room) if inspect.isclass(getattr(room, name, None))]


def _subclass_names(subtypes: str) -> list[str]:
    """Names of the imported subclasses of the classes in a type."""
    names: list[str] = []
    for path in re.findall(r"<class '([\w.]+)'>", subtypes):
        module, _, name = path.rpartition(".")
        waiting = [getattr(importlib.import_module(module or "builtins"), name, object)]
        while waiting and waiting[0] is not object and name != "NoneType":
            cls = waiting.pop()
            names.append(cls.__name__)
            waiting += cls.__subclasses__()
    return names
