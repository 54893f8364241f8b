"""Log the transfer report to Weights & Biases."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from lightning_meta.errors import UserError
from lightning_meta.report.transfer.files import METHOD_COLUMNS, TASK_COLUMNS, method_row
from lightning_meta.report.transfer.results import TransferReport


def log_report(report: TransferReport, folder: Path, project: str) -> None:
    """Log the tables and figures of the report as a separate W&B run; offline with `WANDB_MODE=offline`.

    Args:
        report: The comparison.
        folder: Folder that has `forest.png` and `gap.png`, and to which wandb writes its files.
        project: Name of the W&B project.

    Raises:
        UserError: wandb is not installed, or reports an error.
    """
    try:
        import wandb
    except ImportError as error:
        raise UserError("--wandb_project: wandb is not installed; pip install 'lightning_meta[wandb]'") from error
    try:
        with wandb.init(project=project, dir=folder, job_type="compare", name=f"against {report.baseline}") as run:
            tasks = wandb.Table(columns=["method", *TASK_COLUMNS])
            methods = wandb.Table(columns=list(METHOD_COLUMNS))
            for method in report.methods:
                methods.add_data(*method_row(method).values())
                for task in method.tasks:
                    tasks.add_data(method.method, *asdict(task).values())
            pictures = {f"transfer/{name}": wandb.Image(str(folder / f"{name}.png")) for name in ("forest", "gap")}
            run.log({"transfer/tasks": tasks, "transfer/methods": methods, **pictures})
    except wandb.errors.Error as error:
        raise UserError(f"--wandb_project {project}: {' '.join(str(error).split())}") from error
