"""Low-rank adaptation: a shared backbone, and a low-rank update of its weights for each task."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_meta.checks import positive, whole
from lightning_meta.errors import UserError
from lightning_meta.functional.random_bits import key, name_key
from lightning_meta.multitask.base import MultiTaskModule
from lightning_meta.nn.features import output_size, zeros_like_inputs
from lightning_meta.nn.heads import seeded
from lightning_meta.tasks import TasksSpec


class LowRank(nn.Module):
    r"""A low-rank update of a linear or convolutional layer, $\Delta W x = B A x$; A is Gaussian, B starts at 0.

    Args:
        layer: Linear layer, or convolution without groups.
        rank: Rank r, at least 1.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int) -> None:
        super().__init__()
        weight = layer.weight
        inputs = weight[0].numel()
        self.down = nn.Parameter((torch.randn(rank, *weight.shape[1:]) * inputs**-0.5).to(weight))
        self.up = nn.Parameter(weight.new_zeros(weight.shape[0], rank))

    def forward(self, layer: nn.Module, x: Tensor) -> Tensor:
        """The update of the output of `layer` for inputs `x`."""
        if isinstance(layer, nn.Conv2d):
            return F.conv2d(layer._conv_forward(x, self.down, None), self.up[:, :, None, None])
        return F.linear(F.linear(x, self.down), self.up)

    def merged(self) -> Tensor:
        """BA in the shape of the layer's weight."""
        return (self.up @ self.down.flatten(1)).view(-1, *self.down.shape[1:])


