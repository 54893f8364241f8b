"""Kinds of tasks: their losses, metrics and conversion of network outputs to predictions."""

from __future__ import annotations

from lightning_meta.tasks.base import Task
from lightning_meta.tasks.classification import Binary, Classification, Multilabel
from lightning_meta.tasks.gaussian import GaussianRegression
from lightning_meta.tasks.regression import Regression
from lightning_meta.tasks.specs import EpisodeSpec, TaskName, TasksSpec
from lightning_meta.tasks.standardised import StandardisedRegression
from lightning_meta.tasks.table import NumberFeature, TableSpec, TableTarget, TextFeature

__all__ = [
    "Binary",
    "Classification",
    "EpisodeSpec",
    "GaussianRegression",
    "Multilabel",
    "NumberFeature",
    "Regression",
    "StandardisedRegression",
    "TableSpec",
    "TableTarget",
    "Task",
    "TaskName",
    "TasksSpec",
    "TextFeature",
    "task_named",
]


def task_named(name: TaskName, outputs: int) -> Task:
    """Create a task by name.

    >>> task_named("classification", 5).selection
    'accuracy'
    """
    return Classification(outputs) if name == "classification" else Regression(outputs)
