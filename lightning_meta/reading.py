"""Read untrusted files in bounded time and memory.

Opening a pipe waits for its writer, and `/dev/zero` never ends: only regular files are read, up to a maximum size. A
few lines of YAML can expand to billions of values: these are counted before any is constructed.
"""

from __future__ import annotations

import os
import stat
from itertools import islice
from pathlib import Path
from typing import IO, Any

import yaml

from lightning_meta.errors import UserError, similar

# Far above what this package writes; PyYAML reads some 100 kB a second.
LARGEST_YAML, LARGEST_TEXT, LARGEST_TABLE = 2**18, 2**24, 2**27  # bytes
MOST_FILES = 10_000  # of a folder, among which a similar name is looked for
MOST_NODES, DEEPEST = 100_000, 100  # limits for YAML; a value repeated by reference counts each time


class TooLargeError(yaml.YAMLError):
    """A document expands to too many values."""


def no_file(path: str | os.PathLike[str]) -> str:
    """Say that there is no such file, and suggest a similar one in its folder.

    >>> import lightning_meta
    >>> no_file(Path(lightning_meta.__file__).parent / "batchs.py")  # doctest: +ELLIPSIS
    'there is no file ...batchs.py; did you mean batches.py?'
    """
    close = similar_file(path)
    return f"there is no file {path}" + (f"; did you mean {close}?" if close else "")


def similar_file(path: str | os.PathLike[str]) -> str | None:
    """Return the most similar name in the folder of a missing file, with the same suffix; None if none is similar."""
    missing = Path(path)
    try:
        return similar(
            missing.name,
            [f.name for f in islice(missing.parent.iterdir(), MOST_FILES) if f.suffix == missing.suffix],
        )
    except (OSError, ValueError):  # there is no such folder either, or the name is impossible
        return None


def check_regular(path: str | os.PathLike[str]) -> int:
    """Refuse anything but a regular file: a FIFO or a device would block for ever, a file of `/proc` never ends.

    Args:
        path: The file; a link is followed.

    Returns:
        Its size in bytes.

    Raises:
        UserError: There is no such file, it cannot be accessed, or it is not a regular file.
    """
    try:
        status = Path(path).stat()
    except FileNotFoundError as error:
        raise UserError(no_file(path)) from error
    except (OSError, ValueError) as error:  # a loop of links, a name that is too long or has a NUL in it
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if stat.S_ISDIR(status.st_mode):
        raise UserError(f"{path} is a folder, but a file is needed")
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path} is a pipe, a socket or a device, but a file is needed")
    if not status.st_size:  # files of /proc report size 0
        raise UserError(f"{path} is empty")
    return status.st_size


