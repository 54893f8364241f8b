"""A trained module from its checkpoint, by the path alone."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule

from lightning_meta.configuration import Allow, UntrustedClassError, build, public_path, real_path
from lightning_meta.errors import UserError
from lightning_meta.meta.base import MetaModule
from lightning_meta.migration import layout_of, renamed_weights, take_precision
from lightning_meta.run.checkpoint_io import read_checkpoint

KEY = "lightning_meta"


def load(
    path: str | PathLike[str],
    *,
    allow: Allow = (),
    map_location: torch.device | str = "cpu",
    **overrides: Any,
) -> Any:
    """Load a trained module.

    Args:
        path: A checkpoint, or a run directory: its best checkpoint, or its last where there is no best.
        allow: Classes or names of modules that the checkpoint may instantiate besides the parts of models of this
            package, `torch.nn` and `torch.optim`. Importing a module runs its code: allow what you trust.
        map_location: The device.
        **overrides: Constructor arguments to use in place of the stored ones.

    Returns:
        The module, in evaluation mode.

    Raises:
        UserError: The file is no checkpoint of this package, it names a class that is not allowed, or its
            weights do not fit.
    """
    file = find_checkpoint(path)
    checkpoint = read_checkpoint(file, map_location)
    spec = checkpoint.get(KEY)
    if not isinstance(spec, dict) or not isinstance(spec.get("class_path"), str):
        raise UserError(f"{file} was not written by a module of lightning_meta: it does not say its class")
    stored, weights = spec.get("init_args") or {}, checkpoint["state_dict"]
    if not isinstance(stored, dict) or not isinstance(weights, dict):
        raise UserError(f"{file} is not a checkpoint of lightning_meta, or is damaged")
    init_args = {**stored, **overrides}
    for name, value in init_args.items():
        if isinstance(value, dict) and "instance" in value:
            raise UserError(
                f"{file} was trained with {name}={value['instance']} made in Python, and does not say how: "
                f"give it by name, load(path, {name}=...)"
            )
    try:
        module = build({"class_path": spec["class_path"], "init_args": init_args}, allow)
    except UntrustedClassError as error:
        raise UntrustedClassError(error.path, f"{file}: ") from error
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    if not isinstance(module, LightningModule):
        raise UserError(f"{file}: {spec['class_path']} is not a LightningModule")
    try:
        layout = layout_of(checkpoint)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    module.configure_model()  # makes what depends on the data, which the arguments describe
    if layout == 1:
        weights = renamed_weights(weights, module)
    check_weights(module, weights, file)
    take_precision(module, weights)
    module.load_state_dict(weights)
    module.to(map_location).eval()
    if isinstance(module, MetaModule):
        module.take_state(spec)
    frozen = set(spec.get("frozen_weights") or ())
    for name, parameter in module.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    return module


def find_checkpoint(path: str | PathLike[str]) -> Path:
    """The checkpoint that a path means: itself, or the best, else the last, of a run directory.

    Raises:
        UserError: There is none.
    """
    given = Path(path)
    if given.is_file():
        return given
    for name in ("best.ckpt", "last.ckpt"):
        if (found := given / "checkpoints" / name).is_file():
            return found
    reason = "it holds no checkpoints/best.ckpt or last.ckpt" if given.is_dir() else "there is no such file"
    raise UserError(f"no checkpoint at {given}: {reason}")


def check_weights(module: LightningModule, weights: Any, file: str | PathLike[str]) -> None:
    """Refuse weights of another architecture.

    Raises:
        UserError: The first difference, in one line.
    """
    own = module.state_dict()
    where = f"{file} does not fit {type(module).__name__}"
    for name, tensor in own.items():
        if name not in weights:
            raise UserError(f"{where}: it has no weights for {name} {tuple(tensor.shape)}")
        if not isinstance(weights[name], torch.Tensor):
            raise UserError(f"{where}: {name} is no tensor in the checkpoint")
        if weights[name].shape != tensor.shape:
            got, expected = tuple(weights[name].shape), tuple(tensor.shape)
            raise UserError(f"{where}: {name} is {got} in the checkpoint and {expected} in the module")
    if extra := next((name for name in weights if name not in own), None):
        raise UserError(f"{where}: the module has no {extra}, which the checkpoint holds")


def check_same_class(module: LightningModule, file: str | PathLike[str]) -> None:
    """Refuse to resume a module from the checkpoint of another class.

    Raises:
        UserError: Both classes, or why the file cannot be read.
    """
    checkpoint = read_checkpoint(file)
    stored = (checkpoint.get(KEY) or {}).get("class_path")
    own = public_path(type(module))
    if stored is not None and real_path(str(stored)) != real_path(own):
        raise UserError(f"{file} is a checkpoint of {stored}, the configuration asks for {own}")


def weights_error(error: Exception, file: str | PathLike[str] | None) -> UserError | None:
    """What PyTorch says about weights that do not fit, in one line; None for other errors."""
    headline, *differences = str(error).splitlines() or [""]
    if headline.startswith("loaded state dict"):  # an optimiser's
        return UserError(f"{file} does not fit the configured optimizer: {headline}")
    if not headline.startswith("Error(s) in loading state_dict"):
        return None
    return UserError(f"{file} does not fit the configured model: {differences[0].strip()}")
