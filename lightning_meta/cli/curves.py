"""`lightning-meta curves`: training curves of several runs in one figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_meta.cli.helping import Parser
from lightning_meta.cli.messages import parse
from lightning_meta.cli.parsing import refuse_existing
from lightning_meta.report.figures import compare_training


def curves(args: Sequence[str]) -> None:
    """Draw a metric of several runs against the training step."""
    config = parse(make_parser(), args, "curves")
    refuse_existing("--out", [Path(config.out)], config.overwrite)
    print(f"written to {compare_training(config.runs, config.out, config.metric)}")


def make_parser() -> Parser:
    """The options of the command."""
    parser = Parser(
        command="curves",
        usage="lightning-meta curves RUN... [options]",
        description="Draw a metric of several runs against the training step, in one figure.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="A run directory, such as runs/protonet_glyphs/0.")
    metric = "Name of the metric in metrics.csv; by default val/accuracy."
    parser.add_argument("--metric", type=str, default="val/accuracy", metavar="NAME", help=metric)
    figure = "File of the figure; by default curves.png."
    parser.add_argument("--out", type=str, default="curves.png", metavar="FILE", help=figure)
    parser.add_argument("--overwrite", action="store_true", help="Replace existing files.")
    return parser
