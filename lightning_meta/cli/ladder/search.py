"""The search space of a ladder: settings that are the same for all rungs, and loss weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lightning_meta.cli.sweep.file import Parameter, check_keys, read_parameter
from lightning_meta.errors import UserError
from lightning_meta.functional import random_bits

KEYS = ("trials", "seed", "parameters")
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

    def weights(self, trial: int, tasks: Sequence[str]) -> dict[str, float]:
        """Random loss weights of a trial by task, with mean 1."""
        keys = random_bits.key(self.seed, trial, torch.tensor([random_bits.name_key(task) for task in tasks]))
        normal = torch.special.ndtri(random_bits.uniform(keys, 1)[:, 0] + 2.0**-54)  # the quantile of 0 is not finite
        return rounded(dict(zip(tasks, (len(tasks) * normal.softmax(0)).tolist(), strict=True)))

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


def read_search(where: str, content: Any, trials: int | None, seeds: Collection[int]) -> Search:
    """Read the section `tune` of the file of a ladder with these seeds; `trials` replaces the number in the file."""
    check_keys(where, content, KEYS)
    number, seed = content.get("trials") if trials is None else trials, content.get("seed", 0)
    if type(number) is not int or number < 2:
        raise UserError(
            f"{where}.trials or --trials: expected a whole number of at least 2, as the first trial has the settings "
            f"of the file; got {number!r}"
        )
    if type(seed) is not int or not 0 <= seed < 2**32 or seed in seeds:
        raise UserError(f"{where}.seed: expected a whole number from 0 that is no seed of the ladder, got {seed!r}")
    specs = content.get("parameters")
    if not isinstance(specs, dict) or not specs or any(not str(name).startswith("model.") for name in specs):
        raise UserError(
            f"{where}.parameters: expected options of the model to tune for every rung, such as model.optimizer.lr: "
            f"{{distribution: log_uniform_values, min: 0.0001, max: 0.01}}; got {specs!r}"
        )
    return Search(number, seed, {name: read_parameter(f"{where}.parameters.{name}", s) for name, s in specs.items()})
