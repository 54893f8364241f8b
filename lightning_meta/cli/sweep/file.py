"""Read the file of a sweep, in the format of `wandb sweep`: search space, metric and command of a run."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_meta.checks import is_number
from lightning_meta.cli.config_text import read_config
from lightning_meta.cli.options import SECTIONS
from lightning_meta.errors import UserError
from lightning_meta.modes import contradiction, known_mode
from lightning_meta.reading import no_file

_log = logging.getLogger(__name__)

METHODS = ("grid", "random", "bayes")
KEYS = {"program", "method", "metric", "parameters", "command", "name", "description", "project", "entity"}
LIST, RANGE = {"constant", "categorical"}, {"uniform", "int_uniform", "log_uniform_values"}
LOGGER = "--trainer.logger"
OF_THE_SWEEP = ("name", "runs", "ckpt_path")
SETTABLE = (*SECTIONS, "config", "seed_everything", "allow_changes")


@dataclass(frozen=True)
class Parameter:
    """Search space of one option of `fit`: a list of values, or a range of numbers.

    Attributes:
        values: The choices; empty for a range.
        low: Lower end of the range, inclusive.
        high: Upper end of the range, inclusive.
        log: Whether the logarithm is distributed uniformly.
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
        method: The search method: `grid`, `random` or `bayes`.
        metric: Logged name of the validation metric to optimise.
        maximize: Whether higher values of the metric are better.
        parameters: Search space by option, without leading hyphens.
        options: Options of every run, without loggers, which only W&B's agents need.
    """

    method: str
    metric: str
    maximize: bool
    parameters: Mapping[str, Parameter]
    options: tuple[str, ...]


def read_sweep(file: str | Path) -> Sweep:
    """Read the file of a sweep.

    Raises:
        UserError: The file is not valid, or needs a feature that only W&B has.
    """
    path = Path(file)
    if not path.exists():
        raise UserError(f"--config: {no_file(file)}")
    content = read_config(path)
    if not isinstance(content, dict) or not isinstance(content.get("parameters") or None, dict):
        raise UserError(f"{file} is not a sweep: it has no parameters; run a configuration with lightning-meta fit")
    method = content.get("method")
    if not isinstance(method, str) or method not in METHODS:
        raise UserError(f"{file}, method: expected one of {', '.join(METHODS)}, got {method!r}")
    if "early_terminate" in content:
        raise UserError(f"{file}, early_terminate: only W&B does that; remove it to run the sweep here")
    _check_keys(str(file), content, KEYS)
    name, goal = _metric(f"{file}, metric", content.get("metric"))
    if not all(isinstance(option, str) for option in content["parameters"]):
        raise UserError(f"{file}, parameters: expected options of fit, got {[*content['parameters']]}")
    parameters = {option: read_parameter(f"{file}, {option}", spec) for option, spec in content["parameters"].items()}
    for option in parameters:
        if option.partition(".")[0] not in SETTABLE:
            raise UserError(f"{file}, {option}: fit has no such option, or a sweep cannot set it")
        if method == "grid" and not parameters[option].values:
            raise UserError(f"{file}, {option}: a grid needs values, not a range")
    return Sweep(method, name, goal == "maximize", parameters, _options(str(file), content.get("command")))


def _check_keys(where: str, content: Mapping[Any, Any], keys: set[str]) -> None:
    """Refuse unknown keys, which would be ignored."""
    if unknown := [str(key) for key in content if key not in keys]:
        raise UserError(f"{where}: expected {', '.join(sorted(keys))}, got {', '.join(unknown)}")


def _metric(where: str, metric: Any) -> tuple[str, str]:
    if not isinstance(metric, dict):
        raise UserError(
            f"{where}: expected a name and a goal, as in {{name: val/accuracy, goal: maximize}}, got {metric!r}"
        )
    _check_keys(where, metric, {"name", "goal"})
    name, goal = metric.get("name"), metric.get("goal")
    if goal is None and isinstance(name, str) and (mode := known_mode(name)):  # W&B's default is to minimise
        raise UserError(f"{where}: the goal is missing; for {name} it is {mode}imize")
    if not isinstance(name, str) or not name.startswith("val/") or goal not in ("maximize", "minimize"):
        raise UserError(
            f"{where}: expected a name such as val/accuracy, and a goal, maximize or minimize; got {metric}"
        )
    if wrong := contradiction(name, goal[:3]):
        _log.warning("%s: the goal is to %simize, which ranks the worst run first", where, wrong)
    return name, goal


def read_parameter(where: str, spec: Any) -> Parameter:
    """Read the search space of one option.

    Args:
        where: File and option, for error messages.
        spec: A mapping with `value`, `values`, or `min` and `max` with a `distribution`.

    Raises:
        UserError: The search space is not valid.
    """
    if not isinstance(spec, dict):
        raise UserError(f"{where}: expected value, values, or min and max; got {spec!r}")
    if "value" in spec or "values" in spec:
        return _choice(where, spec)
    return _range(where, spec)


def _choice(where: str, spec: Mapping[str, Any]) -> Parameter:
    key = "value" if "value" in spec else "values"
    _check_keys(where, spec, {key, "distribution"})
    if str(spec.get("distribution", "constant")) not in LIST:
        raise UserError(f"{where}, distribution: expected {' or '.join(sorted(LIST))} with {key}, got {spec}")
    values = [spec["value"]] if key == "value" else spec["values"]
    if not isinstance(values, list) or not values or not all(isinstance(v, int | float | str) for v in values):
        raise UserError(f"{where}: {key} must be numbers, text or booleans, got {spec[key]!r}")
    if twice := [value for i, value in enumerate(values) if value in values[:i]]:
        raise UserError(f"{where}: values must differ, got {twice[0]!r} again")
    return Parameter(tuple(values))


def _range(where: str, spec: Mapping[str, Any]) -> Parameter:
    _check_keys(where, spec, {"min", "max", "distribution"})
    low, high = spec.get("min"), spec.get("max")
    if not is_number(low) or not is_number(high) or not low < high:
        raise UserError(f"{where}: expected min and a larger max, got {low!r} and {high!r} (write 0.0001, not 1e-4)")
    whole = isinstance(low, int) and isinstance(high, int)
    kind = spec.get("distribution", "int_uniform" if whole else "uniform")
    if not isinstance(kind, str) or kind not in RANGE:
        raise UserError(f"{where}, distribution: expected one of {', '.join(sorted(RANGE))}, got {kind}")
    if kind == "int_uniform" and not whole:
        raise UserError(f"{where}: expected whole numbers as min and max of int_uniform, got {low} and {high}")
    if kind == "log_uniform_values" and low <= 0:
        raise UserError(f"{where}: expected min > 0 with log_uniform_values, got {low}")
    return Parameter((), low, high, kind == "log_uniform_values", kind == "int_uniform")


def _options(file: str, command: Any) -> tuple[str, ...]:
    """The options in the command, beside the program and the placeholder of the parameters."""
    if not isinstance(command, list):
        raise UserError(f"{file}, command: expected a list that contains --config=FILE")
    words = [str(word) for word in command]
    if "${program}" not in words or "${args}" not in words:
        raise UserError(f"{file}, command: expected ${{program}} and then ${{args}}; dotted names are options")
    after = [word for word in words[words.index("${program}") + 1 :] if word != "${args}"]
    if any(word.startswith("--ckpt_path") for word in after):
        raise UserError(f"{file}, command: --ckpt_path differs for each run; remove it")
    return tuple(_without_loggers(after))


def _without_loggers(words: Iterable[str]) -> Iterator[str]:
    """Remove the logger options, written as `--a=b` or as two words."""
    drop = False
    for word in words:
        if word.startswith("-"):
            name = word.partition("=")[0].rstrip("+")
            drop = name == LOGGER or name.startswith(f"{LOGGER}.")
        if not drop:
            yield word
