"""Pictures that a callback draws of a meta-learner after its test, into `figures/` of the run directory."""

from lightning_meta.pictures.confusion import ConfusionByClass
from lightning_meta.pictures.embedding import EpisodeEmbedding
from lightning_meta.pictures.episode_grid import EpisodeGrid
from lightning_meta.pictures.shot_and_way import ShotAndWay

__all__ = ["ConfusionByClass", "EpisodeEmbedding", "EpisodeGrid", "ShotAndWay"]
