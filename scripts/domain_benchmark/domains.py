"""The domains: sources of tasks, fixed test tasks, and their hashes."""

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
        shots: Support examples K per class, or per task in regression.
        queries: Query examples Q per class, or per task in regression.
        tasks: Number of tasks.
        sha256: Hash of the tasks, see `episodes.py`; "" if they have not been drawn yet.
        ways: Classes N per task; 0 in regression.
    """

    shots: int
    queries: int
    tasks: int
    sha256: str
    ways: int = 0

    @property
    def name(self) -> str:
        """Name of the setting, such as `5-way 1-shot`."""
        return f"{self.ways}-way {self.shots}-shot" if self.ways else f"{self.shots} examples"

    @property
    def options(self) -> dict[str, int]:
        """The options of `EpisodicDataModule`."""
        options = {"test_shots": self.shots, "test_queries": self.queries, "test_tasks": self.tasks}
        return {**options, "test_ways": self.ways} if self.ways else options


@dataclass(frozen=True)
class Domain:
    """A source of tasks, and its test tasks.

    Attributes:
        name: Name on the command line.
        title: Title on the page.
        input_shape: Shape of one input: `(C, H, W)` for images, `(F,)` for numbers.
        source: Function that creates the source.
        settings: Test tasks. Training tasks have the sizes of the first, unless a method chooses others.
        needs: Files in `LIGHTNING_META_DATA` that are not downloaded automatically.
        unit: Unit of the score: "%" for accuracy, otherwise that of the squared error.
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
        """Whether targets are numbers, without classes."""
        return not self.settings[0].ways

    @property
    def images(self) -> bool:
        """Whether inputs are images."""
        return len(self.input_shape) == 3

    @property
    def monitor(self) -> str:
        """The metric that selects the best checkpoint."""
        return "val/mse" if self.regression else "val/accuracy"

    def backbone(self, width: int = WIDTH) -> nn.Module:
        """A usual network for the inputs, with new weights.

        Args:
            width: Channels of the four convolutions; inputs that are not images get an MLP 40-40.
        """
        if self.images:
            return lm.nn.Conv4(in_channels=self.input_shape[0], width=width)
        return lm.nn.MLP(math.prod(self.input_shape), [40, 40])

    def missing(self) -> str:
        """The first needed file that is missing; "" if there is none."""
        folder = data_folder()
        return next((name for name in self.needs if folder is None or not (folder / name).exists()), "")

    def data(self, setting: Setting, source: Any, **options: Any) -> lm.EpisodicDataModule:
        """The data module with the test tasks of a setting; training tasks have the sizes of the first setting.

        Args:
            setting: The test tasks.
            source: Result of `source`.
            **options: Further options of the data module, which take precedence.
        """
        first = self.settings[0]
        training: Mapping[str, Any] = {"shots": first.shots, "queries": first.queries}
        if first.ways:
            training = {**training, "ways": first.ways}
        return lm.EpisodicDataModule(source, **{**training, **setting.options, **options})

    @property
    def version(self) -> str:
        """Eight hexadecimal digits that identify the domain's inputs and fixed tasks."""
        content = repr([self.name, self.input_shape, [(s.options, s.sha256) for s in self.settings]])
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
        # A character has 12 faces: 1 + 10 of them.
        [Setting(1, 10, 600, "fbb733580afe653745d23f85813106de1e7f24b25727c2110415ceeb9a19e30f", 5)],
    ),
    Domain(
        "omniglot",
        "Omniglot, split of Vinyals",
        (1, 28, 28),
        lm.sources.Omniglot,
        [
            Setting(1, 15, 600, "90e1d96709945d5fa5c1cdc0586f7224c1d31705e115cb987086084f2ba63fa7", 5),
            Setting(1, 5, 600, "5eebef17a1d09f3839eee10d43256e1c8fd330ac408276f8258e5ae63bdade56", 20),
        ],
    ),
    Domain(
        "omniglot_lake",
        "Omniglot, official split",
        (1, 28, 28),
        lambda: lm.sources.Omniglot("lake"),
        [
            Setting(1, 15, 600, "a3acd9bf29b119672951eef9135897b17bbc129e5df36009d3787e2e05217c90", 5),
            Setting(1, 5, 600, "3e53319b20133d854e078ba23c3140d10c09866b35756ae27be213588eefca51", 20),
        ],
    ),
    Domain(
        "cifar_fs",
        "CIFAR-FS",
        (3, 32, 32),
        lm.sources.CIFARFS,
        [
            Setting(1, 15, 600, "825c05bc71b48e0c8a2b323e036602bf6ca437a0908c83dce699984798f4f842", 5),
            Setting(5, 15, 600, "a9994508e6016589e3ab36f0c9e9e7eeb689916b7c5c5575d7985f8f9a5adba2", 5),
        ],
    ),
    Domain(
        "fc100",
        "FC100",
        (3, 32, 32),
        lm.sources.FC100,
        [
            Setting(1, 15, 600, "20292167bc755b8e575ea57a6ac9e60a99256389949873271b0622a8f1b37b97", 5),
            Setting(5, 15, 600, "b6c21bb8874d940f57faf47e0ce821d9f55da3df664ce4c15fc9ca7ea459b424", 5),
        ],
    ),
    Domain(
        "mini_imagenet",
        "mini-ImageNet",
        (3, 84, 84),
        lambda: lm.sources.MiniImageNet(_in_data_folder("mini_imagenet")),
        [
            Setting(1, 15, 600, "481008db83bf529ec876b364e8f9c1f727e020dbc7f85b4c4bd6263b63ce84e6", 5),
            Setting(5, 15, 600, "df406dbe147ea79d2f5a80c8acba317101434bc4a5caed63980f2b10909e2c54", 5),
        ],
        needs=["mini_imagenet/images"],
    ),
    Domain(
        "sinusoid",
        "Sine waves",
        (1,),
        lm.sources.Sinusoid,
        [
            Setting(5, 100, 1000, "d665c978022e8a9cebef13d8d0d2450c327510e78b0381078de0194a6dccf8ad"),
            Setting(10, 100, 1000, "ca14fae0f7ef8be3c2f8b701a7a75f6517e815d111b9b3abb1e45d2d66623632"),
        ],
        unit="",
    ),
    Domain(
        "gaussian_process",
        "Gaussian process",
        (1,),
        lm.sources.GaussianProcess,
        [Setting(10, 50, 1000, "4e1ec1114122ba2f34ebad550ba7950df12eb420f835ce1647afee5ccec671f7")],
        unit="",
    ),
    Domain(
        "parkinsons",
        "Parkinson's, total UPDRS of a new person",
        (16,),
        lm.sources.ParkinsonsFewShot,
        [Setting(10, 80, 800, "47ce3b91f7b5299b3a6f8d620cddc7081a01621a7e2e0f2841bd2f356ac005c2")],
        unit="points²",
    ),
    Domain(
        "landmine",
        "Landmine, probability of a mine in a new field",
        (9,),
        _landmine,
        [Setting(20, 80, 600, "2f3adce935ac7fdaeeeccba1bcc3b274f7f9b557aaf46ce36bc11a381561c581")],
        needs=["tables/landmine.csv"],
        unit="",
    ),
)


def named(names: Sequence[str]) -> list[Domain]:
    """The domains with these names, in the order of `DOMAINS`; without names all.

    Raises:
        UserError: There is no domain of a name.
    """
    known = [domain.name for domain in DOMAINS]
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"--only: there is no domain {unknown[0]!r}; expected some of {', '.join(known)}")
    return [domain for domain in DOMAINS if not names or domain.name in names]
