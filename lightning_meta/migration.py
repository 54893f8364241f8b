"""What earlier versions called otherwise: class paths in configurations and checkpoints, tensors in checkpoints."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_meta.errors import UserError

TRAINED_IN = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

LAYOUT = 2
"""Stands in every checkpoint. 1: the networks of version 0.1."""

# The table of what has moved. A file or a class that moves gets a line in the first part, a tensor that gets another
# name one in the second; the stored checkpoints and configurations in tests/checkpoints show that they still load.

# Modules and packages, or classes, by their earlier path.
PATHS = {
    "lightning_meta.data.sources": "lightning_meta.sources",
    "lightning_meta.multitask.weightings": "lightning_meta.weightings",
}
# By class, beginnings of names of tensors in layout 1 and now; the first that fits counts.
WEIGHTS: dict[str, tuple[tuple[str, str], ...]] = {
    "GradientBasedLearner": (("network.backbone.", "backbone."), ("network.head.", "head.")),
    "MetaModule": (("network.", "backbone."),),
    "Independent": (("networks.", "backbone."),),
    "CrossStitch": (("columns.", "backbone."),),
    "MixtureOfExperts": (("experts.", "backbone."),),
}
# Ends of names of tensors in layout 1 and now, in every class.
STATISTICS = {"mean": "running_mean", "var": "running_var"}

_BEST = "best._extra_state"
_EARLIER_PATH = re.compile(
    r"(?<![\w.])(" + "|".join(map(re.escape, sorted(PATHS, key=len, reverse=True))) + r")(?![\w])"
)


def renamed(text: str) -> str:
    """A text in which class paths of earlier versions are those of this one.

    >>> renamed("source: lightning_meta.data.sources.Omniglot")
    'source: lightning_meta.sources.Omniglot'
    """
    return _EARLIER_PATH.sub(lambda found: PATHS[found[0]], text)


def layout_of(checkpoint: Mapping[str, Any]) -> int:
    """The layout that a checkpoint of this package has.

    Raises:
        UserError: What a checkpoint says beside its tensors is not what this package writes.
    """
    stored = checkpoint.get("lightning_meta") or {}
    layout, chosen = stored.get("layout", 1), stored.get("task_map") or {}
    wrong = [key for key in ("frozen_norms", "frozen_weights") if not _are_names(stored.get(key) or [])]
    if layout not in range(1, LAYOUT + 1):
        wrong.append("layout")
    size = chosen.get("chunk_size") if isinstance(chosen, Mapping) else 0
    if not (size is None or (isinstance(size, int) and size > 0)):
        wrong.append("task_map")
    if wrong:
        raise UserError(
            f"the checkpoint is damaged, or of a later version of lightning_meta: its {wrong[0]} is "
            f"{str(stored.get(wrong[0]))[:50]!r}"
        )
    return int(layout)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def renamed_weights(weights: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """The state dict of layout 1 under the names of today.

    Args:
        weights: By their old names.
        module: The module that they are for.

    Returns:
        By their names today; the counters of batch normalisation, which did not exist, are those of the module.
    """
    own = module.state_dict()
    moved = next((WEIGHTS[c.__name__] for c in type(module).__mro__ if c.__name__ in WEIGHTS), ())
    found: dict[str, Tensor] = {}
    for old, tensor in weights.items():
        name = next((new + old[len(start) :] for start, new in moved if old.startswith(start)), old)
        parent, _, last = name.rpartition(".")
        if name not in own and last in STATISTICS:
            name = f"{parent}.{STATISTICS[last]}"
        found[name] = tensor
    counters = {name: t for name, t in own.items() if name.endswith("num_batches_tracked") and name not in found}
    return {**found, **counters}


def fits_dtype(stored: torch.dtype, own: torch.dtype) -> bool:
    """Whether weights are of the module's own dtype, or of another that a network can be trained in."""
    return stored == own or (stored in TRAINED_IN and own in TRAINED_IN)


def with_losses(weights: Mapping[str, Any]) -> dict[str, Any]:
    """The state dict of a multi-task module that kept no losses of its best validations: these lose every tie."""
    found = dict(weights)
    best = found.get(_BEST)
    if isinstance(best, Tensor) and best.dim() == 2 and len(best) == 2:
        found[_BEST] = torch.stack([best[0], torch.full_like(best[0], -torch.inf), best[1]])
    return found


def take_precision(module: nn.Module, weights: Mapping[str, Any]) -> None:
    """Give a module the precision of weights, which would be rounded to that of a new module.

    Raises:
        UserError: They are of a kind that no network is trained in.
    """
    for name, parameter in module.named_parameters():
        stored = weights.get(name)
        if not isinstance(stored, Tensor) or stored.dtype == parameter.dtype:
            continue
        if not fits_dtype(stored.dtype, parameter.dtype):
            raise UserError(f"{name} is {stored.dtype} in the checkpoint and {parameter.dtype} in the module")
        module.to(stored.dtype)
        break
