"""The configuration of a run started in Python, in the format that the command writes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import lightning
import yaml
from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from lightning_meta.data.module import SourceDataModule
from lightning_meta.describing import Described, refuse_unknown
from lightning_meta.fitting.place import Place
from lightning_meta.run.checkpoints import RunCheckpoint
from lightning_meta.run.written import written
from lightning_meta.specifications import marked
from lightning_meta.tasks import EpisodeSpec, TasksSpec


def config_of(
    module: LightningModule,
    data: LightningDataModule,
    trainer: Mapping[str, Any],
    checkpoint: RunCheckpoint,
    place: Place,
    seed: int | bool,
) -> str:
    """Describe a run as a configuration.

    Args:
        module: The module to train.
        data: The data module.
        trainer: Arguments of the Trainer.
        checkpoint: The callback that chooses the best checkpoint.
        place: Location of the run.
        seed: Seed of the random generators.

    Returns:
        YAML with the same sections, in the same order, as the command writes. An object that cannot be described, or
        that the parser could not instantiate, is `{instance: <its class>}`.

    Raises:
        UserError: The module has arguments without names.
    """
    defaults = {name: p.default for name, p in inspect.signature(Trainer).parameters.items()}
    values = {**defaults, **trainer, **{name: trainer.get(name) or None for name in ("callbacks", "logger")}}
    options = {
        "seed_everything": seed,
        "trainer": {name: written(value) for name, value in values.items()},
        "model": _model(module, data),
        "data": written(data),
        "name": place.name,
        "runs": place.runs,
        "ckpt_path": None,
        "allow_changes": False,
        "checkpoint": {name: written(getattr(checkpoint, name)) for name in ("monitor", "mode", "every_n_steps")},
    }
    return f"# lightning.pytorch=={lightning.__version__}\n" + yaml.safe_dump(options, sort_keys=False)


def _model(module: LightningModule, data: LightningDataModule) -> Any:
    """Describe the module, without the task description that it took from the data, as for a loaded module."""
    spec = written(module)
    if isinstance(module, Described) and marked(spec, "instance"):  # it has arguments without names
        refuse_unknown(module)
    for name, value in getattr(module, "_init_args", {}).items():
        if isinstance(value, EpisodeSpec | TasksSpec) and isinstance(data, SourceDataModule):
            spec["init_args"][name] = None
    return spec
