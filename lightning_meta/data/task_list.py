"""Lists of fixed tasks, so that different methods and people can evaluate on the same tasks.

A list is a CSV file with a row for each example, `task,set,class,example`:

    task,set,class,example
    0,support,Greek/alpha,4
    0,support,Greek/beta,11
    0,query,Greek/alpha,0
    0,query,Greek/beta,7

Tasks are numbered 0, 1, 2, ... in order. `set` is support or query, `class` is a class of the source's test split, and
`example` is the number of the example within the class, from 0, or the name of its file if the source reads a folder of
images. With the column `file` instead of `example`, images are files below the folder of the list, named by their paths
relative to it; `class` can then be any name. The classes of a task are labelled 0, 1, 2, ... in the order in which they
first occur in its support set.
"""

from __future__ import annotations

import csv
import hashlib
import io
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple, TextIO

import torch
from torch import Tensor

from lightning_meta.cells import as_cells, as_text
from lightning_meta.data.episodes import EpisodeDataset
from lightning_meta.data.listed_examples import Find, InFiles, in_pool
from lightning_meta.data.omniglot_runs import read_runs
from lightning_meta.data.pool import Pool
from lightning_meta.errors import UserError
from lightning_meta.reading import LARGEST_TABLE, read_bytes
from lightning_meta.staging import staging

SETS = ("support", "query")
COLUMNS = ["task", "set", "class"]

Row = tuple[str, str, str, str, str]
"""Position in the list, for messages; then task, set, class and example."""


class ListedTasks(NamedTuple):
    """The R examples of n tasks, concatenated; each task has its support set first, and each set is sorted by label.

    Attributes:
        classes: Class of each example in its pool, `(R,)`.
        members: Number of each example within its class, `(R,)`.
        labels: Label of each example, `(R,)`, in [0, N).
        starts: Index of the first example of each task, and R at the end, `(n + 1,)`.
        supports: Number of support examples of each task, `(n,)`.
        ways: Number of classes N of each task, `(n,)`.
    """

    classes: Tensor
    members: Tensor
    labels: Tensor
    starts: Tensor
    supports: Tensor
    ways: Tensor


class TaskList(NamedTuple):
    """Content of a list.

    Attributes:
        tasks: Tasks of the list.
        pool: Images in the files of the list; None if its examples are those of the test split.
        sha256: SHA-256 of the list, or of all label files of a folder of runs.
        images_sha256: SHA-256 of the decoded images in `pool`; None without them.
    """

    tasks: ListedTasks
    pool: Pool | None
    sha256: str
    images_sha256: str | None = None


