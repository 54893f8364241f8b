"""What the pictures share: when they are drawn, of what, and where they go."""

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
from lightning_meta.errors import UserError
from lightning_meta.functional.inference import outside_inference_mode
from lightning_meta.meta import MetaModule
from lightning_meta.report.drawing import save_figure

LONGEST = 300  # letters of a reason

_log = logging.getLogger("lightning_meta.pictures")


class Picture(Callback, ABC):
    """Draws one picture after the test, on rank 0, from test tasks that are drawn again by their number."""

    file: str
    """Name of the picture under `figures/`, without its suffix."""

    regression = False
    """Whether it draws regression, in place of classes."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot be drawn, before training starts."""
        data = getattr(trainer, "datamodule", None)
        name = type(self).__name__
        if not isinstance(pl_module, MetaModule) or not isinstance(data, EpisodicDataModule):
            raise UserError(f"trainer.callbacks: {name} draws meta-learners on an EpisodicDataModule; leave it out")
        drawn, others = ("regression", "classes") if self.regression else ("classes", "regression")
        if data.spec is not None and (data.spec.task == "regression") != self.regression:
            raise UserError(f"trainer.callbacks: {name} draws {drawn}, and these tasks are {others}; leave it out")
        self.check(pl_module, None if data.spec is None else data.spec.input_shape)

    def check(self, module: MetaModule, input_shape: Sequence[int] | None) -> None:
        """Refuse a method or data that have not got what is drawn.

        Args:
            module: The meta-learner.
            input_shape: Of one example, where it is known.

        Raises:
            UserError: What is missing.
        """

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw it; what goes wrong costs the picture, and not the results, which are written after it."""
        folder = trainer.log_dir or trainer.default_root_dir  # every rank asks, as rank 0 tells the others
        if not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False):
            return
        assert isinstance(pl_module, MetaModule)
        dataset: Episodes = trainer.datamodule.datasets["test"]  # type: ignore[attr-defined]
        figures = Path(folder) / "figures"
        try:
            with matplotlib.rc_context({"text.parse_math": False}):  # names of classes are text
                save_figure(self.draw(pl_module, dataset, figures), figures / f"{self.file}.png")
        except Exception as error:
            said = f"{type(error).__name__}: {' '.join(str(error).split())}"[:LONGEST]
            _log.warning("figures/%s.png could not be drawn (%s)", self.file, said)
            _log.debug("why", exc_info=True)

    @abstractmethod
    def draw(self, module: MetaModule, dataset: Episodes, folder: Path) -> Figure:
        """Make the picture.

        Args:
            module: The tested meta-learner, in evaluation mode.
            dataset: Its test tasks.
            folder: Where a table may go.
        """


def check_task(option: str, task: int) -> None:
    """Refuse a task that has no number.

    Raises:
        UserError: It is negative.
    """
    if task < 0:
        raise UserError(f"{option}: the number of a test task is at least 0, got {task}")


def episode_of(dataset: Episodes, task: int, module: MetaModule) -> Episode:
    """A test task by its number, on the module's device."""
    episode = dataset[task]
    to = module.device
    support, query = (Examples(part.x.to(to), part.y.to(to)) for part in (episode.support, episode.query))
    return episode._replace(support=support, query=query)


def learn(module: MetaModule, episode: Episode) -> tuple[Any, Examples, Examples]:
    """Learn a meta-batch of one task: its state, and its support and query set as the network takes them."""
    given = module.inputs(episode)
    support, query = (Examples(part.x[0], part.y[0]) for part in (given.support, given.query))
    with torch.no_grad():
        return outside_inference_mode(module.adapt, support, episode.ways), support, query


def class_names(dataset: Episodes, classes: Tensor) -> list[str]:
    """The names of classes of the pool that tasks are drawn from."""
    assert isinstance(dataset.origin, Pool)
    return dataset.origin.class_names(classes.tolist())
