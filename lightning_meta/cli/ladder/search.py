"""The search space of a ladder: settings that are the same for all rungs, and loss weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lightning_meta.cli.sweep.file import Parameter, read_parameter
from lightning_meta.errors import UserError
from lightning_meta.functional import random_bits

KEYS = ("trials", "seed", "parameters")
WEIGHT = "train/weight/"  # followed by the task: the name under which weightings log a weight
TUNED = "tuned"  # `weights: tuned` searches the weights; any other value names the rung whose weights are used


@dataclass(frozen=True)
class Search:
    r"""Random search with the same trials for every rung, each with the full training budget.

    The first trial has the settings of the file. The others form a Latin hypercube of the parameters, the same for
    every rung. A rung with tuned loss weights spends the first half of its trials on these settings, with weights of 1,
    and the second half on weights $w = T \, \mathrm{softmax}(z)$ with $z_i \sim N(0, 1)$, with the best settings of the
    first half.

    Attributes:
        trials: Number of trials per rung.
        seed: The value of `seed_everything` for all trials.
        parameters: Search space by option, such as `model.optimizer.lr`.
    """

    trials: int
    seed: int
    parameters: Mapping[str, Parameter]

    def settings(self, trial: int) -> dict[str, Any]:
        """The values of a trial by option; empty for the first trial."""
        return {name: self._value(name, trial) for name in self.parameters} if trial else {}

    def weights(self, trial: int, tasks: Iterable[str]) -> dict[str, float]:
        """Random loss weights of a trial by task, with mean 1."""
        names = list(tasks)
        keys = random_bits.key(self.seed, trial, torch.tensor([random_bits.name_key(name) for name in names]))
        normal = torch.special.ndtri(random_bits.uniform(keys, 1)[:, 0] + 2.0**-54)  # the quantile of 0 is not finite
        return rounded(dict(zip(names, (len(names) * normal.softmax(0)).tolist(), strict=True)))

    def _value(self, name: str, trial: int) -> Any:
        drawn = self.trials - 1
        order = random_bits.choose(random_bits.key(self.seed, random_bits.name_key(name)), drawn, drawn)
        quantile = (int(order[trial - 1]) + 0.5) / drawn  # the middle of each interval once
        parameter = self.parameters[name]
        if parameter.values:
            return parameter.values[int(quantile * len(parameter.values))]
        low, high = parameter.low, parameter.high
        if parameter.log:
            return float(f"{low * (high / low) ** quantile:.6g}")
        value = low + quantile * (high - low)
        return round(value) if parameter.whole else float(f"{value:.6g}")


def rounded(weights: Mapping[str, float]) -> dict[str, float]:
    """Round to six digits, so that the configuration file holds the exact values."""
    return {name: float(f"{weight:.6g}") for name, weight in weights.items()}


def read_search(where: str, content: Any, trials: int | None) -> Search:
    """Read the section `tune` of a ladder's file.

    Args:
        where: File and section, for error messages.
        content: The section, with `trials`, `seed` and `parameters`.
        trials: Number of trials; by default that of the file.

    Raises:
        UserError: The section is not valid.
    """
    if not isinstance(content, dict) or (odd := [str(k) for k in content if k not in KEYS]):
        got = odd[0] if isinstance(content, dict) else repr(content)
        raise UserError(f"{where}: expected {', '.join(KEYS)}, got {got}")
    number = content.get("trials") if trials is None else trials
    if type(number) is not int or number < 2:
        option = f"{where}.trials" if trials is None else "--trials"
        raise UserError(
            f"{option}: expected a whole number of at least 2, as the first trial has the settings of the file; got "
            f"{number!r}"
        )
    seed = content.get("seed", 0)
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise UserError(f"{where}.seed: expected a whole number from 0, got {seed!r}")
    specs = content.get("parameters")
    if not isinstance(specs, dict) or not specs:
        raise UserError(
            f"{where}.parameters: name the options to tune for every rung, such as model.optimizer.lr: {{distribution: "
            f"log_uniform_values, min: 0.0001, max: 0.01}}; got {specs!r}"
        )
    for name in specs:
        if not str(name).startswith("model."):
            raise UserError(f"{where}.parameters.{name}: only options of the model can be tuned")
    parameters = {name: read_parameter(f"{where}.parameters.{name}", spec) for name, spec in specs.items()}
    return Search(number, seed, parameters)


def mean_weights(columns: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The mean logged weight of each task, over the steps that logged it.

    Args:
        columns: Columns of `metrics.csv` by name, which begins with `WEIGHT`; NaN for rows without a value.

    Returns:
        The mean by task; tasks without a logged weight are left out.
    """
    logged = {name: [value for value in column if math.isfinite(value)] for name, column in columns.items()}
    means = {name.removeprefix(WEIGHT): math.fsum(values) / len(values) for name, values in logged.items() if values}
    return rounded(means)
