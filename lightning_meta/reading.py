"""Files that a stranger may have made, read in bounded time and memory.

To open a pipe is to wait for its writer, and `/dev/zero` has no end: only regular files are read, and no more of them
than expected. A few lines of YAML can stand for billions of values: these are counted before any is made.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import IO, Any

import yaml

from lightning_meta.errors import UserError

# Far above what this package writes; PyYAML reads some 100 kB a second.
LARGEST_YAML, LARGEST_TEXT, LARGEST_TABLE = 2**18, 2**24, 2**27  # bytes
MOST_NODES, DEEPEST = 100_000, 100  # of YAML, those counted again that are repeated by reference


class TooLargeError(yaml.YAMLError):
    """A document stands for too many values."""


def check_regular(path: str | os.PathLike[str]) -> int:
    """Refuse what is no ordinary file: a FIFO or a device would block for ever, a file of `/proc` has no end.

    Args:
        path: The file; a link is followed.

    Returns:
        Its size in bytes.

    Raises:
        UserError: There is no such file, it cannot be reached, or it is none.
    """
    try:
        found = Path(path).stat()
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}") from error
    except (OSError, ValueError) as error:  # a loop of links, a name that is too long or has a NUL in it
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if stat.S_ISDIR(found.st_mode):
        raise UserError(f"{path} is a folder, and a file is needed")
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{path} is a pipe, a socket or a device, and a file is needed")
    if not found.st_size:  # as those of /proc claim to be
        raise UserError(f"{path} is empty")
    return found.st_size


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
    # What blocks nevertheless, such as a pipe put there meanwhile or files of /proc, gives an error instead.
    return os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb")


def read_bytes(path: str | os.PathLike[str], most: int) -> bytes:
    """All bytes of a regular file.

    Args:
        path: The file.
        most: How many there may be.

    Raises:
        UserError: There are more, or the file is not regular.
        OSError: It cannot be read.
    """
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise UserError(f"{os.fspath(path)}: the file is larger than {most:,} bytes, which none of its kind is")
    return content


def read_text(path: str | os.PathLike[str], most: int = LARGEST_TEXT) -> str:
    """A regular file as UTF-8, read as `read_bytes` does.

    Raises:
        UserError: It is too large, or not regular.
        OSError: It cannot be read.
        UnicodeDecodeError: It is not UTF-8.
    """
    return read_bytes(path, most).decode("utf-8")


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """The plain data of a YAML file.

    Raises:
        UserError: It is too large, or not regular.
        OSError: It cannot be read.
        ValueError: It is not UTF-8.
        yaml.YAMLError: It is no YAML, or stands for too many values.
    """
    return parse_yaml(read_text(path, LARGEST_YAML))


def parse_yaml(text: str) -> Any:
    """The plain data of a text in YAML.

    Raises:
        ValueError: A value is none of its kind, such as the 99th of a month.
        yaml.YAMLError: It is no YAML, or stands for too many values.
    """
    _refuse_deep(text)
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        _count(node)
        return None if node is None else loader.construct_document(node)
    except (AttributeError, IndexError, KeyError, TypeError) as error:  # PyYAML's own, for `!!int ""` and the like
        raise yaml.YAMLError(f"a value is none of its kind ({type(error).__name__})") from error
    finally:
        loader.dispose()


def compose_yaml(text: str) -> yaml.Node | None:
    """The nodes of a text in YAML, of which no values are made.

    Raises:
        yaml.YAMLError: It is no YAML, or stands for too many values.
    """
    _refuse_deep(text)
    node: yaml.Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
    _count(node)
    return node


def _refuse_deep(text: str) -> None:
    """Refuse deep nesting, by events, since PyYAML makes nodes by recursion; its fast parser makes the same events."""
    depth = 0
    try:
        for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise TooLargeError(f"it is more than {DEEPEST} levels deep")
    except yaml.MarkedYAMLError as error:
        if "nesting" in str(error.problem):  # it looks a thousand levels ahead
            raise TooLargeError(f"it is more than {DEEPEST} levels deep") from error
    except yaml.reader.ReaderError:  # as of all others, the error is left to the parser that makes the values
        pass


def _count(node: yaml.Node | None) -> None:
    """Refuse a document that holds itself, or whose references and merges stand for too many values."""
    waiting, count = [node], 0
    while waiting:
        found, count = waiting.pop(), count + 1
        if count > MOST_NODES:
            raise TooLargeError(f"it is more than {MOST_NODES:,} values large, or holds itself")
        if isinstance(found, yaml.MappingNode):
            waiting += [child for pair in found.value for child in pair]
        elif isinstance(found, yaml.SequenceNode):
            waiting += found.value


def is_number(name: str) -> bool:
    """Whether a folder's name is a version's: ASCII digits, since `isdigit` also takes "²", which is no number."""
    return name.isascii() and name.isdigit()


def _link_out_of(folder: Path, whole: tuple[str, ...]) -> Path | None:
    """The first link that lies in a folder, or at any depth in those of its folders that are named, and leads out."""
    real = folder.resolve()
    for place, folders, files in os.walk(real):  # follows no link
        for path in (Path(place) / name for name in sorted(folders + files)):
            if path.is_symlink():
                try:
                    inside = path.resolve(strict=True).is_relative_to(real)
                except FileNotFoundError:  # it leads to where nothing is yet
                    inside = path.resolve().is_relative_to(real)
                except (OSError, RuntimeError):  # links in a circle
                    inside = False
                if not inside:
                    return folder / path.relative_to(real)
        if Path(place) == real:
            folders[:] = [name for name in folders if name in whole]
    return None


def refuse_link(folder: Path) -> None:
    """Refuse to make files in a folder of a run that is a link.

    Raises:
        UserError: It is one.
    """
    if folder.is_symlink():
        raise UserError(f"{folder} is a link, and results would be written to where it leads; remove it")


def refuse_links_out(run: Path) -> None:
    """Refuse to write into a run directory that holds a link out of it, where this package writes.

    What is written to such a link, or below it, lands where whoever made the folder chose. Below the folders of other
    loggers links are their own: W&B makes one to its log in the cache.

    Raises:
        UserError: The link.
    """
    if (link := _link_out_of(run, ("checkpoints", "figures", "tests"))) is not None:
        raise UserError(f"{link}: this link leads out of {run}, and results would be written there; remove it")
