"""The domains: where tasks come from, which fixed test tasks a method is scored on, and their hashes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

import lightning_meta as lm
from lightning_meta.data.files import data_folder
from lightning_meta.errors import UserError

WIDTH = 64  # of the default network's convolutions


@dataclass(frozen=True)
class Setting:
    """Fixed test tasks of a domain.

    Attributes:
        shots: K, support examples of a class, or of a task in regression.
        queries: Q, query examples likewise.
        tasks: How many.
        sha256: What identifies them, see `episodes.py`; "" if nobody has drawn them yet.
        ways: N, classes in a task; 0 in regression.
    """

    shots: int
    queries: int
    tasks: int
    sha256: str
    ways: int = 0

    @property
    def name(self) -> str:
        """Such as `5-way 1-shot`."""
        return f"{self.ways}-way {self.shots}-shot" if self.ways else f"{self.shots} examples"

    @property
    def options(self) -> dict[str, int]:
        """As options of `EpisodicDataModule`."""
        options = {"test_shots": self.shots, "test_queries": self.queries, "test_tasks": self.tasks}
        return {**options, "test_ways": self.ways} if self.ways else options


@dataclass(frozen=True)
class Domain:
    """A source of tasks, and its test tasks.

    Attributes:
        name: As on the command line.
        title: As on the page.
        input_shape: Of one input: `(C, H, W)` of images, `(F,)` of numbers.
        source: Creates the source.
        settings: The test tasks. Training tasks are like those of the first, unless a method chooses others.
        needs: Files below `LIGHTNING_META_DATA` that are not downloaded.
        unit: Of the score: "%" for accuracy, otherwise that of the squared error.
    """

    name: str
    title: str
    input_shape: tuple[int, ...]
    source: Callable[[], Any]
    settings: Sequence[Setting]
    needs: Sequence[str] = ()
    unit: str = "%"

    @property
    def regression(self) -> bool:
        """Whether targets are numbers, so that a task has no classes."""
        return not self.settings[0].ways

    @property
    def images(self) -> bool:
        """Whether inputs are images."""
        return len(self.input_shape) == 3

    @property
    def monitor(self) -> str:
        """The metric that chooses the best checkpoint."""
        return "val/mse" if self.regression else "val/accuracy"

    def backbone(self, width: int = WIDTH) -> nn.Module:
        """A network of the usual kind for the inputs, with new weights.

        Args:
            width: Channels of the four convolutions; for inputs that are no images it is an MLP 40-40.
        """
        if self.images:
            return lm.nn.Conv4(in_channels=self.input_shape[0], width=width)
        return lm.nn.MLP(math.prod(self.input_shape), [40, 40])

    def missing(self) -> str:
        """The first file that is needed and not there; "" if all are."""
        folder = data_folder()
        return next((name for name in self.needs if folder is None or not (folder / name).exists()), "")

    def data(self, setting: Setting, source: Any, **options: Any) -> lm.EpisodicDataModule:
        """The data module that draws the test tasks of a setting; training tasks are like those of the first one.

        Args:
            setting: The test tasks.
            source: What `source` created.
            **options: Further options of the data module, which take precedence.
        """
        first = self.settings[0]
        training: Mapping[str, Any] = {"shots": first.shots, "queries": first.queries}
        if first.ways:
            training = {**training, "ways": first.ways}
        return lm.EpisodicDataModule(source, **{**training, **setting.options, **options})

    @property
    def version(self) -> str:
        """Eight digits that change with the domain's definition."""
        content = repr([self.name, self.input_shape, [setting.options for setting in self.settings]])
        return hashlib.sha256(content.encode()).hexdigest()[:8]


def _in_data_folder(name: str) -> Path:
    folder = data_folder()
    assert folder is not None  # as `needs` was checked
    return folder / name


def _landmine() -> lm.sources.RegressionTable:
    return lm.sources.RegressionTable(_in_data_folder("tables/landmine.csv"), targets="mine", task_column="field")


DOMAINS = (
    Domain(
        "glyphs",
        "Glyphs",
        (1, 28, 28),
        lm.sources.Glyphs,
        [Setting(1, 10, 600, "", 5)],  # a character has 12 faces
    ),
    Domain(
        "omniglot",
        "Omniglot, split of Vinyals",
        (1, 28, 28),
        lm.sources.Omniglot,
        [Setting(1, 15, 600, "", 5), Setting(1, 5, 600, "", 20)],
    ),
    Domain(
        "omniglot_lake",
        "Omniglot, official split",
        (1, 28, 28),
        lambda: lm.sources.Omniglot("lake"),
        [Setting(1, 15, 600, "", 5), Setting(1, 5, 600, "", 20)],
    ),
    Domain(
        "cifar_fs",
        "CIFAR-FS",
        (3, 32, 32),
        lm.sources.CIFARFS,
        [Setting(1, 15, 600, "", 5), Setting(5, 15, 600, "", 5)],
    ),
    Domain(
        "fc100",
        "FC100",
        (3, 32, 32),
        lm.sources.FC100,
        [Setting(1, 15, 600, "", 5), Setting(5, 15, 600, "", 5)],
    ),
    Domain(
        "mini_imagenet",
        "mini-ImageNet",
        (3, 84, 84),
        lambda: lm.sources.MiniImageNet(_in_data_folder("mini_imagenet")),
        [Setting(1, 15, 600, "", 5), Setting(5, 15, 600, "", 5)],
        needs=["mini_imagenet/images"],
    ),
    Domain(
        "sinusoid",
        "Sine waves",
        (1,),
        lm.sources.Sinusoid,
        [Setting(5, 100, 1000, ""), Setting(10, 100, 1000, "")],
        unit="",
    ),
    Domain(
        "gaussian_process", "Gaussian process", (1,), lm.sources.GaussianProcess, [Setting(10, 50, 1000, "")], unit=""
    ),
    Domain(
        "parkinsons",
        "Parkinson's, total UPDRS of a new person",
        (16,),
        lm.sources.ParkinsonsFewShot,
        [Setting(10, 80, 800, "")],
        unit="points²",
    ),
    Domain(
        "landmine",
        "Landmine, probability of a mine in a new field",
        (9,),
        _landmine,
        [Setting(20, 80, 600, "")],
        needs=["tables/landmine.csv"],
        unit="",
    ),
)


def named(names: Sequence[str]) -> list[Domain]:
    """The domains of these names, in the order of `DOMAINS`; all if there are none.

    Raises:
        UserError: There is no domain of a name.
    """
    known = [domain.name for domain in DOMAINS]
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"--only: there is no domain {unknown[0]!r}; expected some of {', '.join(known)}")
    return [domain for domain in DOMAINS if not names or domain.name in names]
