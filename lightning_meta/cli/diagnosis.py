"""Find the first mistake in what the user gave: the options of the command line and the files that `--config` names.

Each value is compared with what the parser and the classes declare; the message of the parser's error is not read.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml

from lightning_meta.cli.config_text import config_files
from lightning_meta.cli.declared import (
    Typed,
    alternatives,
    arguments_of,
    classes_of,
    fits,
    inner_type,
    makes,
    named,
    options_of,
    shown,
    subclasses,
    type_of,
)
from lightning_meta.cli.helping import Parser, with_current_paths
from lightning_meta.cli.shipped import shipped
from lightning_meta.describing import fixed_options
from lightning_meta.errors import UserError, similar, some_of
from lightning_meta.import_paths import import_object
from lightning_meta.reading import LARGEST_YAML, parse_yaml, read_text

BESIDE = ("class_path", "init_args", "dict_kwargs")  # the keys that a configuration has for an object
DASHES = ("-", "\u2013", "\u2014")  # word processors make the last two of hyphens
LONGEST = 400  # characters of a line
MOST = 12  # options that a message lists
_MISSING = object()  # the value of an option that has none


@dataclass
class Made:
    """A class or a function that a configuration names, and the arguments that are set."""

    make: Any
    arguments: dict[str, Any] = field(default_factory=dict)


class Given:
    """What the user gave to the parser of a command; each value is checked when it is set."""

    def __init__(self, parser: Parser) -> None:
        self.options = options_of(parser)
        self.of_strings = {string: action for action in parser._actions for string in action.option_strings}
        self.takes_files = "--print_config" in self.of_strings  # jsonargparse adds it beside an option for files
        self.pointer = f"see lightning-meta {parser.command} --help"
        self.values: dict[str, Any] = {}

    def check(self, args: Sequence[str], base: Mapping[str, Any]) -> None:
        """Check the options of a command, which change a base configuration.

        Raises:
            UserError: One of them is wrong, or one is missing.
        """
        self._set_all(base)
        for name, value in self._split(args):
            self._set(name, value)
        missing = [
            f"--{name}" if action.option_strings else str(action.metavar)
            for name, action in self.options.items()
            if self.values.get(name) is None and "." not in name and (action.required or classes_of(type_of(action)))
        ]
        if missing:
            hint = "; name a configuration with --config FILE" if self.takes_files else ""
            raise UserError(f"{' and '.join(missing)} must be given{hint}")
        for name, value in self.values.items():
            _check_complete(f"--{name}", value)

    def _split(self, args: Sequence[str]) -> Iterator[tuple[str, Any]]:
        """Names of options and their values."""
        positional = next((name for name, action in self.options.items() if not action.option_strings), None)
        waiting = list(args)
        while waiting:
            string, equals, value = (given := waiting.pop(0)).partition("=")
            action = self.of_strings.get(string)
            if action is None and not string.startswith("--"):
                if positional is None or string.startswith("-"):
                    raise _mistake(*self._leftover(given))
                self.values[positional] = given
            elif action is None or (action.dest in self.options and action.nargs != 0):
                values = [value] if equals else list(takewhile(_is_value, waiting))
                values = values if action is not None and action.nargs == "+" else values[:1]
                del waiting[: 0 if equals else len(values)]
                name = string.lstrip("-") if action is None or string.endswith("+") else action.dest
                yield name, Typed(values[0]) if values else _MISSING

    def _leftover(self, given: str) -> tuple[str, str]:
        if self.takes_files and (Path(given).suffix in (".yaml", ".yml") or given in shipped()):
            return given, f"an option was expected; did you mean --config {given}?"
        option = given.partition("=")[0]
        if not given.startswith(DASHES):
            return given, f"an option was expected; {self.pointer}"
        return option, self._unknown(option.lstrip("".join(DASHES)))

    def _unknown(self, name: str) -> str:
        sections = {option.partition(".")[0] for option in self.options}
        return f"there is no such option{_meant(name, [*self.options, *sections], '--') or f'; {self.pointer}'}"

    def _set_all(self, values: Mapping[Any, Any], section: str = "") -> None:
        """Set the options of a configuration, or of a section such as `trainer`."""
        for key, value in values.items():
            name = f"{section}{key}"
            if name in self.options or not any(option.startswith(f"{name}.") for option in self.options):
                self._set(name, value)
            elif isinstance(value, Mapping):
                self._set_all(value, f"{name}.")

    def _set(self, name: str, value: Any) -> None:
        """Set an option, such as `model`, an argument in its value, `model.inner_lr`, or append to it, `name+`."""
        option, path = name.removesuffix("+"), list[str]()
        while option and option not in self.options:
            option, _, last = option.rpartition(".")
            path = path if last in BESIDE else [last, *path]
        kind = type_of(self.options[option]) if option else None
        if not option or (path and not classes_of(kind) and inner_type(kind, Mapping) is None):
            raise _mistake(f"--{name}", self._unknown(name))
        if value is _MISSING:
            raise _mistake(f"--{name}", f"a value is missing; {self.pointer}")
        if option == "config" and self.takes_files and isinstance(value, Typed):
            self._set_all(_content(value))
        old = self.values.get(option)
        adds = name.endswith("+")
        if adds and not isinstance(_loaded(value), list):
            value = Typed(f"[{value}]")
        new = self._changed(f"--{option}", kind, old if path or not adds else None, path, value)
        self.values[option] = [*old, *new] if adds and not path and isinstance(old, list) else new

    def _changed(self, option: str, kind: Any, old: Any, path: list[str], value: Any) -> Any:
        """The value of an option after it, or what the path names in it, is set."""
        classes, of_mapping = classes_of(kind), inner_type(kind, Mapping)
        if path and isinstance(old, list) and old:
            return [*old[:-1], self._changed(option, kind, old[-1], path, value)]
        if path and of_mapping is not None and not isinstance(old, Made):
            (name, *rest), values = path, old if isinstance(old, dict) else {}
            return {**values, name: self._changed(f"{option}.{name}", of_mapping, values.get(name), rest, value)}
        if path:
            return self._with_argument(option, kind, old, path, value)
        loaded = _loaded(value)
        if classes and isinstance(loaded, dict) and (of_mapping is None or "class_path" in loaded):
            spec = loaded if {"class_path", "init_args"} & set(loaded) else {"init_args": loaded}
            if wrong := [str(key) for key in spec if key not in BESIDE]:
                hint = _meant(wrong[0], BESIDE) or "; move it below init_args"
                raise _mistake(option, f"{wrong[0]} is beside class_path{hint}")
            made = self._changed(option, kind, old, [], str(spec["class_path"])) if "class_path" in spec else old
            if not isinstance(init_args := spec.get("init_args", {}), dict):
                raise _mistake(f"{option}.init_args", self._unfit(Mapping, init_args))
            for name, inner in init_args.items():
                made = self._with_argument(option, kind, made, [str(name)], inner)
            return made
        item = of_mapping if isinstance(loaded, dict) else inner_type(kind, Iterable)
        if isinstance(loaded, dict | list) and item is not None and (classes_of(item) or not fits(kind, value)):
            if isinstance(loaded, dict):
                inner = {name: self._changed(f"{option}.{name}", item, None, [], each) for name, each in loaded.items()}
            else:
                inner = [self._changed(option, item, None, [], each) for each in loaded]
            if classes_of(item):
                return inner
        if classes and isinstance(value, str) and (make := self._found(option, kind, str(value))) is not None:
            return Made(make, old.arguments if isinstance(old, Made) else {})  # those that it lacks are ignored
        if not fits(kind, value):
            raise _mistake(option, self._unfit(kind, value))
        return value

    def _with_argument(self, option: str, kind: Any, made: Any, path: list[str], value: Any) -> Made:
        """An object after one of its arguments, or what the path names in it, is set."""
        name, *rest = path
        if not isinstance(made, Made):  # the parser takes the class that the type names
            likely = [cls for cls in classes_of(kind) if not inspect.isabstract(cls) and name in arguments_of(cls)]
            if not likely:
                hint = f"give {option} CLASS before {option}.{name}"
                raise _mistake(option, f"{name} is an argument of a class that is not named; {hint}")
            made = Made(likely[0])
        declared, old = arguments_of(made.make), made.arguments.get(name)
        if name not in declared:
            raise _mistake(f"{option}.{name}", _no_argument(option, made.make, name))
        changed = self._changed(f"{option}.{name}", type_of(declared[name]), old, rest, value)
        return Made(made.make, {**made.arguments, name: changed})

    def _found(self, option: str, kind: Any, name: str) -> Any:
        """The class or function of a name; None for a value of another kind."""
        try:
            is_path = "." in name and all(part.isidentifier() for part in name.split("."))
            same = {name: import_object(name)} if is_path else named(kind, name)
        except UserError as error:
            if fits(kind, name):
                return None
            raise _mistake(option, _not_there(name, error)) from error
        found = next(iter(same.values()), None)
        if len(same) > 1:
            raise _mistake(
                option, f"several classes are named {name}; give the path of one: {' or '.join(sorted(same))}"
            )
        if inspect.isabstract(found):
            raise _mistake(option, f"{name} is an abstract class; name one of its subclasses; {self.pointer}")
        if found is None and not fits(kind, name):
            close = _meant(name, [cls.__name__ for cls in subclasses(kind) if not inspect.isabstract(cls)])
            expected = shown(kind).removesuffix(" or null")
            other = f" here; expected {'an' if expected[:1] in 'AEIOU' else 'a'} {expected}, {self.pointer}"
            raise _mistake(option, f"there is no class {name}{close or other}")
        return found if makes(found, kind) else None

    def _unfit(self, kind: Any, value: Any) -> str:
        """What was expected instead of a value."""
        expected, hint = shown(kind), f"; {self.pointer}" if len(alternatives(kind)) > 1 else ""
        example = ", such as {NAME: VALUE}" if expected == "Mapping" else ""
        if isinstance(value, bool) and str in alternatives(kind):
            hint = " (in YAML, quote no, yes, off, on, false, true, which are booleans)"
        return f"expected {expected}{example}, got {'null' if value is None else _loaded(value)}{hint}"


def _mistake(option: str, text: str) -> UserError:
    return UserError(f"{option}: {text}"[:LONGEST])


def _check_complete(option: str, value: Any) -> None:
    """Check that all required arguments of the objects in a value are set."""
    inner = value.arguments if isinstance(value, Made) else value
    if isinstance(value, Made):
        required = [name for name, action in arguments_of(value.make).items() if action.required]
        if missing := [name for name in required if name not in inner]:
            hint = f"give {option}.{missing[0]}, or {missing[0]} in its init_args"
            raise _mistake(option, f"{value.make.__name__}: {missing[0]} is required; {hint}")
    for each in inner if isinstance(inner, list) else []:
        _check_complete(option, each)
    for name, each in inner.items() if isinstance(inner, dict) else []:
        _check_complete(f"{option}.{name}", each)


def _is_value(arg: str) -> bool:
    """Whether an argument after an option is its value, by the rules of argparse."""
    return not arg.startswith("-") or " " in arg or arg == "-" or arg[1:].replace(".", "", 1).isdigit()


def _loaded(value: Any) -> Any:
    """A list or a mapping that was typed in YAML's syntax as such; other values are returned unchanged."""
    try:
        loaded = parse_yaml(str(value)) if isinstance(value, Typed) else value
    except (ValueError, yaml.YAMLError):
        return value
    return loaded if isinstance(loaded, dict | list) else value


