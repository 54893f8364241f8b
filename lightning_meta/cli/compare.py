"""`lightning-meta compare`: the effect of sharing on each task, from finished runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_meta.cli.helping import Parser
from lightning_meta.cli.messages import parse
from lightning_meta.cli.parsing import refuse_existing
from lightning_meta.report.transfer import TransferReport, print_report, write_report
from lightning_meta.report.transfer import compare as compare_runs
from lightning_meta.report.transfer.writing import FILES, log_report


def compare(args: Sequence[str]) -> None:
    """Compare multi-task runs with a baseline, and write a table, CSV, JSON and figures."""
    config = parse(make_parser(), args, "compare")
    refuse_existing("--out", [Path(config.out) / name for name in FILES], config.overwrite)
    show_report(compare_runs(config.runs, config.baseline), Path(config.out), config.wandb_project)


def show_report(report: TransferReport, out: Path, wandb_project: str | None) -> None:
    """Print and write a report, also to W&B if a project is named."""
    print_report(report, rest=out / "transfer.csv")
    write_report(report, out)
    if wandb_project is not None:
        log_report(report, out, wandb_project)
    print(f"written to {out}")


def make_parser() -> Parser:
    """The options of the command."""
    parser = Parser(
        command="compare",
        usage="lightning-meta compare RUN... --baseline RUN... [options]",
        description="Compare multi-task runs with a baseline, task by task. Runs of the same name are one method, "
        "paired with the baseline by seed.",
    )
    runs = "A run directory (runs/multi_head/0), or a folder of versions for all of them (runs/multi_head)."
    parser.add_argument("runs", nargs="+", metavar="RUN", help=runs)
    baseline = "The runs to compare with."
    parser.add_argument("--baseline", nargs="+", action="extend", required=True, metavar="RUN", help=baseline)
    parser.add_argument("--out", default="report", metavar="FOLDER", help="The report; by default report.")
    parser.add_argument("--overwrite", action="store_true", help="Replace existing files.")
    project = "Log the report to this W&B project as well."
    parser.add_argument("--wandb_project", type=str | None, metavar="NAME", help=project)
    return parser
