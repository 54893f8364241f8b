"""`lightning-meta configs` and `--config NAME`: the configurations in the package."""

from __future__ import annotations

import difflib
import re
import textwrap
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from lightning_meta.errors import UserError

FOLDER = Path(__file__).parents[1] / "configs"  # in a clone a link to the top-level folder
SWEEPS = FOLDER / "sweeps"
# The kinds of configurations, in the order of the list.
FEW_SHOT = "Few-shot learning (fit --config NAME)"
MULTI_TASK = "Multi-task learning (fit --config NAME)"
LADDERS = "Ladders (ladder --config NAME)"
SWEEP_FILES = "Sweeps (sweep --config NAME)"
OTHERS = "Additions to another configuration (fit --config OTHER --config NAME)"
USAGE = """usage: lightning-meta configs [NAME|WORD]

List the names that --config of fit, test, ladder and sweep takes.
With a NAME, print the file: `lightning-meta configs maml_glyphs > mine.yaml`.
With a WORD, such as omniglot, describe the configurations whose name has it."""


def shipped(folder: Path = FOLDER) -> dict[str, Path]:
    """The configurations in a folder by name; by default those of `fit` and `ladder`."""
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def with_shipped(args: Sequence[str], folder: Path = FOLDER) -> list[str]:
    """Replace the name in `--config NAME` by the path of the file in a folder, unless a file of this name exists.

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
    # The operating system refuses to look up a much longer name.
    if not re.fullmatch(r"\w{1,100}", value) or Path(value).is_file():
        return value  # a path, or the text of a configuration
    files = shipped(folder)
    if value in files:
        return str(files[value])
    if Path(value).exists():
        return value  # a folder, which the command refuses
    raise UserError(
        f"--config: there is no file {value}, and no configuration of this name is shipped; {_hint(value, files)}"
    )


def _hint(name: str, files: Mapping[str, Path]) -> str:
    close = difflib.get_close_matches(name, files, n=3)
    return f"did you mean {' or '.join(close)}?" if close else "`lightning-meta configs` lists them"


def as_given(file: str | Path) -> str:
    """How messages name a configuration: a shipped one by its name, another one by its path."""
    return Path(file).stem if Path(file).parent in (FOLDER, SWEEPS) else str(file)


def configs(args: Sequence[str]) -> None:
    """List the names of the shipped configurations, describe those whose name contains a word, or print one.

    Raises:
        UserError: There is no such configuration.
    """
    files = shipped()
    if {"-h", "--help"} & set(args):
        print(USAGE)
    elif not args:
        print(_overview(files))
    elif len(args) > 1 or not re.fullmatch(r"\w+(\.yaml)?", args[0]):
        raise UserError(f"configs: expected one name or one word, got {' '.join(args) or 'nothing'}")
    elif (name := args[0].removesuffix(".yaml")) in files:
        print(files[name].read_text(encoding="utf-8"), end="")
    else:
        print(_descriptions(files, name))


def _overview(files: Mapping[str, Path]) -> str:
    """The names of all configurations by kind, for a screen of 80 columns."""
    groups: dict[str, list[str]] = {FEW_SHOT: [], MULTI_TASK: [], LADDERS: [], SWEEP_FILES: [], OTHERS: []}
    for name, file in files.items():
        text = file.read_text(encoding="utf-8")  # names of classes suffice, and the parser would take seconds
        of_data = FEW_SHOT if "EpisodicDataModule" in text else MULTI_TASK if "MultiTaskDataModule" in text else OTHERS
        groups[LADDERS if name.startswith("ladder_") else of_data].append(name)
    groups[SWEEP_FILES] += shipped(SWEEPS)
    lists = [f"{kind}:\n{textwrap.indent(textwrap.fill(', '.join(g), 78), '  ')}\n" for kind, g in groups.items()]
    return "".join(lists) + "\n`lightning-meta configs WORD` describes those with a word in their name."


def _descriptions(files: Mapping[str, Path], word: str) -> str:
    """A line for each configuration with a word in its name."""
    rows = {name: _first_sentence(file) for name, file in files.items() if word.lower() in name}
    if not rows:
        raise UserError(f"configs: no configuration has {word!r} in its name; {_hint(word, files)}")
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows.items())


def _first_sentence(file: Path) -> str:
    """The first sentence of the comment at the top of a configuration."""
    lines = file.read_text(encoding="utf-8").splitlines()
    comment = " ".join(line.removeprefix("# ") for line in lines[:4] if line.startswith("# "))
    return re.split(r"(?<!et al)(?<=[a-z\d)])[.:] |\.$", comment)[0]


def version() -> str:
    """The installed versions of this package and of those that affect its results."""
    names = ("lightning_meta", "torch", "lightning")
    return ", ".join(f"{name} {metadata.version(name)}" for name in names)
