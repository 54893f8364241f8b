from .confusion import ConfusionByClass as ConfusionByClass
from .embedding import EpisodeEmbedding as EpisodeEmbedding
from .episode_grid import EpisodeGrid as EpisodeGrid
from .predicted_functions import PredictedFunctions as PredictedFunctions
from .shot_and_way import ShotAndWay as ShotAndWay
