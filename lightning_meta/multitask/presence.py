"""Which tasks were in the batches since the last step of each optimizer."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from torch.optim import Optimizer


class Presence:
    """Counts batches, and notes in which of them each task was.

    It is asked in every training step, so that nothing loops over the tasks if all of them were in the batch. Steps are
    noted by the `id` of their optimizer.
    """

    def __init__(self) -> None:
        self.batches = 0
        self._of_all = 0  # number of the last batch with all tasks
        self._of_task: dict[str, int] = {}  # number of the last batch with a task, unless all tasks were in it
        self._of_step: dict[int, tuple[int, int]] = {}  # result of `_range` for the last step of an optimizer

    def note(self, names: Collection[str], tasks: int) -> None:
        """Note a batch with examples of these tasks, out of so many."""
        self.batches += 1
        if len(names) == tasks:
            self._of_all = self.batches
        else:
            self._of_task.update(dict.fromkeys(names, self.batches))

    def absent(self, optimizer: Optimizer, names: Iterable[str]) -> set[str]:
        """Those of the names that were in no batch since the last step of an optimizer."""
        before, _ = self._range(optimizer)
        if not self.batches or self._of_all > before:
            return set()
        return {name for name in names if self._of_task.get(name, 0) <= before}

    def note_step(self, optimizer: Optimizer) -> None:
        """Note that an optimizer makes its step now."""
        self._of_step[id(optimizer)] = self._range(optimizer)

    def _range(self, optimizer: Optimizer) -> tuple[int, int]:
        """The numbers of the last batch before a step and of the step's own last batch.

        Further steps in the same batch, and further calls of the closure such as those of LBFGS, have the same.
        """
        before, last = self._of_step.get(id(optimizer), (0, 0))
        return (before if last == self.batches else last), self.batches
