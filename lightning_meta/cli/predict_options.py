"""The options of `lightning-meta predict`, and what is refused before a model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from jsonargparse import Namespace

from lightning_meta.cli.helping import Parser
from lightning_meta.cli.parsing import refuse_existing
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
        command="predict",
        usage="lightning-meta predict --ckpt_path RUN --table FILE [options]\n"
        "       lightning-meta predict --ckpt_path RUN --support FOLDER --query FILE...\n"
        "       lightning-meta predict --ckpt_path RUN [--support FOLDER] --export FILE",
        description="Predict for new rows of a table, or label images by a few labelled ones of each class; the "
        "classes may be new to the model.",
    )
    add_model_options(parser)
    add = parser.add_argument
    add("--table", type=str | None, metavar="FILE", help="New rows, with the feature columns of training.")
    columns = "Columns of --table, such as IDs, to copy into the predictions."
    add("--keep", type=str, nargs="+", action="extend", metavar="COLUMN", help=columns)
    separator = "Separator of the columns of a CSV file, --table or --labels, such as ';'."
    add("--delimiter", type=str | None, metavar="C", help=separator)
    mark = "Decimal mark of --table; by default that of training."
    add("--decimal", type=Literal[".", ","] | None, metavar="C", help=mark)
    add("--support", type=str | None, metavar="FOLDER", help="Labelled images, in a folder for each class.")
    labels = "A table of their labels (columns file and label), instead of a folder for each class."
    add("--labels", type=str | None, metavar="FILE", help=labels)
    queries = "Images to label: files, or folders with images."
    add("--query", type=str, nargs="+", action="extend", metavar="FILE", help=queries)
    add("--invert", action="store_true", help="Turn dark into light, for images of dark strokes on white.")
    add("--skip_unreadable", action="store_true", help="Skip images that cannot be read.")
    predictions = "The predictions, as CSV; by default predictions.csv. With .tsv, tabs separate the columns."
    add("--out", type=str, default="predictions.csv", metavar="FILE", help=predictions)
    exported = "Write the model, or with --support the learned task, to FILE.pt2 or FILE.onnx."
    add("--export", type=str | None, metavar="FILE", help=exported)
    sets = "Also write sets of labels, or intervals of numbers; this requires a `test --calibrate` of the run."
    add("--calibrated", action="store_true", help=sets)
    add("--overwrite", action="store_true", help="Replace existing files.")
    at_once = f"Images or rows at a time; by default {IMAGES_AT_ONCE} images."
    add("--batch_size", type=int | None, metavar="N", help=at_once)
    device = "cpu, cuda, ...; the default, auto, takes an accelerator."
    add("--device", type=str, default="auto", metavar="DEVICE", help=device)
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
