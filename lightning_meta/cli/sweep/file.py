"""A sweep's file, in the format of `wandb sweep`: the search space, the metric, and the command of a run."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from lightning_meta.cli.config_text import check_yaml
from lightning_meta.cli.fit import fit_options
from lightning_meta.errors import UserError
from lightning_meta.modes import contradiction, known_mode
from lightning_meta.reading import read_yaml

_log = logging.getLogger(__name__)

METHODS = ("grid", "random", "bayes")
KEYS = {"program", "method", "metric", "parameters", "command", "name", "description", "project", "entity"}
LIST, RANGE = {"constant", "categorical"}, {"uniform", "int_uniform", "log_uniform_values"}
LOGGER = "--trainer.logger"
OF_THE_SWEEP = ("name", "runs", "ckpt_path")


@dataclass(frozen=True)
class Parameter:
    """What one option of `fit` may be: one of some values, or a number of a range.

    Attributes:
        values: The choices; empty for a range.
        low: The smallest number of the range.
        high: The largest.
        log: Whether the logarithm is uniform.
        whole: Whether the numbers are integers.
    """

    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False


@dataclass(frozen=True)
class Sweep:
    """A search over options of `fit`.

    Attributes:
        method: How the next values are chosen: `grid`, `random` or `bayes`.
        metric: The validation metric that decides, by its logged name.
        maximize: Whether a good metric is large.
        parameters: By the option's name without its hyphens.
        options: What every run is given besides; without loggers, which W&B's agents need and a search here does not.
    """

    method: str
    metric: str
    maximize: bool
    parameters: Mapping[str, Parameter]
    options: tuple[str, ...]


def read_sweep(file: str | Path) -> Sweep:
    """Read a sweep's file.

    Raises:
        UserError: What is wrong with it, or what only W&B itself can do.
    """
    path = Path(file)
    if path.exists():
        check_yaml(path)
    if not path.is_file():
        raise UserError(f"--config: there is no file {file}; sweeps are in configs/sweeps")
    try:
        content = read_yaml(path)
    except UserError as error:
        raise UserError(f"--config: {error}") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{file}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not isinstance(content.get("parameters") or None, dict):
        raise UserError(f"{file} is not a sweep: it has no parameters; a configuration is run by scripts/fit.py")
    method = content.get("method")
    if not isinstance(method, str) or method not in METHODS:
        raise UserError(f"{file}, method: one of {', '.join(METHODS)} is needed, got {method!r}")
    if "early_terminate" in content:
        raise UserError(f"{file}, early_terminate: only W&B does that; leave it out to run the sweep here")
    _only(str(file), content, KEYS)
    name, goal = _metric(f"{file}, metric", content.get("metric"))
    if not all(isinstance(option, str) for option in content["parameters"]):
        raise UserError(f"{file}, parameters: their names are options of fit, got {[*content['parameters']]}")
    parameters = {option: read_parameter(f"{file}, {option}", spec) for option, spec in content["parameters"].items()}
    settable = {known.partition(".")[0] for known in fit_options()} - set(OF_THE_SWEEP)
    for option in parameters:
        if option.partition(".")[0] not in settable:
            raise UserError(f"{file}, {option}: fit has no such option that a sweep may set")
        if method == "grid" and not parameters[option].values:
            raise UserError(f"{file}, {option}: a grid needs values, not a range")
    return Sweep(method, name, goal == "maximize", parameters, _options(str(file), content.get("command")))


def _only(where: str, given: Mapping[Any, Any], known: set[str]) -> None:
    """Refuse what would be ignored."""
    if unknown := [str(key) for key in given if key not in known]:
        raise UserError(f"{where}: {', '.join(sorted(known))} are understood here, got {', '.join(unknown)}")


def _metric(where: str, metric: Any) -> tuple[str, str]:
    if not isinstance(metric, dict):
        raise UserError(
            f"{where}: a name and a goal are needed, as in {{name: val/accuracy, goal: maximize}}, got {metric!r}"
        )
    _only(where, metric, {"name", "goal"})
    name, goal = metric.get("name"), metric.get("goal")
    if goal is None and isinstance(name, str) and (mode := known_mode(name)):  # W&B would minimise
        raise UserError(f"{where}: a goal is needed, and for {name} it is {mode}imize")
    if not isinstance(name, str) or not name.startswith("val/") or goal not in ("maximize", "minimize"):
        raise UserError(
            f"{where}: a name such as val/accuracy and a goal, maximize or minimize, are needed, got {metric}"
        )
    if wrong := contradiction(name, goal[:3]):
        _log.warning("%s: %simize, as it was given: the worst run is called the best", where, wrong)
    return name, goal


def read_parameter(where: str, spec: Any) -> Parameter:
    """Read what one option may be.

    Args:
        where: How an error begins.
        spec: `value`, `values`, or `min` and `max` with a `distribution`.

    Raises:
        UserError: What is wrong with it.
    """
    if not isinstance(spec, dict):
        raise UserError(f"{where}: expected value, values, or min and max; got {spec!r}")
    if "value" in spec or "values" in spec:
        return _choice(where, spec)
    return _range(where, spec)


def _choice(where: str, spec: Mapping[str, Any]) -> Parameter:
    key = "value" if "value" in spec else "values"
    _only(where, spec, {key, "distribution"})
    if str(spec.get("distribution", "constant")) not in LIST:
        raise UserError(f"{where}, distribution: {key} has none but {' or '.join(sorted(LIST))}, got {spec}")
    values = [spec["value"]] if key == "value" else spec["values"]
    if not isinstance(values, list) or not values or not all(isinstance(v, int | float | str) for v in values):
        raise UserError(f"{where}: {key} is made of numbers, words or booleans, got {spec[key]!r}")
    if twice := [value for i, value in enumerate(values) if value in values[:i]]:
        raise UserError(f"{where}: each of values once, got {twice[0]!r} again")
    return Parameter(tuple(values))


def _range(where: str, spec: Mapping[str, Any]) -> Parameter:
    _only(where, spec, {"min", "max", "distribution"})
    low, high = spec.get("min"), spec.get("max")
    if not _is_number(low) or not _is_number(high) or not low < high:
        raise UserError(f"{where}: min and a larger max are needed, got {low!r} and {high!r} (write 0.0001, not 1e-4)")
    whole = isinstance(low, int) and isinstance(high, int)
    kind = spec.get("distribution", "int_uniform" if whole else "uniform")
    if not isinstance(kind, str) or kind not in RANGE:
        raise UserError(f"{where}, distribution: {', '.join(sorted(RANGE))} can be run here, got {kind}")
    if kind == "int_uniform" and not whole:
        raise UserError(f"{where}: whole numbers are needed as min and max of int_uniform, got {low} and {high}")
    if kind == "log_uniform_values" and low <= 0:
        raise UserError(f"{where}: min is positive where the logarithm is uniform, got {low}")
    return Parameter((), low, high, kind == "log_uniform_values", kind == "int_uniform")


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _options(file: str, command: Any) -> tuple[str, ...]:
    """What the command says beyond the program and the place of the parameters."""
    if not isinstance(command, list):
        raise UserError(f"{file}, command: a list is needed that names the configuration, --config=FILE")
    words = [str(word) for word in command]
    if "${program}" not in words or "${args}" not in words:
        raise UserError(f"{file}, command: ${{program}} and, after it, ${{args}} are needed; dotted names are options")
    after = [word for word in words[words.index("${program}") + 1 :] if word != "${args}"]
    if any(word.startswith("--ckpt_path") for word in after):
        raise UserError(f"{file}, command: --ckpt_path is each run's own; leave it out")
    return tuple(_without_loggers(after))


def _without_loggers(words: Iterable[str]) -> Iterator[str]:
    """Leave out what W&B's agents need, as one word or two."""
    dropping = False
    for word in words:
        if word.startswith("-"):
            name = word.partition("=")[0].rstrip("+")
            dropping = name == LOGGER or name.startswith(f"{LOGGER}.")
        if not dropping:
            yield word
