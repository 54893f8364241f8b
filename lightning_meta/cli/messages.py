"""Condense errors of the parser and of Lightning to one line.

The most frequent mistakes (a wrong name, class or type, a missing option) get messages of this package. For all other
errors, the innermost or last line is shown, with a reference to `--help`.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
import typing
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from traceback import walk_tb

from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_meta.cli.refusal import Refusal, read_refusal
from lightning_meta.cli.shipped import shipped
from lightning_meta.describing import FACTORIES, fixed_options
from lightning_meta.errors import UserError, reason_of, similar, some_of
from lightning_meta.import_paths import import_class
from lightning_meta.reading import no_file, similar_file

LONGEST = 400
_NO_ATTRIBUTE = r"module '(?P<module>[^']+)' has no attribute '(?P<name>[^']+)'"
MOST = 12  # options that a message lists
QUOTE = " (in YAML, quote no, yes, off, on, false, true, which are booleans)"
EXTRAS = {"wandb": "wandb", "optuna": "sweep", "onnx": "export", "onnxscript": "export"}  # extra by package


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
    refusal = _of_factory(read_refusal(text))
    key = refusal.key
    if found := re.fullmatch(r"Option '([^']+)' is not accepted", refusal.reason):
        key = f"{key}.{found[1]}" if key else found[1]
    option = f"--{key}: " if key else ""
    if not key and refusal.owner:  # raised while an object was instantiated, without an option
        option = f"{refusal.owner.rpartition('.')[2]}: "
    message = _message(refusal, options, command)
    return f"{option}{message}"[:LONGEST] if message else f"{_passed(option + refusal.reason)}; {_pointer(command)}"


def _of_factory(refusal: Refusal) -> Refusal:
    """The reason why an optimiser or a schedule was refused, with its class as the owner."""
    outer, inner = "Type .* expects a function or a callable class: ", f"Option '[^']+' is not accepted|{_NO_ATTRIBUTE}"
    found = re.fullmatch(rf"{outer}(?P<reason>{inner})\. Got value: (?P<value>.*)", refusal.reason)
    if found is None:
        return refusal
    named = re.match(r"Namespace\(class_path='([\w.]+)'", found["value"])
    return replace(refusal, reason=found["reason"], owner=named[1] if named else refusal.owner)


def _message(refusal: Refusal, options: list[str], command: str) -> str | None:
    """A message of this package for the error; None to use the original text."""
    owner, reason = refusal.owner.rpartition(".")[2], refusal.reason
    if found := re.fullmatch(r".*arguments are required: (.*)", reason):
        return _missing(refusal, found[1].split(", "), options)
    if found := re.fullmatch(r"Option '([^']+)' is not accepted", reason):
        if (cls := _class_of(refusal.owner)) is not None and found[1] in fixed_options(cls):
            return f"{owner} sets it itself; leave it out"
        names, of_owner = (_arguments(refusal.owner), f" of {owner}") if owner else (options, "")
        meant = _meant(found[1], names, "" if owner else "--")
        if not meant and owner and names and refusal.key not in ("model", "data"):  # those have a help of their own
            meant = f"; it has {some_of(names, MOST)}"
        meant = meant or f"; {_pointer(command, refusal)}"
        return f"there is no such option{of_owner}{meant}"
    # The second alternative is the message of `public_names.attach`.
    missing = rf"{_NO_ATTRIBUTE}|No (?P<lazy>[\w.]+) attribute (?P<attr>\w+)(?:; .*)?"
    if found := re.fullmatch(missing, reason):
        module, name = found["module"] or found["lazy"], found["name"] or found["attr"]
        return f"there is no class {module}.{name}{_meant(name, _classes_of(module))}"
    if found := re.fullmatch(r"No module named '([^']+)'", reason):
        return f"there is no module {found[1]}; install it, run from its folder, or add that folder to PYTHONPATH"
    expected = refusal.expected or _declared(refusal)
    kinds = _type(expected).removesuffix(" or null")
    if found := re.fullmatch(r"Expected a dot import path string: (.*)", reason):
        close = _meant(found[1], _subclass_names(expected))
        return f"there is no class {found[1]}{close or f' here; expected a {kinds}, {_pointer(command)}'}"
    if found := re.match(r"NestedArg\(key='([\w.]+)'", refusal.value):  # an argument of an object without a class
        option = f"--{refusal.key}"
        return f"{found[1]} is an argument of a class that is not named; give {option} CLASS before {option}.{found[1]}"
    if reason.startswith("Expected an instantiatable class"):
        return f"{refusal.value} is an abstract class; name one of its subclasses; {_pointer(command)}"
    if found := re.fullmatch(r"Expected an? (.*)\. Got value: (.*)", reason):
        declared = _declared(refusal)
        kind = _type(declared if declared.startswith("typing.Literal") else found[1])
        example = ", such as {NAME: VALUE}," if kind == "Mapping" else ","
        hint = QUOTE if found[2] in ("True", "False") and "str" in kind.split() else ""
        return f"expected {kind}{example} got {'null' if found[2] == 'None' else found[2]}{hint}"
    if refusal.expected and reason.startswith(("Expected", "Import path")):
        kind = _type(refusal.expected)
        hint = QUOTE if refusal.value in ("True", "False") and "str" in kind.split() else ""
        return f"expected {kind}, got {refusal.value}{hint}; {_pointer(command)}"
    if found := re.fullmatch(r"File does not exist: '?([^']*)'?", reason):
        name = similar(Path(found[1]).stem, shipped()) if refusal.key == "config" else None
        if name is None or similar_file(found[1]):
            return no_file(found[1])
        return f"{no_file(found[1])}; did you mean --config {name}, which is shipped?"
    return None


def _missing(refusal: Refusal, names: list[str], options: list[str]) -> str:
    if not refusal.owner:
        missing = " and ".join("RUN" if name == "runs" else f"--{name}" for name in names)  # `compare RUN...`
        return f"{missing} must be given" + ("; name a configuration with --config FILE" if "config" in options else "")
    # For a function or a schedule, the owner is the class that takes it; the value names the function or schedule.
    inner = re.match(r"Namespace\(class_path='([\w.]+)'", refusal.value)
    owner = inner[1] if inner and refusal.reason.startswith("Type ") else refusal.owner
    name = owner.rpartition(".")[2]
    verb = "is" if len(names) == 1 else "are"
    first = f"--{refusal.key}.{names[0]}"
    return f"{name}: {' and '.join(names)} {verb} required; give {first}, or {names[0]} in its init_args"


def _passed(text: str) -> str:
    """The message of another library in one line."""
    return " ".join(text.split())[:LONGEST].rstrip(" .;")


def _pointer(command: str, refusal: Refusal | None = None) -> str:
    if refusal is not None and refusal.key in ("model", "data"):
        return f"--{refusal.key}.help {refusal.owner.rpartition('.')[2]} lists them"
    return f"see lightning-meta {command} --help"


def of_lightning(error: BaseException, command: str) -> str | None:
    """The message for an error of Lightning or a missing package; None for another error."""
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
    """Turn errors inside the parser, such as for `config: false`, into one line.

    Raises:
        UserError: The parser failed. Its `ArgumentError` is passed on.
    """
    try:
        yield
    except UserError:
        raise
    except (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError) as error:
        said = f": {reason_of(error, LONGEST)}" if str(error) else ""
        reason = f"{type(error).__name__}{said}"[:LONGEST]
        raise UserError(f"the configuration cannot be read ({reason}); --print_config shows a valid one") from error


def _meant(name: str, names: Iterable[str], prefix: str = "") -> str:
    """The end of a message that suggests a similar name; "" without one."""
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
    # Types with the value "off" also contain False, as YAML 1.1 reads `off` as False.
    text = re.sub(r"typing\.Literal\[([^\]]*)\]", lambda m: m[1].removesuffix(", False").replace(", ", " or "), text)
    text = re.sub(r"\b(?:[a-z_]+\.)+([A-Z]\w*)", r"\1", text)
    text = text.replace("NoneType", "null")
    return re.sub(r", (?![^\[(]*[\])])", " or ", text)


def _declared(refusal: Refusal) -> str:
    """The declared type of an option that the parser does not report; "" if unknown."""
    bases = inspect.getmro(_class_of(refusal.owner) or object)
    try:
        hints = [typing.get_type_hints(vars(base)["__init__"]) for base in bases if "__init__" in vars(base)]
    except (AttributeError, NameError, TypeError):
        return ""
    option = refusal.key.rpartition(".")[2]
    return next((str(of_base[option]) for of_base in hints if option in of_base), "")


def _arguments(path: str) -> list[str]:
    """The constructor arguments of a class in the configuration, including inherited ones."""
    if (cls := _class_of(path)) is None:
        return []
    if issubclass(cls, FACTORIES):
        return list(inspect.signature(cls).parameters)[1:]  # without the parameters or the optimiser
    parents = [c for c in inspect.getmro(cls) if "__init__" in vars(c) and c is not object]
    names = [name for c in parents for name in list(inspect.signature(vars(c)["__init__"]).parameters)[1:]]
    return [name for name in names if name not in fixed_options(cls)]


def _class_of(path: str) -> type | None:
    """A class in the configuration; None if it is not a class, such as typing.Callable."""
    try:
        return import_class(path)
    except UserError:
        return None


def _classes_of(module: str) -> list[str]:
    imported = importlib.import_module(module)
    return [name for name in dir(imported) if inspect.isclass(getattr(imported, name, None))]


def _subclass_names(subtypes: str) -> list[str]:
    """Names of the imported subclasses of the classes in a type, without abstract ones."""
    names: list[str] = []
    for path in map("".join, re.findall(r"<class '([\w.]+)'>|\], ([\w.]+)\]", subtypes)):  # or what a callable returns
        cls = _class_of(path if "." in path else f"builtins.{path}")
        remaining = [] if cls is None or cls in (object, type(None)) else [cls]
        while remaining:
            if not inspect.isabstract(cls := remaining.pop()):
                names.append(cls.__name__)
            remaining += cls.__subclasses__()
    return names
