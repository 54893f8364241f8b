"""The trained model that a command is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from lightning_meta.configuration import class_paths
from lightning_meta.errors import UserError
from lightning_meta.loading import load
from lightning_meta.run import read_checkpoint
from lightning_meta.run.directory import run_directory_of

OF_MODEL = {"steps": "test_inner_steps", "batch_norm": "batch_norm"}


def load_trained(checkpoint: Path, **options: Any) -> Any:
    """Load a model; classes that its run's own configuration names are trusted as the configuration is.

    Args:
        checkpoint: The file.
        **options: `steps` and `batch_norm` in place of the stored ones; None leaves those.

    Raises:
        UserError: The model has no such option, or `lightning_meta.load` refuses.
    """
    stored = read_checkpoint(checkpoint).get("lightning_meta") or {}
    init_args = stored.get("init_args") or {}
    overrides = {}
    for option, value in options.items():
        if value is not None:
            if OF_MODEL[option] not in init_args:
                raise UserError(f"--{option}: {stored.get('class_path')} has no {OF_MODEL[option]}")
            overrides[OF_MODEL[option]] = value
    if options.get("batch_norm") == "running" and init_args["batch_norm"] != "running":
        raise UserError(
            f"--batch_norm: running statistics were not kept in training with "
            f"batch_norm={init_args['batch_norm']}; expected transductive or inductive"
        )
    run = run_directory_of(checkpoint)
    named = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8")) if run else {}
    return load(checkpoint, allow=sorted(set(class_paths(named.get("model")))), **overrides)
