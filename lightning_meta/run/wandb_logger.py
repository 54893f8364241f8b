"""Logging a run to Weights & Biases."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from lightning_meta.errors import UserError, reason_of
from lightning_meta.run.files import replacing
from lightning_meta.run.logger import RunLogger
from lightning_meta.run.tables import read_table
from lightning_meta.run.termination import Interrupted

PROJECT = "lightning_meta"
ID_FILE = "wandb_run_id"
MOST_ROWS = 10_000  # W&B shows no more rows of a table
FINISH_TIMEOUT = 60.0  # seconds; by default wandb retries for a week

_log = logging.getLogger("lightning_meta.wandb")


class WandbRunLogger(WandbLogger):
    """A `WandbLogger` that continues offline if W&B cannot be reached, and waits for it only for a limited time.

    A run uses it in place of `WandbLogger`, with the same arguments. At the end of a run it waits up to
    `WANDB_FINISH_TIMEOUT` seconds (0: without limit) for the upload to finish.
    """

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run; started by the first call, on rank 0."""
        import wandb
        from wandb.errors import CommError, UsageError

        if self._experiment is None:
            self._wandb_init["settings"] = _ending_in_time(self._wandb_init.get("settings"))
        try:
            return super().experiment
        except UsageError as error:
            text = reason_of(error)
            raise UserError(f"trainer.logger: {text} To log without an account, set WANDB_MODE=offline") from error
        except CommError as error:
            wandb.teardown()  # else the service keeps the id of the run that did not start
            self._wandb_init["mode"] = "offline"
            run = super().experiment
            reason = reason_of(error, 200)
            _log.warning("W&B cannot be reached (%s): logging offline; later, `wandb sync %s`", reason, folder_of(run))
            return run

    @rank_zero_only
    def log_config(self, config: Mapping[str, Any]) -> None:
        """Store the configuration as it was written."""
        self.experiment.config.update(dict(config), allow_val_change=True)

    @rank_zero_only
    def log_run(self, directory: Path, summary: Mapping[str, Any]) -> None:
        """Upload a finished run directory: results, figures, scores of the tasks, and the best checkpoint."""
        import wandb
        from wandb.errors import CommError

        run = self.experiment
        run.summary.update(dict(summary))
        if pictures := sorted((directory / "figures").glob("*.png")):
            run.log({f"figures/{f.stem}": wandb.Image(str(f)) for f in pictures})
        table, best = directory / "per_task.csv", directory / "checkpoints" / "best.ckpt"
        files = [f for f in (table, best) if f.is_file() and (f is table or self._log_model)]
        try:
            if table in files:
                header, rows = read_table(table)
                name = header.index("task") if "metric" in header else -1
                data = [_typed(row, name) for row in rows[:MOST_ROWS]]
                run.log({"per_task": wandb.Table(columns=list(header), data=data)})
            if best in files:
                artifact = wandb.Artifact(f"model-{run.id}", type="model", metadata=dict(summary))
                artifact.add_file(str(best), name="best.ckpt")
                run.log_artifact(artifact, aliases=["latest", "best"])
        except CommError:
            # Offline, wandb stores plain files for a later upload, but not tables and artifacts.
            for kept in files:
                run.save(str(kept.absolute()), base_path=str(directory.absolute()), policy="end")

    @rank_zero_only
    def close(self, status: int) -> None:
        """Finish the W&B run with an exit status, so that another one can start in this process.

        Raises:
            Interrupted: Ctrl-C was pressed.
        """
        run = self._experiment
        if run is None:
            return
        try:
            run.finish(exit_code=status)
        except (TimeoutError, KeyboardInterrupt) as error:
            sync = f"wandb sync --include-online {folder_of(run)}"  # without the option it leaves such runs out
            _log.warning("the upload to W&B is incomplete; run `%s` later", sync)
            if isinstance(error, KeyboardInterrupt):
                raise Interrupted from None


def belonging_to(run: RunLogger, logger: Logger) -> Logger:
    """Replace a `WandbLogger` that has not started by one for the W&B run of a run directory.

    Args:
        run: The run; on rank 0 its directory stores the id of the W&B run.
        logger: The user's logger, whose arguments take precedence; loggers of other classes are returned as they are.
    """
    if type(logger) is not WandbLogger or logger._experiment is not None or run.save_dir is None:
        return logger
    options = dict(logger._wandb_init)  # Lightning's logger has no public way to ask for its arguments
    folder = options.pop("dir")
    # A relative path would be relative to the folder where wandb's service started.
    options["save_dir"] = str(Path(run.save_dir if folder in (None, "", ".") else folder).absolute())
    options["anonymous"] = bool(options["anonymous"]) or None
    options["id"] = options["id"] or _run_id(run.directory)
    if options["project"] == "lightning_logs":  # Lightning's default
        options["project"] = PROJECT
    if options["name"] is None and not {"WANDB_NAME", "WANDB_SWEEP_ID"} & os.environ.keys():
        options["name"] = f"{run.name}/{run.version}"
    if options["resume"] in (None, "allow"):  # the default of the command's parser, and of Lightning
        chosen = options.get("resume_from") or options.get("fork_from") or "WANDB_RESUME" in os.environ
        options["resume"] = None if chosen else "allow"
    for name in ("offline", "log_model", "prefix", "checkpoint_name"):
        options[name] = getattr(logger, f"_{name}")
    return WandbRunLogger(**options, add_file_policy=logger.add_file_policy)


def _run_id(directory: Path) -> str:
    """The id of a directory's W&B run: the stored one, the one of a sweep agent, or a new one."""
    file = directory / ID_FILE
    stored = file.read_text(encoding="utf-8").strip() if file.is_file() else ""
    if re.fullmatch(r"[\w-]{1,64}", stored) and "WANDB_RUN_ID" not in os.environ:
        return stored
    number = os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)
    with replacing(file) as target:
        target.write(number + "\n")
    return number


def folder_of(run: Any) -> Path:
    """The folder with the files of a W&B run."""
    return Path(run.dir).parent


def _ending_in_time(options: Any) -> Any:
    """wandb's settings, with a time limit for the upload unless they or the environment set one."""
    import wandb

    settings = options.model_copy() if isinstance(options, wandb.Settings) else wandb.Settings(**(options or {}))
    if "finish_timeout" not in settings.model_fields_set and "WANDB_FINISH_TIMEOUT" not in os.environ:
        settings.finish_timeout = FINISH_TIMEOUT
    settings.finish_timeout_raises = True
    return settings


def _typed(row: list[str], name: int) -> list[Any]:
    """Convert cells to numbers, except for the name of the task, which is column `name`."""
    values: list[Any] = list(row)
    for i, text in enumerate(row):
        with contextlib.suppress(ValueError):
            values[i] = text if i == name else float(text)
    return values
