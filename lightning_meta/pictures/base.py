"""The base class of pictures, which defines when they are drawn and where they are saved."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure

from lightning_meta.batches import Episode, Examples
from lightning_meta.data import Episodes, EpisodicDataModule, Pool
from lightning_meta.errors import UserError, reason_of
from lightning_meta.functional.inference import outside_inference_mode
from lightning_meta.meta import MetaModule
from lightning_meta.report.drawing import plain_text, save_figure

_log = logging.getLogger("lightning_meta.pictures")


class Picture(Callback, ABC):
    """Draws one picture after the test, on rank 0; test tasks are generated again from their numbers."""

    file: str  # file name of the picture in `figures/`, without suffix
    regression = False  # whether the picture is for regression instead of classification

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Raise an error before training if the module or the data cannot be drawn."""
        data = getattr(trainer, "datamodule", None)
        if not isinstance(pl_module, MetaModule) or not isinstance(data, EpisodicDataModule):
            raise self.refusal("meta-learners on an EpisodicDataModule")
        assert data.spec is not None
        drawn, others = ("regression", "classes") if self.regression else ("classes", "regression")
        if (data.spec.task == "regression") != self.regression:
            raise self.refusal(f"{drawn}, and these tasks are {others}")
        self.check(pl_module, data.spec.input_shape)

    def refusal(self, drawn: str) -> UserError:
        """An error that says what the picture draws."""
        return UserError(f"trainer.callbacks: {type(self).__name__} draws {drawn}; leave it out")

    def check(self, module: MetaModule, input_shape: Sequence[int]) -> None:
        """Raise an error if the picture does not support the method or the shape of one example."""

    @plain_text
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw and save the picture; an error is logged as a warning, so that results are still written."""
        folder = trainer.log_dir or trainer.default_root_dir  # on every rank: `log_dir` is broadcast from rank 0
        if not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False):
            return
        assert isinstance(pl_module, MetaModule)
        dataset: Episodes = trainer.datamodule.datasets["test"]  # type: ignore[attr-defined]
        figures = Path(folder) / "figures"
        try:
            save_figure(self.draw(pl_module, dataset, figures), figures / f"{self.file}.png")
        except Exception as error:
            reason = f"{type(error).__name__}: {reason_of(error, 300)}"
            _log.warning("figures/%s.png could not be drawn (%s)", self.file, reason)
            _log.debug("why", exc_info=True)

    @abstractmethod
    def draw(self, module: MetaModule, dataset: Episodes, folder: Path) -> Figure:
        """Draw the test tasks of a meta-learner in evaluation mode; a table may be written to the folder `figures/`."""


def learn(module: MetaModule, dataset: Episodes, task: int) -> tuple[Episode, Any, Examples, Examples]:
    """Adapt to a test task: returns it as a meta-batch of one, the state, and both sets as inputs of the network."""
    episode = dataset[task]
    device = module.device
    support, query = (Examples(part.x.to(device), part.y.to(device)) for part in (episode.support, episode.query))
    inputs = module.inputs(episode._replace(support=support, query=query))
    support, query = (Examples(part.x[0], part.y[0]) for part in (inputs.support, inputs.query))
    with torch.no_grad():
        return episode, outside_inference_mode(module.adapt, support, episode.ways), support, query


def class_names(dataset: Episodes, episode: Episode) -> list[str]:
    """Names of the classes of a task."""
    assert isinstance(dataset.origin, Pool)
    return [] if episode.classes is None else dataset.origin.class_names(episode.classes[0].tolist())
