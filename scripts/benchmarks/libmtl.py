"""Training steps of LibMTL, written as in the loop of its Trainer, which itself only runs on a GPU."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterable
from itertools import chain, repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.peers import peer

Batch = list[tuple[Tensor, Tensor]]


def step_of(backbone: nn.Module, heads: Iterable[nn.Module], batches: Iterable[Batch]) -> Callable[[], Tensor] | None:
    """A training step with the given layers, hard parameter sharing, equal weights and Adam.

    Left out are the metrics that LibMTL computes on every training batch.

    Args:
        backbone: Shared layers.
        heads: Layers of each task.
        batches: Epochs of batches, as of plain torch: one pair for each task, or a single one for all.

    Returns:
        The step, which returns the sum of the losses; None if LibMTL is not installed.
    """
    utils: Any = types.ModuleType("torchvision.models.utils")  # of an older torchvision, which LibMTL imports
    utils.load_state_dict_from_url = torch.hub.load_state_dict_from_url
    sys.modules.setdefault(utils.__name__, utils)
    library = peer("LibMTL")
    if library is None:
        return None
    error = type("Error", (library.loss.AbsLoss,), {"compute_loss": lambda self, pred, gt: F.mse_loss(pred, gt)})
    method: Any = type("Method", (library.architecture.HPS, library.weighting.EW), {})
    decoders = nn.ModuleDict({f"task_{i}": head for i, head in enumerate(heads)})
    names = list(decoders)
    losses: dict[str, Any] = {name: error() for name in names}
    drawn = chain.from_iterable(repeat(batches))
    model = method(names, lambda: backbone, decoders, False, True, torch.device("cpu"))
    optimizer = torch.optim.Adam(model.parameters())

    def step() -> Tensor:
        batch = next(drawn)
        of_tasks = torch.zeros(len(names))
        if len(batch) == 1:
            x, targets = batch[0]
            predicted = model(x)
            for i, (name, y) in enumerate(zip(names, targets.unsqueeze(-1).unbind(1), strict=True)):
                of_tasks[i] = losses[name]._update_loss(predicted[name], y)
        else:
            for i, (name, (x, y)) in enumerate(zip(names, batch, strict=True)):
                of_tasks[i] = losses[name]._update_loss(model(x, name)[name], y)
        optimizer.zero_grad()
        model.backward(of_tasks)
        optimizer.step()
        return of_tasks.detach().sum()

    return step
