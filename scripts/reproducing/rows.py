"""The rows of a table: configurations to train, their figures, and the published values."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from lightning_meta.data.files import data_folder
from lightning_meta.errors import UserError, reason_of
from lightning_meta.reading import read_yaml

ROOT = Path(__file__).parents[2]
TABLES = ("few_shot", "multi_task")
Device = Literal["cpu", "gpu"]


@dataclass(frozen=True)
class Figure:
    """A test metric of a trained model.

    Attributes:
        name: Name of the figure, such as "5-way 1-shot".
        metric: Name of the metric in `results.json`.
        protocol: Test tasks, queries and classes, for comparison.
        test: Options of `lightning-meta test`; empty for the test of `fit`.
        unit: "%" for shares in [0, 1] that are shown in per cent, or "".
        better: Either "higher" or "lower".
        published: Published value in the unit; None if there is none.
        half_width: Half-width of the published 95 % interval; None if there is none.
        source: Source of the published value.
    """

    name: str
    metric: str
    protocol: str
    test: tuple[str, ...] = ()
    unit: str = "%"
    better: str = "higher"
    published: float | None = None
    half_width: float | None = None
    source: str = ""

    @property
    def scale(self) -> float:
        """Factor from the stored metric to the unit."""
        return 100.0 if self.unit == "%" else 1.0


@dataclass(frozen=True)
class Row:
    """A model to train, once for each seed.

    Attributes:
        table: Name of the table.
        name: Name of the row.
        priority: Priority; smaller numbers run first.
        config: Name of a file in `configs/`, without suffix.
        cost: Hours per seed by device, and whether they were "measured" or "estimated".
        figures: Figures of the row.
        options: Further options of `fit`; `{data}` is replaced by the folder `LIGHTNING_META_DATA`.
        needs: Files in that folder that cannot be downloaded automatically.
        deviations: Differences from the publication.
        comparable: Whether the published figures used the same protocol and network.
        shortened: Description of a shortened training; such a row is not judged.
    """

    table: str
    name: str
    priority: int
    config: str
    cost: Mapping[Device, tuple[float, str]]
    figures: tuple[Figure, ...]
    options: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    deviations: str = ""
    comparable: bool = True
    shortened: str = ""

    @property
    def version(self) -> str:
        """Eight hexadecimal digits that identify the configuration and its options."""
        content = [read_yaml(self.file), self.options]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]

    @property
    def file(self) -> Path:
        """Path of the configuration."""
        return ROOT / "configs" / f"{self.config}.yaml"

    @property
    def processes(self) -> int:
        """Number of processes of a seed: one of `fit`, and one for each further test."""
        return 1 + len({figure.test for figure in self.figures if figure.test})

    @property
    def budget(self) -> tuple[int, str]:
        """Length of the training: a number, and "steps" or "epochs"."""
        trainer = dict(read_yaml(self.file)["trainer"])
        for option in self.options:
            name, _, value = option.partition("=")
            if name.startswith("--trainer."):
                trainer[name.removeprefix("--trainer.")] = value
        return (
            (int(trainer["max_steps"]), "steps") if "max_steps" in trainer else (int(trainer["max_epochs"]), "epochs")
        )

    def arguments(self, seed: int) -> list[str]:
        """The options of `fit`, without the folder.

        Raises:
            UserError: The folder of data sets is needed and not set.
        """
        options = [f"--config={self.file}", *self.options, f"--seed_everything={seed}"]
        if not any("{data}" in option for option in options):
            return options
        folder = data_folder()
        if folder is None:
            raise UserError(f"{self.name}: set LIGHTNING_META_DATA to the folder that holds {', '.join(self.needs)}")
        return [option.replace("{data}", str(folder.resolve())) for option in options]

    def missing(self) -> str:
        """The first needed file that is missing; "" if there is none."""
        folder = data_folder()
        return next((name for name in self.needs if folder is None or not (folder / name).exists()), "")


def read_rows(table: str, only: Sequence[str] = (), file: Path | None = None) -> list[Row]:
    """Read the rows of a table by priority.

    Args:
        table: One of `TABLES`.
        only: Names of rows; empty for all.
        file: File of the rows; by default that of the table.

    Raises:
        UserError: The file is not valid, or has no row of a name.
    """
    file = file or Path(__file__).with_name(f"{table}.yaml")
    rows = [_row(f"{file.name}, {name}", table, name, row) for name, row in read_entries(file).items()]
    names = [row.name for row in rows]
    if unknown := [name for name in only if name not in names]:
        raise UserError(f"--only: the table {table} has no row {unknown[0]!r}; it has {', '.join(names)}")
    return sorted((row for row in rows if not only or row.name in only), key=lambda row: row.priority)


def read_entries(file: Path) -> dict[str, dict[str, Any]]:
    """Read the entries of a file of rows by name.

    Raises:
        UserError: The file cannot be read, is no YAML, or has no entries with keys.
    """
    try:
        content = read_yaml(file)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{file.name}: {reason_of(error)}") from error
    if not isinstance(content, dict) or not all(isinstance(entry, dict) for entry in content.values()):
        raise UserError(f"{file.name}: expected the name of a row, and below it its keys")
    return content


def _row(where: str, table: str, name: str, content: Mapping[str, Any]) -> Row:
    figures = tuple(_figure(where, figure) for figure in _checked_keys(where, Row, content).get("figures") or ())
    if len({figure.name for figure in figures}) < max(1, len(figures)):
        raise UserError(f"{where}: expected one figure or more, of different names")
    cost = {device: _cost(where, str(text)) for device, text in content.get("cost", {}).items()}
    if set(cost) != {"cpu", "gpu"}:
        raise UserError(f"{where}, cost: expected cpu and gpu, got {', '.join(cost) or 'nothing'}")
    lists = {key: tuple(map(str, content.get(key, ()))) for key in ("options", "needs")}
    return Row(**{**content, **lists, "table": table, "name": name, "cost": cost, "figures": figures})


def _figure(where: str, content: Mapping[str, Any]) -> Figure:
    figure = Figure(**{**_checked_keys(where, Figure, content), "test": tuple(map(str, content.get("test", ())))})
    if figure.unit not in ("%", "") or figure.better not in ("higher", "lower"):
        raise UserError(f"{where}, {figure.name}: expected the unit % or none, and better higher or lower")
    if figure.published is not None and not figure.source:
        raise UserError(f"{where}, {figure.name}: {figure.published} has no source; name the paper and its table")
    return figure


def _checked_keys(where: str, cls: type, content: Mapping[str, Any]) -> Mapping[str, Any]:
    keys = {field.name for field in fields(cls)} - {"table"}
    if unknown := [key for key in content if key not in keys]:
        raise UserError(f"{where}: unknown key {unknown[0]}; expected {', '.join(sorted(keys))}")
    return content


def _cost(where: str, text: str) -> tuple[float, str]:
    number, _, basis = text.partition(" ")
    try:
        hours = float(number)
    except ValueError:
        hours = math.nan
    if not 0 < hours < math.inf or basis not in ("measured", "estimated"):
        raise UserError(f"{where}, cost: expected hours, measured or estimated, such as 0.5 estimated, got {text}")
    return hours, basis
