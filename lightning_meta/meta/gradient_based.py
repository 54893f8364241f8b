"""What all methods share that adapt a whole network by gradient steps."""

from __future__ import annotations

import copy
from abc import ABC
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from lightning_meta.batches import Examples
from lightning_meta.checks import instance, positive, some_names, whole
from lightning_meta.errors import UserError, one_of
from lightning_meta.functional.inner_loop import inner_loop
from lightning_meta.functional.inner_optimizers import InnerOptimizer, InnerSGD
from lightning_meta.functional.mini_batches import mini_batches
from lightning_meta.functional.recomputation import check_replays, draws
from lightning_meta.meta.base import MetaModule, Outcome
from lightning_meta.nn.checks import check_derivatives
from lightning_meta.nn.features import zeros_like_inputs
from lightning_meta.nn.normalization import Statistics, refuse_other_batch_norms, statistics_from, task_norms
from lightning_meta.nn.stateless import Tensors, own_buffers, stateless_call, tensors_of, untouched
from lightning_meta.tasks import EpisodeSpec

BatchNorm = Literal["transductive", "inductive"]
_DESCENT = InnerSGD()


class _Data(NamedTuple):
    """What a support loss is computed from, besides the adapted weights.

    Attributes:
        examples: Of the support set.
        shared: Weights that the outer loop alone learns, by name. Its gradient passes through the inner steps to them.
    """

    examples: Examples
    shared: Tensors


