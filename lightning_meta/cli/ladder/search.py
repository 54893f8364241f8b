"""What the rungs of a ladder search before they are compared: the same settings for all, and the weights of a sum."""

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
WEIGHT = "train/weight/"  # and the task: how weightings log the weights of a step
TUNED = "tuned"  # what stands for weights that are searched; other words name the rung that they are read off


@dataclass(frozen=True)
class Search:
    r"""Trials that every rung is given, each a training as long as the ladder's.

    The first trial has the file's own settings. The others have those drawn here, a Latin hypercube of the parameters
    that is the same for every rung. A sum whose weights are tuned spends the first half of its trials on these, with
    weights of 1, and the second half on weights $w = T \, \mathrm{softmax}(z)$ with $z_i \sim N(0, 1)$, with the best
    settings of the first.

    Attributes:
        trials: How many a rung has.
        seed: `seed_everything` of all trials.
        parameters: What is searched, by the option's name without its hyphens.
    """

    trials: int
    seed: int
    parameters: Mapping[str, Parameter]

    def settings(self, trial: int) -> dict[str, Any]:
        """The values of a trial by the options' names; none in the first."""
        return {name: self._value(name, trial) for name in self.parameters} if trial else {}

    def weights(self, trial: int, tasks: Iterable[str]) -> dict[str, float]:
        """The weights that are drawn for a trial by task, of mean 1."""
        names = list(tasks)
        keys = random_bits.key(self.seed, trial, torch.tensor([random_bits.name_key(name) for name in names]))
        normal = torch.special.ndtri(random_bits.uniform(keys, 1)[:, 0] + 2.0**-54)  # the quantile of 0 is not finite
        return rounded(dict(zip(names, (len(names) * normal.softmax(0)).tolist(), strict=True)))

    def _value(self, name: str, trial: int) -> Any:
        drawn = self.trials - 1
        order = random_bits.choose(random_bits.key(self.seed, random_bits.name_key(name)), drawn, drawn)
        quantile = (int(order[trial - 1]) + 0.5) / drawn  # each of the intervals once, at its middle
        of = self.parameters[name]
        if of.values:
            return of.values[int(quantile * len(of.values))]
        if of.log:
            return float(f"{of.low * (of.high / of.low) ** quantile:.6g}")
        value = of.low + quantile * (of.high - of.low)
        return round(value) if of.whole else float(f"{value:.6g}")


def rounded(weights: Mapping[str, float]) -> dict[str, float]:
    """Weights to six digits, which a configuration holds exactly."""
    return {name: float(f"{weight:.6g}") for name, weight in weights.items()}


def read_search(where: str, content: Any, trials: int | None) -> Search:
    """Read the part `tune` of a ladder's file.

    Args:
        where: How an error begins.
        content: `trials`, `seed` and `parameters`.
        trials: Instead of the file's.

    Raises:
        UserError: What is wrong with it.
    """
    if not isinstance(content, dict) or (odd := [str(k) for k in content if k not in KEYS]):
        got = odd[0] if isinstance(content, dict) else repr(content)
        raise UserError(f"{where}: expected {', '.join(KEYS)}, got {got}")
    number = content.get("trials") if trials is None else trials
    if type(number) is not int or number < 2:
        option = f"{where}.trials" if trials is None else "--trials"
        raise UserError(
            f"{option}: expected a whole number of at least 2, as the first trial has the file's own settings; got "
            f"{number!r}"
        )
    seed = content.get("seed", 0)
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise UserError(f"{where}.seed: expected a whole number from 0, got {seed!r}")
    specs = content.get("parameters")
    if not isinstance(specs, dict) or not specs:
        raise UserError(
            f"{where}.parameters: name what every rung searches, as in model.optimizer.lr: {{distribution: "
            f"log_uniform_values, min: 0.0001, max: 0.01}}; got {specs!r}"
        )
    for name in specs:
        if not str(name).startswith("model."):
            raise UserError(f"{where}.parameters.{name}: only options of the model are searched; the rest is the same")
    return Search(number, seed, {name: read_parameter(f"{where}.parameters.{name}", of) for name, of in specs.items()})


def mean_weights(columns: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The mean weight of each task over the logged steps of a training that had it.

    Args:
        columns: Of `metrics.csv`, by names that begin with `WEIGHT`; NaN where a row has no value.

    Returns:
        By task; those that were never logged are left out.
    """
    known = {name: [value for value in column if math.isfinite(value)] for name, column in columns.items()}
    means = {name.removeprefix(WEIGHT): math.fsum(values) / len(values) for name, values in known.items() if values}
    return rounded(means)
