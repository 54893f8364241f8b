"""Pools of examples, the episodes drawn from them, and the data module."""

from lightning_meta.data.episodes import Draw, EpisodeDataset, EpisodeShape
from lightning_meta.data.episodic import EpisodicDataModule
from lightning_meta.data.multi_task import MultiTaskDataModule
from lightning_meta.data.pool import Pool

__all__ = ["Draw", "EpisodeDataset", "EpisodeShape", "EpisodicDataModule", "MultiTaskDataModule", "Pool"]
