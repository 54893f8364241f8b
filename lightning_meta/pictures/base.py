"""The base class of pictures, which defines when they are drawn and where they are saved."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from torch import Tensor

from lightning_meta.batches import Episode, Examples
from lightning_meta.data import Episodes, EpisodicDataModule, Pool
from lightning_meta.errors import UserError, reason_of
from lightning_meta.functional.inference import outside_inference_mode
from lightning_meta.meta import MetaModule
from lightning_meta.report.drawing import save_figure

LONGEST = 300  # maximum number of characters of an error in a warning

_log = logging.getLogger("lightning_meta.pictures")


class Picture(Callback, ABC):
    """Draws one picture after the test, on rank 0; test tasks are generated again from their numbers."""

    file: str
    """File name of the picture in `figures/`, without suffix."""

    regression = False
    """Whether the picture is for regression instead of classification."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Raise an error before training if the module or the data cannot be drawn."""
        data = getattr(trainer, "datamodule", None)
        name = type(self).__name__
        if not isinstance(pl_module, MetaModule) or not isinstance(data, EpisodicDataModule):
            raise UserError(f"trainer.callbacks: {name} draws meta-learners on an EpisodicDataModule; leave it out")
        drawn, others = ("regression", "classes") if self.regression else ("classes", "regression")
        if data.spec is not None and (data.spec.task == "regression") != self.regression:
            raise UserError(f"trainer.callbacks: {name} draws {drawn}, and these tasks are {others}; leave it out")
        self.check(pl_module, None if data.spec is None else data.spec.input_shape)

    def check(self, module: MetaModule, input_shape: Sequence[int] | None) -> None:
        """Check that the picture supports the method and the data.

        Args:
            module: The meta-learner.
            input_shape: Shape of one example; None if it is unknown.

        Raises:
            UserError: The picture does not support them.
        """

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw and save the picture; an error is logged as a warning, so that results are still written."""
        folder = trainer.log_dir or trainer.default_root_dir  # on every rank: `log_dir` is broadcast from rank 0
        if not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False):
            return
        assert isinstance(pl_module, MetaModule)
        dataset: Episodes = trainer.datamodule.datasets["test"]  # type: ignore[attr-defined]
        figures = Path(folder) / "figures"
        try:
            with matplotlib.rc_context({"text.parse_math": False}):  # class names are plain text
                save_figure(self.draw(pl_module, dataset, figures), figures / f"{self.file}.png")
        except Exception as error:
            said = f": {reason_of(error)}" if str(error) else ""
            message = f"{type(error).__name__}{said}"[:LONGEST]
            _log.warning("figures/%s.png could not be drawn (%s)", self.file, message)
            _log.debug("why", exc_info=True)

    @abstractmethod
    def draw(self, module: MetaModule, dataset: Episodes, folder: Path) -> Figure:
        """Draw the picture.

        Args:
            module: Tested meta-learner, in evaluation mode.
            dataset: Test tasks.
            folder: Directory `figures/` of the run, for an additional table.

        Returns:
            The figure; it is saved by the caller.
        """


def episode_of(dataset: Episodes, task: int, module: MetaModule) -> Episode:
    """The test task with a given number, on the module's device, as a meta-batch of one task."""
    episode = dataset[task]
    device = module.device
    support, query = (Examples(part.x.to(device), part.y.to(device)) for part in (episode.support, episode.query))
    return episode._replace(support=support, query=query)


def learn(module: MetaModule, episode: Episode) -> tuple[Any, Examples, Examples]:
    """Adapt to a meta-batch of one task; return the state, and support and query set as inputs of the network."""
    inputs = module.inputs(episode)
    support, query = (Examples(part.x[0], part.y[0]) for part in (inputs.support, inputs.query))
    with torch.no_grad():
        return outside_inference_mode(module.adapt, support, episode.ways), support, query


def class_names(dataset: Episodes, classes: Tensor) -> list[str]:
    """Names of classes, given their indices in the pool from which tasks are drawn."""
    assert isinstance(dataset.origin, Pool)
    return dataset.origin.class_names(classes.tolist())
