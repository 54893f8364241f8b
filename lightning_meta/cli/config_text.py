"""Mistakes in the text of a configuration that the parser would pass over, or explain worse."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import yaml

from lightning_meta.errors import UserError
from lightning_meta.reading import LARGEST_YAML, TooLargeError, compose_yaml, read_text

BESIDE = ("class_path", "init_args", "dict_kwargs")  # what may stand beside a class_path


def config_files(args: Sequence[str]) -> list[Path]:
    """The files that `--config` names, in order; a configuration that is given as text is none."""
    names = [value for option, value in pairwise(args) if option in ("-c", "--config")]
    names += [arg.partition("=")[2] for arg in args if arg.startswith(("-c=", "--config="))]
    return [Path(name) for name in names if "\n" not in name and name]


def check_fit_configs(args: Sequence[str]) -> None:
    """Refuse files that are no configurations of `fit`.

    Args:
        args: The options; a file that is missing is the parser's to refuse.

    Raises:
        UserError: The file, and what it is instead, or what is wrong in it.
    """
    for file in config_files(args):
        keys = check_yaml(file, of_fit=True) if file.exists() else []
        if "rungs" in keys:
            raise UserError(f"--config: {file} is a ladder; run it with scripts/ladder.py --config {file}")
        if "method" in keys and "parameters" in keys:
            raise UserError(f"--config: {file} is a sweep; run it with scripts/sweep.py --config {file}")


def check_yaml(file: Path, of_fit: bool = False) -> list[str]:
    """Refuse text that is no YAML, or would not be read as it looks.

    Args:
        file: That is there.
        of_fit: Whether it is for `fit`, where nothing but arguments' groups stands beside a class_path.

    Returns:
        The outermost keys.

    Raises:
        UserError: The file, the line, and what to do.
    """
    if file.is_dir():
        raise UserError(f"--config: {file} is a folder; name a file in it")
    try:
        text = read_text(file, LARGEST_YAML)
    except UnicodeDecodeError as error:
        raise UserError(f"--config: {file} is no text in UTF-8, so no configuration; name a YAML file") from error
    except UserError as error:
        raise UserError(f"--config: {error}") from error
    except OSError as error:
        raise UserError(f"--config: {file} cannot be read ({error.strerror})") from error
    try:
        root = compose_yaml(text)
    except TooLargeError as error:
        raise UserError(f"--config: {file} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise UserError(_broken(file, text, error)) from error
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"--config: {file} is no configuration; expected options by name, such as `trainer:`")
    for name, node in _mappings(root):
        _check_mapping(file, name, node, of_fit)
    return [str(key.value) for key, _ in root.value]


def _check_mapping(file: Path, name: str, node: yaml.MappingNode, of_fit: bool) -> None:
    lines: dict[str, int] = {}
    texts = {str(key.value) for key, value in node.value if isinstance(value, yaml.ScalarNode)}  # no task's name
    for key, _ in node.value:
        written, line = str(key.value), key.start_mark.line + 1
        if written in lines and written != "<<":
            where = f"{name}.{written}" if name else written
            raise UserError(
                f"--config: {file}, line {line}: {where} was given in line {lines[written]} already; join the two, "
                "as the first would be lost"
            )
        lines[written] = line
    if of_fit and texts == set(lines) == {"instance"}:
        raise UserError(
            f"--config: {file}, line {lines['instance']}: {name} was made in Python ({node.value[0][1].value}), and "
            "its arguments are not known; give class_path and init_args instead, or train in Python"
        )
    if of_fit and "class_path" in texts and (wrong := [key for key in lines if key not in BESIDE]):
        raise UserError(
            f"--config: {file}, line {lines[wrong[0]]}: {wrong[0]} stands beside the class_path of "
            f"{name or 'all'}; move it below init_args"
        )


def _mappings(root: yaml.Node) -> Iterator[tuple[str, yaml.MappingNode]]:
    """Every mapping with the names that lead to it; what an alias repeats is visited once."""
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
        return f"--config: {file} is no YAML ({' '.join(str(error).split())})"
    lines = text.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    tab = "\t" in line[: len(line) - len(line.lstrip())]
    mend = "indent by spaces, not tabs" if tab else "check the indentation, colons and brackets there"
    said = getattr(error, "problem", None) or "it cannot be read"
    return f"--config: {file}, line {mark.line + 1}: this is no YAML ({said}); {mend}"
