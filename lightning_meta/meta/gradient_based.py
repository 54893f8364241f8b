"""What all methods share that adapt a whole network by gradient steps."""

from __future__ import annotations

from abc import ABC
from collections import OrderedDict
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from lightning_meta.batches import Examples
from lightning_meta.errors import UserError, one_of
from lightning_meta.functional.inner_loop import inner_loop
from lightning_meta.meta.base import MetaModule
from lightning_meta.nn.features import output_size
from lightning_meta.nn.stateless import Tensors, stateless_call, tensors_of
from lightning_meta.tasks import EpisodeSpec

BatchNorm = Literal["transductive", "inductive"]


class GradientBasedLearner(MetaModule, ABC):
    r"""A backbone and a linear head, all of whose weights follow the gradient of the support loss.

    $$\varphi_0 = \theta, \qquad \varphi_{j+1} = \varphi_j - \alpha\, u(\nabla_\varphi L(\varphi_j; \mathrm{support}))$$

    with u the identity, unless `direction` says otherwise.

    Args:
        backbone: The network below the head.
        inner_lr: α > 0.
        inner_steps: Inner steps in training.
        test_inner_steps: Inner steps in validation, test and prediction; as in training by default.
        first_order: Leave the second derivatives out (section 5.2 of Finn et al. 2017, "first-order approximation").
        batch_norm: Which statistics normalise query examples: `transductive`, those of the query set, as in the code of
            Finn et al., where a prediction depends on what else is predicted with it; `inductive`, those of the support
            set after adaptation. Support examples are always normalised by their own.
        recompute: Compute inner steps anew in the outer loop's backward pass, in place of keeping all of them: the
            memory of long inner loops shrinks several times, and a step takes about 1.6 times as long.
        **options: Those of `MetaModule`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        inner_lr: float = 0.01,
        inner_steps: int = 5,
        test_inner_steps: int | None = None,
        first_order: bool = False,
        batch_norm: BatchNorm = "transductive",
        recompute: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(backbone, **options)
        one_of("batch_norm", batch_norm, BatchNorm)
        self.inner_lr, self.inner_steps = inner_lr, inner_steps
        self.test_inner_steps = inner_steps if test_inner_steps is None else test_inner_steps
        self.first_order, self.batch_norm, self.recompute = first_order, batch_norm, recompute
        if inner_lr <= 0:
            raise UserError(f"inner_lr: a positive number is needed, got {inner_lr}")
        if min(self.inner_steps, self.test_inner_steps) < 0:
            raise UserError(f"inner_steps, test_inner_steps: at least 0, got {inner_steps} and {test_inner_steps}")
        if recompute and self._compiles:
            raise UserError("recompute: compiled code decides by itself what to compute anew; leave one of the two out")
        if recompute and any(isinstance(module, _DropoutNd) and module.p for module in backbone.modules()):
            raise UserError("recompute: a step computed anew would draw other dropout; the backbone must have none")

    def direction(self, gradients: Tensors) -> Tensors:
        """u: what is made of the gradients, by name of the parameter, before they are followed."""
        return gradients

    def trajectory(self, support: Examples, ways: int) -> list[Tensors]:
        """φ_0 = θ, ..., φ_S, each with the normalisation statistics of the support set."""
        parameters, buffers = tensors_of(self.network)

        def forward(parameters: Tensors, support: Examples) -> tuple[Tensor, Tensors]:
            outputs, tensors = stateless_call(self.network, {**parameters, **buffers}, support.x, "batch")
            return outputs, {name: tensors[name] for name in buffers}

        def support_loss(parameters: Tensors, support: Examples) -> tuple[Tensor, Tensors]:
            outputs, statistics = forward(parameters, support)
            return self.task.loss(outputs, support.y), statistics

        steps = self.inner_steps if self.training else self.test_inner_steps
        recompute = self.recompute and self.training
        *visited, (last, _) = inner_loop(
            support_loss, parameters, support, steps, self.inner_lr, self.first_order, recompute, self.direction
        )
        # No forward pass was made with the last parameters; only inductive prediction needs its statistics.
        needed = buffers and self.batch_norm == "inductive"
        states = [*visited, (last, forward(last, support)[1] if needed else buffers)]
        return [{**parameters, **statistics} for parameters, statistics in states]

    def adapt(self, support: Examples, ways: int) -> Tensors:
        """The adapted parameters φ and the normalisation statistics of the support set, by name."""
        return self.trajectory(support, ways)[-1]

    def predict(self, state: Tensors, x: Tensor) -> Tensor:
        """Logits `(M, N)` or predictions `(M, outputs)` of the adapted network."""
        return stateless_call(self.network, state, x, "batch" if self.batch_norm == "transductive" else "stored")[0]

    def build_network(self, backbone: nn.Module, episodes: EpisodeSpec) -> nn.Module:
        """Put a linear head on the backbone."""
        if not episodes.outputs:
            raise UserError(
                f"{type(self).__name__} has a head of a fixed way: ways and test_ways must be one and the same number; "
                "a metric method such as ProtoNet serves any"
            )
        head = nn.Linear(output_size(backbone, episodes.input_shape, episodes.input_dtype), episodes.outputs)
        return nn.Sequential(OrderedDict(backbone=backbone, head=head))

    def check_ways(self, ways: int) -> None:
        """Refuse another way than the head's."""
        if ways != self.spec.outputs:
            raise UserError(
                f"ways: this {type(self).__name__} has a head for {self.spec.outputs} ways and serves no other, "
                f"got {ways or 'differing ways'}; a metric method such as ProtoNet serves any"
            )