class LoRA(MultiTaskModule):
    r"""A shared backbone with a low-rank update of its layers per task (Hu et al. 2021).

    $$h_i = W x + \frac{\alpha}{r} B_i A_i x$$

    (section 4.1; https://arxiv.org/abs/2106.09685) in each linear layer and each convolution without groups, with
    flattened kernels. Initially $A_i$ is Gaussian and $B_i$ is 0, so that training starts from the backbone.

    The backbone is trained by all tasks. With `nn.Frozen` or `nn.Pretrained` it is frozen, as in the paper; then only
    updates and heads are trained, and there are no shared gradients that a weighting could combine.

    At a glance:
        - Shared: a backbone.
        - Own: a low-rank update and a head.
        - New task: train an update and a head.

    Run it:
        `python scripts/fit.py --config configs/lora_glyphs.yaml`.

    Logged:
        - `test/accuracy/<task>` or `test/r2/<task>`: score of each task on its test examples; `test/score`: the mean
          over tasks.
        - `train/loss`: sum of the losses over tasks, or their combination by `weighting`.

        `MultiTaskModule` explains the other metrics.

    Deviations:
        - Section 4.2: the paper adapts the query and value projections of a Transformer; here all linear and
          convolutional layers that are called are adapted. `torch.nn.MultiheadAttention` uses its weights without
          calling layers, so it has no update.
        - Section 4.1: the paper does not give the variance of A; here it is one over the number of inputs of the layer.
        - The backbone is trained unless it is frozen.
        - Updates are not merged into the weights for inference, because a batch may contain examples of
          several tasks.

    Args:
        backbone: The backbone W. Its layers must receive one row per input, `(M, ...)`. Batch normalisation uses the
            whole batch, in which an input with labels of several tasks occurs once per task.
        rank: Rank r, at least 1.
        alpha: Scale α > 0 of the updates.
        **options: Options of `MultiTaskModule`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        rank: int = 4,
        alpha: float = 4.0,
        **options: Any,
    ) -> None:
        super().__init__(backbone, **options)
        whole(1, rank=rank)
        positive(alpha=alpha)
        self.rank, self.alpha = rank, alpha
        self._recomputing = ExitStack()  # within a backward pass, the updates of the forward pass that it goes through

    def build(self, spec: TasksSpec) -> None:
        """Make an update of each layer and a head for each task."""
        features = output_size(self.backbone, self.input_shape, self.input_dtype)
        self.layers = self._called()
        self.updates = nn.ModuleList(self._updates(name) for name in spec.tasks)
        self.heads = nn.ModuleList(self.head(name, features) for name in spec.tasks)

    def forward(self, x: Tensor, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Predict for several tasks; an input passes through the backbone once for each of its tasks."""
        numbers = self.task_numbers
        tasks, counts = [numbers[name] for name in rows], [i.shape[0] for i in rows.values()]
        self._recomputing.close()  # a backward pass that raised an error has not done so
        with self._updated(tasks, counts):
            features = self.backbone(x[torch.cat(list(rows.values()))])
        if features.requires_grad:
            features.register_hook(partial(self._update_again, tasks, counts))
        parts = zip(rows, tasks, features.split(counts), strict=True)
        return {name: self.heads[i](f) for name, i, f in parts}

    def own_modules(self, task: int) -> list[nn.Module]:
        """The task's update, head and stem."""
        return [self.updates[task], *super().own_modules(task)]

    def _updates(self, name: str) -> nn.ModuleList:
        with seeded(int(key(self.key, name_key(name), 1))):
            return nn.ModuleList(LowRank(self.backbone.get_submodule(n), self.rank) for n in self.layers)  # type: ignore[arg-type]

    @contextmanager
    def _updated(self, tasks: Sequence[int], counts: Sequence[int]) -> Iterator[None]:
        """A context in which the layers add the updates of the tasks, whose inputs are one task after the other."""
        with ExitStack() as stack:
            for number, name in enumerate(self.layers):
                updates = [self.updates[task][number] for task in tasks]  # type: ignore[index]
                hook = partial(_add, updates, counts, self.alpha / self.rank)
                stack.enter_context(self.backbone.get_submodule(name).register_forward_hook(hook))
            yield

    def _update_again(self, tasks: Sequence[int], counts: Sequence[int], gradient: Tensor) -> None:
        """Called before the backward pass of the backbone: `torch.utils.checkpoint` calls layers again within it."""
        self._recomputing.close()  # of a later forward pass, whose backward pass comes first
        self._recomputing.enter_context(self._updated(tasks, counts))
        torch.autograd.Variable._execution_engine.queue_callback(self._recomputing.close)

    def _called(self) -> list[str]:
        """The names of the layers that a forward pass calls, which have updates.

        Raises:
            UserError: There are none, or a layer is not called with one row per input.
        """
        network = copy.deepcopy(self.backbone).eval()
        found = {n: m for n, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d) and _is_plain(m)}
        called: dict[str, list[int]] = {}
        zeros = zeros_like_inputs(self.input_shape, self.input_dtype, next(network.parameters(), torch.zeros(())))
        for name, layer in found.items():
            layer.register_forward_hook(lambda m, args, out, n=name: called.setdefault(n, []).append(len(args[0])))
        inputs = zeros[:1].expand(7, *zeros.shape[1:])
        with torch.no_grad():
            network(inputs)
        for name, lengths in called.items():
            if set(lengths) != {len(inputs)}:
                raise UserError(
                    f"backbone: {name} of {type(self.backbone).__name__} is called with {lengths[0]} rows for "
                    f"{len(inputs)} inputs, and LoRA needs one for each, such as (M, L, C); keep inputs in the first "
                    "dimension, or use MultiHead"
                )
        if not called:
            raise UserError(
                f"backbone: {type(self.backbone).__name__} calls no torch.nn.Linear or torch.nn.Conv2d without groups, "
                "which LoRA updates; use MultiHead, or a backbone that has some"
            )
        return list(called)


def _is_plain(layer: nn.Linear | nn.Conv2d) -> bool:
    return isinstance(layer, nn.Linear) or layer.groups == 1


def _add(
    updates: Sequence[LowRank], counts: Sequence[int], scale: float, layer: nn.Module, args: Any, output: Tensor
) -> Tensor:
    """A forward hook that adds the update of each task to its rows of the output."""
    parts = args[0].split(list(counts))
    return output + scale * torch.cat([update(layer, x) for update, x in zip(updates, parts, strict=True)])
