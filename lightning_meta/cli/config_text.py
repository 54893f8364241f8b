"""Check the text of a configuration for mistakes that the parser would ignore or report less clearly."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from lightning_meta.cli.shipped import as_given, shipped
from lightning_meta.errors import UserError, reason_of, similar
from lightning_meta.reading import LARGEST_YAML, compose_yaml, no_file, parse_yaml, read_text, similar_file
from lightning_meta.specifications import unknown_parts

SECTIONS = ("trainer", "checkpoint")  # for which the parser takes other values than options by name


def config_files(args: Sequence[str]) -> list[Path]:
    """The files that `--config` names, in order, without configurations that are passed as text."""
    names = [value for option, value in pairwise(args) if option in ("-c", "--config")]
    names += [arg.partition("=")[2] for arg in args if arg.startswith(("-c=", "--config="))]
    return [Path(name) for name in names if not re.search(r"\{|:(\s|$)", name)]


def check_fit_configs(args: Sequence[str]) -> None:
    """Check the files that `--config` names.

    Raises:
        UserError: A file is missing, is a ladder or a sweep, or is not valid.
    """
    for file in config_files(args):
        if not file.exists():
            name = None if similar_file(file) else similar(file.stem, shipped())
            hint = f"; did you mean --config {name}, which is shipped?" if name else ""
            raise UserError(f"--config: {no_file(file)}{hint}")
        content, name = read_config(file), as_given(file)
        if "rungs" in content:
            raise UserError(f"--config: {name} is a ladder; run it with lightning-meta ladder --config {name}")
        if "method" in content and "parameters" in content:
            raise UserError(f"--config: {file} is a sweep; run it with lightning-meta sweep --config {file}")
        for section in SECTIONS:
            if not isinstance(content.get(section, {}), Mapping):
                got = "null" if content[section] is None else content[section]
                raise UserError(f"--config: {file}: {section}: expected options by name, got {got}")
        if option := next((name for name, _ in unknown_parts(content)), None):
            raise UserError(
                f"--config: {file}: {option} was created in Python, and its arguments are unknown; give class_path and "
                "init_args instead, or train in Python"
            )


def read_config(file: Path) -> dict[Any, Any]:
    """Read a YAML file with options by name, and without duplicate keys.

    Raises:
        UserError: The file is missing or is not valid; the message names the line.
    """
    if file.is_dir():
        raise UserError(f"--config: {file} is a folder; name a file in it")
    try:
        text = read_text(file, LARGEST_YAML)
        root, content = compose_yaml(text), parse_yaml(text)
    except UserError as error:
        raise UserError(f"--config: {error}") from error
    except FileNotFoundError as error:
        raise UserError(f"--config: {no_file(file)}") from error
    except OSError as error:
        raise UserError(f"--config: {file} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--config: {file} is not UTF-8 text; name a YAML file") from error
    except (ValueError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or reason_of(error)
        fix = "check the indentation, colons and brackets there; indent by spaces, not tabs"
        raise UserError(f"--config: {file}{line}: this is not valid YAML ({reason}); {fix}") from error
    if not isinstance(root, yaml.MappingNode) or not isinstance(content, dict):
        raise UserError(f"--config: {file} is not a configuration; expected options by name, such as `trainer:`")
    _check_keys(file, root)
    return content


def _check_keys(file: Path, root: yaml.Node) -> None:
    """Refuse a key that is twice in a mapping, of which PyYAML would ignore the first."""
    waiting, seen = [root], set()  # several aliases can repeat a node
    while waiting:
        node = waiting.pop()
        if id(node) in seen or not isinstance(node, yaml.CollectionNode):
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
            continue
        lines: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines and name != "<<":
                fix = f"{name} is already set in line {lines[name]}; merge the two, as the first would be ignored"
                raise UserError(f"--config: {file}, line {line}: {fix}")
            lines[name] = line
            waiting.append(value)
