"""The trained model of `test` and `predict`: its options, and loading it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace

from lightning_meta.checks import whole
from lightning_meta.cli.trust import SUGGESTED_FIX
from lightning_meta.errors import UserError
from lightning_meta.import_paths import UntrustedClassError
from lightning_meta.loading import load
from lightning_meta.run import read_checkpoint
from lightning_meta.specifications import class_paths

OF_MODEL = {"steps": "test_inner_steps", "batch_norm": "batch_norm"}


def add_model_options(parser: ArgumentParser) -> None:
    """Add the options that choose a model and what replaces the options that it was trained with."""
    checkpoint = "A run (its best checkpoint) or a checkpoint."
    parser.add_argument("--ckpt_path", type=str, required=True, metavar="RUN", help=checkpoint)
    steps = "Inner steps, for methods with an inner loop."
    parser.add_argument("--steps", type=int | None, metavar="S", help=steps)
    statistics = "transductive, inductive or running: the statistics that normalise query examples."
    norms = Literal["transductive", "inductive", "running"] | None
    parser.add_argument("--batch_norm", type=norms, metavar="WHICH", help=statistics)
    own_classes = "Also import classes of your own that the run uses, which runs their code."
    parser.add_argument("--trust", action="store_true", help=own_classes)


def load_trained(checkpoint: Path, config: Namespace) -> Any:
    """Load a model with the options of `add_model_options`.

    Raises:
        UserError: The model has no such option, or `lightning_meta.load` refuses.
    """
    stored = read_checkpoint(checkpoint).get("lightning_meta") or {}
    init_args = stored.get("init_args") or {} if isinstance(stored, dict) else {}
    if not isinstance(init_args, dict):
        raise UserError(f"{checkpoint} is not a checkpoint of lightning_meta, or is damaged")
    overrides = {}
    whole(0, **{"--steps": config.steps})
    for option, argument in OF_MODEL.items():
        if config[option] is not None:
            if argument not in init_args:
                raise UserError(f"--{option}: {stored.get('class_path')} has no {argument}")
            overrides[argument] = config[option]
    if config.batch_norm == "running" and init_args["batch_norm"] != "running":
        raise UserError(
            f"--batch_norm: the model was trained with --model.batch_norm {init_args['batch_norm']}, without running "
            "statistics; expected transductive or inductive"
        )
    try:
        allow = sorted(set(class_paths(stored))) if config.trust else ()
    except UserError as error:  # nested too deeply
        raise UserError(f"{checkpoint}: {error}") from error
    try:
        return load(checkpoint, allow=allow, **overrides)
    except UntrustedClassError as error:
        raise UserError(
            f"{checkpoint}: the class {error.path} is not one of lightning_meta's; {SUGGESTED_FIX}"
        ) from error
