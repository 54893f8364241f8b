"""Look-up of the examples of a list of tasks in the pool of a source, or in image files."""

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

DIGITS = 18  # every number with this many digits fits into int64

Find = Callable[[str, str, str], tuple[int, int]]
"""Function of a position in the list (for messages), a class and an example. It returns the number of the class, and of
the example within the class."""


def in_pool(pool: Pool, names: Mapping[str, Sequence[str]]) -> Find:
    """Return a function that looks up examples in a pool.

    Args:
        pool: Pool of the source.
        names: Names of the examples of each class, in order. Examples of a class without names are looked up by number.

    Returns:
        The function; it raises a `UserError` for a class or an example that does not exist.
    """
    count = len(pool.names)
    numbers = {name: number for number, name in enumerate(pool.class_names(range(pool.num_classes)))}
    sizes = pool.sizes.tolist()
    members = {name: {example: i for i, example in enumerate(names[name])} for name in pool.names if name in names}

    def find(where: str, name: str, example: str) -> tuple[int, int]:
        number = numbers.get(name)
        if number is None:
            close = difflib.get_close_matches(name, numbers, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {pool.num_classes}, such as {pool.names[0]!r}"
            raise UserError(f"{where}: the test split has no class {name!r}; {hint}")
        base = number % count  # the class that is not rotated
        if (number_of := members.get(pool.names[base])) is not None:
            if example not in number_of:
                raise UserError(f"{where}: class {name!r} has no file {example!r}; name one of its {sizes[base]} files")
            return number, number_of[example]
        if not (is_number(example) and len(example) <= DIGITS and int(example) < sizes[base]):
            raise UserError(
                f"{where}: class {name!r} has no example {example!r}; it has {sizes[base]}, numbered 0 to "
                f"{sizes[base] - 1}"
            )
        return number, int(example)

    return find


class InFiles:
    """Image files below a folder; each file is read once, even if it occurs in several tasks.

    Args:
        folder: Folder to which the paths of the files are relative.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.classes: dict[str, int] = {}  # number of each class by its name
        self.files: list[dict[str, int]] = []  # for each class, the numbers of its files by path
        self.class_of: dict[str, str] = {}  # name of the class of each file by path

    def find(self, where: str, name: str, example: str) -> tuple[int, int]:
        """Look up a file, and add it and its class if they are new.

        Args:
            where: Position in the list, for messages.
            name: Name of the class.
            example: Path of the file, relative to the folder.

        Returns:
            Number of the class, and of the file within the class.

        Raises:
            UserError: The file does not exist, is outside the folder, or is in another class.
        """
        path = PurePosixPath(example)
        file = str(path)  # normalises the path, such as ./a.png and a//b.png
        number = self.classes.setdefault(name, len(self.classes))
        if number == len(self.files):
            self.files.append({})
        of_class = self.files[number]
        if file not in of_class:
            if path.is_absolute() or ".." in path.parts:
                raise UserError(f"{where}: {example} is outside {self.folder}; put the file below it")
            if not _is_file(self.folder / path):
                raise UserError(f"{where}: there is no file {self.folder / path}")
            if (other := self.class_of.setdefault(file, name)) != name:
                raise UserError(f"{where}: {file} is of class {name!r} here but {other!r} above; give it one class")
            of_class[file] = len(of_class)
        return number, of_class[file]

    def pool(self, input_shape: Sequence[int], invert: bool = False) -> Pool:
        """Return the images of all files looked up so far, decoded by `read_images`.

        Args:
            input_shape: Shape of the images, `(channels, size, size)`.
            invert: Whether to invert brightness.

        Raises:
            UserError: A file is not an image, or the shape is not that of square images.
        """
        files = [self.folder / file for of_class in self.files for file in of_class]
        sizes = torch.tensor([len(of_class) for of_class in self.files])
        names = tuple(self.classes)
        return Pool(read_images(files, input_shape, invert).contiguous(), sizes, names, ("",) * len(names))

    @staticmethod
    def sha256(pool: Pool) -> str:
        """Return the SHA-256 of decoded images."""
        return hashlib.sha256(pool.x.numpy().data).hexdigest()


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # for example, the name is too long
        return False