class GradientBasedLearner(MetaModule, ABC):
    r"""A backbone and a linear head whose weights follow the gradient of the support loss.

    $$\varphi_0 = \theta, \qquad
      \varphi_{j+1} = \varphi_j - \alpha_j\, d(u(\nabla_\varphi L(\varphi_j; \mathrm{support})))$$

    with d the inner optimizer, by default the identity. To add a method, override `start` (φ_0), `adapted` (what inner
    steps move), `rates` (α_j, by parameter and step), `of_step` (weights that an inner step has to itself), `direction`
    (u) or `task_loss` (the outer loss). Weights that do
    not require a gradient stay where they are; those that do and are not adapted are learned by the outer loop alone.

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
        inner_optimizer: d: `InnerSGD`, with momentum if asked for, or `InnerAdam`.
        inner_batch_size: Number of support examples per inner step; all by default. Steps go through the support set
            again and again, shuffled each time, in an order computed from the examples themselves (no random state).
        inner_parameters: Which unfrozen parameters the inner steps adapt: names of parameters of the network or of its
            parts, such as `head`, `backbone.blocks.3` or `head.bias`. By default everything; `head` alone is ANIL
            (Raghu et al., ICLR 2020, https://arxiv.org/abs/1909.09157).
        tf32: Leave TF32 on CUDA as torch has it, where convolutions use it by default, in place of full float32. On
            an H200, with an earlier version, the meta-gradient was then 16 % off (1 step of 0.4 on Omniglot, 5 steps
            of 0.01 on mini-ImageNet), and a step on Omniglot, captured as a CUDA graph, took 3.5 in place of 5.9 ms.
            `torch.set_float32_matmul_precision("high")` asks for the same, and for TF32 in matrix products.
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
        tf32: bool = False,
        inner_optimizer: InnerOptimizer = _DESCENT,
        inner_batch_size: int | None = None,
        inner_parameters: Sequence[str] | str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(backbone, **options)
        one_of("batch_norm", batch_norm, BatchNorm)
        instance("inner_optimizer", inner_optimizer, InnerOptimizer)
        whole(1, inner_batch_size=inner_batch_size)
        self.inner_optimizer, self.inner_batch_size = inner_optimizer, inner_batch_size
        given = (inner_parameters,) if isinstance(inner_parameters, str) else inner_parameters
        if given is not None:
            some_names(inner_parameters=given)
        self.inner_parameters = None if given is None else tuple(given)
        self.inner_lr, self.inner_steps = inner_lr, inner_steps
        self.test_inner_steps = inner_steps if test_inner_steps is None else test_inner_steps
        self.first_order, self.batch_norm, self.recompute, self.tf32 = first_order, batch_norm, recompute, tf32
        positive(inner_lr=inner_lr)
        whole(0, inner_steps=self.inner_steps, test_inner_steps=self.test_inner_steps)
        if recompute and self._compiles:
            raise UserError("recompute: compiled code decides by itself what to compute anew; leave one of the two out")
        refuse_other_batch_norms(self.backbone)
        self._trained: frozenset[str] = frozenset()  # before all weights were frozen
        self._random = True  # until `_note_draws` knows better
        self._sequences: dict[tuple[str, ...], nn.Sequential] = {}  # no registered modules: each is listed once

    second_derivatives: ClassVar[bool] = False
    """Whether a method takes second derivatives of the support loss although its inner loop has none."""

    def make_parts(self) -> None:
        """Make the head, and refuse names in `inner_parameters` that there are not."""
        super().make_parts()
        if _all_of_head(self.adapted()):
            self._note_draws()

    def on_fit_start(self) -> None:
        """Refuse networks that an inner loop cannot differentiate, and randomness that cannot be replayed."""
        super().on_fit_start()
        parameters, _ = tensors_of(self.network)
        names = self.adapted()
        if _all_of_head(names):
            self._note_draws()  # once more: dropout may have changed
        adapted = {name: p for name, p in parameters.items() if name in names}
        like = next((p for p in parameters.values() if p.is_floating_point()), torch.zeros(()))
        x = zeros_like_inputs(self.spec.input_shape, self.spec.input_dtype, like)

        def forward(adapted: Tensors) -> Tensor:
            return stateless_call(self.network, {**adapted, **own_buffers(self.network)}, x, "batch")[0]

        with self.exact_arithmetic(), untouched(self):
            check_derivatives(forward, adapted, self.first_order and not self.second_derivatives)
            if self.recompute:
                check_replays(forward, adapted, module=self.network)

    def adapted(self) -> frozenset[str]:
        """Names of the parameters that inner steps move: those of `inner_parameters` that are not frozen.

        Where all are frozen, as after `freeze()` before predicting, it is those that were not frozen before that.

        Raises:
            UserError: The network has no parameter of a name in `inner_parameters`.
        """
        trained = self.trained()
        if self.inner_parameters is None:
            return trained
        names = [name for name, _ in self.network.named_parameters()]
        chosen = {part: {n for n in names if f"{n}.".startswith(f"{part}.")} for part in self.inner_parameters}
        for part, found in chosen.items():
            if not found:
                raise UserError(
                    f"inner_parameters: the network has no parameter or part {part!r}; give head, backbone, or names "
                    f"such as {names[0]}"
                )
        return trained & set().union(*chosen.values())

    def trained(self) -> frozenset[str]:
        """Names of the parameters that are not frozen; where all are, of those that were not before."""
        return frozenset(name for name, p in self.network.named_parameters() if p.requires_grad) or self._trained

    def rates(self, step: int) -> float | Tensor | Tensors:
        """α_j of an inner step j = 0, 1, ...

        A method that learns its rates returns a scalar tensor, or a tensor for each adapted parameter by name, which
        broadcasts to it; the outer gradient reaches them. There may be more steps in evaluation than in training.
        """
        return self.inner_lr

    def of_step(self, step: int) -> Tensors:
        """The weights that an inner step j = 0, 1, ... has to itself, by the name of those of `network` they replace.

        The outer loop alone learns them, and every step has the same names. The query set is predicted after step j + 1
        with those of step j, whose support loss moved the weights there.
        """
        return {}

    def freeze(self) -> Self:
        """Freeze all weights for inference; a new task is still learned by adapting copies of what was not frozen."""
        self._trained = self.trained() if self._built else frozenset()
        return super().freeze()

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Freeze or unfreeze all weights; see `freeze`."""
        if self._built:
            self._trained = self.trained()
        return super().requires_grad_(requires_grad)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also note the weights that are frozen, which no tensor says."""
        super().on_save_checkpoint(checkpoint)
        if not self._built:
            return
        names, parameters = self.trained(), dict(self.network.named_parameters())
        checkpoint["lightning_meta"]["frozen_weights"] = [name for name in parameters if names and name not in names]

    def direction(self, gradients: Tensors) -> Tensors:
        """u: what is made of the gradients, by name of the parameter, before they are followed."""
        return gradients

    def start(self, support: Examples, ways: int) -> Tensors:
        """φ_0 by name of the parameter of `network`: θ. A method may make some of it of the support set."""
        return dict(self.network.named_parameters())

    def trajectory(self, support: Examples, ways: int) -> list[Tensors]:
        """φ_0 = θ, ..., φ_S, each with the buffers after the forward pass on the support set."""
        self.spec  # noqa: B018 - before it is known there is no head
        parameters, buffers = self.start(support, ways), dict(self.network.named_buffers())
        buffers |= own_buffers(self.network)
        names = self.adapted()
        adapted = {name: p for name, p in parameters.items() if name in names}
        by_step = self.of_step(0)
        others = {name: p for name, p in parameters.items() if name not in names and name not in by_step}
        shared = {name: p for name, p in others.items() if p.requires_grad}
        frozen = {name: p for name, p in others.items() if not p.requires_grad}
        if not adapted:
            raise UserError(
                f"{type(self).__name__} has nothing to adapt: all its weights are frozen (requires_grad is False); "
                "call unfreeze(), or freeze the backbone alone"
            )
        network, rest = self.network, {**frozen, **shared}
        one_pass = self.inner_batch_size is None and not by_step and not self._draws()
        if one_pass and _all_of_head(names):
            # No inner step changes the backbone, so its features are computed once.
            body, network = self._sequence("backbone"), self._sequence("head")
            features, after = stateless_call(body, _within(body, {**rest, **buffers}), support.x, "batch")
            rest, support = {**rest, **after}, Examples(features, support.y)
            shared, frozen, buffers = (_within(network, tensors) for tensors in (shared, frozen, buffers))

        def forward(adapted: Tensors, buffers: Tensors, data: _Data) -> tuple[Tensor, Tensors]:
            tensors = {**adapted, **data.shared, **frozen, **buffers}
            outputs, after = stateless_call(network, tensors, data.examples.x, "batch")
            return outputs, {name: tensor for name, tensor in after.items() if name not in parameters}

        def support_loss(adapted: Tensors, buffers: Tensors, data: _Data) -> tuple[Tensor, Tensors]:
            outputs, buffers = forward(adapted, buffers, data)
            return self.task.loss(outputs, data.examples.y), buffers

        steps = self.inner_steps if self.training else self.test_inner_steps
        size = self.inner_batch_size
        batches = [support] * steps if size is None else mini_batches(support, size, steps)
        *visited, (last, after) = inner_loop(
            support_loss,
            adapted,
            buffers,
            lambda j: _Data(batches[j], {**shared, **self.of_step(j)}),
            steps,
            self.rates,
            self.first_order,
            self.recompute and self.training,
            self.direction,
            self.inner_optimizer,
        )
        states = [*visited, (last, after)]
        moved_by = [self.of_step(max(j - 1, 0)) if by_step else {} for j in range(len(states))]
        # Only inductive prediction needs statistics. No forward pass was made with the last parameters, and those with
        # the others saw one mini-batch each, or another step's weights; else training asks for the last state alone.
        if self.batch_norm == "inductive" and task_norms(network):
            all_lack = by_step or (size is not None and not self.training)
            for j in range(0 if all_lack else len(states) - 1, len(states)):
                phi, left = states[j]
                data = _Data(support, {**shared, **moved_by[j]})
                states[j] = phi, forward(phi, {name: b.clone() for name, b in left.items()}, data)[1]
        return [{**rest, **own, **phi, **left} for own, (phi, left) in zip(moved_by, states, strict=True)]

    def adapt(self, support: Examples, ways: int) -> Tensors:
        """The adapted parameters φ, those that are frozen, and the buffers, by name; see `trajectory`."""
        return self.trajectory(support, ways)[-1]

    def predict(self, state: Tensors, x: Tensor) -> Tensor:
        """Logits `(M, N)` or predictions `(M, outputs)` of the adapted network."""
        return self._predict(state, x)[0]

    def task_loss(self, support: Examples, query: Examples, ways: int) -> Outcome:
        """The query loss of the adapted network."""
        return self.outcome(self.adapt(support, ways), query)

    def outcome(self, state: Tensors, query: Examples) -> Outcome:
        """The query loss of one state of `trajectory`, for outer losses that are made of it."""
        outputs, buffers = self._predict(state, query.x)
        return Outcome(self.task.loss(outputs, query.y), outputs, query.y, buffers)

    @property
    def computes_in_full_float32(self) -> bool:
        """Whether TF32 is switched off on CUDA: unless `tf32` or torch's own function asked for it."""
        return super().computes_in_full_float32 and not self.tf32

    @property
    def network(self) -> nn.Module:
        """The backbone and the head, one after the other."""
        return self._sequence("backbone", "head")

    @property
    def transductive(self) -> bool:
        """Whether a prediction depends on the query set."""
        return self.batch_norm == "transductive" and bool(task_norms(self.backbone))

    def build(self, episodes: EpisodeSpec) -> None:
        """Make the linear head."""
        if not episodes.outputs:
            raise UserError(
                f"{type(self).__name__} has a head of a fixed way: ways and test_ways must be one and the same number; "
                "a metric method such as ProtoNet serves any"
            )
        self.head = nn.Linear(self.feature_size, episodes.outputs)

    def check_ways(self, ways: int) -> None:
        """Refuse another way than the head's."""
        if ways != self.spec.outputs:
            raise UserError(
                f"ways: this {type(self).__name__} has a head for {self.spec.outputs} ways and serves no other, "
                f"got {ways or 'differing ways'}; a metric method such as ProtoNet serves any"
            )

    def _sequence(self, *names: str) -> nn.Module:
        """Parts of this module by itself, one after the other; kept, since `stateless_call` notes things on it."""
        parts: OrderedDict[str, nn.Module] = OrderedDict((name, getattr(self, name)) for name in names)
        sequence = self._sequences.get(names)
        if sequence is None or any(kept is not part for kept, part in zip(sequence, parts.values(), strict=True)):
            sequence = self._sequences[names] = nn.Sequential(parts)
        sequence.training = self.training
        return sequence

    def _draws(self) -> bool:
        """Whether the backbone draws random numbers now, so that two forward passes differ."""
        return self._random and any(part.training for part in self.backbone.modules())

    def _note_draws(self) -> None:
        """Find out by a run of a copy whether the backbone draws random numbers in training."""
        copied = copy.deepcopy(self.backbone).train()
        like = next((p for p in copied.parameters() if p.is_floating_point()), torch.zeros(()))
        x = zeros_like_inputs(self.spec.input_shape, self.spec.input_dtype, like)
        try:
            with torch.no_grad(), statistics_from(copied, "batch"):
                self._random = draws(lambda: copied(x), x.device, copied)
        except (RuntimeError, ValueError, IndexError, TypeError):  # it may not train on zeros
            self._random = True

    def _predict(self, state: Tensors, x: Tensor) -> tuple[Tensor, Tensors]:
        """Predictions, and the buffers after the pass but for batch statistics."""
        own = {name: state[name].clone() for name in own_buffers(self.network)}  # a pass may change them in place
        outputs, after = stateless_call(self.network, {**state, **own}, x, _QUERY[self.batch_norm])
        return outputs, {name: after[name] for name in own}


def _all_of_head(names: Iterable[str]) -> bool:
    return all(name.startswith("head.") for name in names)


def _within(network: nn.Module, tensors: Tensors) -> Tensors:
    """Those of the tensors that lie in a part of the network."""
    beginnings = tuple(f"{name}." for name, _ in network.named_children())
    return {name: tensor for name, tensor in tensors.items() if name.startswith(beginnings)}


_QUERY: dict[BatchNorm, Statistics] = {"transductive": "batch", "inductive": "stored"}


def parameter_key(name: str) -> str:
    """The name of a parameter as a key of an `nn.ParameterDict`; torch keeps dots for modules."""
    return name.replace(".", "/")
