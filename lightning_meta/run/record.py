"""The options of a run are stored in its checkpoints and its `config.yaml`, and compared when it is resumed."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lightning_meta.data.module import SourceDataModule
from lightning_meta.errors import UserError
from lightning_meta.resuming import WATCHING, check_groups
from lightning_meta.run.checkpoint_io import read_checkpoint
from lightning_meta.run.checkpoints import RunCheckpoint, run_logger
from lightning_meta.run.differences import NOT_COMPARED, START_ANEW, Difference, differences, is_compared
from lightning_meta.run.files import replacing
from lightning_meta.run.naming import Naming, as_argument
from lightning_meta.run.results import BEFORE_RESUME, git_revision, versions
from lightning_meta.run.wandb_logger import WandbRunLogger
from lightning_meta.specifications import class_paths, unknown_parts

KEY = "lightning_meta_run"

_log = logging.getLogger(__name__)


class RunRecord(Callback):
    """Stores the options of a run, and refuses to resume with options that change its meaning.

    They are stored in the checkpoints and in `config.yaml`, which repeats the training and is logged to W&B once. If a
    run is resumed, its `config.yaml` is replaced only when the first new checkpoint or test exists; the old results are
    renamed at the same time. Lightning's own callback writes the file before the data and the model are checked.

    Must be a callback before `RunCheckpoint`, which truncates `metrics.csv` when a checkpoint is loaded.

    Args:
        config: The configuration as YAML.
        allow: Whether to accept changes that affect the meaning of the results.
        began: Start of the run, after the start of Python and the imports, by `time.monotonic`.
        say: Function that formats an argument name for messages.

    Attributes:
        start: The training step at which this process started.
        resumes: The resumes with changed options, the latest last.
    """

    compares_options = True  # so the module does not compare them itself

    def __init__(self, config: str, allow: bool, began: float, say: Naming = as_argument) -> None:
        self._config, self._written = config, False
        self.options = {name: value for name, value in yaml.safe_load(config).items() if name not in NOT_COMPARED}
        self.allow, self._allowing = allow, say("allow_changes", True)
        self.resumed, self.start = False, 0
        self.resumes: list[dict[str, Any]] = []
        self._began, self._seconds_before = began, 0.0
        self._examples: dict[str, str] | None = None
        self._to_take: tuple[dict[str, Any], bool] | None = None

    @property
    def seconds(self) -> float:
        """Time since the start of the run in seconds, with that of earlier processes up to their last checkpoint."""
        return self._seconds_before + time.monotonic() - self._began

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Store the options, versions, data hashes and time, and write `config.yaml` before the first checkpoint."""
        checkpoint[KEY] = {**self._now(trainer), "resumes": self.resumes, "seconds": self.seconds}
        self._write(trainer)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Compare the options with those of the checkpoint, log what has changed, and prepare the new options.

        Raises:
            UserError: An option changed that cannot take effect, or that affects the meaning of the results.
        """
        if trainer.state.fn != "fit":
            return
        file = Path(str(trainer.ckpt_path))  # Lightning may also find it by itself, as on SLURM
        record, now = stored_record(checkpoint, file), self._now(trainer)
        different = differences(_flat(record), _flat(now), _watches(checkpoint, self.options)) if record else []
        try:
            self._check(different, trainer, checkpoint, file)
        except UserError:
            if trainer.is_global_zero:
                raise
            time.sleep(1)  # rank 0 prints the error first
            raise SystemExit(2) from None
        self.start, self._seconds_before = checkpoint["global_step"], record.get("seconds", 0.0)
        changed = [d for d in different if d.kind == "meaning"]
        self._take(changed, trainer, pl_module, checkpoint)
        self.resumed, self.resumes = True, list(record.get("resumes") or [])
        kept = {d.option: [d.old, d.new] for d in different if d.kind == "meaning" or d.option.startswith("versions.")}
        elsewhere = {"checkpoint": str(file)} if _starts_directory(trainer) else {}
        if kept or elsewhere:
            self.resumes.append({"step": self.start, **elsewhere, "changes": kept})
        if trainer.is_global_zero:
            self._log_resume(file, different, _not_compared(trainer, record, now))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace the optimiser's options in the checkpoint, which Lightning restores next, by the new ones."""
        if self._to_take is not None:
            checkpoint, changed = self._to_take
            check_groups(trainer.optimizers, checkpoint.get("optimizer_states") or [])
            if changed:
                take_new_options(checkpoint, trainer.optimizers, trainer.lr_scheduler_configs)
            self._to_take = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write `config.yaml` into a new run directory."""
        if not self.resumed or _starts_directory(trainer):
            self._write(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write `config.yaml` before the test of a run without further training steps.

        A best checkpoint from before the resume is renamed if its score is not comparable with the new ones.
        """
        self._write(trainer)
        directory = trainer.log_dir
        if self.resumed and _run_checkpoint(trainer).best.score is None and directory and trainer.is_global_zero:
            best = Path(directory) / "checkpoints" / "best.ckpt"
            if best.is_file():
                best.replace(best.with_name("best_before_resume.ckpt"))

    def _now(self, trainer: Trainer) -> dict[str, Any]:
        mode = _run_checkpoint(trainer).mode  # in use, which may come from the metric
        checkpoint = {**(self.options.get("checkpoint") or {}), "mode": mode}
        now = {"options": {**self.options, "checkpoint": checkpoint}, "versions": versions()}
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, SourceDataModule):
            if self._examples is None:  # hashing takes a while
                self._examples = {str(split): digest for split, digest in data.division().items()}
            now["examples"] = self._examples
        return now

    def _check(self, different: list[Difference], trainer: Trainer, checkpoint: Mapping[str, Any], file: Path) -> None:
        for d in different:
            if d.kind == "impossible":
                raise UserError(
                    f"{file}: {d}: this cannot change in a resume, as {d.reason}; {START_ANEW}, or put it back"
                )
        changed = [d for d in different if d.kind == "meaning"]
        if changed and not self.allow:
            raise UserError(
                f"{file} was trained with other options: {_joined(changed)}; put them back, {START_ANEW}, or resume "
                f"with {self._allowing}, which uses the new ones from here on"
            )
        step, most = checkpoint["global_step"], trainer.max_steps
        least = step + _starts_directory(trainer)  # a new run directory gets a checkpoint only after a step
        if -1 < most < least:
            raise UserError(f"trainer.max_steps: {file} is at step {step} already, got {most}; give {least} or more")

    def _take(
        self, changed: list[Difference], trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Remove from the checkpoint what would override a new option."""
        self._to_take = checkpoint, any(d.option.startswith("model.") for d in changed)
        states = checkpoint.get("callbacks") or {}
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, EarlyStopping) and callback.state_key in states:
                states[callback.state_key]["patience"] = callback.patience
        # Scores under other options are not comparable, so the search for the best checkpoint starts over.
        if any(not d.option.startswith("trainer.") for d in changed):
            states.pop(_run_checkpoint(trainer).state_key, None)
            getattr(module, "forget_best", lambda: None)()

    def _log_resume(self, file: Path, different: list[Difference], unknown: list[str]) -> None:
        by_kind = [[d for d in different if d.kind == kind] for kind in ("meaning", "harmless")]
        labels = (f"changed by {self._allowing}", "changed")
        parts = [f"{label}: {_joined(part)}" for label, part in zip(labels, by_kind, strict=True) if part]
        parts = parts or ["nothing has changed"]
        parts += [f"could not be compared: {', '.join(unknown)}"] if unknown else []
        _log.info("resumed from %s at step %d; %s", file, self.start, "; ".join(parts))

    def _write(self, trainer: Trainer) -> None:
        if self._written:
            return
        self._written = True
        directory = trainer.log_dir  # a broadcast, so every rank must call it
        if not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False) or directory is None:
            return
        results = Path(directory) / "results.json"
        if self.resumed and results.is_file():  # not those of the resumed run
            results.replace(results.with_name(BEFORE_RESUME))
        with replacing(Path(directory) / "config.yaml") as file:
            file.write(_comments(self.resumes) + self._config)
        for logger in trainer.loggers:
            if isinstance(logger, WandbRunLogger):
                logger.log_config({**yaml.safe_load(self._config), "git_revision": git_revision()})


def take_new_options(
    checkpoint: dict[str, Any], optimizers: Sequence[Optimizer], schedules: Sequence[LRSchedulerConfig]
) -> None:
    """Replace the options of optimisers and schedules in a checkpoint, before it is restored.

    A new schedule is stepped as often as the stored one was, so the run continues with the rate that a run with the new
    options would have at this step. The state of each parameter, such as momentum, is kept.

    Args:
        checkpoint: The checkpoint; changed in place.
        optimizers: New optimisers of the module, whose state has not been restored.
        schedules: Schedules of the optimisers.
    """
    stored = checkpoint.get("lr_schedulers") or []
    watched = any(isinstance(schedule.scheduler, ReduceLROnPlateau) for schedule in schedules)
    states = []
    for number, schedule in enumerate(schedules):
        before = stored[number] if number < len(stored) else {}
        if isinstance(schedule.scheduler, ReduceLROnPlateau):
            states.append(before)
            continue
        by_interval = checkpoint["global_step"] if schedule.interval == "step" else checkpoint["epoch"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch expects the optimiser's step before the schedule's
            for _ in range(before.get("last_epoch", by_interval // schedule.frequency)):
                schedule.scheduler.step()
        states.append(schedule.scheduler.state_dict())
    checkpoint["lr_schedulers"] = states
    # The rate of ReduceLROnPlateau follows from past losses, so it cannot be computed anew and stays.
    kept = {"params", "lr"} if watched else {"params"}
    for optimizer, state in zip(optimizers, checkpoint["optimizer_states"], strict=True):
        for group, saved in zip(optimizer.param_groups, state["param_groups"], strict=True):
            saved.update({name: value for name, value in group.items() if name not in kept})


def stored_record(checkpoint: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The record in a checkpoint; empty if it was not written by a run.

    Raises:
        UserError: The record is damaged.
    """
    record = checkpoint.get(KEY, {})
    if not _is_record(record):
        raise UserError(f"{file} is damaged: its record of the run cannot be read")
    return dict(record)


def seed_of(checkpoint: Path) -> Any:
    """The `seed_everything` of the run of a checkpoint; True, which means any seed, if it is unknown."""
    record = stored_record(read_checkpoint(checkpoint), checkpoint)
    return record.get("options", {}).get("seed_everything", True)


def _comments(resumes: list[dict[str, Any]]) -> str:
    """Comment lines for the top of a configuration file, one for each resume with changed options."""
    lines = []
    for resume in resumes:
        changes = [Difference(option, old, new, "meaning") for option, (old, new) in resume["changes"].items()]
        place = " ".join(str(resume.get("checkpoint", "")).split())
        started = f", resumed from {place}" if place else ""
        lines.append(f"# From step {resume['step']} on{started}: {_joined(changes) or 'nothing has changed'}\n")
    return "".join(lines)


def _is_record(record: Any) -> bool:
    try:
        list(class_paths(record))  # refuses records that are too large
        sections = [record.get(name, {}) for name in ("options", "examples", "versions")]
        changes = [change for resume in record.get("resumes", []) for change in resume["changes"].values()]
        steps = [resume["step"] for resume in record.get("resumes", [])]
    except (UserError, AttributeError, KeyError, TypeError):
        return False
    whole = all(isinstance(section, Mapping) for section in sections) and all(isinstance(s, int) for s in steps)
    whole = whole and isinstance(record.get("seconds", 0.0), float)
    return whole and all(isinstance(change, list) and len(change) == 2 for change in changes)


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    """Options, data hashes and versions in one mapping."""
    rest = {name: record[name] for name in ("examples", "versions") if name in record}
    return {**record.get("options", {}), **rest}


def _not_compared(trainer: Trainer, record: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    if not record:
        return ["the options (the checkpoint was not written by `fit`)"]
    name = type(getattr(trainer, "datamodule", None)).__name__
    examples = [] if "examples" in now else [f"the examples ({name} provides no hash of its data)"]
    made = {option for part in (record, now) for option, _ in unknown_parts(part.get("options", {}))}
    return examples + [f"{option}, made in Python" for option in sorted(made) if is_compared(option)]


def _watches(checkpoint: Mapping[str, Any], options: Mapping[str, Any]) -> bool:
    """Whether a `ReduceLROnPlateau` schedule was or is used."""
    watched = any("num_bad_epochs" in state for state in checkpoint.get("lr_schedulers") or ())
    init_args = (options.get("model") or {}).get("init_args") or {}
    return watched or WATCHING in str(init_args.get("lr_scheduler"))


def _run_checkpoint(trainer: Trainer) -> RunCheckpoint:
    return next(c for c in trainer.callbacks if isinstance(c, RunCheckpoint))  # type: ignore[attr-defined]


def _starts_directory(trainer: Trainer) -> bool:
    """Whether the run gets a new directory."""
    logger = run_logger(trainer)
    return logger is not None and logger.is_new


def _joined(different: list[Difference]) -> str:
    return ", ".join(map(str, different))
