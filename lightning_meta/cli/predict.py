"""`lightning-meta predict`: label images by a few labelled ones of new classes."""

from __future__ import annotations

import csv
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

import torch
from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table
from torch import Tensor

from lightning_meta.cells import as_cells
from lightning_meta.cli.overwriting import add_overwrite, refuse_existing
from lightning_meta.cli.trained import load_trained
from lightning_meta.cli.trust import HELP
from lightning_meta.data.image_files import refuse_odd_name
from lightning_meta.data.images import image_files, labelled_files, read_images
from lightning_meta.errors import UserError
from lightning_meta.loading import find_checkpoint
from lightning_meta.meta import MetaModule, Predictor
from lightning_meta.meta.export import FORMATS, export
from lightning_meta.nn.likeness import InputWarning
from lightning_meta.run.files import replacing

ROUNDED = "{:.6f}"


def predict(args: Sequence[str]) -> None:
    """Label images, and write label, margin and probabilities of each.

    Args:
        args: The options.
    """
    config = make_parser().parse_args(list(args))
    _check(config)
    model = _meta_learner(config)
    files, labels = labelled_files(config.support)
    with _told(config.invert):
        predictor = Predictor(model, read_images(files, model.spec.input_shape, config.invert), labels)
        if config.query is not None:
            _label(config, model, predictor, Counter(labels))
    if config.export is not None:  # last: a mistake in the query leaves nothing behind
        print(f"exported to {export(predictor, config.export, invert=config.invert)}")


def _label(config: Namespace, model: MetaModule, predictor: Predictor, support: Counter[str]) -> None:
    """Write the table of the query images, and show how many of each class there are."""
    queries = image_files(config.query)
    together = predictor.depends_on_company
    if together and len(queries) > config.batch_size:
        raise UserError(
            f"--batch_norm: this model normalises the images that it predicts by each other, and {len(queries)} are "
            f"more than --batch_size {config.batch_size}; give --batch_norm inductive, or a larger --batch_size"
        )
    counts: Counter[str] = Counter()
    skipped: list[str] = []
    try:
        with replacing(Path(config.out)) as out:
            _write(out, predictor, _batches(queries, model, config, skipped), counts)
            if not counts:
                raise UserError(f"--query: none of {len(queries)} images can be read; the first: {skipped[0]}")
    except OSError as error:
        raise UserError(f"--out {config.out}: the file cannot be written ({error.strerror})") from error
    _show(predictor, support, counts, skipped, config, together)