def read_task_list(path: Path, pool: Pool, names: Mapping[str, Sequence[str]], input_shape: Sequence[int]) -> TaskList:
    """Read a list, or a folder of Omniglot's one-shot runs, and look up its examples.

    Args:
        path: Path of the list or the folder.
        pool: Test split of the source, in which examples are looked up.
        names: Names of the examples of each class of the pool, in order, for classes whose examples have names.
        input_shape: Shape `(channels, size, size)` of images in files of the list.

    Raises:
        UserError: The list is invalid or cannot be read; the message names the line and what is wrong with it.
    """
    if path.is_dir():
        labels, rows = read_runs(path)
        files = InFiles(path)
        tasks = collect(rows, files.find)
        images = files.pool(input_shape, invert=True)  # ink is black in the files, but white in `Omniglot`
        return TaskList(tasks, images, hashlib.sha256(labels).hexdigest(), files.sha256(images))
    try:
        content = read_bytes(path, LARGEST_TABLE)
        text = content.decode("utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"test_task_list: there is no file or folder {path}") from error
    except OSError as error:
        raise UserError(f"test_task_list: {path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: this is not text in UTF-8; expected a CSV file") from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    sha256 = hashlib.sha256(content).hexdigest()
    try:
        columns = next(reader, [])
        if columns == [*COLUMNS, "example"]:
            return TaskList(collect(_rows(reader, path), in_pool(pool, names)), None, sha256)
        if columns == [*COLUMNS, "file"]:
            files = InFiles(path.parent)
            tasks = collect(_rows(reader, path), files.find)
            images = files.pool(input_shape)
            return TaskList(tasks, images, sha256, files.sha256(images))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: this is not CSV ({error})") from error
    raise UserError(
        f"{path}: the first line of a list must be task,set,class,example or task,set,class,file, "
        f"got {','.join(columns)[:80]!r}"
    )


def write_task_list(file: Path, dataset: EpisodeDataset, names: Mapping[str, Sequence[str]]) -> None:
    """Write tasks drawn from a pool as a list.

    Args:
        file: Path of the list.
        dataset: Tasks to write.
        names: Names of the examples of each class of the pool, in order, for classes whose examples have names.

    Raises:
        UserError: The list cannot be written, or would be larger than `read_task_list` accepts; no partial file is
            left.
    """
    try:
        with staging(file) as staged, staged.open("w", encoding="utf-8", newline="") as out:
            _write(out, file, dataset, names)
    except OSError as error:
        raise UserError(f"{file}: the list cannot be written ({error.strerror}); name a file in a folder") from error


def _write(out: TextIO, file: Path, dataset: EpisodeDataset, names: Mapping[str, Sequence[str]]) -> None:
    pool, size = dataset.origin, dataset.meta_batch_size
    assert isinstance(pool, Pool)
    writer = csv.writer(out)
    writer.writerow([*COLUMNS, "example"])
    for start in range(0, len(dataset), size):
        tasks = range(start, min(start + size, len(dataset)))
        draw = dataset.draw(tasks)
        for t, task in enumerate(tasks):
            classes = draw.classes[t].tolist()
            support, query = (
                [row[:count] for row, count in zip(members[t].tolist(), counts[t].tolist(), strict=True)]
                for members, counts in ((draw.support, draw.support_counts), (draw.query, draw.counts))
            )
            for part, members in zip(SETS, (support, query), strict=True):
                for number, name, drawn in zip(classes, pool.class_names(classes), members, strict=True):
                    file_names = names.get(pool.names[number % len(pool.names)])
                    examples = [file_names[member] for member in drawn] if file_names else drawn
                    writer.writerows(as_cells([task, part, name, example]) for example in examples)
        if out.tell() > LARGEST_TABLE:
            raise UserError(
                f"{file}: the list would be larger than {LARGEST_TABLE:,} bytes, the limit for reading it; write "
                f"fewer than {len(dataset):,} tasks"
            )


def collect(rows: Iterable[Row], find: Find) -> ListedTasks:
    """Check the rows of a list and collect them into tasks.

    Args:
        rows: Rows of a list, in order.
        find: Function that looks up an example.

    Raises:
        UserError: A row is invalid; the message names its position and what is wrong with it.
    """
    numbers, starts, supports, ways = array("q"), array("q", [0]), array("q"), array("q")
    for task, (name, of_task) in enumerate(groupby(rows, itemgetter(1))):
        task_rows = list(of_task)
        if name != str(task):
            raise UserError(
                f"{task_rows[0][0]}: found task {name!r} where task {task} should begin; number tasks 0, 1, 2, ... and "
                "keep the rows of each task together"
            )
        labels, support, query = _task(task_rows, find)
        numbers.extend(number for part in (support, query) for row in sorted(part, key=itemgetter(0)) for number in row)
        starts.append(len(numbers) // 3)
        supports.append(len(support))
        ways.append(len(labels))
    if not ways:
        raise UserError("test_task_list: the list has no tasks; give it a row for each example")
    label, classes, members = torch.tensor(numbers).view(-1, 3).T.contiguous()
    return ListedTasks(classes, members, label, torch.tensor(starts), torch.tensor(supports), torch.tensor(ways))


def _task(rows: list[Row], find: Find) -> tuple[dict[str, int], list[tuple[int, int, int]], list[tuple[int, int, int]]]:
    """Return the labels of a task's classes, and (label, class, member) of its support and query examples."""
    parts: dict[str, list[Row]] = {part: [] for part in SETS}
    for row in rows:
        if row[2] not in parts:
            raise UserError(f"{row[0]}: set is {row[2]!r}, expected support or query")
        parts[row[2]].append(row)
    labels: dict[str, int] = {}
    for row in parts["support"]:
        labels.setdefault(row[3], len(labels))
    where, task = rows[0][:2]
    if len(labels) < 2 or not parts["query"]:
        raise UserError(
            f"{where}: task {task} has support examples of {len(labels)} classes and {len(parts['query'])} queries; "
            "at least two classes and one query are needed"
        )
    seen: dict[tuple[int, int], str] = {}
    examples: list[list[tuple[int, int, int]]] = []
    for part in SETS:
        examples.append([])
        for where, _, _, name, example in parts[part]:
            if name not in labels:
                raise UserError(
                    f"{where}: class {name!r} has a query in task {task} but no support example; add one, or leave "
                    "the query out"
                )
            place = find(where, name, example)
            if place in seen:
                raise UserError(
                    f"{where}: example {example} of class {name!r} is already in the {seen[place]} set of task {task}; "
                    "a task must not contain an example twice"
                )
            seen[place] = part
            examples[-1].append((labels[name], *place))
    return labels, examples[0], examples[1]


def _rows(reader: Iterator[list[str]], path: Path) -> Iterator[Row]:
    for row in reader:
        where = f"{path}, line {reader.line_num}"  # type: ignore[attr-defined]
        if len(row) != 4:
            raise UserError(f"{where}: expected 4 values, task, set, class and example or file, got {len(row)}")
        yield where, row[0], row[1], as_text(row[2]), as_text(row[3])