def _content(value: Any) -> Mapping[Any, Any]:
    """The content of the file that `--config` names, or of a configuration that is passed as text."""
    file = next((file for file in config_files(["--config", str(value)]) if file.is_file()), None)
    content = _loaded(Typed(with_current_paths(str(value) if file is None else read_text(file, LARGEST_YAML))))
    return content if isinstance(content, dict) else {}


def _no_argument(option: str, make: Any, name: str) -> str:
    """Why an argument is refused, and which there are."""
    owner, names = make.__name__, arguments_of(make)
    if isinstance(make, type) and name in fixed_options(make):
        return f"{owner} sets it itself; leave it out"
    listed = f"; {option}.help {owner} lists them" if option in ("--model", "--data") else ""
    listed = listed or (f"; it has {some_of(names, MOST)}" if names else "")
    return f"there is no such option of {owner}{_meant(name, names) or listed}"


def _not_there(path: str, error: UserError) -> str:
    """Why a path cannot be imported."""
    cause = error.__cause__
    absent = cause if isinstance(cause, ModuleNotFoundError) else getattr(cause, "__context__", None)
    if isinstance(absent, ModuleNotFoundError) and absent.name:
        return f"there is no module {absent.name}; install it, run from its folder, or add that folder to PYTHONPATH"
    module, _, name = path.rpartition(".")
    imported = sys.modules.get(module)  # None for a nested class
    classes = [each for each in dir(imported) if inspect.isclass(getattr(imported, each, None))]
    return f"there is no class {path}{_meant(name, classes)}" if isinstance(cause, AttributeError) else str(error)


def _meant(name: str, names: Iterable[str], prefix: str = "") -> str:
    """The end of a message that suggests a similar name or section, or one whose last part is similar; or ""."""
    head, last = name.partition(".")[0], name.rpartition(".")[2]
    by_last = {each.rpartition(".")[2]: each for each in names}
    whole = [each for each in by_last.values() if "." not in each]
    close = by_last.get(last) or (None if head in whole else similar(head, whole))
    close = close or by_last.get(similar(last, by_last) or "")
    return f"; did you mean {prefix}{close}?" if close else ""
