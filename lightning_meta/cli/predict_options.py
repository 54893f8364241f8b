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
OF_REGRESSION = (
    "a model of regression is used in Python: lightning_meta.load(run).predictor(inputs, targets) gives a function of "
    "new inputs, and its .export(file) writes it"
)
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
    add, text = parser.option, str | None
    add("--table FILE", text, "New rows, with the feature columns of training.")
    add("--keep COLUMN...", str, "Columns of --table, such as IDs, to copy into the predictions.")
    add("--delimiter C", text, "Separator of the columns of a CSV file, --table or --labels, such as ';'.")
    add("--decimal C", Literal[".", ","] | None, "Decimal mark of --table; by default that of training.")
    add("--support FOLDER", text, "Labelled images, in a folder for each class.")
    add("--labels FILE", text, "A table of their labels (columns file and label), instead of a folder for each class.")
    add("--query FILE...", str, "Images to label: files, or folders with images.")
    add("--invert", bool, "Turn dark into light, for images of dark strokes on white.")
    add("--skip_unreadable", bool, "Skip images that cannot be read.")
    out = "The predictions, as CSV; by default predictions.csv. With .tsv, tabs separate the columns."
    add("--out FILE", str, out, default="predictions.csv")
    add("--export FILE", text, "Write the model, or with --support the learned task, to FILE.pt2 or FILE.onnx.")
    calibrated = "Also write sets of labels, or intervals of numbers; this requires a `test --calibrate` of the run."
    add("--calibrated", bool, calibrated)
    add("--overwrite", bool, "Replace existing files.")
    add("--batch_size N", int | None, f"Images or rows at a time; by default {IMAGES_AT_ONCE} images.")
    add("--device DEVICE", str, "cpu, cuda, ...; the default, auto, takes an accelerator.", default="auto")
    return parser


def check(config: Namespace) -> None:
    """Refuse options that cannot be combined, and existing files.

    Raises:
        UserError: The option, what was received, and what was expected.
    """
    if config.batch_size is not None and config.batch_size < 1:
        raise UserError(f"--batch_size is at least 1, got {config.batch_size}")
    of_images = next((f"--{name}" for name in OF_IMAGES if config[name] not in (None, False)), None)
    of_table = next((f"--{name}" for name in ("keep", "decimal") if config[name] is not None), None)
    predicts, out = config.query is not None or config.table is not None, Path(config.out)
    if config.table is not None and of_images:
        raise UserError(f"{of_images} applies only to images; leave it out, or leave --table out")
    if config.table is None:
        if of_table:
            raise UserError(f"{of_table} requires --table; leave it out")
        if config.delimiter is not None and config.labels is None:
            raise UserError("--delimiter requires --table or --labels; leave it out")
        if config.support is None and (config.export is None or of_images):
            raise UserError("--support: give a folder of labelled images, or --table a table of new rows")
    if not predicts and config.export is None:
        raise UserError("--query: name the images to label, or --export a file for the learned task")
    if config.calibrated and (config.export is not None or not predicts):
        raise UserError("--calibrated applies to predictions of --query or --table, and not to --export; leave it out")
    refuse_odd_name(out)
    check_target(out, option="--out")
    if predicts:
        refuse_existing("--out", [out], config.overwrite)
        if out.suffix.lower() in NOT_TEXT:
            raise UserError(f"--out {out}: the predictions are text; name a file such as predictions.csv")
    if config.export is not None:
        export = Path(config.export)
        check_target(export, FORMATS, "--export")
        if predicts and export.absolute() == out.absolute():
            raise UserError(f"--export {export}: --out names the same file; give each its own")
        refuse_existing("--export", [export], config.overwrite)


def delimiter_of(out: str) -> str | None:
    """Return the separator of the columns of a file of predictions; None if its name does not state one."""
    return "\t" if Path(out).suffix.lower() == ".tsv" else None
