"""Conversion of learn2learn's MAML checkpoints."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from lightning_meta.describing import describe
from lightning_meta.errors import UserError
from lightning_meta.meta import MAML
from lightning_meta.nn import Conv4
from lightning_meta.nn.stateless import Tensors
from lightning_meta.reading import check_regular
from lightning_meta.run.intact import check_before_torch

_STATISTICS = {"running_mean", "running_var"}


def convert_maml(path: str | PathLike[str], module: MAML) -> MAML:
    """Load a file written by `torch.save(learn2learn.algorithms.MAML(model).state_dict(), path)` into a MAML.

    Layers are matched in the order in which the networks list them, backbone before head. learn2learn's vision models
    list a block's `normalize` before the `conv` or `linear` that it follows; it is moved behind that layer. Matching
    layers must have the same weights with the same shapes, otherwise an error is raised and nothing is loaded. Running
    statistics of batch normalisation are loaded if the file has them; a MAML normalises by the statistics of the task
    alone, as learn2learn's does in training mode.

    The file contains weights only. The caller must ensure that everything else matches, such as pooling, strides, ε,
    and whether a layer without running statistics normalises over the batch.

    Args:
        path: The file, with tensors only.
        module: A MAML with the same architecture and with `episodes`, for `OmniglotCNN(5)`
            `MAML(Conv4(1, 64, "stride", "mean"), episodes=EpisodeSpec("classification", (1, 28, 28), 5))`, and for
            `CNN4(5, hidden_size=32)` `MAML(Conv4(3, 32), episodes=EpisodeSpec("classification", (3, 84, 84), 5))`. It
            is changed in place.

    Returns:
        The module.

    Raises:
        UserError: The file contains something else, or a layer does not match; the first such layer is named.
    """
    module.configure_model()
    tensors = _tensors(path)
    _refuse_other_pooling(path, tensors, module.backbone)
    theirs, ours = _layers(tensors), _layers(module.network.state_dict(keep_vars=True))
    if len(theirs) != len(ours):
        raise UserError(
            f"{path}: it holds {len(theirs)} layers with weights, the module has {len(ours)}: other architectures"
        )
    pairs = list(zip(theirs.items(), ours.items(), strict=True))
    for (source, given), (target, own) in pairs:
        missing, shapes = own.keys() - given.keys(), {name: t.shape for name, t in own.items()}
        if not missing <= _STATISTICS or any(shapes.get(name) != t.shape for name, t in given.items()):
            raise UserError(f"{path}: {_shown(source, given)} does not fit {_shown(target, own)} in the module")
    with torch.no_grad():
        for (_, given), (_, own) in pairs:
            for name, tensor in given.items():
                own[name].copy_(tensor)
    return module


def _layers(tensors: Tensors) -> dict[str, Tensors]:
    """The weights of each layer, in order of computation; shared weights only occur in the first layer listed."""
    layers: dict[str, Tensors] = {}
    seen: set[object] = set()  # storage and offset of each tensor
    for name, tensor in tensors.items():
        layer, _, last = name.rpartition(".")
        place = tensor.untyped_storage().data_ptr(), tensor.storage_offset()
        if place not in seen and last != "num_batches_tracked":
            seen.add(place)
            layers.setdefault(layer, {})[last] = tensor
    names = list(layers)
    for i in range(len(names) - 1):
        block, _, last = names[i].rpartition(".")
        if last == "normalize" and names[i + 1] in (f"{block}.conv", f"{block}.linear"):
            names[i], names[i + 1] = names[i + 1], names[i]
    return {name: layers[name] for name in names}


def _refuse_other_pooling(path: str | PathLike[str], tensors: Iterable[str], backbone: nn.Module) -> None:
    """Refuse an OmniglotCNN for a Conv4 with other downsampling, whose weights have the same shapes.

    An OmniglotCNN, recognised by its blocks being listed twice, has strides and a spatial mean.
    """
    twice = {"base.0.conv.weight", "features.1.0.conv.weight"}
    if isinstance(backbone, Conv4) and twice <= {name.removeprefix("module.") for name in tensors}:
        given = describe(backbone)["init_args"]
        if (given["downsample"], given["spatial"]) != ("stride", "mean"):
            raise UserError(
                f"{path}: it holds an OmniglotCNN, so Conv4 must have downsample 'stride' and spatial 'mean'; got "
                f"{given['downsample']!r} and {given['spatial']!r}"
            )


def _shown(name: str, layer: Tensors) -> str:
    return f"{name} ({', '.join(f'{last} {tuple(t.shape)}' for last, t in layer.items())})"


def _tensors(path: str | PathLike[str]) -> Tensors:
    check_regular(path)
    try:
        check_before_torch(path)
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except UserError as error:
        raise UserError(f"{error}; save the state_dict alone") from error
    except Exception as error:  # torch.load raises errors of many types
        raise UserError(f"{path} holds more than tensors, or is damaged; save the state_dict alone") from error
    if not isinstance(state, dict) or not all(map(_is_named_tensor, state.items())):
        raise UserError(f"{path} is not a state_dict: save learn2learn's MAML(...).state_dict()")
    return state


def _is_named_tensor(item: tuple[Any, Any]) -> bool:
    name, tensor = item
    return isinstance(name, str) and isinstance(tensor, Tensor) and tensor.layout == torch.strided
