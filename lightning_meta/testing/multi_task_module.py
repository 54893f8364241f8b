"""Tests of a multi-task module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lightning_meta.batches import TaskBatch
from lightning_meta.data import MultiTaskDataModule
from lightning_meta.multitask import MultiTaskModule
from lightning_meta.testing import toys
from lightning_meta.testing.comparing import relative_error
from lightning_meta.testing.trained_module import TrainedModuleTests


class MultiTaskModuleTests(TrainedModuleTests):
    """Subclass it, and return the `MultiTaskModule` to test from `make`.

    Override `make_data` if the method does not learn the three default tasks on four numbers.
    """

    def make_data(self) -> MultiTaskDataModule:
        """One regression and two classifications, each with its own examples."""
        return toys.sums()

    def ready(self) -> tuple[MultiTaskModule, TaskBatch]:
        """The module after one training step, in float64 and evaluation mode, and a batch."""
        module, data = self.made(), self.make_data()
        assert isinstance(module, MultiTaskModule), (
            f"make() returned a {type(module).__name__}; expected a MultiTaskModule"
        )
        self.trainer(1).fit(module, datamodule=data)
        module.double().eval()
        return module, next(iter(data.train_dataloader()))

    def test_an_absent_task_changes_nobody_else(self) -> None:
        """In evaluation, predictions of a task do not depend on which other tasks are in the batch."""
        module, batch = self.ready()
        outputs = module.outputs(batch)
        for name in batch.rows:
            alone = module.outputs(batch._replace(rows={name: batch.rows[name]}))[name]
            error = relative_error(alone.detach(), outputs[name].detach())
            assert error < 1e-9, (
                f"predictions of task {name!r} change by {error:.1e}, relatively, where the other tasks are absent "
                "from the batch; expected no change"
            )

    def test_gradients_of_tasks_add_up(self) -> None:
        """The rows of `task_gradients` sum to the gradient of the summed losses, and leave `.grad` alone."""
        module, batch = self.ready()
        module.train()
        module.zero_grad()
        with _same_dropout():
            rows = module.task_gradients(batch)
        shared = module.shared_parameters()
        expected_shape = len(module.names), sum(p.numel() for p in shared)
        assert rows.shape == expected_shape, (
            f"task_gradients has the shape {tuple(rows.shape)}; expected (tasks, shared parameters), {expected_shape}"
        )
        touched = [name for name, p in module.named_parameters() if p.grad is not None]
        assert not touched, f"task_gradients left a gradient in {touched}; expected none: use torch.autograd.grad"
        if shared:
            with _same_dropout():
                total = torch.stack(list(module.task_losses(batch).values())).sum()
            expected = torch.cat([g.flatten() for g in torch.autograd.grad(total, shared, materialize_grads=True)])
            error = relative_error(rows.sum(0), expected)
            assert error < 1e-9, (
                f"the sum of the rows of task_gradients differs from the gradient of the summed losses by {error:.1e}, "
                "relatively; expected less than 1e-9"
            )

    def test_what_belongs_to_a_task_serves_no_other(self) -> None:
        """No loss has a gradient in the own modules of another task."""
        module, batch = self.ready()
        module.train()
        losses = module.task_losses(batch)
        own = {n: [p for m in module.own_modules(i) for p in m.parameters()] for i, n in enumerate(module.names)}
        for name, loss in losses.items():
            others = [p for n, parameters in own.items() if n != name for p in parameters if p.requires_grad]
            if others:
                found = torch.autograd.grad(loss, others, retain_graph=True, allow_unused=True)
                used = any(g is not None and bool(g.any()) for g in found)
                assert not used, (
                    f"the loss of task {name!r} has a gradient in own_modules of another task; expected none, as "
                    "modules that several tasks use are shared"
                )

    def test_every_task_learns(self) -> None:
        """The loss of each task has a gradient in some parameter, and all of them together in every one."""
        module, batch = self.ready()
        module.train()
        outputs = module.outputs(batch)
        total = torch.zeros((), dtype=torch.float64)
        for name, values in outputs.items():
            assert values.requires_grad, f"predictions of task {name!r} depend on no parameter; expected at least one"
            total = total + values.square().sum()
        trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        gradients = torch.autograd.grad(total, [p for _, p in trained], allow_unused=True)
        named = zip(trained, gradients, strict=True)
        weighting = "weighting."  # it weighs losses, not predictions
        silent = [name for (name, _), g in named if g is None and not name.startswith(weighting)]
        assert not silent, f"no prediction depends on {silent}; expected every trained parameter to be used"


@contextmanager
def _same_dropout() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
