"""The options of `lightning-meta predict`, and what is refused before a model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from jsonargparse import Namespace

from lightning_meta.cli.helping import Parser
from lightning_meta.cli.parsing import add_overwrite, refuse_existing
from lightning_meta.cli.threads import add_threads
from lightning_meta.cli.trained import add_model_options
from lightning_meta.data.image_files import refuse_odd_name
from lightning_meta.errors import UserError
from lightning_meta.run.files import check_target
from lightning_meta.run.programs import FORMATS

IMAGES_AT_ONCE = 256
OF_IMAGES = ("support", "labels", "query", "batch_norm", "steps", "invert", "skip_unreadable")
"""Options that apply only to images."""
ALIASES = {"ways": "--support", **{n: f"--{n}" for n in ("delimiter", "decimal", "batch_size", "batch_norm", "steps")}}
"""Options by the arguments that messages name."""
NOT_TEXT = (".parquet", ".feather", ".xls", ".xlsx", ".ods", ".json", ".npy", ".npz", ".pkl", ".pt", ".pdf", ".html")
"""Suffixes of other formats than that of the predictions, which are text."""


def make_parser() -> Parser:
    """The options of the command."""
    parser = Parser(
        prog="lightning-meta predict",
        description="Predict for new rows of a table (--table), with a model of named tasks that was trained on one. "
        "Or label images (--support) by a few labelled ones of each class; the classes may be new to the model. Images "
        "are turned upright and resized to the square that the model was trained with, grey or colour as it was, as "
        "ImageFolder does it, with pixels from 0 to 1. Nothing else is normalised, so light and dark must be as in "
        "training.",
        exit_on_error=False,
        allow_abbrev=False,
        short_help="predict",
    )
    add_model_options(parser)
    parser.add_argument(
        "--table",
        type=str | None,
        help="A table (.csv, .tsv or .parquet) of new rows with the feature columns of training; other columns are "
        "ignored. The predictions are written with its separator and decimal mark.",
    )
    parser.add_argument(
        "--keep",
        type=str,
        nargs="+",
        action="extend",
        metavar="COLUMN",
        help="Columns of --table, such as IDs, to copy into the predictions, before the predicted columns.",
    )
    parser.add_argument(
        "--delimiter",
        type=str | None,
        help="Separator of the columns of a CSV file, such as ';': of --table, by default that of training, or of "
        "--labels, by default a comma.",
    )
    parser.add_argument(
        "--decimal",
        type=Literal[".", ","] | None,
        help="Decimal mark of its numbers; by default that of training.",
    )
    parser.add_argument(
        "--support",
        type=str | None,
        help="A folder with a folder of images for each class; with --labels, of images that the table labels.",
    )
    parser.add_argument(
        "--labels",
        type=str | None,
        help="A table (.csv, .tsv or .parquet) with the columns file, a path below the folder of --support, and label; "
        "such as corrected predictions.",
    )
    parser.add_argument(
        "--query",
        type=str,
        nargs="+",
        action="extend",
        help="Images to label: files, or folders with all that is below them; hidden ones are skipped.",
    )
    parser.add_argument(
        "--out",
        type=str,
        default="predictions.csv",
        help="The predictions, as CSV: a row for each image or row. In a .tsv file, tabs separate the columns.",
    )
    parser.add_argument(
        "--export",
        type=str | None,
        help="Also write the learned classifier to FILE.pt2 or FILE.onnx, with a description of how images must be "
        "prepared. A model of named tasks is written with its reader of table rows, and needs neither --support nor "
        "--table.",
    )
    add_overwrite(parser)
    parser.add_argument(
        "--batch_size",
        type=int | None,
        help=f"Images or rows that are predicted at a time; by default {IMAGES_AT_ONCE} images, or 512 to 8192 rows.",
    )
    parser.add_argument(
        "--invert",
        action="store_true",
        help="Turn dark into light, in all images, for dark strokes on white: Glyphs and Omniglot have light on black.",
    )
    parser.add_argument(
        "--calibrated",
        action="store_true",
        help="Also write the columns set, the labels that an image may have, and abstained, whether none is probable "
        "enough; `test --calibrate` must have been run for as many classes and images of each as --support has. For "
        "--table: set and abstained for each target with classes, lower and upper for each numeric target.",
    )
    parser.add_argument("--skip_unreadable", action="store_true", help="Skip images that cannot be read.")
    parser.add_argument(
        "--device", type=str, default="auto", help="cpu, cuda, gpu, ...; auto takes a GPU if there is one."
    )
    add_threads(parser)
    return parser


def check(config: Namespace) -> None:
    """Refuse options that cannot be combined, and existing files.

    Raises:
        UserError: The option, what was received, and what was expected.
    """
    if config.batch_size is not None and config.batch_size < 1:
        raise UserError(f"--batch_size is at least 1, got {config.batch_size}")
    of_images = next((n for n in OF_IMAGES if (v := getattr(config, n)) is not None and v is not False), None)
    if config.table is not None:
        if of_images is not None:
            raise UserError(f"--{of_images} applies only to images; leave it out, or leave --table out")
    elif of_table := next((n for n in ("keep", "decimal") if getattr(config, n) is not None), None):
        raise UserError(f"--{of_table} requires --table; leave it out")
    elif config.delimiter is not None and config.labels is None:
        raise UserError("--delimiter requires --table or --labels; leave it out")
    elif config.support is None and (config.export is None or of_images is not None):
        raise UserError("--support: give a folder of labelled images, or --table a table of new rows")
    elif config.support is not None and config.query is None and config.export is None:
        raise UserError("--query: name the images to label, or --export a file for the learned task")
    if config.calibrated and config.export is not None:
        raise UserError("--calibrated: an exported file returns uncalibrated probabilities; use one of the two options")
    if config.calibrated and config.query is None and config.table is None:
        raise UserError("--calibrated requires --query or --table; leave it out")
    refuse_odd_name(Path(config.out))
    check_target(Path(config.out), option="--out")
    predicts = config.query is not None or config.table is not None
    if predicts:
        refuse_existing("--out", [Path(config.out)], config.overwrite)
    if config.export is not None:
        _check_export(config)
    if predicts and Path(config.out).suffix.lower() in NOT_TEXT:
        raise UserError(
            f"--out {config.out}: the predictions are text; name a file that ends in .csv, .tsv or .txt, for example"
        )


def delimiter_of(out: str) -> str | None:
    """Return the separator of the columns of a file of predictions; None if its name does not state one."""
    return "\t" if Path(out).suffix.lower() == ".tsv" else None


def _check_export(config: Namespace) -> None:
    path = Path(config.export)
    check_target(path, FORMATS, "--export")
    predicts = config.query is not None or config.table is not None
    if predicts and path.absolute() == Path(config.out).absolute():
        raise UserError(f"--export {config.export}: --out names the same file; give each its own")
    refuse_existing("--export", [path], config.overwrite)
