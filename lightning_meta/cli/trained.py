"""Load the trained model of a command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning_meta.checks import whole
from lightning_meta.cli.trust import MEND
from lightning_meta.configuration import UntrustedClassError, class_paths
from lightning_meta.errors import UserError
from lightning_meta.loading import load
from lightning_meta.run import read_checkpoint

OF_MODEL = {"steps": "test_inner_steps", "batch_norm": "batch_norm"}


def load_trained(checkpoint: Path, *, trust: bool, **options: Any) -> Any:
    """Load a model.

    Args:
        checkpoint: The checkpoint file.
        trust: Whether to import and instantiate classes of any module that the checkpoint names.
        **options: Values of `steps` and `batch_norm` that replace the stored ones; None keeps them.

    Raises:
        UserError: The model has no such option, or `lightning_meta.load` refuses.
    """
    stored = read_checkpoint(checkpoint).get("lightning_meta") or {}
    init_args = stored.get("init_args") or {} if isinstance(stored, dict) else {}
    if not isinstance(init_args, dict):
        raise UserError(f"{checkpoint} is not a checkpoint of lightning_meta, or is damaged")
    overrides = {}
    whole(0, **{"--steps": options.get("steps")})
    for option, value in options.items():
        if value is not None:
            if OF_MODEL[option] not in init_args:
                raise UserError(f"--{option}: {stored.get('class_path')} has no {OF_MODEL[option]}")
            overrides[OF_MODEL[option]] = value
    if options.get("batch_norm") == "running" and init_args["batch_norm"] != "running":
        raise UserError(
            f"--batch_norm: the model was trained with --model.batch_norm {init_args['batch_norm']}, without running "
            "statistics; expected transductive or inductive"
        )
    try:
        allow = sorted(set(class_paths(stored))) if trust else ()
    except UserError as error:  # nested too deeply
        raise UserError(f"{checkpoint}: {error}") from error
    try:
        return load(checkpoint, allow=allow, **overrides)
    except UntrustedClassError as error:
        raise UserError(f"{checkpoint}: the class {error.path} is not one of lightning_meta's; {MEND}") from error
