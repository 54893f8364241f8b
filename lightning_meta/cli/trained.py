"""The trained model of `test` and `predict`: its options, and loading it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from jsonargparse import Namespace

from lightning_meta.checks import whole
from lightning_meta.cli.helping import Parser
from lightning_meta.cli.trust import SUGGESTED_FIX
from lightning_meta.errors import UserError
from lightning_meta.import_paths import UntrustedClassError
from lightning_meta.loading import load
from lightning_meta.run import read_checkpoint
from lightning_meta.specifications import class_paths

OF_MODEL = {"steps": "test_inner_steps", "batch_norm": "batch_norm"}


def add_model_options(parser: Parser) -> None:
    """Add the options that choose a model and what replaces the options that it was trained with."""
    parser.option("--ckpt_path RUN", str, "A run (its best checkpoint) or a checkpoint.", required=True)
    parser.option("--steps S", int | None, "Inner steps, for methods with an inner loop.")
    statistics = "transductive, inductive or running statistics for query examples; by default as in training."
    parser.option("--batch_norm WHICH", Literal["transductive", "inductive", "running"] | None, statistics)
    parser.option("--trust", bool, "Also import classes of your own that the run uses, which runs their code.")


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
