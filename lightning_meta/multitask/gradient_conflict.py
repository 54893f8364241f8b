"""A callback that records whether the gradients of jointly trained tasks agree or conflict."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from lightning_meta.batches import TaskBatch
from lightning_meta.errors import UserError
from lightning_meta.functional import gradient_conflict as functional
from lightning_meta.functional.precision import at_least_float32
from lightning_meta.run.gradient_table import COLUMNS, PAIRS, SHARES, append_rows, cut_rows
from lightning_meta.run.progress import random_state, restore_random_state
from lightning_meta.weightings import Aggregator


class GradientConflict(Callback):
    r"""Records the tasks' gradients on the shared parameters θ_sh: cosines, norms and inter-task affinity.

    Every k steps, before the optimizer step, it computes $g_i = \nabla_{\theta_{sh}} L_i$ of the unweighted loss of
    each task in the current training batch, in the module's current mode and with the dropout masks of the coming step.
    With several ranks, gradients and losses are averaged over the batches of all ranks. It records:

    - the cosine of each pair of tasks, and the share of pairs in conflict, whose cosine is below 0 (logged as
      `train/conflict_share`);
    - the norm of each task's gradient and its share in the sum of norms, which shows whether one task dominates;
    - the inter-task affinity $Z_{i \to j} = 1 - L_j(\theta_{sh} - \eta g_i, \theta_j) / L_j(\theta_{sh}, \theta_j)$
      (Fifty et al., Efficiently Identifying Task Groupings for Multi-Task Learning, NeurIPS 2021, equation 1), which is
      above 0 if a step of task i lowers the loss of task j. The step is a plain gradient step with the optimizer's
      current learning rate η, without its momentum and scaling.

    It writes to the run directory: `gradient_conflict.csv` (a row for each ordered pair of tasks in the batch),
    `gradient_share.csv` (a row for each task; an absent task has norm NaN and share 0) and, at the end of training,
    figures of the matrices and of the share of conflicts over time in `figures/`. A resumed run continues both files
    from the step of its checkpoint.

    The callback does not affect the run: weights, gradients, buffers, optimizer state and random numbers are
    bit-for-bit those of a run without it. If the module shares no parameters, nothing is recorded and no file is
    written.

    A measurement costs a forward pass, and a backward pass for each task in the batch. If the weighting is an
    aggregator, which computes these gradients anyway, it costs neither, unless batches are accumulated or the
    aggregator uses gradients with respect to features (`rep_grad`). The affinity costs one forward pass for each task
    and one more. The gradients of all tasks are kept in memory at the same time: T·P numbers, 20 MB for 50 tasks and
    100 thousand shared parameters.

    Args:
        every_n_steps: Number k of training steps between two measurements, at least 1; the first is before the first
            step.
        affinity: Whether to measure the inter-task affinity as well.

    Raises:
        UserError: `every_n_steps` is below 1.
    """

    def __init__(self, every_n_steps: int = 100, affinity: bool = True) -> None:
        if every_n_steps < 1:
            raise UserError(f"every_n_steps: expected at least 1, got {every_n_steps}")
        self.every_n_steps, self.affinity = every_n_steps, affinity
        self._directory: Path | None = None
        self._own: Path | None = None  # folder of an earlier fit with this callback: Lightning's Tuner fits repeatedly
        self._step = -1
        # Batch and random state of a step that waits for the gradients of an aggregator.
        self._waiting: tuple[TaskBatch, dict[str, Any]] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a module that is not a multi-task module."""
        if not hasattr(pl_module, "task_gradients"):
            name = type(pl_module).__name__
            raise UserError(f"GradientConflict needs a module of lightning_meta.multitask, got {name}; remove it")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Truncate the recorded files at the step from which the run starts or resumes."""
        self._waiting = None
        directory = trainer.log_dir or trainer.default_root_dir  # a broadcast, so all ranks must read it
        self._step = -1
        self._directory = None
        if trainer.is_global_zero and not getattr(trainer, "fast_dev_run", False):
            # Without a logger all runs share a folder, and a new run would delete the records of another.
            is_new = trainer.global_step == 0 and trainer.ckpt_path is None and Path(directory) != self._own
            for name in COLUMNS:
                if is_new and (Path(directory) / name).is_file():
                    raise UserError(
                        f"{Path(directory) / name} was recorded by another run; give the Trainer a logger or another "
                        "default_root_dir, or remove the file"
                    )
                cut_rows(Path(directory) / name, trainer.global_step)
            self._directory = self._own = Path(directory)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: TaskBatch, batch_idx: int
    ) -> None:
        """Measure every k steps, or store what the measurement needs if the gradients come from an aggregator."""
        step = trainer.global_step
        if step % self.every_n_steps or step == self._step:  # accumulated batches belong to the same step
            return
        self._step = step
        module: Any = pl_module
        weighting = getattr(module, "weighting", None)
        combines = isinstance(weighting, Aggregator) and not weighting.rep_grad
        if combines and trainer.accumulate_grad_batches == 1:
            self._waiting = batch, random_state()  # at the start of the step
        elif module.shared_parameters():
            with _buffers_kept(module), self._as_in_the_step(trainer, module):
                gradients = module.task_gradients(batch)
            self._record(trainer, module, batch, gradients)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Measure with the gradients that an aggregator has combined, before the optimizer changes the weights."""
        if self._waiting is None:
            return
        (batch, state), self._waiting = self._waiting, None
        module: Any = pl_module
        if module.combined_gradients is not None:
            self._record(trainer, module, batch, module.combined_gradients, state)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the figures, also if a resumed run had no steps left to train."""
        directory = Path(trainer.log_dir or trainer.default_root_dir)  # a broadcast, so all ranks must read it
        writes = trainer.is_global_zero and not getattr(trainer, "fast_dev_run", False)
        if writes and (directory / PAIRS).is_file():
            from lightning_meta.report.gradients import write_conflict_figures  # matplotlib is slow to import

            write_conflict_figures(directory, type(pl_module).__name__)

    @staticmethod
    @contextmanager
    def _as_in_the_step(trainer: Trainer, module: Any, state: dict[str, Any] | None = None) -> Iterator[None]:
        """A context with the precision and the random numbers of the training step.

        Args:
            trainer: The Trainer.
            module: The module.
            state: Random state at the start of the step; by default the current one.
        """
        with isolate_rng(module.device.type == "cuda"), trainer.precision_plugin.train_step_context():
            if state is not None:
                restore_random_state(state)
            yield

    def _affinity(
        self, trainer: Trainer, module: Any, batch: TaskBatch, gradients: Tensor, state: dict[str, Any] | None
    ) -> Tensor:
        """The inter-task affinity of the tasks in the batch, `(T, T)`."""
        shared = module.shared_parameters()

        def losses() -> Tensor:
            with torch.no_grad(), self._as_in_the_step(trainer, module, state):
                by_name = module.task_losses(batch)
            return torch.stack([at_least_float32(by_name[name]) for name in module.spec.tasks if name in batch.rows])

        with _buffers_kept(module):
            before, after, rates = losses(), [], _learning_rates(trainer, shared)
            for gradient in gradients:
                with torch.no_grad(), _stepped(shared, gradient, rates):
                    after.append(losses())
        before, after_all = (trainer.strategy.reduce(x, reduce_op="mean") for x in (before, torch.stack(after)))
        return functional.inter_task_affinity(before, after_all)

    def _record(
        self,
        trainer: Trainer,
        module: Any,
        batch: TaskBatch,
        all_gradients: Tensor,
        state: dict[str, Any] | None = None,
    ) -> None:
        """Record a measurement.

        Args:
            trainer: The Trainer.
            module: The module.
            batch: The batch that was measured.
            all_gradients: Gradients of all T tasks on the shared parameters, `(T, P)`.
            state: Random state at the start of the step; by default the current one.
        """
        tasks = list(module.spec.tasks)
        present = [name for name in tasks if name in batch.rows]
        numbers = torch.tensor([tasks.index(name) for name in present], device=all_gradients.device)
        gradients = all_gradients.index_select(0, numbers)
        affinity = torch.full((len(present), len(present)), torch.nan, dtype=torch.float64)
        if self.affinity:
            affinity = self._affinity(trainer, module, batch, gradients, state)
        cosines, norms = functional.gradient_cosines(gradients), functional.gradient_norms(gradients)
        conflict = functional.conflict_share(cosines).item()
        if not math.isnan(conflict):  # NaN with fewer than two tasks in the batch
            for logger in trainer.loggers:
                logger.log_metrics({"train/conflict_share": conflict}, self._step)
        if self._directory is None:
            return
        table = torch.stack([cosines, affinity], -1).tolist()
        pairs = [(a, b, *table[i][j]) for i, a in enumerate(present) for j, b in enumerate(present)]
        norms_and_shares = dict(
            zip(present, zip(norms.tolist(), functional.norm_shares(norms).tolist(), strict=True), strict=True)
        )
        append_rows(self._directory / PAIRS, self._step, pairs)
        append_rows(
            self._directory / SHARES,
            self._step,
            [(name, *norms_and_shares.get(name, (math.nan, 0.0))) for name in tasks],
        )


def _learning_rates(trainer: Trainer, shared: Sequence[nn.Parameter]) -> list[float]:
    """The current learning rate of each parameter; 0 if no optimizer has the parameter."""
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    rates = {id(p): float(group["lr"]) for group in groups for p in group["params"]}
    return [rates.get(id(p), 0.0) for p in shared]


@contextmanager
def _stepped(shared: Sequence[nn.Parameter], gradient: Tensor, rates: Sequence[float]) -> Iterator[None]:
    """A context in which the shared parameters have taken a gradient step; they are restored on exit.

    Args:
        shared: The shared parameters, with P entries in total.
        gradient: Gradient of one task, `(P,)`.
        rates: Learning rate of each parameter.
    """
    before = [p.clone() for p in shared]
    try:
        for p, step, rate in zip(shared, gradient.split([p.numel() for p in shared]), rates, strict=True):
            p.sub_(step.view_as(p), alpha=rate)
        yield
    finally:
        for p, value in zip(shared, before, strict=True):
            p.copy_(value)


@contextmanager
def _buffers_kept(module: nn.Module) -> Iterator[None]:
    """A context after which all buffers, such as running statistics, have their previous values."""
    owners = [(m._buffers, dict(m._buffers)) for m in module.modules()]
    values = [(b, b.clone()) for _, before in owners for b in before.values() if b is not None]
    try:
        yield
    finally:
        for buffers, before in owners:
            buffers.clear()
            buffers.update(before)
        for buffer, value in values:
            buffer.copy_(value)
