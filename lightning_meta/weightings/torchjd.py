"""The aggregators of torchjd, applied to the gradients of a whole step."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_meta.describing import remember
from lightning_meta.errors import UserError, reason_of
from lightning_meta.functional import random_bits
from lightning_meta.functional.generators import seeded_generators
from lightning_meta.functional.precision import at_least_float32
from lightning_meta.tasks import Task
from lightning_meta.weightings.aggregator import Aggregator
from lightning_meta.weightings.by_name import check_weights, in_order
from lightning_meta.weightings.torchjd_state import restore, state_of, stateful_part

NEED_MORE = {
    "SDMGradWeighting": "SDMGrad needs the gradients of several independent batches, and a step has one batch",
    "MoDoWeighting": "MoDo needs the gradients of several independent batches, and a step has one batch",
    "CRMOGMWeighting": "CR-MOGM keeps weights between steps, which checkpoints would not contain",
}
"""Reasons for which classes of torchjd are refused."""

KEEP_COLUMNS = ("ExcessMTLWeighting",)
"""Classes of torchjd with state for each column of the matrix."""


class TorchJD(Aggregator):
    r"""Combines the tasks' gradients with an aggregator of the library torchjd.

    The direction is $\mathcal{A}(J)$, where the rows of J are the gradients of the tasks present in the step: averaged
    over ranks, accumulated over batches, not yet clipped, and in float32 at least. (torchjd's own `backward` aggregates
    on each rank the gradients of that rank alone.) Random draws are a pure function of a key, which is drawn once from
    torch's generator, and of the number of the step, so they are the same on all ranks and after a resume. The
    state of `ExcessMTL`, `GradVac`, `NashMTL` and `PCD` is saved in checkpoints; these need every task in every step.

    Quinton and Rey, Jacobian Descent for Multi-Objective Optimization (https://arxiv.org/abs/2406.16232); each
    aggregator has its own paper, cited on its page at https://torchjd.org.

    Run it:
        With the extra `torchjd` installed: `python scripts/fit.py --config configs/multi_head_glyphs.yaml
        --model.weighting TorchJD --model.weighting.aggregator torchjd.aggregation.AlignedMTL`. Its options follow as
        `--model.weighting.aggregator.<option>`.

    Logged:
        - `train/loss`: sum of the losses; task-specific parameters follow its gradient.

    Deviations:
        - The direction has the scale of torchjd, for most aggregators that of a mean: T times shorter than that of
          `Equal` if no two tasks conflict.

    Args:
        aggregator: Any aggregator of `torchjd.aggregation`. `PCD` takes the first task as its primary objective.
        preference: Weight of every task by name, >= 0 and not all 0, for aggregators that take a `pref_vector`.
        rep_grad: Whether to use gradients with respect to shared features; see `weightings.Aggregator`. Not supported
            by `ExcessMTL`, which keeps sums for each parameter.

    Raises:
        UserError: The argument is not an aggregator, needs more than the gradients of a step, or does not support
            `preference` or `rep_grad`.
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
                f"rep_grad: torchjd's {type(aggregator).__name__} keeps a sum for each column of the gradients, and "
                "each step has other shared features; leave rep_grad out, or use another aggregator"
            )
        if preference is not None:
            check_weights("preference", preference)
            if not hasattr(aggregator, "pref_vector"):
                raise UserError(f"preference: torchjd's {type(aggregator).__name__} does not support it; leave it out")
        self.preference = preference
        remember(aggregator, _arguments(aggregator))
        self._aggregator = (aggregator,)  # not a submodule, since its buffers change in number and shape
        self._restored: dict[str, Any] = {}

    @property
    def aggregator(self) -> nn.Module:
        """The aggregator of torchjd."""
        return self._aggregator[0]

    def configure(self, tasks: Mapping[str, Task]) -> None:
        """Draw the key, and test a copy of the aggregator on the identity matrix, one row per task.

        Raises:
            UserError: The aggregator fails on this number of tasks, or the preference does not fit the tasks.
        """
        super().configure(tasks)
        self.names = list(tasks)
        self.register_buffer("key", torch.randint(torch.iinfo(torch.int64).max, ()))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        if self.preference is not None:
            self.register_buffer("preferred", in_order("preference", self.preference, tasks), persistent=False)
        if self.key.device.type != "meta":  # "meta" while a checkpoint is read; solvers need values
            self._aggregate(copy.deepcopy(self.aggregator), torch.eye(len(tasks)), ...)

    def direction(self, gradients: Tensor, losses: Tensor, present: Tensor) -> Tensor:
        """The direction of torchjd for the present tasks, `(P,)`; arguments as for `Aggregator.direction`.

        Raises:
            UserError: The aggregator has state for each task and one is absent, it fails, or its direction is not
                finite.
        """
        rows, part = at_least_float32(gradients), stateful_part(self.aggregator)
        chosen: Any = ...
        if not present.all():
            if part is not None:
                absent = [name for name, here in zip(self.names, present.tolist(), strict=True) if not here]
                raise UserError(
                    f"weighting: torchjd's {type(self.aggregator).__name__} needs every task in every step, got no "
                    f"example of {', '.join(absent)}; leave tasks_per_batch out and use larger batches, or use an "
                    "aggregator without state"
                )
            rows, chosen = rows[present], present
        if part is not None and self._restored:
            restore(part, self._restored, rows)
            self._restored = {}
        direction = self._aggregate(self.aggregator, rows, chosen)
        self.step += 1
        if not direction.isfinite().all():
            raise UserError(
                f"weighting: torchjd's {type(self.aggregator).__name__} returned a direction that is not finite for "
                "finite gradients; use another aggregator"
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
                reason = reason_of(error)
                name = type(aggregator).__name__
                raise UserError(f"weighting: torchjd's {name} failed for {len(rows)} tasks: {reason}") from error
        return direction

    def get_extra_state(self) -> dict[str, Any]:
        """The state of the aggregator; empty for most."""
        part = stateful_part(self.aggregator)
        if part is None or self._restored:
            return self._restored
        return state_of(part) if int(self.step) else {}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Set the state to be restored at the next step, when the shape of the gradients is known."""
        if part := stateful_part(self.aggregator):
            part.reset()  # type: ignore[operator]
        self._restored = dict(state)


def check_aggregator(aggregator: object) -> None:
    """Check that an object is an aggregator of torchjd which `TorchJD` supports.

    Raises:
        UserError: torchjd is not installed, or the object is of another type or not supported.
    """
    try:
        from torchjd import Stateful
        from torchjd.aggregation import Aggregator as OfTorchJD
    except ImportError as error:
        raise UserError('weighting: TorchJD needs torchjd: pip install "lightning_meta[torchjd]"') from error
    parts = list(aggregator.modules()) if isinstance(aggregator, nn.Module) else []
    for reason in (NEED_MORE[type(part).__name__] for part in parts if type(part).__name__ in NEED_MORE):
        raise UserError(f"aggregator: {reason}; use another aggregator")
    name = type(aggregator).__name__
    if not isinstance(aggregator, OfTorchJD):
        hint = f"; give {name.removesuffix('Weighting')}" if name.endswith("Weighting") else ""
        raise UserError(f"aggregator: an aggregator of torchjd.aggregation is needed, got {name}{hint}")
    if any(isinstance(part, Stateful) for part in parts) and stateful_part(aggregator) is None:
        raise UserError(
            f"aggregator: {name} has state that checkpoints would not contain; subclass "
            "lightning_meta.weightings.Aggregator"
        )


def _arguments(aggregator: nn.Module) -> dict[str, Any]:
    """Arguments of an aggregator that differ from their defaults; torchjd stores each under its name."""
    stored: Mapping[str, Any] = vars(aggregator).get("_init_args", {})
    arguments = {}
    for name, parameter in inspect.signature(type(aggregator)).parameters.items():
        value = stored.get(name, getattr(aggregator, name, parameter.default))
        if value is parameter.default or (parameter.default is None and repr(value) == _repr_of_default(value)):
            continue
        arguments[name] = value
    return arguments


def _repr_of_default(value: Any) -> str:
    """The `repr` of a new object of this torchjd class, made without arguments as projectors are; otherwise ""."""
    return repr(type(value)()) if type(value).__module__.startswith("torchjd.") else ""
