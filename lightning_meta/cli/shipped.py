"""`lightning-meta configs`, and `--config NAME`: the configurations that the package ships."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from lightning_meta.errors import UserError

FOLDER = Path(__file__).parents[1] / "configs"  # in a clone a link to the top-level folder
NAME = re.compile(r"\w+")
LONGEST = 100  # letters; a longer name is not looked up as a file, which systems refuse with an error of their own


def shipped() -> dict[str, Path]:
    """The configurations of `fit` and `ladder`, by name."""
    return {file.stem: file for file in sorted(FOLDER.glob("*.yaml"))}


def with_shipped(args: Sequence[str]) -> list[str]:
    """Options in which `--config NAME` names the shipped file, unless there is a file of this name here.

    Args:
        args: The options of a command.

    Raises:
        UserError: There is neither such a file nor such a configuration.
    """
    found = list(args)
    for i, arg in enumerate(found):
        if arg in ("-c", "--config") and i + 1 < len(found):
            found[i + 1] = _resolved(found[i + 1])
        elif arg.startswith(("-c=", "--config=")):
            option, _, value = arg.partition("=")
            found[i] = f"{option}={_resolved(value)}"
    return found


def _resolved(value: str) -> str:
    if not NAME.fullmatch(value) or (len(value) <= LONGEST and Path(value).is_file()):
        return value  # a path, or the text of a configuration
    known = shipped()
    if value in known:
        return str(known[value])
    if len(value) <= LONGEST and Path(value).exists():
        return value  # a folder, which is refused as such
    close = difflib.get_close_matches(value, known, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "`lightning-meta configs` lists them"
    raise UserError(f"--config: there is no file {value}, and no configuration of this name is shipped; {hint}")


def configs(args: Sequence[str]) -> None:
    """List the shipped configurations, or print one.

    Args:
        args: At most a name.

    Raises:
        UserError: There is no such configuration.
    """
    known = shipped()
    if {"-h", "--help"} & set(args):
        print(
            "usage: lightning-meta configs [NAME]\n\nList the configurations that `fit --config NAME` and "
            "`ladder --config NAME` take, or print one:\n`lightning-meta configs protonet_glyphs > mine.yaml`"
        )
    elif not args:
        width = max(map(len, known), default=0)
        for name, file in known.items():
            print(f"{name:<{width}}  {_first_sentence(file)}")
    elif len(args) == 1 and args[0] in known:
        print(known[args[0]].read_text(encoding="utf-8"), end="")
    else:
        raise UserError(f"configs: expected the name of one shipped configuration, got {' '.join(args)}")


def _first_sentence(file: Path) -> str:
    """What the comment at the top of a configuration begins with."""
    lines = file.read_text(encoding="utf-8").splitlines()
    comment = " ".join(line.removeprefix("# ") for line in lines[:4] if line.startswith("# "))
    return re.split(r"(?<!et al)(?<=[a-z\d)])[.:] |\.$", comment)[0]


def version() -> str:
    """The installed version, with those that decide the numbers."""
    names = ("lightning_meta", "torch", "lightning")
    return ", ".join(f"{name} {metadata.version(name)}" for name in names)
