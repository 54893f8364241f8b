"""`lightning-meta predict`: label images by a few labelled ones of new classes, or predict for new rows of a table."""

from __future__ import annotations

import csv
import json
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import compress
from pathlib import Path
from typing import IO, Any

import torch
from jsonargparse import Namespace
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table
from torch import Tensor

from lightning_meta.cells import as_cells
from lightning_meta.cli.calibrating import read_calibration
from lightning_meta.cli.messages import parse
from lightning_meta.cli.options import naming_options
from lightning_meta.cli.predict_options import ALIASES, IMAGES_AT_ONCE, OF_REGRESSION, check, delimiter_of, make_parser
from lightning_meta.cli.predict_rows import predict_rows
from lightning_meta.cli.trained import load_trained
from lightning_meta.data.images import image_files, labelled_files, read_images
from lightning_meta.devices import find_device
from lightning_meta.errors import UserError
from lightning_meta.loading import find_checkpoint
from lightning_meta.meta import MetaModule, Predictor
from lightning_meta.meta.calibration import Calibration
from lightning_meta.meta.export import export
from lightning_meta.meta.held_out import FOLDS, MOST_FOLDS, HeldOut, held_out
from lightning_meta.multitask import MultiTaskModule
from lightning_meta.nn.likeness import InputWarning
from lightning_meta.run.files import replacing
from lightning_meta.sources.labels_file import files_of_table

ROUNDED = "{:.6f}"


def predict(args: Sequence[str]) -> None:
    """Print the leave-one-out accuracy of the labelled images, and write the predictions for other images or rows."""
    config = parse(make_parser(), args)
    check(config)
    with naming_options(config, ALIASES):
        _predict(config)


def _predict(config: Namespace) -> None:
    model = load_trained(find_checkpoint(config.ckpt_path), config).to(find_device(config.device, "--device"))
    if config.table is not None or config.support is None:
        if config.table is not None:
            predict_rows(config, model)
        if config.export is not None:
            _export_tasks(config, model)
        return
    _check_classifier(config, model)
    in_table = config.labels is not None
    files, labels = (
        files_of_table(config.support, config.labels, config.delimiter) if in_table else labelled_files(config.support)
    )
    queries = None if config.query is None else image_files(config.query)  # before the slow part
    calibration = _calibration(config, model, Counter(labels)) if config.calibrated else None
    with _input_warnings_printed(config.invert):
        images = read_images(files, model.spec.input_shape, config.invert)
        predictor = Predictor(model, images, labels)
        left_out = held_out(model, images, labels)
        _print_held_out(left_out, Counter(labels))
        if queries is not None:
            _label(config, model, predictor, queries, Counter(labels), left_out, calibration)
    if config.export is not None:  # last: a mistake in the query leaves nothing behind
        print(f"exported to {export(predictor, config.export, invert=config.invert)}")


def _export_tasks(config: Namespace, model: Any) -> None:
    """Export a model of named tasks, which needs no support images."""
    if not isinstance(model, MultiTaskModule):
        raise UserError(
            f"--support: {type(model).__name__} of {config.ckpt_path} learns new tasks; give a folder of labelled "
            f"images, whose learned task is exported; {OF_REGRESSION}"
        )
    print(f"exported to {model.export(config.export)}")


def _print_held_out(left_out: HeldOut | None, support: Counter[str]) -> None:
    """Print the leave-one-out accuracy of the support images."""
    if left_out is not None:
        right, tried = left_out.right.total(), left_out.tried.total()
        share = f"{100 * right / tried:.1f} %"
        at_once = f", every {FOLDS}th of each class at a time" if max(support.values()) > MOST_FOLDS else ""
        print(f"support images left out in turn{at_once}: {right} of {tried} labelled right by the others, {share}")
    elif max(support.values()) == 1:
        print("each class has one support image; with two or more, the leave-one-out accuracy is shown")


def _label(
    config: Namespace,
    model: MetaModule,
    predictor: Predictor,
    queries: Sequence[Path],
    support: Counter[str],
    left_out: HeldOut | None,
    calibration: Calibration | None,
) -> None:
    """Write the table of the query images, and show how many of each class there are."""
    together, size = predictor.depends_on_company, config.batch_size or IMAGES_AT_ONCE
    if together and len(queries) > size:
        why = f"{type(model).__name__} labels all images of a query together; give a larger one"
        if not model.uses_query_set:
            why = "the images are normalised by each other; give a larger one, or --batch_norm inductive"
        raise UserError(f"--batch_size: {len(queries)} images are more than {size}, and {why}")
    counts, skipped = Counter[str](), list[str]()
    with replacing(Path(config.out)) as out:
        batches, delimiter = _batches(queries, model, config, skipped), delimiter_of(config.out) or ","
        abstained = _write(out, predictor, batches, counts, calibration, delimiter)
        if not counts:
            raise UserError(f"--query: none of {len(queries)} images can be read; the first: {skipped[0]}")
    _show(predictor, support, left_out, counts)
    if calibration is not None:
        print(f"abstained from {abstained} of {counts.total()} images, for which no class is probable enough")
    if skipped:
        print(f"{len(skipped)} of {len(queries)} images could not be read:", *skipped, sep="\nskipped: ")
    if model.uses_query_set:
        print(f"the images were labelled together: {type(model).__name__} {model.uses_query_set} (transductive)")
    elif together:
        print("each image was normalised by all others of this query (transductive)")
    print(f"written to {config.out}")


