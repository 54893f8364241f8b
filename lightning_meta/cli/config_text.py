"""Check the text of a configuration for mistakes that the parser would ignore or report less clearly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from lightning_meta.cli.shipped import as_given
from lightning_meta.errors import UserError, reason_of
from lightning_meta.reading import LARGEST_YAML, TooLargeError, compose_yaml, no_file, read_text, read_yaml

BESIDE = ("class_path", "init_args", "dict_kwargs")  # the keys that are allowed beside a class_path


def config_files(args: Sequence[str]) -> list[Path]:
    """The files that `--config` names, in order, without configurations that are passed as text."""
    names = [value for option, value in pairwise(args) if option in ("-c", "--config")]
    names += [arg.partition("=")[2] for arg in args if arg.startswith(("-c=", "--config="))]
    return [Path(name) for name in names if "\n" not in name and name]


def check_fit_configs(args: Sequence[str]) -> None:
    """Check the files that `--config` names; missing files are left to the parser.

    Raises:
        UserError: A file is a ladder or a sweep, or is not valid.
    """
    for file in config_files(args):
        keys = check_yaml(file, of_fit=True) if file.exists() else []
        if "rungs" in keys:
            name = as_given(file)
            raise UserError(f"--config: {name} is a ladder; run it with lightning-meta ladder --config {name}")
        if "method" in keys and "parameters" in keys:
            raise UserError(f"--config: {file} is a sweep; run it with lightning-meta sweep --config {file}")


def read_config(file: Path) -> Any:
    """Read the YAML file of a ladder or sweep.

    Raises:
        UserError: The file is missing or is not valid.
    """
    check_yaml(file)
    try:
        return read_yaml(file)
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"--config: {file} is not valid YAML: {reason_of(error)}") from error


def check_yaml(file: Path, of_fit: bool = False) -> list[str]:
    """Check that a file is valid YAML without duplicate keys.

    Args:
        file: An existing file.
        of_fit: Whether it is a configuration of `fit`, where other keys beside a class_path are mistakes.

    Returns:
        The top-level keys.

    Raises:
        UserError: The file is not valid; the message names the line and a fix.
    """
    if file.is_dir():
        raise UserError(f"--config: {file} is a folder; name a file in it")
    try:
        text = read_text(file, LARGEST_YAML)
    except UnicodeDecodeError as error:
        raise UserError(f"--config: {file} is not UTF-8 text; name a YAML file") from error
    except UserError as error:
        raise UserError(f"--config: {error}") from error
    except FileNotFoundError as error:
        raise UserError(f"--config: {no_file(file)}") from error
    except OSError as error:
        raise UserError(f"--config: {file} cannot be read ({error.strerror})") from error
    try:
        root = compose_yaml(text)
    except TooLargeError as error:
        raise UserError(f"--config: {file} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise UserError(_broken(file, text, error)) from error
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"--config: {file} is not a configuration; expected options by name, such as `trainer:`")
    for key, value in root.value if of_fit else []:
        if str(key.value) in ("trainer", "checkpoint") and not isinstance(value, yaml.MappingNode):
            got = value.value if isinstance(value, yaml.ScalarNode) and value.value else "nothing"
            line = f"{file}, line {key.start_mark.line + 1}"
            raise UserError(f"--config: {line}: {key.value}: expected options by name, got {got}")
    for name, node in _mappings(root):
        _check_mapping(file, name, node, of_fit)
    return [str(key.value) for key, _ in root.value]


def _check_mapping(file: Path, name: str, node: yaml.MappingNode, of_fit: bool) -> None:
    lines: dict[str, int] = {}
    # Only keys with a plain value: a task may be called class_path or instance, too.
    scalars = {str(key.value) for key, value in node.value if isinstance(value, yaml.ScalarNode)}
    for key, _ in node.value:
        written, line = str(key.value), key.start_mark.line + 1
        if written in lines and written != "<<":
            key_path = f"{name}.{written}" if name else written
            raise UserError(
                f"--config: {file}, line {line}: {key_path} is already set in line {lines[written]}; merge the two, "
                "as the first would be ignored"
            )
        lines[written] = line
    if of_fit and scalars == set(lines) == {"instance"}:
        raise UserError(
            f"--config: {file}, line {lines['instance']}: {name} was created in Python ({node.value[0][1].value}), "
            "and its arguments are unknown; give class_path and init_args instead, or train in Python"
        )
    if of_fit and "class_path" in scalars and (wrong := [key for key in lines if key not in BESIDE]):
        raise UserError(
            f"--config: {file}, line {lines[wrong[0]]}: {wrong[0]} is beside the class_path of "
            f"{name or 'the file'}; move it below init_args"
        )


def _mappings(root: yaml.Node) -> Iterator[tuple[str, yaml.MappingNode]]:
    """All mappings with their key paths; a mapping that several aliases repeat is visited once."""
    waiting, seen = [("", root)], set()
    while waiting:
        name, node = waiting.pop(0)
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            yield name, node
            waiting += [(f"{name}.{key.value}" if name else str(key.value), value) for key, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            waiting += [(f"{name}[{i}]", value) for i, value in enumerate(node.value)]


def _broken(file: Path, text: str, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return f"--config: {file} is not valid YAML ({reason_of(error)})"
    lines = text.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    tab = "\t" in line[: len(line) - len(line.lstrip())]
    fix = "indent by spaces, not tabs" if tab else "check the indentation, colons and brackets there"
    problem = getattr(error, "problem", None) or "it cannot be read"
    return f"--config: {file}, line {mark.line + 1}: this is not valid YAML ({problem}); {fix}"
