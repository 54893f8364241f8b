"""The runs of a ladder and their state: not started, started or finished."""

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
from lightning_meta.run.directory import versions
from lightning_meta.run.files import replacing

# A single run may be resumed with another budget; in a ladder all runs have the same.
BUDGET = ("trainer.max_", "trainer.min_")


@dataclass(frozen=True)
class PlannedRun:
    """One rung with one seed.

    Attributes:
        rung: Name of the rung.
        seed: The value of `seed_everything`.
        file: The complete configuration for `fit --config`.
        directory: The run directory; None if the run was not started.
        finished: Whether the run directory has results.
    """

    rung: str
    seed: int
    file: Path
    directory: Path | None = None
    finished: bool = False

    @property
    def title(self) -> str:
        """Name of the run in messages."""
        return f"{self.rung}, seed {self.seed}"

    @property
    def root(self) -> Path:
        """The folder of the rung's run directories."""
        return self.file.parent.parent / self.rung

    @property
    def arguments(self) -> list[str]:
        """The options of `fit` that start or resume the run."""
        return ["--config", str(self.file), *([] if self.directory is None else ["--ckpt_path", str(self.directory)])]


def plan(ladder: Ladder) -> list[PlannedRun]:
    """List the runs of a ladder, seed by seed, with their state, and write their configurations.

    Run directories without a checkpoint are ignored.

    Raises:
        UserError: A run was started with another configuration.
    """
    runs = []
    started = {rung: _started(ladder.folder / rung) for rung in ladder.rungs}
    for seed in ladder.seeds:
        for rung, config in ladder.rungs.items():
            file = ladder.folder / "configs" / f"{rung}_seed_{seed}.yaml"
            config = {**config, "seed_everything": seed}
            same_seed = [(run, stored) for run, stored in started[rung] if stored.get("seed_everything") == seed]
            same_seed.sort(key=lambda run_and_config: not _finished(run_and_config[0]))
            directory = same_seed[0][0] if same_seed else None
            if directory is not None and (changed := _changes(same_seed[0][1], config)):
                raise UserError(
                    f"{directory} was started with another configuration: {changed[0]}; change it back, give the "
                    f"ladder another --name, or remove {directory}"
                )
            with replacing(file) as stream:
                yaml.safe_dump(config, stream, sort_keys=False, allow_unicode=True)
            runs.append(PlannedRun(rung, seed, file, directory, directory is not None and _finished(directory)))
    return runs


def _finished(directory: Path) -> bool:
    return all((directory / f).is_file() for f in ("results.json", "per_task.csv", "predictions.npz"))


def _started(root: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Run directories with a checkpoint or results, and their configurations."""
    runs = []
    for version in versions(root):
        directory = root / str(version)
        resumable = any((directory / f).is_file() for f in ("results.json", "checkpoints/last.ckpt"))
        if resumable and (directory / "config.yaml").is_file():
            try:
                stored = read_yaml(directory / "config.yaml")
            except (OSError, ValueError, yaml.YAMLError) as error:
                raise UserError(f"{directory / 'config.yaml'} is damaged; remove {directory}") from error
            runs.append((directory, stored if isinstance(stored, dict) else {}))
    return runs


def _changes(stored: Mapping[str, Any], config: Mapping[str, Any]) -> list[Difference]:
    """Differences that affect the results. Others, such as the number of workers, are allowed on a resume."""
    return [
        d for d in differences(stored, config) if d.kind in ("meaning", "impossible") or d.option.startswith(BUDGET)
    ]
