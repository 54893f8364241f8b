"""`lightning-meta curves`: training curves of several runs in one figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser

from lightning_meta.cli.messages import parse
from lightning_meta.cli.parsing import add_overwrite, refuse_existing
from lightning_meta.cli.threads import add_threads
from lightning_meta.report.figures import compare_training


def curves(args: Sequence[str]) -> None:
    """Draw a metric of several runs against the training step."""
    config = parse(make_parser(), args, "curves")
    refuse_existing("--out", [Path(config.out)], config.overwrite)
    print(f"written to {compare_training(config.runs, config.out, config.metric)}")


def make_parser() -> ArgumentParser:
    """The options of the command."""
    parser = ArgumentParser(
        prog="lightning-meta curves",
        description="Draw a metric of several runs against the training step, in one figure.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="A run directory, such as runs/protonet_glyphs/0.")
    parser.add_argument("--metric", type=str, default="val/accuracy", help="Name of the metric in metrics.csv.")
    parser.add_argument("--out", type=str, default="curves.png", help="File of the figure.")
    add_overwrite(parser)
    add_threads(parser)
    return parser
