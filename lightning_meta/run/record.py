"""The options of a run are stored in its checkpoints and compared when it is resumed."""

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
from lightning_meta.migration import EARLIER_PATH, current_path
from lightning_meta.modes import known_mode
from lightning_meta.reading import LARGEST_YAML, parse_yaml, read_text
from lightning_meta.resuming import WATCHING, check_groups
from lightning_meta.run.checkpoint_io import read_checkpoint
from lightning_meta.run.checkpoints import RunCheckpoint, run_logger
from lightning_meta.run.differences import NOT_COMPARED, START_ANEW, Difference, differences, is_compared, undescribed
from lightning_meta.run.directory import run_directory_of
from lightning_meta.run.naming import Naming, as_argument
from lightning_meta.run.results import versions
from lightning_meta.specifications import class_paths

KEY = "lightning_meta_run"

_log = logging.getLogger(__name__)


class RunRecord(Callback):
    """Stores the options of a run in its checkpoints, and refuses to resume with options that change its meaning.

    Must be a callback before `RunCheckpoint`, which truncates `metrics.csv` when a checkpoint is loaded.

    Args:
        options: The configuration as plain data.
        allow: Whether to accept changes that affect the meaning of the results.
        began: Start of the run, after the start of Python and the imports, by `time.monotonic`.
        say: Function that formats an argument name for messages.

    Attributes:
        start: The training step at which this process started.
    """

    compares_options = True  # so the module does not compare them itself

    def __init__(self, options: Mapping[str, Any], allow: bool, began: float, say: Naming = as_argument) -> None:
        self.options = {name: value for name, value in options.items() if name not in NOT_COMPARED}
        self.allow, self._allowing = allow, say("allow_changes", True)
        self.resumed, self.start = False, 0
        self._file = Path()
        self.resumes: list[dict[str, Any]] = []
        self._began, self._seconds_before = began, 0.0
        self._examples: dict[str, str] | None = None
        self._to_take: tuple[dict[str, Any], bool] | None = None

    @property
    def seconds(self) -> float:
        """Time since the start of the run in seconds, with that of earlier processes up to their last checkpoint."""
        return self._seconds_before + time.monotonic() - self._began

    def state_dict(self) -> dict[str, Any]:
        """The training time so far."""
        return {"seconds": self.seconds}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Store the options, versions and data hashes."""
        checkpoint[KEY] = {**self._now(trainer), "resumes": self.resumes}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Compare the stored options with the current ones, and log the differences in one line.

        Raises:
            UserError: An option changed that cannot take effect, or that affects the meaning of the results.
        """
        if trainer.state.fn != "fit":
            return
        self._file = Path(str(trainer.ckpt_path))  # Lightning may also find it by itself, as on SLURM
        record, unknown = stored_record(checkpoint, self._file)
        now = self._now(trainer)
        # Earlier versions recorded less; what is missing is listed as unknown, not as changed.
        known = {name: part for name, part in now.items() if name in record}
        unknown += [f"the {name}" for name in now if name not in record and name != "options"]
        if "examples" not in now:
            name = type(getattr(trainer, "datamodule", None)).__name__
            unknown.append(f"the examples ({name} provides no hash of its data)")
        made = {option for part in (record, now) for option in undescribed(part.get("options") or {})}
        unknown += [f"{option}, made in Python" for option in sorted(made) if is_compared(option)]
        plateau = _watches(checkpoint.get("lr_schedulers"), self.options)
        every = differences(_flat(record), _flat(known), plateau)
        different = [d for d in every if d.kind != "dropped"]
        unknown += [f"{d.option}, which this version does not have" for d in every if d.kind == "dropped"]
        try:
            self._check(different, trainer, checkpoint)
        except UserError:
            if trainer.is_global_zero:
                raise
            time.sleep(1)  # rank 0 prints the error first
            raise SystemExit(2) from None
        changed = [d for d in different if d.kind == "meaning"]
        self.start = _step(checkpoint)
        self._take(changed, trainer, pl_module, checkpoint)
        self._note(record, different, trainer, checkpoint)
        before = ((checkpoint.get("callbacks") or {}).get(self.state_key) or {}).get("seconds")
        self._seconds_before = float(before) if isinstance(before, int | float) else 0.0
        if trainer.is_global_zero:
            _log.info("%s", self._line(different, unknown, checkpoint))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace the optimiser's options in the checkpoint, which Lightning restores next, by the new ones."""
        if self._to_take is not None:
            checkpoint, changed = self._to_take
            check_groups(trainer.optimizers, checkpoint.get("optimizer_states") or [])
            if changed:
                take_new_options(checkpoint, trainer.optimizers, trainer.lr_scheduler_configs)
            self._to_take = None

    def _now(self, trainer: Trainer) -> dict[str, Any]:
        options = dict(self.options)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, RunCheckpoint):  # the mode in use, which may come from the metric
                options["checkpoint"] = {**(options.get("checkpoint") or {}), "mode": callback.mode}
        now = {"options": options, "versions": versions()}
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, SourceDataModule):
            if self._examples is None:  # hashing takes a while
                self._examples = {str(split): digest for split, digest in data.division().items()}
            now["examples"] = self._examples
        return now

    def _check(self, different: list[Difference], trainer: Trainer, checkpoint: Mapping[str, Any]) -> None:
        where = self._file
        for d in different:
            if d.kind == "impossible":
                raise UserError(f"{where}: {d}: this cannot change in a resume, as {d.reason}; or put it back")
        changed = [d for d in different if d.kind == "meaning"]
        if changed and not self.allow:
            raise UserError(
                f"{where} was trained with other options: {_joined(changed)}; put them back, {START_ANEW}, or resume "
                f"with {self._allowing}, which uses the new ones from here on"
            )
        step, most = _step(checkpoint), trainer.max_steps
        logger = run_logger(trainer)
        # A new run directory gets a checkpoint only after a step.
        least = step + (logger is not None and logger.is_new)
        if -1 < most < least:
            raise UserError(f"trainer.max_steps: {where} is at step {step} already, got {most}; give {least} or more")

    def _take(
        self, changed: list[Difference], trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Remove from the checkpoint what would override a new option."""
        of_model = any(d.option.startswith("model.") for d in changed)
        self._to_take = checkpoint, of_model
        states = checkpoint.get("callbacks") or {}
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, EarlyStopping) and callback.state_key in states:
                states[callback.state_key]["patience"] = callback.patience
            # Scores under other options are not comparable, so the search for the best checkpoint starts over.
            if isinstance(callback, RunCheckpoint) and any(not d.option.startswith("trainer.") for d in changed):
                states.pop(callback.state_key, None)
                getattr(module, "forget_best", lambda: None)()

    def _note(
        self, record: Mapping[str, Any], different: list[Difference], trainer: Trainer, checkpoint: Mapping[str, Any]
    ) -> None:
        self.resumed, self.resumes = True, list(record.get("resumes") or [])
        kept = {d.option: [d.old, d.new] for d in different if d.kind == "meaning" or d.option.startswith("versions.")}
        logger = run_logger(trainer)
        elsewhere = {"checkpoint": str(self._file)} if logger is not None and logger.is_new else {}
        if kept or elsewhere:
            self.resumes.append({"step": _step(checkpoint), **elsewhere, "changes": kept})

    def _line(self, different: list[Difference], unknown: list[str], checkpoint: Mapping[str, Any]) -> str:
        parts = [f"resumed from {self._file} at step {_step(checkpoint)}"]
        changed = [d for d in different if d.kind == "meaning"]
        harmless = [d for d in different if d.kind == "harmless"]
        parts += [f"changed by {self._allowing}: {_joined(changed)}"] if changed else []
        parts += [f"changed: {_joined(harmless)}"] if harmless else []
        parts += [] if different else ["nothing has changed"]
        parts += [f"could not be compared: {', '.join(unknown)}"] if unknown else []
        return "; ".join(parts)


def take_new_options(
    checkpoint: dict[str, Any], optimizers: Sequence[Optimizer], schedules: Sequence[LRSchedulerConfig]
) -> None:
    """Replace the options of optimisers and schedules in a checkpoint, before it is restored.

    A new schedule is stepped as often as the stored one was, so the run continues with the rate that a run with the new
    options would have at this step. The state of each parameter, such as momentum, is kept.

    Args:
        checkpoint: The checkpoint; changed in place.
        optimizers: New optimisers of the module, whose state has not been restored.
        schedules: Schedules of the optimisers, in the same order.
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


def stored_record(checkpoint: Mapping[str, Any], file: Path) -> tuple[dict[str, Any], list[str]]:
    """Read the record of a checkpoint, or the `config.yaml` beside a checkpoint without one.

    Returns:
        The record, and descriptions of what it does not contain.

    Raises:
        UserError: The record is damaged.
    """
    record = checkpoint.get(KEY)
    if record is not None:
        if not _is_record(record):
            raise UserError(f"{file} is damaged: its record of the run cannot be read")
        return dict(record), []
    run = run_directory_of(file)
    config = run / "config.yaml" if run is not None else None
    if config is None or not config.is_file():
        return {}, ["the options (the checkpoint holds none, and lies beside no config.yaml)"]
    try:
        options = parse_yaml(EARLIER_PATH.sub(current_path, read_text(config, LARGEST_YAML)))
    except (OSError, ValueError, yaml.YAMLError):
        options = None
    if not _is_record({"options": options}):
        return {}, [f"the options ({config} is damaged)"]
    return {"options": _with_mode(options)}, []


def seed_of(checkpoint: Path) -> Any:
    """The `seed_everything` of the run of a checkpoint; True, which means any seed, if it is unknown."""
    record, _ = stored_record(read_checkpoint(checkpoint), checkpoint)
    return (record.get("options") or {}).get("seed_everything", True)


def comments(resumes: list[dict[str, Any]]) -> str:
    """Comment lines for the top of a configuration file, one for each resume with changed options."""
    lines = []
    for resume in resumes:
        changes = [Difference(option, old, new, "meaning") for option, (old, new) in resume["changes"].items()]
        place = " ".join(str(resume.get("checkpoint", "")).split())
        started = f", resumed from {place}" if place else ""
        lines.append(f"# From step {resume['step']} on{started}: {_joined(changes) or 'nothing has changed'}\n")
    return "".join(lines)


def _with_mode(options: Mapping[str, Any]) -> dict[str, Any]:
    """Add the mode that follows from the metric if none was given, as in the records of checkpoints."""
    checkpoint = options.get("checkpoint") or {}
    if not isinstance(checkpoint, Mapping) or checkpoint.get("mode"):
        return dict(options)
    monitor = checkpoint.get("monitor", "val/accuracy")
    mode = "max" if monitor is None else known_mode(str(monitor))
    return {**options, "checkpoint": {**checkpoint, "mode": mode}}


def _is_record(record: Any) -> bool:
    try:
        list(class_paths(record))  # refuses records that are too large
    except UserError:
        return False
    if not isinstance(record, Mapping):
        return False
    sections = [record.get(name, {}) for name in ("options", "examples", "versions")]
    resumes = record.get("resumes", [])
    whole = all(isinstance(section, Mapping) for section in sections)
    return whole and isinstance(resumes, list) and all(map(_is_resume, resumes))


def _is_resume(resume: Any) -> bool:
    if not isinstance(resume, Mapping) or not isinstance(resume.get("step"), int):
        return False
    changes = resume.get("changes")
    return isinstance(changes, Mapping) and all(isinstance(c, list) and len(c) == 2 for c in changes.values())


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    """Options, data hashes and versions in one mapping."""
    rest = {name: record[name] for name in ("examples", "versions") if name in record}
    return {**(record.get("options") or {}), **rest}


def _watches(states: Any, options: Mapping[str, Any]) -> bool:
    """Whether a `ReduceLROnPlateau` schedule was or is used."""
    watched = any(isinstance(s, Mapping) and "num_bad_epochs" in s for s in states or ())
    init_args = (options.get("model") or {}).get("init_args") or {}
    return watched or WATCHING in str(init_args.get("lr_scheduler"))


def _step(checkpoint: Mapping[str, Any]) -> int:
    step = checkpoint.get("global_step")
    return step if isinstance(step, int) else 0


def _joined(different: list[Difference]) -> str:
    return ", ".join(map(str, different))
