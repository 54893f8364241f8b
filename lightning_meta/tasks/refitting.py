"""Copies of tasks with values that were computed from training targets."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from lightning_meta.errors import UserError
from lightning_meta.tasks.base import Task

_OfKind = TypeVar("_OfKind", bound=Task)


def refitted(task: _OfKind, kind: type[Task], **values: Any) -> _OfKind:
    """Return a copy of a task with fitted values, which may be of a subclass with another constructor.

    The constructor of the subclass is not called: it may take none of the values. What else it made is copied.

    Args:
        task: The task.
        kind: The class of this package whose constructor takes the values.
        values: Arguments of that constructor.

    Raises:
        UserError: The subclass does not let the constructor of its base set the values.
    """
    task = copy.copy(task)
    try:
        kind.__init__(task, **values)
    except (AttributeError, TypeError) as error:
        raise UserError(
            f"{type(task).__name__} cannot hold the values that {kind.__name__} computes from the training targets "
            f"({error}); let it override `fitted`"
        ) from error
    if type(task).__init__ is kind.__init__:
        task.update_init_args(**values)
    else:
        task.remember_fitted(**values)
    return task


def rebuilt(task: Task, **values: Any) -> Task:
    """Return a task with some fitted values replaced, and all others as they are.

    Args:
        task: A task that `fitted` returned.
        values: Values by name; a metric of None is that of the task before it was fitted.
    """
    init_args, fitted = task.__dict__.get("_init_args", {}), task.fitted_values
    if not fitted:
        return type(task)(**{**init_args, **values})
    unfitted = type(task)(**init_args)
    if "metric" in values and values["metric"] is None:
        values["metric"] = unfitted.chosen
    return unfitted.with_fitted(**{**fitted, **values})
