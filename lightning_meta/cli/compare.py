"""`lightning-meta compare` and `curves`: the effect of sharing on each task, and training curves, of several runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_meta.cli.helping import Parser
from lightning_meta.cli.messages import parse
from lightning_meta.cli.parsing import refuse_existing
from lightning_meta.report.figures import compare_training
from lightning_meta.report.transfer import TransferReport, print_report, write_report
from lightning_meta.report.transfer import compare as compare_runs
from lightning_meta.report.transfer.writing import FILES, log_report


def compare(args: Sequence[str]) -> None:
    """Compare multi-task runs with a baseline, and write a table, CSV, JSON and figures."""
    config = parse(compare_parser(), args)
    refuse_existing("--out", [Path(config.out) / name for name in FILES], config.overwrite)
    show_report(compare_runs(config.runs, config.baseline), Path(config.out), config.wandb_project)


def show_report(report: TransferReport, out: Path, wandb_project: str | None) -> None:
    """Print and write a report, also to W&B if a project is named."""
    print_report(report, rest=out / "transfer.csv")
    write_report(report, out)
    if wandb_project is not None:
        log_report(report, out, wandb_project)
    print(f"written to {out}")


def compare_parser() -> Parser:
    """The options of `compare`."""
    parser = Parser(
        command="compare",
        usage="lightning-meta compare RUN... --baseline RUN... [options]",
        description="Compare multi-task runs with a baseline, task by task. Runs of the same name are one method, "
        "paired with the baseline by seed.",
    )
    runs = "A run directory (runs/multi_head/0), or a folder of versions for all of them (runs/multi_head)."
    parser.option("runs RUN...", str, runs)
    parser.option("--baseline RUN...", str, "The runs to compare with.", required=True)
    parser.option("--out FOLDER", str, "The report; by default report.", default="report")
    parser.option("--overwrite", bool, "Replace existing files.")
    parser.option("--wandb_project NAME", str | None, "Log the report to this W&B project as well.")
    return parser


def curves(args: Sequence[str]) -> None:
    """Draw a metric of several runs against the training step."""
    config = parse(curves_parser(), args)
    refuse_existing("--out", [Path(config.out)], config.overwrite)
    print(f"written to {compare_training(config.runs, config.out, config.metric)}")


def curves_parser() -> Parser:
    """The options of `curves`."""
    parser = Parser(
        command="curves",
        usage="lightning-meta curves RUN... [options]",
        description="Draw a metric of several runs against the training step, in one figure.",
    )
    parser.option("runs RUN...", str, "A run directory, such as runs/protonet_glyphs/0.")
    metric = "Name of the metric in metrics.csv; by default val/accuracy."
    parser.option("--metric NAME", str, metric, default="val/accuracy")
    parser.option("--out FILE", str, "File of the figure; by default curves.png.", default="curves.png")
    parser.option("--overwrite", bool, "Replace existing files.")
    return parser
