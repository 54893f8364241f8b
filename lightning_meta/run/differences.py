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

Kind = Literal["harmless", "meaning", "impossible", "dropped"]

START_ANEW = "start a new run instead of resuming this one"

HOW = ("model.strategy", "model.chunk_size", "model.compile", "model.recompute", "model.graph")
"""Options that change how results are computed, but not the results."""

# Patterns of option names, without `init_args`. Options not listed here affect the meaning of the results.
HARMLESS = (
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
MOVABLE = ("model.teacher",)
"""Paths of runs that training reads. Their weights are compared, so a run may move, but not appear or disappear."""
COUNTED = (
    *("meta_batch_size", "meta_batches_per_epoch", "batch_size", "batches_per_epoch"),
    *("tasks_per_batch", "task_exponent"),
)
IMPOSSIBLE = {
    "model.optimizer": f"the optimizer's state is another's; {START_ANEW}",
    "seed_everything": f"the first weights were drawn with it; {START_ANEW}",
    "data": f"another data module counts other batches; {START_ANEW}",
    **{f"data.{name}": f"batches are counted in it; {START_ANEW}" for name in COUNTED},
}
FIRST_WEIGHTS = f"it only sets the first weights; {START_ANEW}"
NOT_COMPARED = ("config", "ckpt_path", "allow_changes", "name", "runs")
"""The place of a run and how it is resumed."""

_DEFAULTS: dict[str, Any] = {"trainer": Trainer, "checkpoint": RunCheckpoint}
_ABSENT, _DROPPED = object(), object()
_DOUBLE = {"64", "64-true"}
_HALF = {"16-true", "bf16-true", "transformer-engine", "transformer-engine-float16"}


@dataclass(frozen=True)
class Difference:
    """An option that has changed.

    Attributes:
        option: Name of the option, without `init_args`.
        old: The old value as plain data; None also if there was no such option.
        new: The new value.
        kind: "harmless" if the results keep their meaning, "meaning" if they do not, "impossible" if the new value
            cannot take effect, and "dropped" if this version has no such option.
        reason: Why it cannot take effect, and what to do.
    """

    option: str
    old: Any
    new: Any
    kind: Kind
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
        if now is _DROPPED:
            different.append(Difference(option, before, None, "dropped"))
            continue
        kind, reason = _kind(option, before, now, plateau)
        if option in first_weights:  # leaving it out changes nothing, as the checkpoint holds the weights
            kind, reason = ("harmless", "") if now is None else ("impossible", FIRST_WEIGHTS)
        different.append(Difference(option, before, now, kind, reason))
    return different


def is_compared(option: str) -> bool:
    """Whether a new value of an option affects the meaning of the results."""
    return _kind(option, None, None, False)[0] != "harmless"


def undescribed(spec: Any, option: str = "") -> Iterator[str]:
    """Names of options, without `init_args`, whose values are objects that cannot be described by their arguments."""
    if isinstance(spec, list | tuple):
        for value in spec:
            yield from undescribed(value, option)
    if not isinstance(spec, Mapping):
        return
    if marked(spec, "instance"):
        yield option
        return
    arguments = spec.get("init_args") if marked(spec, "class_path") else spec
    for name, value in arguments.items() if isinstance(arguments, Mapping) else ():
        yield from undescribed(value, f"{option}.{name}" if option else str(name))


def _kind(option: str, old: Any, new: Any, plateau: bool) -> tuple[Kind, str]:
    if option in IMPOSSIBLE:
        return "impossible", IMPOSSIBLE[option]
    if option == "trainer.precision" and _width(old) != _width(new):
        return "impossible", f"the weights are stored in the old one; {START_ANEW}"
    if option in MOVABLE and old is not None and new is not None:
        return "harmless", ""
    rate = option.startswith("model.lr_scheduler") or option.rpartition(".")[2] in ("lr", "learning_rate")
    if rate and plateau:
        return "impossible", f"ReduceLROnPlateau has changed the rate by what it saw; {START_ANEW}"
    return ("harmless" if any(fnmatchcase(option, pattern) for pattern in HARMLESS) else "meaning"), ""


def _first_weights(model: Any) -> set[str]:
    """The options of a model that only set its first weights; see `TrainedModule`."""
    path = model.get("class_path") if isinstance(model, Mapping) else None
    try:
        names = first_weights_of(import_class(path)) if isinstance(path, str) else set()
    except UserError:  # building the model will refuse it
        names = set()
    return {f"model.{name}" for name in names}


def _pairs(old: Any, new: Any, option: str = "", owner: Any = None) -> Iterator[tuple[str, Any, Any]]:
    """Options whose values differ; if the class of an object differs, its arguments are not compared."""
    # The parser writes the path of a callable class as a mapping.
    if isinstance(old, str) and marked(new, "class_path"):
        old = {"class_path": old}
    if isinstance(new, str) and marked(old, "class_path"):
        new = {"class_path": new}
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        if not _same(option, old, new):
            yield option, _name(old), _name(new)
        return
    if marked(old, "instance") or marked(new, "instance"):  # made in Python: only the class is known
        if not same_class(_name(old), _name(new)):
            yield option, _name(old), _name(new)
        return
    if marked(old, "class_path") or marked(new, "class_path"):
        if not same_class(old.get("class_path"), new.get("class_path")):
            yield option, _name(old), _name(new)
            return
        owner, old, new = new.get("class_path"), old.get("init_args") or {}, new.get("init_args") or {}
    for name in [*new, *(name for name in old if name not in new)]:
        where = f"{option}.{name}" if option else str(name)
        if where in NOT_COMPARED:
            continue
        before, now = old.get(name, _ABSENT), new.get(name, _ABSENT)
        if before is _ABSENT:  # the option may have been added by a later version
            before = {} if where in _DEFAULTS else _default(owner, str(name))
        if now is _ABSENT:
            taken = before is None or _takes(owner, str(name), where)
            now = _default(owner, str(name)) if taken else _DROPPED
        yield from _pairs(before, now, where, _DEFAULTS.get(where))


def _same(option: str, old: Any, new: Any) -> bool:
    if option == "trainer.precision":
        return _precision(old) == _precision(new)
    old, new = (None if value == "null" else value for value in (old, new))  # version 0.1 stored it as text
    return bool(old == new)


def _precision(value: Any) -> str:
    text = "32-true" if value is None else str(value)
    return {"64": "64-true", "32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}.get(text, text)


def _width(precision: Any) -> str:
    text = _precision(precision)
    return "double" if text in _DOUBLE else text if text in _HALF else "single"


def _default(owner: Any, name: str) -> Any:
    """The default of an option; None if it is unknown."""
    default = next((p[name].default for p in _parameters(owner) if name in p), inspect.Parameter.empty)
    return None if default is inspect.Parameter.empty else written(default)


def _takes(owner: Any, name: str, option: str) -> bool:
    """Whether a class accepts an option; true if that is unknown."""
    if option == name:  # a section, of which a configuration has all
        return name == "examples"
    signatures = _parameters(owner)
    takes_any = signatures and any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signatures[0].values())
    return not signatures or bool(takes_any) or any(name in parameters for parameters in signatures)


def _parameters(owner: Any) -> list[Mapping[str, inspect.Parameter]]:
    """The parameters of the constructors of a class and its bases; empty if unknown."""
    try:
        cls = import_class(owner) if isinstance(owner, str) else owner
        constructors = [vars(c)["__init__"] for c in inspect.getmro(cls) if "__init__" in vars(c)]
        return [inspect.signature(constructor).parameters for constructor in constructors]
    except (UserError, TypeError, ValueError, AttributeError):
        return []


def _name(value: Any) -> Any:
    """The class of an object; any other value itself."""
    return next((value[key] for key in ("class_path", "instance") if marked(value, key)), value)


def _text(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = [_name(v) for v in value]
    if value is None or isinstance(value, bool):
        value = {None: "null", True: "true", False: "false"}[value]  # as on the command line
    return value if isinstance(value, str) else repr(value)
