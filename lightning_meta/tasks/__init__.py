"""What a task asks for: its loss, its metrics and how a prediction is read."""

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
    """The ready-made task of a name."""
    return Classification(outputs) if name == "classification" else Regression(outputs)
