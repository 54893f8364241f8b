"""The runs of a ladder and their state: not started, started or finished."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lightning_meta.cli.ladder.file import Ladder
from lightning_meta.errors import UserError
from lightning_meta.reading import read_yaml
from lightning_meta.report.transfer.reading import read_results
from lightning_meta.run.differences import differences
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

    @property
    def results(self) -> dict[str, Any] | None:
        """The content of `results.json`; None if the run is not finished."""
        return read_results(self.directory) if self.finished and self.directory is not None else None


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
            config = {**config, "seed_everything": seed}
            directory, stored = started[rung].get(str(seed), (None, config))
            for change in differences(stored, config):  # others, such as the number of workers, change no results
                if change.kind in ("meaning", "impossible") or change.option.startswith(BUDGET):
                    raise UserError(
                        f"{directory} was started with another configuration: {change}; change it back, give the "
                        f"ladder another --name, or remove {directory}"
                    )
            file = ladder.folder / "configs" / f"{rung}_seed_{seed}.yaml"
            with replacing(file) as stream:
                yaml.safe_dump(config, stream, sort_keys=False, allow_unicode=True)
            runs.append(PlannedRun(rung, seed, file, directory, directory is not None and _finished(directory)))
    return runs


def _finished(directory: Path) -> bool:
    return all((directory / f).is_file() for f in ("results.json", "per_task.csv", "predictions.npz"))


def _started(root: Path) -> dict[str, tuple[Path, dict[str, Any]]]:
    """By seed, the run directory with results, or else with a checkpoint, and its configuration."""
    runs: dict[str, tuple[Path, dict[str, Any]]] = {}
    directories = [root / str(version) for version in versions(root)]
    for directory in sorted(directories, key=_finished, reverse=True):
        resumable = any((directory / f).is_file() for f in ("results.json", "checkpoints/last.ckpt"))
        if not resumable or not (directory / "config.yaml").is_file():
            continue
        try:
            stored = read_yaml(directory / "config.yaml")
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise UserError(f"{directory / 'config.yaml'} is damaged; remove {directory}") from error
        if isinstance(stored, dict):
            runs.setdefault(str(stored.get("seed_everything")), (directory, stored))
    return runs
