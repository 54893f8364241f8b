"""What pictures write beside the numbers: names of metrics and tasks, the method, and the accuracy of guessing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from matplotlib.axes import Axes

LONGEST = 28  # letters of a name
LABELS = {
    "accuracy": "accuracy, %",
    "balanced_accuracy": "balanced accuracy",
    "auroc": "AUROC",
    "f1": "F1",
    "mse": "mean squared error",
    "mae": "mean absolute error",
    "rmse": "root mean squared error",
    "r2": "R²",
}


class About(NamedTuple):
    """What a picture says of its run beside the numbers.

    Attributes:
        method: The name of the module's class; "" where it is not known.
        conditions: What a test task is, such as `5-way 1-shot`; "" where the tasks have names.
        chance: The accuracy of guessing, in [0, 1]; None where there is no such level.
    """

    method: str = ""
    conditions: str = ""
    chance: float | None = None

    @classmethod
    def of(cls, results: Mapping[str, Any]) -> About:
        """From the facts in `results.json`, where older runs have no conditions."""
        conditions = str(results.get("test_conditions") or "").partition(", chance")[0]
        chance = results.get("test_chance")
        return cls(
            str(results.get("model") or "").rpartition(".")[2],
            conditions,
            float(chance) if isinstance(chance, int | float) else None,
        )

    def title(self, what: str) -> str:
        """A title: the method, its tasks, and what is shown."""
        head = ", ".join(filter(None, (self.method, self.conditions)))
        return f"{head}: {what}" if head else what[:1].upper() + what[1:]


def shortened(name: str) -> str:
    """A name that leaves room for the picture: of a long one the beginning and the end, which tell it from others."""
    if len(name) <= LONGEST:
        return name
    half = (LONGEST - 1) // 2
    return f"{name[: LONGEST - 1 - half]}…{name[-half:]}"


def label_of(metric: str) -> str:
    """A metric's name as a person would write it, with its unit where it is drawn in one."""
    return LABELS.get(metric, metric.replace("_", " "))


def scale_of(metric: str) -> float:
    """The factor by which a metric is drawn: accuracies in per cent."""
    return 100.0 if metric == "accuracy" else 1.0


def draw_chance(axes: Axes, metric: str, chance: float | None) -> None:
    """Draw a line at the accuracy of guessing, where there is one."""
    if metric == "accuracy" and chance is not None:
        axes.axhline(100 * chance, color="0.5", ls=":", lw=1, label=f"chance, {100 * chance:.3g} %")
