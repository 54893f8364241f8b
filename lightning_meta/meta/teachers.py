"""The model of another run as a teacher for distillation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_meta.data.hashes import of_weights
from lightning_meta.data.module import SourceDataModule
from lightning_meta.describing import describe
from lightning_meta.errors import UserError
from lightning_meta.meta.learner import Learner
from lightning_meta.run.checkpoint_io import read_checkpoint
from lightning_meta.specifications import class_paths


class Teacher:
    """The best checkpoint of a run, loaded when training begins; a checkpoint of the student loads without it.

    Not a module, so that its weights are neither trained nor averaged nor stored with those of the student.

    Args:
        path: Run directory or checkpoint.
        kind: Expected class of its model, which has `class_logits`.

    Attributes:
        digest: Hash of its weights; "" before `load`.
    """

    def __init__(self, path: str, kind: type[Learner]) -> None:
        self.path, self.kind, self.digest = path, kind, ""
        self._model: Any = None

    def load(self, student: Learner) -> None:
        """Load the model, once.

        Args:
            student: The student; its classes are allowed in the teacher's checkpoint.

        Raises:
            UserError: There is no such run, it does not load, or it was trained on other classes.
        """
        if self._model is not None:
            return
        from lightning_meta.loading import find_checkpoint, load  # imported here, since it imports all methods

        try:
            file = find_checkpoint(self.path)
            model = load(file, allow=tuple(class_paths(describe(student))))
        except UserError as error:
            raise UserError(f"teacher: {error}; training needs it, also when it is resumed") from error
        if not isinstance(model, self.kind):
            raise UserError(f"teacher: a run of {self.kind.__name__} is needed, {file} is of {type(model).__name__}")
        for name in ("input_shape", "classes"):
            own, other = getattr(student.spec, name), getattr(model.spec, name)
            if own != other:
                raise UserError(f"teacher: {file} was trained on {name} {other}, these data have {own}")
        splits = _train_split_of(read_checkpoint(file)), _train_split_of_data(student)
        if "" not in splits and splits[0] != splits[1]:
            raise UserError(f"teacher: {file} was trained on other images or classes; give one that learned from these")
        self._model, self.digest = model.requires_grad_(False), of_weights(model.state_dict().items())

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Logits `(M, classes)` of inputs `(M, *input_shape)` on any device, in evaluation mode."""
        assert self._model is not None
        logits: Tensor = self._model.to(x.device, x.dtype).class_logits(x)
        return logits


def _train_split_of(checkpoint: Mapping[str, Any]) -> str:
    """The hash of the classes and images that a run was trained on; "" if the checkpoint has none."""
    examples = (checkpoint.get("lightning_meta_run") or {}).get("examples") or {}
    return str(examples.get("train", ""))


def _train_split_of_data(student: Learner) -> str:
    """The same hash for the data module of the trainer."""
    try:
        data = getattr(student.trainer, "datamodule", None)
    except RuntimeError:  # it has no trainer yet
        return ""
    return str(data.division().get("train", "")) if isinstance(data, SourceDataModule) else ""
