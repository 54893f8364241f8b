"""Omniglot's one-shot classification runs (Lake, Salakhutdinov and Tenenbaum, Science 2015), read as a list of tasks.

The authors publish 20 runs with 20 characters of one alphabet each, as `all_runs.zip` in
https://github.com/brendenlake/omniglot. In the unpacked folder, `run01/class_labels.txt` pairs each drawing to classify
with the single training drawing of its character: `run01/test/item01.png run01/training/class08.png`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from lightning_meta.data.image_files import folders_in, image_files_in
from lightning_meta.errors import UserError
from lightning_meta.reading import open_regular, read_text

LABELS = "class_labels.txt"
SIDE = 105  # height and width of a drawing in pixels


def read_runs(root: Path) -> tuple[bytes, Iterator[tuple[str, str, str, str, str]]]:
    """Read the runs in a folder as rows for `task_list.collect`; task t is run t + 1.

    Args:
        root: Folder that contains `run01`, `run02`, ...

    Returns:
        Concatenated label files of all runs, to be hashed, and the rows.

    Raises:
        UserError: There are no runs, or a run is incomplete.
    """
    runs = [folder for folder in folders_in(root) if (folder / LABELS).is_file()]
    if not runs:
        raise UserError(
            f"{root}: there is no run01/{LABELS} here; name a list of tasks, or the folder that contains the runs of "
            "Omniglot's one-shot task, run01, run02, ..."
        )
    pairs = [_pairs(run) for run in runs]
    labels = "".join(f"{test} {training}\n" for of_run in pairs for _, test, training in of_run)
    return labels.encode(), (row for task, of_run in enumerate(pairs) for row in _rows(str(task), of_run))


def _pairs(run: Path) -> list[tuple[str, str, str]]:
    """Read the lines of a run: position for messages, drawing to classify, and the training drawing of its class.

    Paths of drawings are relative to the folder of runs.
    """
    file = run / LABELS
    try:
        lines = read_text(file).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read ({error})") from error
    pairs = []
    for number, line in enumerate(lines, 1):
        where, names = f"{file}, line {number}", line.split()
        if len(names) != 2:
            raise UserError(f"{where}: expected two drawings, of test/ and of training/, got {len(names)}")
        pairs.append((where, names[0], names[1]))
    for part, named in (("test", [test for _, test, _ in pairs]), ("training", {name for _, _, name in pairs})):
        drawings = [f"{run.name}/{part}/{image.name}" for image in _drawings(run / part)]
        if sorted(named) != drawings:
            odd = sorted(set(named) ^ set(drawings)) or sorted(named)  # without a difference, a name is repeated
            raise UserError(f"{file}: its lines and the {len(drawings)} images in {run / part} differ, as in {odd[0]}")
    return pairs


def _drawings(folder: Path) -> list[Path]:
    """Return the drawings in a folder of a run, sorted by name.

    Raises:
        UserError: The folder does not exist, or a drawing cannot be read or does not have the size of Omniglot's.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; copy the complete run")
    images = image_files_in(folder)
    for image in images:
        try:
            with open_regular(image) as file, Image.open(file, formats=["PNG"]) as drawing:
                size = drawing.size
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UserError(f"{image}: this is not a readable PNG ({error}); copy it again") from error
        if size != (SIDE, SIDE):
            raise UserError(f"{image}: {size[0]}x{size[1]} pixels, but Omniglot's drawings have {SIDE}x{SIDE}")
    return images


def _rows(task: str, pairs: list[tuple[str, str, str]]) -> Iterator[tuple[str, str, str, str, str]]:
    first: dict[str, str] = {}
    for where, _, training in pairs:
        first.setdefault(training, where)
    for training in sorted(first):
        yield first[training], task, "support", training, training
    for where, test, training in pairs:
        yield where, task, "query", training, test
