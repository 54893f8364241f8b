"""The base class of methods that adapt the weights of a network by gradient steps on the support loss."""

from __future__ import annotations

import copy
from abc import ABC
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

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
from lightning_meta.nn.normalization import Statistics, per_task, refuse_other_batch_norms, statistics_from, task_norms
from lightning_meta.nn.stateless import Tensors, own_buffers, stateless_call, tensors_of, untouched
from lightning_meta.overrides import CalledInPart
from lightning_meta.tasks import EpisodeSpec

BatchNorm = Literal["transductive", "inductive"]
_DESCENT = InnerSGD()


class _Data(NamedTuple):
    """The arguments of the support loss, besides the adapted weights.

    Attributes:
        examples: Examples of the support set, all or a mini-batch.
        shared: Weights learned only in the outer loop, by name. They are arguments, and no constants of the closure, so
            that the outer gradient reaches them through the inner steps.
    """

    examples: Examples
    shared: Tensors


class GradientBasedLearner(MetaModule, ABC):
    r"""A backbone and a linear head whose weights are adapted by gradient descent on the support loss.

    $$\varphi_0 = \theta, \qquad
      \varphi_{j+1} = \varphi_j - \alpha_j\, d(u(\nabla_\varphi L(\varphi_j; \mathrm{support})))$$

    with d the update of the inner optimizer, by default the gradient itself. To add a method, override `start` (φ_0),
    `adapted` (the parameters that inner steps adapt), `rates` (α_j, per parameter and step), `of_step` (weights used by
    one inner step only), `direction` (u), `inner_loss` (L) or `task_loss` (the outer loss). Weights that do not require
    a gradient stay fixed; the others, if not adapted, are learned only in the outer loop.

    Args:
        backbone: The network below the head.
        inner_lr: Learning rate α of the inner loop, > 0.
        inner_steps: Number of inner steps in training, at least 0.
        test_inner_steps: Number of inner steps in validation, test and prediction; by default as in training.
        first_order: Omit second derivatives (section 5.2 of Finn et al. 2017, "first-order approximation").
        batch_norm: Statistics that normalise query examples: `transductive`, those of the query set, as in the code of
            Finn et al., so that a prediction depends on the other queries; `inductive`, those of the support set after
            adaptation. Support examples are normalised by the statistics of the support set in both cases, with
            `inner_batch_size` by those of the mini-batch. A channel with a single value (one example without
            positions) has no variance: it is normalised by the running statistics, which training does not change.
        recompute: Recompute inner steps in the outer backward pass instead of storing their activations (gradient
            checkpointing). This reduces the memory of long inner loops several times; a step takes about 1.6 times as
            long.
        inner_optimizer: Inner optimizer d: `InnerSGD`, optionally with momentum, or `InnerAdam`.
        inner_batch_size: Number of support examples per inner step; all by default. Steps cycle through the support
            set, reshuffled in each pass, in an order computed from the examples themselves (no random state).
        inner_parameters: Parameters that the inner steps adapt, unless frozen: names of parameters or submodules, such
            as `head`, `backbone.blocks.3` or `head.bias`. All by default; only `head` is ANIL (Raghu et al., ICLR 2020,
            https://arxiv.org/abs/1909.09157).
        tf32: Leave torch's TF32 setting on CUDA as it is (convolutions use TF32 by default) instead of computing in
            full float32. On an H200, with an earlier version, the meta-gradient then had an error of 16 % (1 step of
            0.4 on Omniglot, 5 steps of 0.01 on mini-ImageNet), and a step on Omniglot, captured as a CUDA graph, took
            3.5 instead of 5.9 ms. `torch.set_float32_matmul_precision("high")` has the same effect and also enables
            TF32 in matrix products.
        **options: Options of `MetaModule`.
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
        names = (inner_parameters,) if isinstance(inner_parameters, str) else inner_parameters
        if names is not None:
            some_names(inner_parameters=names)
        self.inner_parameters = None if names is None else tuple(names)
        self.inner_lr, self.inner_steps = inner_lr, inner_steps
        self.test_inner_steps = inner_steps if test_inner_steps is None else test_inner_steps
        self.first_order, self.batch_norm, self.recompute, self.tf32 = first_order, batch_norm, recompute, tf32
        positive(inner_lr=inner_lr)
        whole(0, inner_steps=self.inner_steps, test_inner_steps=self.test_inner_steps)
        if recompute and self._compiles:
            raise UserError(
                "recompute: compile decides itself what to recompute; set only one of recompute and compile"
            )
        refuse_other_batch_norms(self.backbone)
        self._trained: frozenset[str] = frozenset()  # the weights that were trained before `freeze()`
        self._random = True  # whether the backbone draws random numbers; see `_check_randomness`
        # In a dict these are not submodules, so each parameter is listed once.
        self._sequences: dict[tuple[str, ...], nn.Sequential] = {}

    second_derivatives: ClassVar[bool] = False
    """Whether a method needs second derivatives of the support loss even with `first_order`."""

    called_in_part: ClassVar[Mapping[str, CalledInPart]] = {
        "adapt": CalledInPart("in evaluation", "override trajectory instead", ("trajectory",)),
        "predict": CalledInPart(
            "in training",
            "change the network instead, or override outcome as well",
            ("outcome", "task_loss", "meta_batch_loss"),
        ),
    }

    def make_parts(self) -> None:
        """Make the head, whose batch normalisation is also per task, and refuse unknown names in `inner_parameters`."""
        super().make_parts()
        per_task(self.network)
        refuse_other_batch_norms(self.network, "head")
        if _all_of_head(self.adapted()):
            self._check_randomness()

    def on_fit_start(self) -> None:
        """Refuse networks whose inner steps cannot be differentiated or, with `recompute`, replayed."""
        super().on_fit_start()
        parameters, _ = tensors_of(self.network)
        names = self.adapted()
        if _all_of_head(names):
            self._check_randomness()  # again: the user may have changed dropout
        adapted = {name: p for name, p in parameters.items() if name in names}
        like = next((p for p in parameters.values() if p.is_floating_point()), torch.zeros(()))
        x = zeros_like_inputs(self.spec.input_shape, self.spec.input_dtype, like)

        def forward(adapted: Tensors) -> Tensor:
            return stateless_call(self.network, {**adapted, **own_buffers(self.network)}, x, "batch")[0]

        with self.exact_arithmetic(), untouched(self):
            check_derivatives(forward, adapted, self.first_order and not self.second_derivatives)
            if self.recompute:
                check_replays(forward, adapted, module=self.network)
                self._refuse_lost_gradients({n: p.detach() for n, p in adapted.items()}, forward(adapted).detach())

    def _refuse_lost_gradients(self, adapted: Tensors, outputs: Tensor) -> None:
        """Refuse trained parameters that only the closure of an inner step holds: `recompute` would not train them."""
        gradients = {name: torch.zeros_like(p) for name, p in adapted.items()}
        shape = (len(outputs),) if self.spec.task == "classification" else (len(outputs), self.spec.outputs)
        y = torch.zeros(shape, dtype=torch.int64 if len(shape) == 1 else outputs.dtype, device=outputs.device)
        optimizer = self.inner_optimizer
        parts: dict[str, Any] = {
            "direction": self.direction(gradients),
            "inner_loss": self.inner_loss(outputs, y),
            "inner_optimizer": optimizer.update(gradients, optimizer.init(adapted), adapted),
        }
        for name, value in parts.items():
            if any(leaf.requires_grad for leaf in tree_leaves(value) if isinstance(leaf, Tensor)):
                raise UserError(
                    f"recompute: the gradients of the parameters in `{name}` of {type(self).__name__} would be lost; "
                    "leave recompute out"
                )

    def adapted(self) -> frozenset[str]:
        """Names of the parameters that inner steps adapt: those of `inner_parameters` that are not frozen.

        If all are frozen, as after `freeze()` for inference, these are the ones that were trained before.

        Raises:
            UserError: A name in `inner_parameters` does not exist in the network.
        """
        trained = self.trained()
        if self.inner_parameters is None:
            return trained
        names = [name for name, _ in self.network.named_parameters()]
        chosen = {part: {n for n in names if f"{n}.".startswith(f"{part}.")} for part in self.inner_parameters}
        for part, matches in chosen.items():
            if not matches:
                raise UserError(
                    f"inner_parameters: the network has no parameter or part {part!r}; give head, backbone, or names "
                    f"such as {names[0]}"
                )
        return trained & set().union(*chosen.values())

    def trained(self) -> frozenset[str]:
        """Names of the parameters that are not frozen; if all are, of those that were trained before `freeze()`."""
        return frozenset(name for name, p in self.network.named_parameters() if p.requires_grad) or self._trained

    def rates(self, step: int) -> float | Tensor | Tensors:
        """The learning rate α_j of inner step j = 0, 1, ...

        A method that learns its rates returns a scalar tensor, or for each adapted parameter a tensor that broadcasts
        to it; the outer gradient reaches them. Evaluation may take more steps than training.
        """
        return self.inner_lr

    def of_step(self, step: int) -> Tensors:
        """Weights that only inner step j = 0, 1, ... uses, by the name of the parameter of `network` they replace.

        They are learned only in the outer loop, and every step has the same names. After step j the query set is
        predicted with the weights of step j.
        """
        return {}

    def freeze(self) -> Self:
        """Freeze all weights for inference; new tasks still adapt copies of the weights that were trained before."""
        self._trained = self.trained() if self._built else frozenset()
        return super().freeze()

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Freeze or unfreeze all weights; see `freeze`."""
        if self._built:
            self._trained = self.trained()
        return super().requires_grad_(requires_grad)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Also store which weights are frozen: the state dict does not hold it."""
        super().on_save_checkpoint(checkpoint)
        if not self._built:
            return
        names, parameters = self.trained(), dict(self.network.named_parameters())
        checkpoint["lightning_meta"]["frozen_weights"] = [name for name in parameters if names and name not in names]

    def direction(self, gradients: Tensors) -> Tensors:
        """The transformation u of the gradients, by name of the parameter, before the inner optimizer sees them.

        It may have parameters that the outer loop learns, but not with `recompute`, which would lose their gradients.
        """
        return gradients

    def inner_loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The support loss L, a scalar: by default that of the task, as in the outer loop.

        It may have parameters that the outer loop learns, but not with `recompute`, which would lose their gradients.

        Args:
            outputs: Outputs of the network on the support set, `(M, outputs)`.
            y: Its targets, `(M, ...)`.
        """
        return self.task.loss(outputs, y)

    def support_loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The result of `inner_loss`, which is checked.

        Raises:
            UserError: It is not a scalar tensor, or has no gradient with respect to the outputs.
        """
        loss = self.check_loss("inner_loss", self.inner_loss(outputs, y))
        if outputs.requires_grad and not loss.requires_grad:
            raise UserError(
                f"{type(self).__name__}.inner_loss has no gradient, so inner steps would change nothing; look for "
                "detach(), torch.no_grad() or argmax in it"
            )
        return loss

    def start(self, support: Examples, ways: int) -> Tensors:
        """The initial weights φ_0 by name: those of `network`; a method may compute some from the support set."""
        return dict(self.network.named_parameters())

    def trajectory(self, support: Examples, ways: int) -> list[Tensors]:
        """The weights φ_0, ..., φ_S of the inner loop, each with the buffers after a pass on the support set."""
        self.spec  # noqa: B018 - raises if the head was not made yet
        parameters, buffers = self.start(support, ways), dict(self.network.named_buffers())
        buffers |= own_buffers(self.network)
        names, by_step = self.adapted(), self.of_step(0)
        self._check_names(parameters, names, by_step)
        adapted = {name: p for name, p in parameters.items() if name in names}
        others = {name: p for name, p in parameters.items() if name not in names and name not in by_step}
        shared = {name: p for name, p in others.items() if p.requires_grad}
        frozen = {name: p for name, p in others.items() if not p.requires_grad}
        if not adapted:
            raise UserError(f"{type(self).__name__} has nothing to adapt: {self._why_nothing_adapts()}")
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
            return self.support_loss(outputs, data.examples.y), buffers

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
        step_weights = [self.of_step(max(j - 1, 0)) if by_step else {} for j in range(len(states))]
        # Inductive prediction normalises by the support set's statistics under the weights of each state. The inner
        # loop has computed them for φ_0 to φ_{S-1}, but it makes no pass with φ_S. With mini-batches or per-step
        # weights its passes do not fit either, so in evaluation all states are passed again; training only needs the
        # last one.
        if self.batch_norm == "inductive" and task_norms(network):
            none_fits = by_step or (size is not None and not self.training)
            for j in range(0 if none_fits else len(states) - 1, len(states)):
                phi, left = states[j]
                data = _Data(support, {**shared, **step_weights[j]})
                states[j] = phi, forward(phi, {name: b.clone() for name, b in left.items()}, data)[1]
        return [{**rest, **own, **phi, **left} for own, (phi, left) in zip(step_weights, states, strict=True)]

    def adapt(self, support: Examples, ways: int) -> Tensors:
        """The adapted and the frozen parameters and the buffers, by name; see `trajectory`."""
        return self.trajectory(support, ways)[-1]

    def predict(self, state: Tensors, x: Tensor) -> Tensor:
        """Logits `(M, N)` or predictions `(M, outputs)` of the adapted network."""
        return self._predict(state, x)[0]

    def task_loss(self, support: Examples, query: Examples, ways: int) -> Outcome:
        """The query loss of the adapted network."""
        return self.outcome(self.adapt(support, ways), query)

    def outcome(self, state: Tensors, query: Examples) -> Outcome:
        """The query loss of one state of `trajectory`, from which methods can compose an outer loss."""
        outputs, buffers = self._predict(state, query.x)
        return Outcome(self.task.loss(outputs, query.y), outputs, query.y, buffers)

    @property
    def computes_in_full_float32(self) -> bool:
        """Whether TF32 is switched off on CUDA: unless `tf32` or torch's own setting enables it."""
        return super().computes_in_full_float32 and not self.tf32

    @property
    def network(self) -> nn.Module:
        """The backbone and the head, one after the other."""
        return self._sequence("backbone", "head")

    @property
    def transductive(self) -> bool:
        """Whether a prediction depends on the query set."""
        return self.batch_norm == "transductive" and bool(task_norms(self.network if self._built else self.backbone))

    def build(self, episodes: EpisodeSpec) -> None:
        """Make the linear head."""
        if not episodes.outputs:
            raise UserError(
                f"{type(self).__name__} has a head for a fixed number of classes: ways and test_ways must be equal; "
                "metric-based methods such as ProtoNet support any number of ways"
            )
        self.head = nn.Linear(self.feature_size, episodes.outputs)

    def check_ways(self, ways: int) -> None:
        """Refuse another number of classes than the head has."""
        if ways != self.spec.outputs:
            raise UserError(
                f"ways: this {type(self).__name__} has a head for {self.spec.outputs} ways, "
                f"got {ways or 'differing ways'}; metric-based methods such as ProtoNet support any number of ways"
            )

    def _check_names(self, start: Tensors, adapted: Collection[str], of_step: Tensors) -> None:
        """Refuse results of `start`, `adapted` and `of_step` by other names than those of the network's parameters.

        The network's own parameters are used for those that are not adapted and that `start` leaves out.
        """
        names = dict(self.network.named_parameters())
        for method, given in (("start", start), ("adapted", adapted), ("of_step", of_step)):
            if unknown := next((name for name in given if name not in names), None):
                raise UserError(
                    f"{type(self).__name__}.{method}: the network has no parameter {unknown!r}; its names are those of "
                    f"network.named_parameters(), such as {next(iter(names))}"
                )
        if missing := next((name for name in names if name in adapted and name not in start), None):
            raise UserError(
                f"{type(self).__name__}.start: {missing!r} is missing, which inner steps adapt; return all parameters, "
                "those that stay the same from super().start(support, ways)"
            )

    def _why_nothing_adapts(self) -> str:
        """The reason why no weight is adapted, and what to do."""
        if not any(p.requires_grad for p in self.network.parameters()):
            return "all its weights are frozen (requires_grad is False); call unfreeze()"
        if self.inner_parameters is None:
            return "adapted() names no weight of its network; return names such as head.weight"
        parts = " and ".join(self.inner_parameters)
        return (
            f"its inner steps adapt only {parts}, whose weights are frozen (requires_grad is False); unfreeze some of "
            "them, or adapt others, as MAML does without inner_parameters"
        )

    def _sequence(self, *names: str) -> nn.Module:
        """Submodules as one sequential network; the object is kept, since `stateless_call` caches data on it."""
        parts: OrderedDict[str, nn.Module] = OrderedDict((name, getattr(self, name)) for name in names)
        sequence = self._sequences.get(names)
        if sequence is None or any(kept is not part for kept, part in zip(sequence, parts.values(), strict=True)):
            sequence = self._sequences[names] = nn.Sequential(parts)
        sequence.training = self.training
        return sequence

    def _draws(self) -> bool:
        """Whether the backbone draws random numbers in its present mode, so that two forward passes differ."""
        return self._random and any(part.training for part in self.backbone.modules())

    def _check_randomness(self) -> None:
        """Run a copy to find out whether the backbone draws random numbers in training."""
        copied = copy.deepcopy(self.backbone).train()
        like = next((p for p in copied.parameters() if p.is_floating_point()), torch.zeros(()))
        x = zeros_like_inputs(self.spec.input_shape, self.spec.input_dtype, like)
        try:
            with torch.no_grad(), statistics_from(copied, "batch"):
                self._random = draws(lambda: copied(x), x.device, copied)
        except (RuntimeError, ValueError, IndexError, TypeError):  # the network may not accept zeros in training
            self._random = True

    def _predict(self, state: Tensors, x: Tensor) -> tuple[Tensor, Tensors]:
        """Predictions, and the buffers after the pass, without batch statistics."""
        own = {name: state[name].clone() for name in own_buffers(self.network)}  # a pass may change them in place
        outputs, after = stateless_call(self.network, {**state, **own}, x, _QUERY[self.batch_norm])
        return outputs, {name: after[name] for name in own}


def _all_of_head(names: Iterable[str]) -> bool:
    return all(name.startswith("head.") for name in names)


def _within(network: nn.Module, tensors: Tensors) -> Tensors:
    """The tensors whose names begin with a child of the network."""
    prefixes = tuple(f"{name}." for name, _ in network.named_children())
    return {name: tensor for name, tensor in tensors.items() if name.startswith(prefixes)}


_QUERY: dict[BatchNorm, Statistics] = {"transductive": "batch", "inductive": "stored"}


def parameter_key(name: str) -> str:
    """The name of a parameter as a key of an `nn.ParameterDict`, which must not contain dots."""
    return name.replace(".", "/")
