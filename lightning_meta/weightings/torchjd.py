"""The aggregators of torchjd, on the gradients of a whole step."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_meta.configuration import remember
from lightning_meta.errors import UserError
from lightning_meta.functional import random_bits
from lightning_meta.functional.generators import seeded_generators
from lightning_meta.functional.precision import at_least_float32
from lightning_meta.tasks import Task
from lightning_meta.weightings.aggregator import Aggregator
from lightning_meta.weightings.by_name import check_weights, in_order
from lightning_meta.weightings.torchjd_state import restore, state_of, stateful_part

NEED_MORE = {
    "SDMGradWeighting": "SDMGrad needs the gradients of independent batches, and a step has those of one",
    "MoDoWeighting": "MoDo needs the gradients of independent batches, and a step has those of one",
    "CRMOGMWeighting": "CR-MOGM keeps weights from step to step, which no checkpoint would hold",
}
"""By class of torchjd, why it is refused."""

KEEP_COLUMNS = ("ExcessMTLWeighting",)
"""Classes of torchjd that keep numbers for each column of the matrix from step to step."""


class TorchJD(Aggregator):
    r"""Aggregates the tasks' gradients by an aggregator of the library torchjd.

    The direction is $\mathcal{A}(J)$, where the rows of J are the gradients of the tasks that the step had: averaged
    over ranks, accumulated over batches, not yet clipped, and in float32 at least. (torchjd's own `backward` aggregates
    on each rank the gradients of that rank alone.) Random draws are a pure function of a key, which is drawn once from
    torch's generator, and of the number of the step: the same on all ranks and after a resume. What `ExcessMTL`,
    `GradVac`, `NashMTL` and `PCD` keep from step to step is in the checkpoint; they need every task in every step.

    Quinton and Rey, Jacobian Descent for Multi-Objective Optimization (https://arxiv.org/abs/2406.16232); each
    aggregator has a paper of its own, which its page at https://torchjd.org names.

    Run it:
        With the extra `torchjd` installed: `python scripts/fit.py --config configs/multi_head_glyphs.yaml
        --model.weighting TorchJD --model.weighting.aggregator torchjd.aggregation.AlignedMTL`. Its options follow as
        `--model.weighting.aggregator.<option>`.

    Logged:
        - `train/loss`: sum of the losses, which trains the parameters of single tasks.

    Deviations:
        - The direction is as long as torchjd makes it, which for most aggregators is that of a mean: T times shorter
          than that of `Equal` where no two tasks conflict.

    Args:
        aggregator: Any aggregator of `torchjd.aggregation`. `PCD` takes the first task as its primary objective.
        preference: The weight of every task, by its name, for aggregators that take a `pref_vector`.
        rep_grad: Whether the gradients are those by the shared features; see `weightings.Aggregator`. Not for
            `ExcessMTL`, which keeps sums for each parameter.

    Raises:
        UserError: It is no aggregator, needs more than the gradients of a step, or takes no preference or `rep_grad`.
    """

    key: Tensor
    step: Tensor
    preferred: Tensor

    def __init__(
        self, aggregator: nn.Module, preference: dict[str, float] | None = None, rep_grad: bool = False
    ) -> None:
        super().__init__(rep_grad)
        check_aggregator(aggregator)
        if rep_grad and any(type(part).__name__ in KEEP_COLUMNS for part in aggregator.modules()):
            raise UserError(
                f"rep_grad: {type(aggregator).__name__} of torchjd keeps numbers for each shared parameter, and a step "
                "has other features than the last; leave rep_grad out, or take another aggregator"
            )
        if preference is not None:
            check_weights("preference", preference)
            if not hasattr(aggregator, "pref_vector"):
                raise UserError(f"preference: {type(aggregator).__name__} of torchjd takes none; leave it out")
        self.preference = preference
        remember(aggregator, _arguments(aggregator))
        self._aggregator = (aggregator,)  # no submodule: its buffers change in number and shape
        self._restored: dict[str, Any] = {}

    @property
    def aggregator(self) -> nn.Module:
        """torchjd's aggregator."""
        return self._aggregator[0]

    def configure(self, tasks: Mapping[str, Task]) -> None:
        """Draw the key, and try the aggregator on as many gradients as there are tasks.

        Raises:
            UserError: It does not take them, or the preference does not fit the tasks.
        """
        super().configure(tasks)
        self.names = list(tasks)
        self.register_buffer("key", torch.randint(torch.iinfo(torch.int64).max, ()))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        if self.preference is not None:
            self.register_buffer("preferred", in_order("preference", self.preference, tasks), persistent=False)
        if self.key.device.type != "meta":  # where a checkpoint is read, which solvers cannot follow
            self._aggregate(copy.deepcopy(self.aggregator), torch.eye(len(tasks)), ...)

    def direction(self, gradients: Tensor, losses: Tensor, present: Tensor) -> Tensor:
        """What torchjd makes of the gradients of the tasks present; arguments as for `Aggregator.direction`.

        Raises:
            UserError: The aggregator keeps state of each task, and one is absent; or its solver fails.
        """
        rows, part = at_least_float32(gradients), stateful_part(self.aggregator)
        chosen: Any = ...
        if not present.all():
            if part is not None:
                absent = [name for name, here in zip(self.names, present.tolist(), strict=True) if not here]
                raise UserError(
                    f"weighting: {type(self.aggregator).__name__} of torchjd keeps state of each task, and a step had "
                    f"no example of {', '.join(absent)}; leave tasks_per_batch out and make batches larger, or take "
                    "an aggregator without state"
                )
            rows, chosen = rows[present], present
        if part is not None and self._restored:
            restore(part, self._restored, rows)
            self._restored = {}
        direction = self._aggregate(self.aggregator, rows, chosen)
        self.step += 1
        if not direction.isfinite().all():
            raise UserError(
                f"weighting: {type(self.aggregator).__name__} of torchjd made a direction that is not finite of "
                "gradients that are; take another aggregator"
            )
        return direction

    def _aggregate(self, aggregator: nn.Module, rows: Tensor, chosen: Any) -> Tensor:
        if self.preference is not None:
            aggregator.pref_vector = self.preferred[chosen].to(rows)
        seed = int(random_bits.key(self.key, self.step)) % 2**32
        with seeded_generators(rows.device, seed):
            try:
                direction: Tensor = aggregator(rows)
            except Exception as error:  # solvers raise errors of every kind
                reason = " ".join(str(error).split())
                name = type(aggregator).__name__
                raise UserError(f"weighting: {name} of torchjd fails on {len(rows)} tasks: {reason}") from error
        return direction

    def get_extra_state(self) -> dict[str, Any]:
        """What the aggregator keeps from step to step; empty for most."""
        part = stateful_part(self.aggregator)
        if part is None or self._restored:
            return self._restored
        return state_of(part) if int(self.step) else {}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Continue from there at the next step."""
        if part := stateful_part(self.aggregator):
            part.reset()  # type: ignore[operator]
        self._restored = dict(state)


def check_aggregator(aggregator: object) -> None:
    """Refuse what does not make a direction of the matrix of the gradients.

    Raises:
        UserError: What was given, and what to give.
    """
    try:
        from torchjd import Stateful
        from torchjd.aggregation import Aggregator as OfTorchJD
    except ImportError as error:
        raise UserError('weighting: TorchJD needs torchjd: pip install "lightning_meta[torchjd]"') from error
    parts = list(aggregator.modules()) if isinstance(aggregator, nn.Module) else []
    for reason in (NEED_MORE[type(part).__name__] for part in parts if type(part).__name__ in NEED_MORE):
        raise UserError(f"aggregator: {reason}; take another aggregator")
    name = type(aggregator).__name__
    if not isinstance(aggregator, OfTorchJD):
        hint = f"; give {name.removesuffix('Weighting')}" if name.endswith("Weighting") else ""
        raise UserError(f"aggregator: an aggregator of torchjd.aggregation is needed, got {name}{hint}")
    if any(isinstance(part, Stateful) for part in parts) and stateful_part(aggregator) is None:
        raise UserError(
            f"aggregator: {name} keeps state that no checkpoint would hold; derive a lightning_meta Aggregator"
        )


def _arguments(aggregator: nn.Module) -> dict[str, Any]:
    """What an aggregator was made with, where it differs from the default; torchjd keeps each under its name."""
    given: Mapping[str, Any] = vars(aggregator).get("_init_args", {})
    found = {}
    for name, parameter in inspect.signature(type(aggregator)).parameters.items():
        value = given.get(name, getattr(aggregator, name, parameter.default))
        if value is parameter.default or (parameter.default is None and repr(value) == _repr_of_default(value)):
            continue
        found[name] = value
    return found


def _repr_of_default(value: Any) -> str:
    """That of another such object made without arguments, as torchjd makes its projector; "" for other values."""
    return repr(type(value)()) if type(value).__module__.startswith("torchjd.") else ""
