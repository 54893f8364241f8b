"""Names of earlier versions: class paths in configurations and checkpoints, and tensors in checkpoints."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_meta.errors import UserError

TRAINED_IN = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

LAYOUT = 2
"""Number of the format of checkpoints, stored in each; 1 is that of version 0.1."""

# To move a file or a class, add a line to PATHS; to rename a tensor, add one to WEIGHTS. The files in tests/checkpoints
# test that checkpoints and configurations of earlier versions still load.

# Current path of a package, module or class by its earlier path.
PATHS = {
    "lightning_meta.data.sources": "lightning_meta.sources",
    "lightning_meta.multitask.weightings": "lightning_meta.weightings",
}
# By class: prefixes of tensor names in layout 1 and now; the first match is used.
WEIGHTS: dict[str, tuple[tuple[str, str], ...]] = {
    "GradientBasedLearner": (("network.backbone.", "backbone."), ("network.head.", "head.")),
    "MetaModule": (("network.", "backbone."),),
    "Independent": (("networks.", "backbone."),),
    "CrossStitch": (("columns.", "backbone."),),
    "MixtureOfExperts": (("experts.", "backbone."),),
}
# Last part of tensor names in layout 1 and now, for all classes.
STATISTICS = {"mean": "running_mean", "var": "running_var"}

_BEST = "best._extra_state"
EARLIER_PATH = re.compile(
    r"(?<![\w.])(" + "|".join(map(re.escape, sorted(PATHS, key=len, reverse=True))) + r")(?![\w])"
)


def current_path(earlier: re.Match[str]) -> str:
    """Return the current path for a match of `EARLIER_PATH`.

    >>> EARLIER_PATH.sub(current_path, "source: lightning_meta.data.sources.Omniglot")
    'source: lightning_meta.sources.Omniglot'
    """
    return PATHS[earlier[0]]


def layout_of(checkpoint: Mapping[str, Any]) -> int:
    """Return the layout of a checkpoint of this package.

    Raises:
        UserError: The metadata of the checkpoint are not as this package writes them.
    """
    stored = checkpoint.get("lightning_meta") or {}
    layout, task_map = stored.get("layout", 1), stored.get("task_map") or {}
    wrong = [key for key in ("frozen_norms", "frozen_weights") if not _are_names(stored.get(key) or [])]
    if layout not in range(1, LAYOUT + 1):
        wrong.append("layout")
    size = task_map.get("chunk_size") if isinstance(task_map, Mapping) else 0
    if not (size is None or (isinstance(size, int) and size > 0)):
        wrong.append("task_map")
    if wrong:
        raise UserError(
            f"the checkpoint is damaged, or was written by a later version of lightning_meta: its {wrong[0]} is "
            f"{str(stored.get(wrong[0]))[:50]!r}"
        )
    return int(layout)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def renamed_weights(weights: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Convert a state dict of layout 1 to current names.

    Args:
        weights: Tensors by their names in layout 1.
        module: Module to load them into.

    Returns:
        Tensors by current names, with the module's own counters of batch normalisation, which layout 1 lacks.
    """
    own = module.state_dict()
    moved = next((WEIGHTS[c.__name__] for c in type(module).__mro__ if c.__name__ in WEIGHTS), ())
    converted: dict[str, Tensor] = {}
    for old, tensor in weights.items():
        name = next((new + old[len(start) :] for start, new in moved if old.startswith(start)), old)
        parent, _, last = name.rpartition(".")
        if name not in own and last in STATISTICS:
            name = f"{parent}.{STATISTICS[last]}"
        converted[name] = tensor
    counters = {name: t for name, t in own.items() if name.endswith("num_batches_tracked") and name not in converted}
    return {**converted, **counters}


def fits_dtype(stored: torch.dtype, own: torch.dtype) -> bool:
    """Whether stored weights have the module's dtype, or both are dtypes that networks are trained in."""
    return stored == own or (stored in TRAINED_IN and own in TRAINED_IN)


def with_losses(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Add the missing losses of the best validations to an earlier state dict of a multi-task module.

    They are set to -inf, so that the stored validations lose every tie.
    """
    converted = dict(weights)
    best = converted.get(_BEST)
    if isinstance(best, Tensor) and best.dim() == 2 and len(best) == 2:
        converted[_BEST] = torch.stack([best[0], torch.full_like(best[0], -torch.inf), best[1]])
    return converted


def take_precision(module: nn.Module, weights: Mapping[str, Any]) -> None:
    """Convert a module to the dtype of stored weights, so that loading does not round them.

    Raises:
        UserError: The dtypes differ, and the stored one is not a dtype that networks are trained in.
    """
    for name, parameter in module.named_parameters():
        stored = weights.get(name)
        if not isinstance(stored, Tensor) or stored.dtype == parameter.dtype:
            continue
        if not fits_dtype(stored.dtype, parameter.dtype):
            raise UserError(f"{name} is {stored.dtype} in the checkpoint and {parameter.dtype} in the module")
        module.to(stored.dtype)
        break
