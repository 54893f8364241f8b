"""Where the examples of a list of tasks are looked up: in the pool of a source, or in image files."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import torch

from lightning_meta.data.images import read_images
from lightning_meta.data.pool import Pool
from lightning_meta.errors import UserError
from lightning_meta.reading import is_number

DIGITS = 18  # of a number that int64 holds

Find = Callable[[str, str, str], tuple[int, int]]
"""Where it stands, a class and an example: the number of the class, and of the example within it."""


def in_pool(pool: Pool, names: Mapping[str, Sequence[str]]) -> Find:
    """Look examples up in a pool.

    Args:
        pool: The pool.
        names: By class, the names of its examples in order; by number where there are none.

    Returns:
        The look-up; it raises a `UserError` for a class or an example that is not there.
    """
    count = len(pool.names)
    numbers = {name: number for number, name in enumerate(pool.class_names(range(pool.num_classes)))}
    sizes = pool.sizes.tolist()
    members = {name: {example: i for i, example in enumerate(names[name])} for name in pool.names if name in names}

    def find(where: str, name: str, example: str) -> tuple[int, int]:
        number = numbers.get(name)
        if number is None:
            close = difflib.get_close_matches(name, numbers, n=1)
            meant = f"did you mean {close[0]!r}?" if close else f"it has {pool.num_classes}, such as {pool.names[0]!r}"
            raise UserError(f"{where}: the test split has no class {name!r}; {meant}")
        base = number % count
        if (named := members.get(pool.names[base])) is not None:
            if example not in named:
                raise UserError(f"{where}: class {name!r} has no file {example!r}; name one of its {sizes[base]} files")
            return number, named[example]
        if not (is_number(example) and len(example) <= DIGITS and int(example) < sizes[base]):
            raise UserError(
                f"{where}: class {name!r} has no example {example!r}; it has {sizes[base]}, numbered 0 to "
                f"{sizes[base] - 1}"
            )
        return number, int(example)

    return find


class InFiles:
    """Image files below a folder; each is read once, however many tasks hold it.

    Args:
        folder: What the files' paths are relative to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.classes: dict[str, int] = {}
        self.files: list[dict[str, int]] = []  # by class, the numbers of its files by path
        self.class_of: dict[str, str] = {}  # by path

    def find(self, where: str, name: str, example: str) -> tuple[int, int]:
        """Look a file up; its class is a new one where there is none of this name.

        Raises:
            UserError: There is no such file, it lies elsewhere, or another class has it.
        """
        path = PurePosixPath(example)
        file = str(path)  # ./a.png and a//b.png have other spellings
        number = self.classes.setdefault(name, len(self.classes))
        if number == len(self.files):
            self.files.append({})
        of_class = self.files[number]
        if file not in of_class:
            if path.is_absolute() or ".." in path.parts:
                raise UserError(f"{where}: {example} leads out of {self.folder}; put the file below it")
            if not _is_file(self.folder / path):
                raise UserError(f"{where}: there is no file {self.folder / path}")
            if (other := self.class_of.setdefault(file, name)) != name:
                raise UserError(f"{where}: {file} is of class {name!r} here and of {other!r} above; give it one class")
            of_class[file] = len(of_class)
        return number, of_class[file]

    def pool(self, input_shape: Sequence[int], invert: bool = False) -> Pool:
        """The images of all files that were found, as `read_images` decodes them.

        Raises:
            UserError: A file is no image, or the shape is not that of square images.
        """
        files = [self.folder / file for of_class in self.files for file in of_class]
        sizes = torch.tensor([len(of_class) for of_class in self.files])
        names = tuple(self.classes)
        return Pool(read_images(files, input_shape, invert).contiguous(), sizes, names, ("",) * len(names))

    @staticmethod
    def sha256(pool: Pool) -> str:
        """The sha256 of decoded images."""
        return hashlib.sha256(pool.x.numpy().data).hexdigest()


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # too long a name, for one, is that of no file
        return False
