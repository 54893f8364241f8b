"""Load a trained module from the path of its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import nn

from lightning_meta.building import build, rebuilding
from lightning_meta.checks import instance
from lightning_meta.devices import find_device
from lightning_meta.errors import UserError
from lightning_meta.finite import check_numbers
from lightning_meta.import_paths import TRUSTED, Allow, UntrustedClassError, lies_in
from lightning_meta.migration import fits_dtype, layout_of, renamed_weights, take_precision, with_losses
from lightning_meta.reading import check_regular
from lightning_meta.rehearsal import rehearsal
from lightning_meta.resuming import first_weights_of
from lightning_meta.run.checkpoint_io import read_checkpoint
from lightning_meta.run.record import KEY as RECORD
from lightning_meta.specifications import class_paths, unknown_parts

KEY = "lightning_meta"


def load(
    path: str | PathLike[str],
    *,
    allow: Allow = (),
    map_location: torch.device | str = "cpu",
    **overrides: Any,
) -> Any:
    """Load a trained module.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from lightning import Trainer
        >>> import lightning_meta as lm
        >>> trainer = Trainer(fast_dev_run=True, enable_progress_bar=False, enable_model_summary=False)
        >>> trainer.fit(lm.MAML(lm.nn.MLP()), lm.EpisodicDataModule(lm.sources.Sinusoid()))
        >>> with TemporaryDirectory() as folder:
        ...     trainer.save_checkpoint(f"{folder}/sinusoid.ckpt")
        ...     type(lm.load(f"{folder}/sinusoid.ckpt")).__name__
        'MAML'

    Args:
        path: A checkpoint, or a run directory, whose best checkpoint is loaded, or the last if there is no best.
        allow: Classes, functions or names of modules that the checkpoint may use in addition to the model components of
            this package, `torch.nn` and `torch.optim`. Importing a module runs its code: allow only what you trust. A
            function that is an argument and does not return a model component must be given as an object.
        map_location: The device on which to load the weights, such as "cpu" or "gpu".
        **overrides: Constructor arguments to use instead of the stored ones.

    Returns:
        The module, in evaluation mode.

    Raises:
        UserError: The file is not a checkpoint of this package, it names a class that is not allowed, or its
            weights do not match the module.
    """
    device = find_device(map_location, "map_location")
    file = find_checkpoint(path)
    checkpoint = read_checkpoint(file, device)
    spec = checkpoint.get(KEY)
    if not isinstance(spec, dict) or not isinstance(spec.get("class_path"), str):
        raise UserError(f"{file} was not written by a module of lightning_meta: it does not name its class")
    stored, weights = spec.get("init_args") or {}, checkpoint["state_dict"]
    if not isinstance(stored, dict):
        raise UserError(f"{file} is not a checkpoint of lightning_meta, or is damaged")
    init_args = {**stored, **overrides}
    allow = tuple(allow)
    try:
        _refuse_unknown(init_args)
        layout = layout_of(checkpoint)
        contexts: list[AbstractContextManager[None]] = [nullcontext()]
        if not overrides and _looks_at_no_values(spec):
            contexts.insert(0, rehearsal(weights))  # whose module is forgotten
        for context in contexts:
            with rebuilding(), context:
                module = build({"class_path": spec["class_path"], "init_args": init_args}, allow)
                if not isinstance(module, LightningModule):
                    raise UserError(f"{spec['class_path']} is not a LightningModule")
                module.configure_model()  # creates the parts that depend on the data, from the stored description
                fitting = with_losses(renamed_weights(weights, module) if layout == 1 else weights)
                check_weights(module, fitting, file)
    except UntrustedClassError as error:
        raise UntrustedClassError(error.path, f"{file}: ") from error
    except MisfitError:
        raise
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    for name in sorted(first_weights_of(type(module)) & overrides.keys()):
        if overrides[name] is not None:
            raise UserError(
                f"{name}: it sets the first weights of a new {type(module).__name__}, and the weights of {file} would "
                "replace them; leave it out, or create a new module with it"
            )
    check_numbers(module, fitting, file)
    take_precision(module, fitting)
    module.load_state_dict(fitting)
    module.to(device).eval()
    if take_state := getattr(module, "take_state", None):  # of modules of this package
        take_state(spec)
    if hasattr(module, "run_record"):
        module.run_record = checkpoint.get(RECORD)
    frozen = set(spec.get("frozen_weights") or ())
    for name, parameter in module.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    return module


def _refuse_unknown(init_args: Mapping[str, Any]) -> None:
    for name, made in unknown_parts(init_args):
        raise UserError(
            f"it does not store the arguments of {name} ({made}); pass it to load(path, {name.partition('.')[0]}=...)"
        )


def find_checkpoint(path: str | PathLike[str]) -> Path:
    """Find a checkpoint: the file itself, or the best, otherwise the last, of a run directory.

    Raises:
        UserError: There is no checkpoint at the path, or it is not a path.
    """
    instance("path", path, (str, PathLike))
    given = Path(path)
    try:
        if given.exists() and not given.is_dir():
            check_regular(given)
            return given
        for name in ("best.ckpt", "last.ckpt"):
            if (found := given / "checkpoints" / name).exists():
                check_regular(found)
                return found
    except OSError as error:  # a loop of links, a name that is too long, a folder that may not be read
        raise UserError(f"no checkpoint at {given}: {error.strerror}") from error
    reason = (
        "the folder has no checkpoints/best.ckpt or last.ckpt" if given.is_dir() else "there is no such file or run"
    )
    raise UserError(f"no checkpoint at {given}: {reason}")


class MisfitError(UserError):
    """The weights of a checkpoint do not match the module that it describes."""


def check_weights(module: LightningModule, weights: Any, file: str | PathLike[str]) -> None:
    """Refuse weights of another architecture, layout or data type.

    Raises:
        MisfitError: The weights do not match; the message names the first difference.
    """
    check_tensors(module, weights, str(file))


def check_tensors(module: nn.Module, weights: Any, source: str) -> None:
    """Refuse weights that do not match the tensors of a module one by one.

    Args:
        module: The module for the weights.
        weights: Tensors by name.
        source: Origin of the weights, with which the error begins.

    Raises:
        MisfitError: The weights do not match; the message names the first difference.
    """
    own = module.state_dict()
    where = f"{source} does not fit {type(module).__name__}"
    for name, tensor in own.items():
        if not isinstance(tensor, torch.Tensor):
            continue  # the `get_extra_state` of a custom module
        if name not in weights:
            raise MisfitError(f"{where}: it has no weights for {name} {tuple(tensor.shape)}")
        stored = weights[name]
        if not isinstance(stored, torch.Tensor):
            raise MisfitError(f"{where}: {name} is not a tensor in the checkpoint")
        if stored.shape != tensor.shape:
            got, expected = tuple(stored.shape), tuple(tensor.shape)
            raise MisfitError(f"{where}: {name} is {got} in the checkpoint and {expected} in the module")
        if stored.layout != tensor.layout:
            raise MisfitError(f"{where}: {name} is {stored.layout} in the checkpoint and {tensor.layout} in the module")
        if not fits_dtype(stored.dtype, tensor.dtype):
            raise MisfitError(f"{where}: {name} is {stored.dtype} in the checkpoint and {tensor.dtype} in the module")
    if extra := next((name for name in weights if name not in own), None):
        raise MisfitError(f"{where}: the module has no {extra}, but the checkpoint does")


def _looks_at_no_values(spec: Any) -> bool:
    """Whether a specification names only classes of this package and torch, and no code of the user."""
    return all(lies_in(path, TRUSTED) for path in class_paths(spec))
