"""How far each run of a ladder has come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lightning_meta.cli.ladder.file import Ladder
from lightning_meta.errors import UserError
from lightning_meta.reading import read_yaml
from lightning_meta.run.differences import Difference, differences
from lightning_meta.run.files import replacing
from lightning_meta.run.logger import versions

BUDGET = ("trainer.max_", "trainer.min_")
"""A run may be resumed with another one; a ladder gives all its runs the same."""


@dataclass(frozen=True)
class PlannedRun:
    """One rung with one seed.

    Attributes:
        rung: Its name.
        seed: `seed_everything`.
        file: The whole configuration, as `fit --config` takes it.
        directory: The run directory, where it was begun.
        finished: Whether it has its results.
    """

    rung: str
    seed: int
    file: Path
    directory: Path | None = None
    finished: bool = False

    @property
    def title(self) -> str:
        """How it is called in messages."""
        return f"{self.rung}, seed {self.seed}"

    @property
    def root(self) -> Path:
        """The folder of the rung's run directories."""
        return self.file.parent.parent / self.rung

    @property
    def arguments(self) -> list[str]:
        """The options of `fit` that begin it, or go on with it."""
        return ["--config", str(self.file), *([] if self.directory is None else ["--ckpt_path", str(self.directory)])]


def plan(ladder: Ladder) -> list[PlannedRun]:
    """The runs of a ladder, seed by seed, with what is there of them already; writes their configurations.

    A run directory that stopped before its first checkpoint is passed over.

    Raises:
        UserError: A run was begun with another configuration.
    """
    runs = []
    begun = {rung: _begun(ladder.folder / rung) for rung in ladder.rungs}
    for seed in ladder.seeds:
        for rung, config in ladder.rungs.items():
            file = ladder.folder / "configs" / f"{rung}_seed_{seed}.yaml"
            config = {**config, "seed_everything": seed}
            there = [(directory, stored) for directory, stored in begun[rung] if stored.get("seed_everything") == seed]
            there.sort(key=lambda found: not _finished(found[0]))
            directory = there[0][0] if there else None
            if directory is not None and (changed := _changes(there[0][1], config)):
                raise UserError(
                    f"{directory} was begun with another configuration: {changed[0]}; put it back, give the ladder "
                    f"another --name, or remove {directory}"
                )
            with replacing(file) as stream:
                yaml.safe_dump(config, stream, sort_keys=False, allow_unicode=True)
            runs.append(PlannedRun(rung, seed, file, directory, directory is not None and _finished(directory)))
    return runs


def _finished(directory: Path) -> bool:
    return all((directory / f).is_file() for f in ("results.json", "per_task.csv", "predictions.npz"))


def _begun(root: Path) -> list[tuple[Path, dict[str, Any]]]:
    found = []
    for version in versions(root):
        directory = root / str(version)
        there = any((directory / f).is_file() for f in ("results.json", "checkpoints/last.ckpt"))
        if there and (directory / "config.yaml").is_file():
            try:
                stored = read_yaml(directory / "config.yaml")
            except (OSError, ValueError, yaml.YAMLError) as error:
                raise UserError(f"{directory / 'config.yaml'} is damaged; remove {directory}") from error
            found.append((directory, stored if isinstance(stored, dict) else {}))
    return found


def _changes(stored: Mapping[str, Any], config: Mapping[str, Any]) -> list[Difference]:
    """What makes a run another one. The rest, such as the number of workers, takes effect in what is still to train."""
    return [
        d for d in differences(stored, config) if d.kind in ("meaning", "impossible") or d.option.startswith(BUDGET)
    ]
