"""Labelled images in one folder, with a table that states the class of each."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from lightning_meta.cells import as_text
from lightning_meta.data.images import image_files
from lightning_meta.errors import UserError
from lightning_meta.sources.columns import Column
from lightning_meta.sources.table_files import Spelling, other_delimiter, read_columns


def files_of_table(folder: str | Path, table: str | Path, delimiter: str | None = None) -> tuple[list[Path], list[str]]:
    """Find the images of a folder and read their labels from a table with a row for each image.

    Args:
        folder: Folder of the images; hidden files and those without the suffix of an image are skipped.
        table: Path of a `.csv`, `.tsv` or `.parquet` file with the columns `file`, a path below the folder, and
            `label`; other columns are ignored. A path may also begin with the folder, as in the predictions of
            `lightning-meta predict --query FOLDER`.
        delimiter: Separator of the columns of a CSV file; by default a comma, or a tab in a `.tsv` file.

    Returns:
        M files, sorted by path, and the M labels.

    Raises:
        UserError: The table is missing or damaged, lacks a column, names a file twice or one that is not an image of
            the folder, lacks a label, leaves out an image of the folder, or has fewer than two different labels.
    """
    root, path = Path(folder), Path(table)
    if not root.is_dir():
        raise UserError(f"{root}: there is no such folder")
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; a table with the columns file and label is needed")
    spelling = Spelling(delimiter)
    spelling.check("--labels", path)
    columns = read_columns(path, spelling=spelling)
    for name in ("file", "label"):
        if name not in columns:
            if (other := other_delimiter(list(columns))) is not None:
                raise UserError(
                    f"{path}: its columns are separated by {other!r}; give --delimiter {shlex.quote(other)}"
                )
            raise UserError(f"{path}: there is no column {name!r}, only {', '.join(columns)}; rename or add it")
    images = image_files([root])
    label_of = _label_of(root, images, columns["file"], columns["label"])
    if unnamed := [file for file in images if file not in label_of]:
        raise UserError(
            f"{path}: {len(unnamed)} images of {root} have no row, the first: {unnamed[0]}; add rows or move the images"
        )
    if len(labels := sorted(set(label_of.values()))) < 2:
        raise UserError(f"{path}: every label is {labels[0]!r}; at least two different labels are needed")
    return images, [label_of[file] for file in images]


def _label_of(root: Path, images: Sequence[Path], names: Column, labels: Column) -> dict[Path, str]:
    # Names are compared with the listing, so that no name from the table is opened.
    image_of = {image.absolute(): image for image in images}
    row_of: dict[Path, int] = {}
    label_of: dict[Path, str] = {}
    for row, (name, label) in enumerate(zip(names.spelled.of_rows(), labels.spelled.of_rows(), strict=True)):
        if names.missing[row]:
            raise UserError(f"{names.where}, {names.row_name(row)}: the file is missing; name it, or remove the row")
        places = (root / as_text(name), Path(as_text(name)))
        file = next((image_of[place.absolute()] for place in places if place.absolute() in image_of), None)
        if file is None:
            expected = f"expected a path of an image relative to {root}, such as {images[0].relative_to(root)}"
            raise names.wrong(row, expected)
        if file in row_of:
            raise names.wrong(row, f"{names.row_name(row_of[file])} already names this file; give each file one row")
        if labels.missing[row]:
            raise UserError(
                f"{labels.where}, {labels.row_name(row)}: the label is missing, which is what an empty cell, NA, N/A, "
                "NaN and null mean; write another label"
            )
        row_of[file], label_of[file] = row, as_text(label)
    return label_of