@contextmanager
def _input_warnings_printed(inverted: bool) -> Iterator[None]:
    """Print a line for each difference from the training images, with the option that fixes it."""

    show_others = warnings.showwarning

    def show(message: Warning | str, *arguments: Any, **others: Any) -> None:
        if not isinstance(message, InputWarning):
            show_others(message, *arguments, **others)
            return
        option = "leave --invert out" if inverted else "give --invert, or label images like those of training"
        print(f"lightning-meta: warning: {message.what}; {option}" if message.inverted else message, file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("always", InputWarning)
        warnings.showwarning = show
        yield


def _check_classifier(config: Namespace, model: Any) -> None:
    """Check that a model labels images by those of `--support`."""
    if not isinstance(model, MetaModule):
        raise UserError(
            f"--support: {type(model).__name__} of {config.ckpt_path} has fixed tasks and does not learn new ones; "
            "give --table for new rows of the table that it was trained on, or --export alone"
        )
    if model.spec.task != "classification":
        raise UserError(f"--ckpt_path {config.ckpt_path}: the model does not label images; {OF_REGRESSION}")


def _batches(
    files: Sequence[Path], model: MetaModule, config: Namespace, skipped: list[str]
) -> Iterator[tuple[list[Path], Tensor]]:
    """Yield the files and images of each batch; with `--skip_unreadable`, errors of images are added to `skipped`."""
    size = config.batch_size or IMAGES_AT_ONCE
    starts = range(0, len(files), size)
    for start in track(starts, "labelling", transient=True, disable=len(starts) < 2):
        part, images = list(files[start : start + size]), []
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


def _calibration(config: Namespace, model: MetaModule, support: Counter[str]) -> Calibration:
    """The stored calibration for tasks like that of the support images."""
    least, most = min(support.values()), max(support.values())
    if least != most:
        raise UserError(
            f"--calibrated: a calibration is for classes with the same number of images, those of --support have "
            f"{least} to {most}; leave out all but {least} of each"
        )
    options = {"steps": config.steps, "batch_norm": config.batch_norm}
    return read_calibration(config.ckpt_path, model, len(support), most, options)


def _write(
    out: IO[Any],
    predictor: Predictor,
    batches: Iterator[tuple[list[Path], Tensor]],
    counts: Counter[str],
    calibration: Calibration | None = None,
    delimiter: str = ",",
) -> int:
    """Write the rows, count labels, and return how many images are abstained from."""
    writer, classes, without = csv.writer(out, delimiter=delimiter), predictor.classes, 0
    sure = [] if calibration is None else ["set", "abstained"]
    writer.writerow(["file", "label", "margin", *sure, *(f"p({name})" for name in classes)])
    for files, images in batches:
        if calibration is None:
            probabilities = predictor.probabilities(images).cpu()
        else:
            probabilities = calibration.probabilities(predictor.outputs(images).cpu())
        two = probabilities.topk(2).values
        margins = (two[:, 0] - two[:, 1]).tolist()
        cells: list[list[str]] = [[] for _ in files]
        if calibration is not None:
            sets, abstained = calibration.sets(probabilities).tolist(), calibration.abstained(probabilities).tolist()
            # A JSON list, since a label may hold any separator.
            held = (json.dumps(list(compress(classes, inside)), ensure_ascii=False) for inside in sets)
            cells = [[names, str(no).lower()] for names, no in zip(held, abstained, strict=True)]
            without += sum(abstained)
        for file, row, margin, of_set in zip(files, probabilities.tolist(), margins, cells, strict=True):
            label = classes[row.index(max(row))]
            counts[label] += 1
            writer.writerow(as_cells([str(file), label, ROUNDED.format(margin), *of_set, *map(ROUNDED.format, row)]))
    return without


def _show(predictor: Predictor, support: Counter[str], left_out: HeldOut | None, counts: Counter[str]) -> None:
    columns = ["labelled examples", *(["right if left out"] if left_out else []), "images given this label"]
    table = Table("class", *columns)
    for name in predictor.classes:
        right = [f"{left_out.right[name]} of {left_out.tried[name]}"] if left_out else []
        table.add_row(escape(name), str(support[name]), *right, str(counts[name]))
    Console().print(table)
