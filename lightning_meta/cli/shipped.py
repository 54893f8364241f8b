"""`lightning-meta configs` and `--config NAME`: the configurations in the package."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from lightning_meta.errors import UserError

FOLDER = Path(__file__).parents[1] / "configs"  # in a clone a link to the top-level folder
SWEEPS = FOLDER / "sweeps"
NAME = re.compile(r"\w+")
LONGEST = 100  # characters; the operating system refuses to look up a much longer file name


def shipped(folder: Path = FOLDER) -> dict[str, Path]:
    """The configurations in a folder by name; by default those of `fit` and `ladder`."""
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def with_shipped(args: Sequence[str], folder: Path = FOLDER) -> list[str]:
    """Replace the name in `--config NAME` by the path of the shipped file, unless a file of this name exists.

    Args:
        args: Options of a command.
        folder: Folder of its configurations.

    Raises:
        UserError: There is neither such a file nor such a shipped configuration.
    """
    resolved = list(args)
    for i, arg in enumerate(resolved):
        if arg in ("-c", "--config") and i + 1 < len(resolved):
            resolved[i + 1] = _resolve(resolved[i + 1], folder)
        elif arg.startswith(("-c=", "--config=")):
            option, _, value = arg.partition("=")
            resolved[i] = f"{option}={_resolve(value, folder)}"
    return resolved


def _resolve(value: str, folder: Path) -> str:
    if not NAME.fullmatch(value) or (len(value) <= LONGEST and Path(value).is_file()):
        return value  # a path, or the text of a configuration
    files = shipped(folder)
    if value in files:
        return str(files[value])
    if len(value) <= LONGEST and Path(value).exists():
        return value  # a folder, which the command refuses
    close = difflib.get_close_matches(value, files, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "`lightning-meta configs` lists them"
    raise UserError(f"--config: there is no file {value}, and no configuration of this name is shipped; {hint}")


def as_given(file: str | Path) -> str:
    """How messages name a configuration: a shipped one by its name, another one by its path."""
    return Path(file).stem if Path(file).parent in (FOLDER, SWEEPS) else str(file)


def configs(args: Sequence[str]) -> None:
    """List the shipped configurations, or print one.

    Args:
        args: A name, or nothing.

    Raises:
        UserError: There is no such configuration.
    """
    files = shipped()
    if {"-h", "--help"} & set(args):
        print(
            "usage: lightning-meta configs [NAME]\n\nList the configurations that `fit --config NAME` and "
            "`ladder --config NAME` take, or print one:\n`lightning-meta configs protonet_glyphs > mine.yaml`"
        )
    elif not args:
        width = max(map(len, files), default=0)
        for name, file in files.items():
            print(f"{name:<{width}}  {_first_sentence(file)}")
        print(f"\nfor sweep --config NAME: {', '.join(shipped(SWEEPS))}")
    elif len(args) == 1 and args[0] in files:
        print(files[args[0]].read_text(encoding="utf-8"), end="")
    else:
        raise UserError(f"configs: expected the name of one shipped configuration, got {' '.join(args)}")


def _first_sentence(file: Path) -> str:
    """The first sentence of the comment at the top of a configuration."""
    lines = file.read_text(encoding="utf-8").splitlines()
    comment = " ".join(line.removeprefix("# ") for line in lines[:4] if line.startswith("# "))
    return re.split(r"(?<!et al)(?<=[a-z\d)])[.:] |\.$", comment)[0]


def version() -> str:
    """The installed versions of this package and of those that affect its results."""
    names = ("lightning_meta", "torch", "lightning")
    return ", ".join(f"{name} {metadata.version(name)}" for name in names)
