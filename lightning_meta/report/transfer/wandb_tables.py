"""The transfer report as tables and pictures of a Weights & Biases run."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from lightning_meta.errors import UserError
from lightning_meta.report.transfer.files import METHOD_COLUMNS, TASK_COLUMNS, method_row
from lightning_meta.report.transfer.results import TransferReport


def log_report(report: TransferReport, folder: Path, project: str) -> None:
    """Log the report as a run of its own; without a network under `WANDB_MODE=offline`.

    Args:
        report: The comparison.
        folder: Where its pictures are, and where the run's own files go.
        project: The W&B project.

    Raises:
        UserError: wandb is not installed, or refuses.
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
