"""Read the file of a sweep, in the format of `wandb sweep`: search space, metric and command of a run."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lightning_meta.checks import is_number
from lightning_meta.cli.children import by_option
from lightning_meta.cli.config_text import read_config
from lightning_meta.cli.options import SECTIONS
from lightning_meta.errors import UserError
from lightning_meta.modes import contradiction

_log = logging.getLogger(__name__)

Goal = Literal["maximize", "minimize"]
METHODS = ("grid", "random", "bayes")
KEYS = ("program", "method", "metric", "parameters", "command", "name", "description", "project", "entity")
RANGE = {"min", "max"}
KINDS = {  # the keys beside each distribution
    "constant": {"value"},
    "categorical": {"values"},
    "uniform": RANGE,
    "int_uniform": RANGE,
    "log_uniform_values": RANGE,
}
LOGGER = "--trainer.logger."
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
        goal: Whether higher or lower values of the metric are better.
        parameters: Search space by option, without leading hyphens.
        options: Options of every run, without loggers, which only W&B's agents need.
    """

    method: str
    metric: str
    goal: Goal
    parameters: Mapping[str, Parameter]
    options: tuple[str, ...]


def read_sweep(file: str | Path) -> Sweep:
    """Read the file of a sweep.

    Raises:
        UserError: The file is not valid, or needs a feature that only W&B has.
    """
    content = read_config(Path(file))
    if not isinstance(content, dict) or not isinstance(content.get("parameters") or None, dict):
        raise UserError(f"{file} is not a sweep: it has no parameters; run a configuration with lightning-meta fit")
    check_keys(str(file), content, KEYS)
    method = content.get("method")
    if method not in METHODS:
        raise UserError(f"{file}, method: expected one of {', '.join(METHODS)}, got {method!r}")
    name, goal = _metric(f"{file}, metric", content.get("metric"))
    parameters = {}
    for option, spec in content["parameters"].items():
        if str(option).partition(".")[0] not in SETTABLE:
            raise UserError(f"{file}, {option}: fit has no such option, or a sweep cannot set it")
        parameters[option] = read_parameter(f"{file}, {option}", spec)
        if method == "grid" and not parameters[option].values:
            raise UserError(f"{file}, {option}: a grid needs values, not a range")
    return Sweep(method, name, goal, parameters, _options(f"{file}, command", content.get("command")))


def check_keys(where: str, content: Any, keys: Collection[str]) -> None:
    """Refuse what is no mapping, and unknown keys, which would be ignored."""
    if not isinstance(content, dict) or not content.keys() <= set(keys):
        got = [key for key in content if key not in keys] if isinstance(content, dict) else content
        raise UserError(f"{where}: expected {', '.join(keys)}, got {got!r}")


def _metric(where: str, metric: Any) -> tuple[str, Goal]:
    name, goal = (metric.get("name"), metric.get("goal")) if isinstance(metric, dict) else (None, None)
    if not str(name).startswith("val/") or goal not in ("maximize", "minimize") or len(metric) > 2:
        raise UserError(
            f"{where}: expected a name and a goal, as in {{name: val/accuracy, goal: maximize}}, got {metric!r}"
        )
    if wrong := contradiction(str(name), goal[:3]):
        _log.warning("%s: the goal is to %simize, which ranks the worst run first", where, wrong)
    return str(name), goal


def read_parameter(where: str, spec: Any) -> Parameter:
    """Read the search space of one option: `value`, `values`, or `min` and `max` with a `distribution`."""
    keys = {*spec} - {"distribution"} if isinstance(spec, dict) else set()
    kinds = [kind for kind, needed in KINDS.items() if keys == needed]
    if not kinds or spec.get("distribution", kinds[0]) not in kinds:
        raise UserError(
            f"{where}: expected value, values, or min and max with a distribution, one of "
            f"{', '.join(kind for kind, needed in KINDS.items() if needed is RANGE)}; got {spec!r}"
        )
    if "min" not in keys:
        values = [spec["value"]] if "value" in spec else spec["values"]
        valid = isinstance(values, list) and all(isinstance(v, int | float | str) for v in values)
        if not valid or not values or len(set(values)) < len(values):
            raise UserError(f"{where}: expected different numbers, texts or booleans, got {values!r}")
        return Parameter(tuple(values))
    low, high = spec["min"], spec["max"]
    whole = isinstance(low, int) and isinstance(high, int)
    kind = spec.get("distribution", "int_uniform" if whole else "uniform")
    if not is_number(low) or not is_number(high) or not low < high:
        raise UserError(f"{where}: expected min and a larger max, got {low!r} and {high!r} (write 0.0001, not 1e-4)")
    if kind == "int_uniform" and not whole:
        raise UserError(f"{where}: expected whole numbers as min and max of int_uniform, got {low} and {high}")
    if kind == "log_uniform_values" and low <= 0:
        raise UserError(f"{where}: expected min > 0 with log_uniform_values, got {low}")
    return Parameter((), low, high, kind == "log_uniform_values", kind == "int_uniform")


def _options(where: str, command: Any) -> tuple[str, ...]:
    """The options in the command, beside the program, the placeholder of the parameters, and loggers."""
    words = [str(word) for word in command] if isinstance(command, list) else []
    if "${program}" not in words or "${args}" not in words:
        raise UserError(f"{where}: expected a list of ${{program}}, options such as --config=FILE, and ${{args}}")
    after = [word for word in words[words.index("${program}") + 1 :] if word != "${args}"]
    options = [(name.rstrip("+"), written) for name, _, written in by_option(after)]
    if any(name == "--ckpt_path" for name, _ in options):
        raise UserError(f"{where}: --ckpt_path differs for each run; remove it")
    return tuple(word for name, written in options if not f"{name}.".startswith(LOGGER) for word in written)