def open_regular(path: str | os.PathLike[str]) -> IO[bytes]:
    """Open a file to read its bytes.

    Args:
        path: The file; a link to one is followed.

    Raises:
        UserError: It is a folder, a pipe, a socket or a device.
        OSError: It cannot be opened.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 - any path-like; a device may act when it is opened
        raise UserError(f"{os.fspath(path)}: this is not a regular file; put one in its place")
    # Raise an error instead of blocking on a file of /proc, or on a pipe that has replaced the file since the check.
    return os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb")


def read_bytes(path: str | os.PathLike[str], most: int) -> bytes:
    """Read all bytes of a regular file.

    Args:
        path: The file.
        most: Maximum number of bytes.

    Raises:
        UserError: The file is larger, or not a regular file.
        OSError: It cannot be read.
    """
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise UserError(f"{os.fspath(path)}: the file is larger than {most:,} bytes, the limit for files of this kind")
    return content


def read_text(path: str | os.PathLike[str], most: int = LARGEST_TEXT) -> str:
    """Read a regular file as UTF-8 text, with the limits of `read_bytes`.

    Raises:
        UserError: The file is too large, or not a regular file.
        OSError: It cannot be read.
        UnicodeDecodeError: It is not UTF-8.
    """
    return read_bytes(path, most).decode("utf-8")


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """Read the plain data of a YAML file.

    Raises:
        UserError: The file is too large, or not a regular file.
        OSError: It cannot be read.
        ValueError: It is not UTF-8.
        yaml.YAMLError: It is not valid YAML, or expands to too many values.
    """
    return parse_yaml(read_text(path, LARGEST_YAML))


def parse_yaml(text: str) -> Any:
    """Parse the plain data of a YAML text.

    Raises:
        ValueError: A value is not valid for its type, such as the 99th day of a month.
        yaml.YAMLError: It is not valid YAML, or expands to too many values.
    """
    _refuse_deep(text)
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        _count(node)
        return None if node is None else loader.construct_document(node)
    except (AttributeError, IndexError, KeyError, TypeError) as error:  # PyYAML's own, for `!!int ""` and the like
        raise yaml.YAMLError(f"a value is not valid for its type ({type(error).__name__})") from error
    finally:
        loader.dispose()


def compose_yaml(text: str) -> yaml.Node | None:
    """Parse a YAML text to nodes, without constructing values.

    Raises:
        yaml.YAMLError: It is not valid YAML, or expands to too many values.
    """
    _refuse_deep(text)
    node: yaml.Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
    _count(node)
    return node


def _refuse_deep(text: str) -> None:
    """Refuse deep nesting by counting parser events, since PyYAML builds nodes recursively."""
    # The parser in C is fast, but looks far ahead, and fails before deep nesting is counted; the other one does not.
    for loader in (getattr(yaml, "CSafeLoader", yaml.SafeLoader), yaml.SafeLoader):
        depth = 0
        try:
            for event in yaml.parse(text, Loader=loader):
                depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
                if depth > DEEPEST:
                    raise TooLargeError(f"it is more than {DEEPEST} levels deep")
            return
        except TooLargeError:
            raise
        except yaml.YAMLError:  # a syntax error, which is raised again when the values are constructed
            continue


def _count(node: yaml.Node | None) -> None:
    """Refuse a document that contains itself, or whose references and merges expand to too many values."""
    waiting, count = [node], 0
    while waiting:
        current, count = waiting.pop(), count + 1
        if count > MOST_NODES:
            raise TooLargeError(f"it has more than {MOST_NODES:,} values, or contains itself")
        if isinstance(current, yaml.MappingNode):
            waiting += [child for pair in current.value for child in pair]
        elif isinstance(current, yaml.SequenceNode):
            waiting += current.value


def is_number(name: str) -> bool:
    """Whether a text consists of ASCII digits; `isdigit` alone also accepts "²", which `int` does not."""
    return name.isascii() and name.isdigit()


def _link_out_of(folder: Path, recursive: tuple[str, ...]) -> Path | None:
    """The first link in a folder, or at any depth in its subfolders `recursive`, that points outside the folder."""
    real = folder.resolve()
    for current, folders, files in os.walk(real):  # does not follow links
        for path in (Path(current) / name for name in sorted(folders + files)):
            if path.is_symlink():
                try:
                    inside = path.resolve(strict=True).is_relative_to(real)
                except FileNotFoundError:  # a dangling link
                    inside = path.resolve().is_relative_to(real)
                except (OSError, RuntimeError):  # a cycle of links
                    inside = False
                if not inside:
                    return folder / path.relative_to(real)
        if Path(current) == real:
            folders[:] = [name for name in folders if name in recursive]
    return None


def refuse_link(folder: Path) -> None:
    """Refuse to write to a folder of a run that is a symbolic link.

    Raises:
        UserError: The folder is a link.
    """
    if folder.is_symlink():
        raise UserError(f"{folder} is a link, and results would be written to its target; remove it")


def refuse_links_out(run: Path) -> None:
    """Refuse a run directory with a link to outside it, in a place where this package writes.

    Otherwise, whoever created the folder could choose where results are written. Links in the folders of other loggers
    are accepted: W&B creates one to its log in the cache.

    Raises:
        UserError: There is such a link.
    """
    if (link := _link_out_of(run, ("checkpoints", "figures", "tests"))) is not None:
        raise UserError(f"{link}: this link points outside {run}, and results would be written there; remove it")
