"""Which options may change when a run is resumed, and the comparison of two sets of options."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

from lightning.pytorch import Trainer

from lightning_meta.errors import UserError
from lightning_meta.import_paths import import_class
from lightning_meta.resuming import LONGEST, first_weights_of, same_class, shown
from lightning_meta.run.checkpoints import RunCheckpoint
from lightning_meta.run.written import written
from lightning_meta.specifications import marked

START_ANEW = "start a new run instead of resuming this one"

HOW = ("model.strategy", "model.chunk_size", "model.compile", "model.recompute", "model.graph")
"""Options that change how results are computed, but not the results."""

_HARMLESS = (
    *("trainer.max_epochs", "trainer.min_epochs", "trainer.max_steps", "trainer.min_steps", "trainer.max_time*"),
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy*", "trainer.barebones"),
    *("trainer.logger*", "trainer.log_every_n_steps", "trainer.callbacks*", "trainer.profiler*", "trainer.enable_*"),
    *("trainer.val_check_interval", "trainer.check_val_every_n_epoch", "trainer.num_sanity_val_steps"),
    *("trainer.deterministic", "trainer.benchmark", "trainer.inference_mode", "trainer.detect_anomaly"),
    *("trainer.fast_dev_run", "trainer.default_root_dir", "trainer.model_registry", "trainer.use_distributed_sampler"),
    *("trainer.reload_dataloaders_every_n_epochs", "checkpoint.every_n_steps"),
    *("data.num_workers", "data.pool_on", "data.evaluation_meta_batch_size", "data.evaluation_batch_size"),
    *("data.source.path", "data.source.root", "data.source.url"),  # the examples in them are compared
    *HOW,
    "versions.*",
)
_COUNTED = (
    *("data.meta_batch_size", "data.meta_batches_per_epoch", "data.batch_size", "data.batches_per_epoch"),
    *("data.tasks_per_batch", "data.task_exponent"),
)
# By pattern of option names, without `init_args`: why a new value cannot take effect; "" if it is harmless. New values
# of all other options affect the meaning of the results.
RULES: dict[str, str] = {
    **dict.fromkeys(_HARMLESS, ""),
    **dict.fromkeys(_COUNTED, "batches are counted in it"),
    "model.optimizer": "the optimizer's state is another's",
    "seed_everything": "the first weights were drawn with it",
    "data": "another data module counts other batches",
}
MOVABLE = "model.teacher"
"""Path of a run that training reads. Its weights are compared, so the run may move, but not appear or disappear."""
NOT_COMPARED = ("config", "ckpt_path", "allow_changes", "name", "runs")
"""The place of a run and how it is resumed."""

_SECTIONS: dict[str, Any] = {"trainer": Trainer, "checkpoint": RunCheckpoint}
_PRECISIONS = {"None": "32-true", "64": "64-true", "32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}


@dataclass(frozen=True)
class Difference:
    """An option that has changed.

    Attributes:
        option: Name of the option, without `init_args`.
        old: The old value as plain data; None also if there was no such option.
        new: The new value.
        kind: "harmless" if the results keep their meaning, "meaning" if they do not, and "impossible" if the new value
            cannot take effect.
        reason: Why it cannot take effect.
    """

    option: str
    old: Any
    new: Any
    kind: Literal["harmless", "meaning", "impossible"]
    reason: str = ""

    def __str__(self) -> str:
        old, new = _text(self.old), _text(self.new)
        if max(len(old), len(new)) > LONGEST:  # show the part that differs, or two long paths may look the same
            same = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
            start = max(same - 20, 0)
            old, new = (f"...{text[start:]}" if start else text for text in (old, new))
        text = f"{self.option} {shown(old)} -> {shown(new)}"
        return " ".join(text.split())  # an option's name may come from a stranger's file


def differences(old: Mapping[str, Any], new: Mapping[str, Any], plateau: bool = False) -> list[Difference]:
    """Compare the options of a run with those that it is resumed with.

    Args:
        old: Options of the run, as plain data as in `config.yaml`.
        new: Options of the resume, as plain data.
        plateau: Whether a `ReduceLROnPlateau` has set the learning rate.

    Returns:
        The differences, in the order of the options.
    """
    different = []
    first_weights = _first_weights(new.get("model"))
    for option, before, now in _pairs(old, new):
        rate = option.startswith("model.lr_scheduler") or option.rpartition(".")[2] in ("lr", "learning_rate")
        reason = _rule(option)
        if option == "trainer.precision" and _weights(before) != _weights(now):
            reason = "the weights are stored in the old one"
        elif option in first_weights:  # leaving it out changes nothing, as the checkpoint holds the weights
            reason = "" if now is None else "it only sets the first weights"
        elif option == MOVABLE and None not in (before, now):
            reason = ""
        elif rate and plateau:
            reason = "ReduceLROnPlateau has changed the rate by what it saw"
        kind: Any = "meaning" if reason is None else "impossible" if reason else "harmless"
        different.append(Difference(option, before, now, kind, reason or ""))
    return different


def is_compared(option: str) -> bool:
    """Whether a new value of an option affects the meaning of the results."""
    return _rule(option) != ""


def _rule(option: str) -> str | None:
    return next((reason for pattern, reason in RULES.items() if fnmatchcase(option, pattern)), None)


def _first_weights(model: Any) -> set[str]:
    """The options of a model that only set its first weights; see `TrainedModule`."""
    try:
        names = first_weights_of(import_class(model["class_path"])) if marked(model, "class_path") else set()
    except UserError:  # building the model will refuse it
        names = set()
    return {f"model.{name}" for name in names}


def _pairs(old: Any, new: Any, option: str = "", owner: Any = None) -> Iterator[tuple[str, Any, Any]]:
    """Options whose values differ; if the class of an object differs, its arguments are not compared."""
    if any(marked(value, key) for value in (old, new) for key in ("class_path", "instance")):
        if not same_class(_name(old), _name(new)):
            yield option, _name(old), _name(new)
            return
        if marked(old, "instance") or marked(new, "instance"):
            return  # made in Python: only the class is known
        owner, old, new = _name(new), _arguments(old), _arguments(new)
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        same = _precision(old) == _precision(new) if option == "trainer.precision" else old == new
        if not same:
            yield option, old, new
        return
    for name in dict.fromkeys([*new, *old]):
        where = f"{option}.{name}" if option else str(name)
        if where not in NOT_COMPARED:  # a run in Python does not list the defaults of an optimizer
            before, now = (side[name] if name in side else _default(owner, str(name)) for side in (old, new))
            yield from _pairs(before, now, where, _SECTIONS.get(where))


def _precision(value: Any) -> str:
    return _PRECISIONS.get(str(value), str(value))


def _weights(precision: Any) -> str:
    """The precision in which the weights are stored."""
    text = _precision(precision)
    return "32-true" if text.endswith("-mixed") else text


def _default(owner: Any, name: str) -> Any:
    """The default of an argument of a class or its bases; None if it is unknown."""
    try:
        cls = import_class(owner) if isinstance(owner, str) else owner
        constructors = [vars(c)["__init__"] for c in inspect.getmro(cls) if "__init__" in vars(c)]
        parameters = [inspect.signature(constructor).parameters for constructor in constructors]
    except (UserError, TypeError, ValueError, AttributeError):
        return None
    default = next((p[name].default for p in parameters if name in p), inspect.Parameter.empty)
    return None if default is inspect.Parameter.empty else written(default)


def _name(value: Any) -> Any:
    """The class of an object; any other value itself."""
    return next((value[key] for key in ("class_path", "instance") if marked(value, key)), value)


def _arguments(value: Any) -> Any:
    """The arguments of an object; the parser writes a class without arguments as a path or as a mapping."""
    return value.get("init_args") or {} if isinstance(value, Mapping) else {}


def _text(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = [_name(v) for v in value]
    if value is None or isinstance(value, bool):
        value = {None: "null", True: "true", False: "false"}[value]  # as on the command line
    return value if isinstance(value, str) else repr(value)