@contextmanager
def _told(inverted: bool) -> Iterator[None]:
    """Print what is unlike the training images in a line each, with the option that mends it."""

    show_others = warnings.showwarning

    def show(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, *more: Any, **others: Any
    ) -> None:
        if not isinstance(message, InputWarning):
            show_others(message, category, filename, lineno, *more, **others)
            return
        option = "leave --invert out" if inverted else "give --invert, or label images like those of training"
        print(f"lightning-meta: warning: {message.what}; {option}" if message.inverted else message, file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("always", InputWarning)
        warnings.showwarning = show
        yield


def make_parser() -> ArgumentParser:
    """The options of the command."""
    parser = ArgumentParser(
        prog="lightning-meta predict",
        description="Label images by a few labelled ones of each class; the classes may be new to the model. Images "
        "are turned upright and resized to the square that the model was trained with, grey or colour as it was, as "
        "ImageFolder does it, with pixels from 0 to 1 and nothing more; so light and dark must be as in training.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--ckpt_path", type=str, required=True, help="A run directory (its best) or a checkpoint.")
    parser.add_argument("--support", type=str, required=True, help="A folder with a folder of images for each class.")
    parser.add_argument(
        "--query",
        type=str,
        nargs="+",
        help="Images to label: files, or folders with all that is below them; hidden ones are passed over.",
    )
    parser.add_argument("--out", type=str, default="predictions.csv", help="The table: a row for each image.")
    parser.add_argument(
        "--export",
        type=str | None,
        help="Also write the learned task, to FILE.pt2 or FILE.onnx, with what "
        "else it does to an image, or says must be done first.",
    )
    add_overwrite(parser)
    parser.add_argument("--batch_size", type=int, default=256, help="Images that are read and labelled at a time.")
    parser.add_argument(
        "--batch_norm",
        type=Literal["transductive", "inductive", "running"] | None,
        help="Which statistics normalise the images; by default those of training. With transductive a prediction "
        "depends on the images that it is made with.",
    )
    parser.add_argument("--steps", type=int | None, help="Inner steps, for methods with an inner loop.")
    parser.add_argument(
        "--invert",
        action="store_true",
        help="Turn dark into light, in all images, for dark strokes on white: Glyphs and Omniglot have light on black.",
    )
    parser.add_argument("--skip_unreadable", action="store_true", help="Pass over images that cannot be read.")
    parser.add_argument("--trust", action="store_true", help=HELP)
    parser.add_argument("--device", type=str, default="auto", help="cpu, cuda, ...; auto takes an accelerator.")
    return parser


def predict_options() -> list[str]:
    """The names of all options."""
    return list(make_parser().get_defaults().keys())


def _check(config: Namespace) -> None:
    if config.batch_size < 1:
        raise UserError(f"--batch_size is at least 1, got {config.batch_size}")
    if config.query is None and config.export is None:
        raise UserError("--query: name the images to label, or --export a file for the learned task")
    refuse_odd_name(Path(config.out))
    if not Path(config.out).absolute().parent.is_dir():
        raise UserError(f"--out {config.out}: there is no folder {Path(config.out).parent}")
    if Path(config.out).is_dir():
        raise UserError(f"--out {config.out}: this is a folder; name a file in it")
    if config.query is not None:
        refuse_existing("--out", [Path(config.out)], config.overwrite)
    if config.export is not None:
        _check_export(config)


def _check_export(config: Namespace) -> None:
    path = Path(config.export)
    if path.suffix not in FORMATS:
        raise UserError(f"--export {config.export}: a file ending in {' or '.join(FORMATS)} is needed")
    if not path.absolute().parent.is_dir():
        raise UserError(f"--export {config.export}: there is no folder {path.parent}")
    if path.is_dir():
        raise UserError(f"--export {config.export}: this is a folder; name a file in it")
    if config.query is not None and path.absolute() == Path(config.out).absolute():
        raise UserError(f"--export {config.export}: --out names the same file; give each its own")
    refuse_existing("--export", [path], config.overwrite)


def _meta_learner(config: Namespace) -> MetaModule:
    checkpoint = find_checkpoint(config.ckpt_path)
    model = load_trained(checkpoint, trust=config.trust, steps=config.steps, batch_norm=config.batch_norm)
    if not isinstance(model, MetaModule):
        raise UserError(f"--ckpt_path {checkpoint}: {type(model).__name__} has fixed tasks and does not learn new ones")
    if model.spec.task != "classification":
        raise UserError(f"--ckpt_path {checkpoint}: the model was trained for regression; it does not label images")
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return model.to(torch.device(name))
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name}: {str(error).splitlines()[0]}") from error


def _batches(
    files: Sequence[Path], model: MetaModule, config: Namespace, skipped: list[str]
) -> Iterator[tuple[list[Path], Tensor]]:
    """Images as they are needed, and their files; those that cannot be read are noted, where that was asked for."""
    starts = range(0, len(files), config.batch_size)
    for start in track(starts, "labelling", transient=True, disable=len(starts) < 2):
        part, images = list(files[start : start + config.batch_size]), []
        try:
            yield part, read_images(part, model.spec.input_shape, config.invert)
            continue
        except UserError as error:
            if not config.skip_unreadable:
                raise UserError(f"{error}; or give --skip_unreadable") from error
        readable = []
        for file in part:
            try:
                images.append(read_images([file], model.spec.input_shape, config.invert))
                readable.append(file)
            except UserError as error:
                skipped.append(str(error))
        if readable:
            yield readable, torch.cat(images)


def _write(
    out: IO[Any], predictor: Predictor, batches: Iterator[tuple[list[Path], Tensor]], counts: Counter[str]
) -> None:
    writer = csv.writer(out)
    writer.writerow(["file", "label", "margin", *(f"p({name})" for name in predictor.classes)])
    for files, images in batches:
        probabilities = predictor.probabilities(images).cpu()
        two = probabilities.topk(2).values
        margins = (two[:, 0] - two[:, 1]).tolist()
        for file, row, margin in zip(files, probabilities.tolist(), margins, strict=True):
            label = predictor.classes[row.index(max(row))]
            counts[label] += 1
            writer.writerow(as_cells([str(file), label, *map(ROUNDED.format, (margin, *row))]))


def _show(
    predictor: Predictor,
    support: Counter[str],
    counts: Counter[str],
    skipped: Sequence[str],
    config: Namespace,
    together: bool,
) -> None:
    table = Table("class", "labelled examples", "images given this label")
    for name in predictor.classes:
        table.add_row(escape(name), str(support[name]), str(counts[name]))
    table.add_section()
    table.add_row("in all", str(support.total()), str(counts.total()))
    Console().print(table)
    if skipped:
        print(f"{len(skipped)} images could not be read:")
    for line in skipped:
        print(f"passed over: {line}")
    if together:
        print("each image was normalised by all others of this query (transductive)")
    print(f"written to {config.out}")
