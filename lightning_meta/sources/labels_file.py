"""Labelled images that lie in one folder, with a table that says which is of which class."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path

from lightning_meta.cells import as_text
from lightning_meta.data.images import image_files
from lightning_meta.errors import UserError
from lightning_meta.sources.columns import Column
from lightning_meta.sources.table_files import read_columns


def files_of_table(folder: str | Path, table: str | Path) -> tuple[list[Path], list[str]]:
    """The images of a folder and their labels, which a table gives: a row for each image.

    Args:
        folder: Where the images lie; hidden files and those without the suffix of an image are passed over.
        table: `.csv`, `.tsv` or `.parquet` with the columns `file`, a path below the folder, and `label`; others are
            passed over.

    Returns:
        M files, sorted by path, and the M labels.

    Raises:
        UserError: The table is missing or damaged, has no such columns, names a file twice, or one that is no image
            of the folder, gives no label, leaves an image of the folder out, or has fewer than two labels.
    """
    root, path = Path(folder), Path(table)
    if not root.is_dir():
        raise UserError(f"{root}: there is no such folder")
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; a table with the columns file and label is needed")
    columns = read_columns(path)
    for name in ("file", "label"):
        if name not in columns:
            raise UserError(f"{path}: there is no column {name!r}, only {', '.join(columns)}; call it so")
    images = image_files([root])
    label_of = _label_of(root, set(images), columns["file"], columns["label"])
    if unnamed := [file for file in images if file not in label_of]:
        raise UserError(
            f"{path}: {len(unnamed)} images of {root} are in no row, the first: {unnamed[0]}; add rows, or move them"
        )
    if len(labels := sorted(set(label_of.values()))) < 2:
        raise UserError(f"{path}: every label is {labels[0]!r}; two at least are needed")
    return images, [label_of[file] for file in images]


def _label_of(root: Path, images: Container[Path], names: Column, labels: Column) -> dict[Path, str]:
    row_of: dict[Path, int] = {}
    label_of: dict[Path, str] = {}
    for row, (name, label) in enumerate(zip(names.spelled.of_rows(), labels.spelled.of_rows(), strict=True)):
        file = root / as_text(name)
        if file not in images:  # no name is looked up on the disk
            raise names.wrong(row, f"expected an image below {root}")
        if file in row_of:
            raise names.wrong(row, f"row {row_of[file] + 1} names this file already; one row for each is needed")
        if labels.missing[row]:
            raise labels.wrong(row, "expected a label; empty, NA, N/A, NaN and null stand for none")
        row_of[file], label_of[file] = row, as_text(label)
    return label_of
